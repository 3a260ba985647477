"""Panels whose last steps come in a file of their own, as those of the M4 competition do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tsprune.data.panel import Panel, Series
from tsprune.data.words import listed
from tsprune.errors import TspruneError


def append_steps(train: Panel, test: Panel) -> Panel:
    """Every series of one panel continued by the series of the same id in another.

    Args:
        train: the series up to some step.
        test: what comes after it, in any order of series.

    Returns:
        A panel in the order of `train`; `repairs` has those of both.

    Raises:
        TspruneError: if ids differ, there are covariates, or the dates of `test` do not follow on those of `train`.
    """
    if any((*panel.past_names, *panel.known_names) for panel in (train, test)):
        raise TspruneError(
            f"{test.source}: covariates cannot be continued from a second file; put all rows in one file"
        )
    odd = sorted(set(train.ids) ^ set(test.ids))
    if odd:
        raise TspruneError(
            f"{listed(odd)}: in only one of {train.source} ({len(train.ids):,} series) and {test.source} "
            f"({len(test.ids):,}); expected the same series in both"
        )
    later = {series.id: series for series in test.series}
    joined = tuple(_continued(train, series, later[series.id], test.source) for series in train.series)
    repairs = (*train.repairs, *(f"{test.source}: {line}" for line in test.repairs))
    return replace(train, series=joined, repairs=repairs, source=f"{train.source} and {test.source}")


def _continued(train: Panel, series: Series, later: Series, source: str) -> Series:
    if later.start is not None and series.start is not None:
        expected = train.horizon_timestamps(series, len(series), 1)[0]
        if later.start != expected:
            raise TspruneError(
                f"{source}: series {series.id!r} starts at {later.start}, expected {expected}, the step after the "
                f"end of {train.source}"
            )
    elif later.start is not None or series.start is not None:
        raise TspruneError(f"{source}: only one of the files has timestamps, expected them in both or in none")
    stamps = None
    if series.stamps is not None and later.stamps is not None:
        stamps = np.concatenate([series.stamps, later.stamps])
    return replace(series, values=np.concatenate([series.values, later.values]), stamps=stamps)
