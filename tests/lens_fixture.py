"""Studies of tiny models, and a count of what a probe asks of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.planted import rows_of
from tests.tiny import grouped_batch, tiny_batch
from tsprune.data.batch import Batch
from tsprune.evaluation.timeblocks import Blocks
from tsprune.lens._probe import Findings, Probe, Study
from tsprune.models._forecaster import Forecaster
from tsprune.scores._work import count_windows


def study_of(
    model: Forecaster,
    first: Sequence[Batch],
    later: Sequence[Batch] = (),
    *,
    blocks: Blocks | None = None,
    seed: int = 0,
) -> Study:
    """A study without data behind it: probes only look at its model and windows."""
    ready = cast(Any, SimpleNamespace(model=model, horizon=first[0].target.shape[1]))  # type: ignore[union-attr]
    return Study(ready, first, later or first, seed, blocks)


def halves(batch: Batch) -> list[Batch]:
    """Two batches of about half of the rows each, without groups."""
    middle = batch.rows // 2
    return [rows_of(batch, range(middle)), rows_of(batch, range(middle, batch.rows))]


def windows_for(model: Forecaster) -> Batch:
    """Windows that the family takes."""
    return grouped_batch() if model.capabilities.known_covariates else tiny_batch(4)


@contextmanager
def counted(model: Forecaster, *, windows: bool = False) -> Iterator[dict[str, int]]:
    """How often the model is asked for the losses and the forecasts of a batch, or of how many windows together."""
    found = {"loss": 0, "forecast": 0}

    def counting(name: str) -> Any:
        real = getattr(type(model), name)

        def asked(self: Forecaster, batch: Batch, *given: Any, **named: Any) -> Any:
            found[name] += count_windows(batch) if windows else 1
            return real(self, batch, *given, **named)

        return asked

    with pytest.MonkeyPatch.context() as patch:
        for name in found:
            patch.setattr(type(model), name, counting(name))
        yield found


def ran(probe: Probe, study: Study) -> tuple[Findings, int]:
    """What a probe found, and how often it ticked."""
    notes: list[str] = []
    return probe.run(study, notes.append), len(notes)
