"""Whether the model repeats its context or its seasons more than the future does, and which heads make it do so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tsprune.evaluation.intervals import Interval
from tsprune.lens import _parrots
from tsprune.lens._ablating import groups_of, switched_off
from tsprune.lens._heads import windows_in
from tsprune.lens._probe import Findings, Measure, Probe, Study, Table, Tick
from tsprune.lens._windowmeans import (
    Floats,
    Rows,
    mean_intervals,
    medians,
    rows_of_study,
    share_of_first,
    steps_of,
    told,
)
from tsprune.models._forecaster import Forecaster

DRIVERS = 3
"""Heads with the largest change of either index that are looked at again on later windows."""
Head = tuple[str, int]


@dataclass(frozen=True)
class _Windows:
    """Windows with all that does not depend on the forecast.

    Args:
        rows: what they hold.
        counted: `[R, H]`, where the target is there.
        period: of the context's season `[R]`.
        truth: index, share and error of the actual future `[R, 3]`.
    """

    rows: Rows
    counted: np.ndarray[Any, np.dtype[np.bool_]]
    period: Floats
    truth: Floats

    @classmethod
    def of(cls, rows: Rows) -> _Windows:
        counted = ~np.isnan(rows.target)
        period = _parrots.dominant_period(rows.context, rows.target.shape[1])
        bare = cls(rows, counted, period, np.zeros((0, 3)))
        return cls(rows, counted, period, bare.read(rows.target))

    def read(self, forecast: Floats) -> Floats:
        """Parroting index, season's share, and error in standard deviations of the context: `[R, 3]`."""
        rows = self.rows
        index = _parrots.parroting(forecast, rows.context, rows.spread, self.counted)
        share = _parrots.season_share(forecast, self.period, self.counted)
        there = np.where(self.counted, forecast - np.where(self.counted, rows.target, 0), 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            error = np.sqrt((there**2).sum(1) / self.counted.sum(1)) / rows.spread
        return np.stack([index, share, error], axis=1)


class Parroting(Probe):
    """Parroting and seasonality bias with their controls.

    Args:
        heads: whether to look for the heads that drive them, which takes a pass for each.
    """

    title = "Repeating the context"
    question = "Does the model repeat its context, or its seasons, more than the future does, and by which heads?"
    source = (
        "the parrot and what it shows: arXiv 2602.01605 (released code), which has no number for it; indices are ours"
    )

    def __init__(self, heads: bool = True) -> None:
        self.heads = heads

    def passes(self, study: Study) -> float:
        """One forecast, one for each head, and those of up to six heads and the whole on the later windows."""
        heads = len(_heads(study.model)) if self.heads else 0
        return 1 + heads + ((1 + min(2 * DRIVERS, heads)) * share_of_first(study) if heads else 0)

    def run(self, study: Study, tick: Tick) -> Findings:
        """Indices on the first windows, then the heads, of which the strongest are confirmed on the later windows."""
        model, steps = study.model, steps_of(study.first, study.horizon)
        windows = _Windows.of(rows_of_study(study.first, steps))
        found = windows.read(medians(model, study.first, steps))
        tick("forecasts")
        indices = _indices(study, windows, found)
        changes: dict[Head, Floats] = {}
        for head in _heads(model) if self.heads else []:
            with switched_off(model, {head[0]: [head[1]]}):
                changes[head] = windows.read(medians(model, study.first, steps)) - found
            tick(f"without head {head[1]} of {head[0].rsplit('/', 1)[0]}")
        means = {head: _means(windows.rows.by_window(one)) for head, one in changes.items()}
        later = self._confirmed(study, steps, _strongest(means), tick) if windows_in(study.later) else {}
        return _findings(study, windows, indices, changes, means, later, steps)

    def _confirmed(self, study: Study, steps: int, heads: Sequence[Head], tick: Tick) -> dict[Head, Sequence[Interval]]:
        """Changes of the strongest heads on the later windows, with intervals."""
        if not heads:
            return {}
        windows = _Windows.of(rows_of_study(study.later, steps))
        whole = windows.read(medians(study.model, study.later, steps))
        found: dict[Head, Sequence[Interval]] = {}
        for head in heads:
            with switched_off(study.model, {head[0]: [head[1]]}):
                change = windows.read(medians(study.model, study.later, steps)) - whole
            found[head] = mean_intervals(windows.rows.by_window(change), study)
        tick("strongest heads, later windows")
        return found


def _heads(model: Forecaster) -> list[Head]:
    return [(name, unit) for name, group in groups_of(model, "head").items() for unit in range(group.units)]


def _means(values: Floats) -> Floats:
    """Means of the columns of `[N, 3]` over the windows that have a value, NaN where none has."""
    with np.errstate(invalid="ignore"):
        found: Floats = np.nansum(values, axis=0) / (~np.isnan(values)).sum(0)
    return found


def _strongest(means: Mapping[Head, Floats]) -> list[Head]:
    """Three heads by the size of their change of the parroting index, then three more by that of the season."""
    chosen: list[Head] = []
    for column in (0, 1):
        left = [head for head in means if head not in chosen]
        chosen += sorted(left, key=lambda head: -abs(float(np.nan_to_num(means[head][column]))))[:DRIVERS]
    return chosen


def _indices(study: Study, windows: _Windows, found: Floats) -> dict[str, list[Interval]]:
    """Index, share and error of the model, the truth and the references, and what exceeds the truth."""
    rows, steps = windows.rows, windows.rows.target.shape[1]
    flat = np.repeat(np.nanmean(np.where(np.isnan(rows.spread)[:, None], 0, rows.context), axis=1)[:, None], steps, 1)
    parrot = windows.read(_parrots.repeated(rows.context, steps))
    read = {
        "model": found,
        "what came": windows.truth,
        "parrot": parrot,
        "flat line": windows.read(flat),
        "model - what came": found - windows.truth,
        "parrot - what came": parrot - windows.truth,
        "model - parrot": found - parrot,
    }
    return {name: mean_intervals(rows.by_window(values), study) for name, values in read.items()}


def _findings(
    study: Study,
    windows: _Windows,
    indices: Mapping[str, list[Interval]],
    changes: Mapping[Head, Floats],
    means: Mapping[Head, Floats],
    later: Mapping[Head, Sequence[Interval]],
    steps: int,
) -> Findings:
    excess, bias = indices["model - what came"][0], indices["model - what came"][1]
    tables = [_table(indices)]
    if changes:
        tables.append(_drivers(study, windows, changes, means, later))
    return Findings(
        answer=_answer(indices),
        measures=_measures(study.model, means) if changes else [],
        tables=tables,
        notes=_notes(study, windows, bool(changes), steps),
        facts={
            "parroting": indices["model"][0].to_json(),
            "parroting_excess": excess.to_json(),
            "seasonality_bias": bias.to_json(),
            "indices": {name: [one.to_json() for one in values] for name, values in indices.items()},
            "drivers": [[head[0].rsplit("/", 1)[0], head[1]] for head in later],
        },
    )


def _answer(indices: Mapping[str, list[Interval]]) -> str:
    own, beyond = indices["model"], indices["model - what came"]
    if own[0].estimate is None or beyond[0].estimate is None:
        return "No context is long enough to hold a stretch as long as the forecast, so that nothing can be repeated."

    def side(found: Interval) -> str:
        if not found.excludes(0):
            return "not shown to differ from"
        return "more than" if (found.estimate or 0) > 0 else "less than"

    text = (
        f"The parroting index of the forecasts is {own[0].estimate:.2f}: they repeat the context {side(beyond[0])} "
        f"what came does, by {told(beyond[0])}"
    )
    if beyond[1].estimate is None:
        return f"{text}; no season fits the horizon."
    return f"{text}; the season's share of their power is {side(beyond[1])} that of what came, by {told(beyond[1])}."


def _table(indices: Mapping[str, list[Interval]]) -> Table:
    head = ["", "parroting index", "low", "high", "season's share", "low", "high", "error", "low", "high"]
    rows = [
        [name, *(v for one in values for v in (one.estimate, one.low, one.high))] for name, values in indices.items()
    ]
    return Table(
        "Parroting and season, means over windows; errors are RMSE in standard deviations of the context", head, rows
    )


def _drivers(
    study: Study,
    windows: _Windows,
    changes: Mapping[Head, Floats],
    means: Mapping[Head, Floats],
    later: Mapping[Head, Sequence[Interval]],
) -> Table:
    head = ["block", "head", "parroting", "low", "high", "season", "low", "high", "error", "low", "high"]
    rows = []
    for name, unit in _strongest(means):
        first = mean_intervals(windows.rows.by_window(changes[name, unit]), study)
        for when, found in (("first", first), ("later", later.get((name, unit)))):
            if found is not None:
                numbers = [value for one in found for value in (one.estimate, one.low, one.high)]
                rows.append([name.rsplit("/", 1)[0], unit, when, *numbers])
    return Table("Change without the head, for those that change most", [*head[:2], "windows", *head[2:]], rows)


def _measures(model: Forecaster, means: Mapping[Head, Floats]) -> list[Measure]:
    texts: tuple[tuple[str, Literal["high", ""], str], ...] = (
        ("change of the parroting index without it", "", "below 0: the model repeats its context by this head"),
        ("change of the season's share without it", "", "below 0: the forecast is seasonal by this head"),
        ("change of the error without it", "high", "RMSE in standard deviations of the context"),
    )
    groups = groups_of(model, "head")
    return [
        Measure(
            name,
            "head",
            {
                group.path: [_number(means[key, unit][column]) for unit in range(group.units)]
                for key, group in groups.items()
            },
            direction,
            words,
        )
        for column, (name, direction, words) in enumerate(texts)
    ]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _notes(study: Study, windows: _Windows, heads: bool, steps: int) -> list[str]:
    rows = windows.rows
    notes = [
        "the index of anything smooth is high: read it against what came, the flat line (lower) and the parrot, a "
        "Nadaraya-Watson forecaster of 5 neighbours (upper)"
    ]
    if flat := int(np.isnan(rows.spread).sum()):
        notes.append(f"{flat} of {len(rows.spread)} rows have a constant or empty context and are left out")
    if (without := int(np.isnan(windows.truth[:, 0]).sum()) - flat) > 0:
        notes.append(f"{without} rows have no target or no whole stretch of {steps} steps in their context")
    if np.isnan(windows.truth[:, 1]).all():
        notes.append(
            f"no season of 2 to {steps} steps, or fewer than {_parrots.FEWEST_STEPS} steps of target: no share"
        )
    if steps < study.horizon:
        notes.append(f"targets hold {steps} of the {study.horizon} steps: only these are looked at")
    if heads:
        notes.append(
            "heads were chosen by their changes on the first windows, where the largest of many changes looks larger "
            "than it is: believe the later windows"
        )
    return notes


PROBE = Parroting()
