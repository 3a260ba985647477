"""Forecasts with and without the sharpest and the most diffuse head, on windows where one can see the difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tsprune.evaluation.intervals import quotient
from tsprune.lens import _ablating as ablating
from tsprune.lens import _similarity as similarity
from tsprune.lens._heads import Unit, without_heads
from tsprune.lens._probe import Findings, Picture, Probe, Study, Table, Tick, Trace
from tsprune.lens.attention_entropy import entropy_of, entropy_passes
from tsprune.models._forecaster import Forecaster

TAILS = 2
"""Steps of context that are drawn, in horizons."""
SHORTEST = 48
PASSES = 3
"""Forecasts: of the intact model and without either head."""


@dataclass(frozen=True)
class Shown:
    """A head, and the forecasts without it.

    Args:
        word: `sharpest` or `most diffuse`.
        head: with its entropy.
        forecast: median forecasts without it `[R, H]`.
        change: by how much each row's forecast changes, root mean square `[R]`.
        rows: the row that changes most, and the one in the middle.
    """

    word: str
    head: Unit
    forecast: Tensor
    change: Tensor
    rows: tuple[int, int]


class HeadsShown(Probe):
    """See the module."""

    title = "Forecasts without a head"
    question = "What does a forecast look like without the sharpest head, and without the most diffuse one?"
    source = (
        "2602.01605, forecasts before and after heads of low and of high attention entropy are set to zero; ours: "
        "windows by rule, the one that changes most and the median one, and never picked by eye"
    )

    def refusal(self, model: Forecaster) -> str:
        """Models without heads are refused."""
        return without_heads(model)

    def passes(self, study: Study) -> float:
        """The attention of all windows, and three forecasts."""
        return entropy_passes(study) + PASSES

    def run(self, study: Study, tick: Tick) -> Findings:
        """Find both heads, forecast without each; the model is left as it was found."""
        _, units = entropy_of(study, tick)
        chosen = dict(zip(("sharpest", "most diffuse"), (units[0], units[-1]), strict=True)) if units else {}
        if len(units) == 1:
            del chosen["most diffuse"]
        intact, truth = ablating.medians(study.model, study.first), ablating.truth(study.first)
        tick("forecast of the intact model")
        shown = []
        for word, head in chosen.items():
            group = study.model.unit_groups()[f"{head.path}/head"]
            forecast = ablating.medians(study.model, study.first, ablating.without(group, [head.unit]))
            tick(f"forecast without the {word} head")
            change = (forecast - intact).square().mean(-1).sqrt()
            shown.append(Shown(word, head, forecast, change, picked(change)))
        for _ in range(PASSES - 1 - len(shown)):
            tick("no other head")
        return _findings(study, shown, intact, truth)


def picked(change: Tensor) -> tuple[int, int]:
    """The row with the largest change of `[R]` and the one in the middle, the lower of two; equal ones in order.

    A change that is no number counts as the largest.
    """
    order = torch.argsort(torch.nan_to_num(change, nan=torch.inf), stable=True).tolist()
    return order[-1], order[(len(order) - 1) // 2]


def _findings(study: Study, shown: Sequence[Shown], intact: Tensor, truth: Tensor) -> Findings:
    names = list(study.rows) or [f"row {row}" for row in range(len(intact))]
    past = ablating.contexts(study.first)[:, -max(SHORTEST, TAILS * intact.shape[1]) :]
    pictures = [
        _picture(one, row, which, names[row], past[row], truth[row], intact[row])
        for one in shown
        for row, which in zip(one.rows, ("changes most", "the median change"), strict=True)
    ]
    return Findings(
        answer=_answer(shown, intact, truth),
        tables=[_rows_table(shown, names, intact, truth), _all_table(shown, intact, truth)] if shown else [],
        pictures=pictures,
        notes=[
            "values are on the scale of the windows: in standard deviations of the train part of each series",
            "the head with the lowest and the one with the highest entropy of attention on the first windows",
            "set to zero; one head alone: what others can stand in for does not show",
        ],
        facts={
            "shown": [
                {
                    "which": one.word,
                    "group": f"{one.head.path}/head",
                    "unit": one.head.unit,
                    "entropy": one.head.value,
                    "rows": list(one.rows),
                }
                for one in shown
            ]
        },
    )


def _picture(one: Shown, row: int, which: str, name: str, past: Tensor, truth: Tensor, intact: Tensor) -> Picture:
    distance, before, after = _numbers(one, row, intact[None], truth[None])
    said = [f"Spearman distance {distance:.2g}"]
    if before is not None and after is not None:
        said.append(f"squared error {before:.3g} with it, {after:.3g} without")
    return Picture(
        f"Without the {one.word} head, {which}: {name}",
        [
            Trace("context", -len(past), _values(past), "context"),
            Trace("what came", 0, _values(truth), "truth"),
            Trace("intact", 0, _values(intact), "forecast"),
            Trace(f"without {one.head}", 0, _values(one.forecast[row]), "other"),
        ],
        f"{one.head}: {', '.join(said)}",
    )


def _numbers(one: Shown, row: int, intact: Tensor, truth: Tensor) -> tuple[float, float | None, float | None]:
    """Spearman distance and mean squared errors with and without the head, of one row; `intact`, `truth` `[1, H]`."""
    forecast = one.forecast[row][None]
    distance = float(similarity.spearman_distance(intact, forecast).mean())
    return distance, similarity.squared_error(intact, truth), similarity.squared_error(forecast, truth)


def _values(row: Tensor) -> list[float | None]:
    return [ablating.number(float(f"{value:.6g}")) for value in row.tolist()]


def _rows_table(shown: Sequence[Shown], names: Sequence[str], intact: Tensor, truth: Tensor) -> Table:
    rows: list[list[Any]] = []
    for one in shown:
        for row, which in zip(one.rows, ("most", "median"), strict=True):
            numbers = _numbers(one, row, intact[row][None], truth[row][None])
            rows.append([f"{one.word}, {which} change", names[row], float(one.change[row]), *numbers])
    head = ["head and window", "series", "change", "Spearman distance", "squared error with", "without"]
    return Table("The windows that are drawn", head, rows)


def _all_table(shown: Sequence[Shown], intact: Tensor, truth: Tensor) -> Table:
    rows: list[list[Any]] = []
    before = similarity.squared_error(intact, truth)
    for one in shown:
        distance = float(similarity.spearman_distance(intact, one.forecast).mean())
        after = similarity.squared_error(one.forecast, truth)
        rows.append([one.word, str(one.head), one.head.value, distance, before, after, quotient(after, before)])
    head = ["head", "which", "entropy", "Spearman distance", "squared error with", "without", "ratio"]
    return Table(f"All {len(intact)} forecasts, means", head, rows)


def _answer(shown: Sequence[Shown], intact: Tensor, truth: Tensor) -> str:
    if not shown:
        return "No query has a choice between keys on these windows, so no head is sharp or diffuse."
    before = similarity.squared_error(intact, truth)
    said = []
    for one in shown:
        distance = float(similarity.spearman_distance(intact, one.forecast).mean())
        ratio = quotient(similarity.squared_error(one.forecast, truth), before)
        error = "" if ratio is None else f" and their squared error by {100 * (ratio - 1):+.1f} %"
        said.append(
            f"without the {one.word} head ({one.head}, entropy {one.head.value:.2f}) the order of steps in forecasts "
            f"changes by {distance:.3f} (0 same, 1 unrelated){error}"
        )
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}."


PROBE = HeadsShown()
