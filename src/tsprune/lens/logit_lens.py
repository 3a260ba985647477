"""The forecast after every layer: the head is given what the residual stream holds so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from tsprune.blocks.branch import Branch, Layer
from tsprune.data.batch import Batch
from tsprune.evaluation.intervals import Interval
from tsprune.lens._ablating import switched_off
from tsprune.lens._heads import windows_in
from tsprune.lens._probe import Curve, Findings, Measure, Probe, Study, Table, Tick
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
from tsprune.scores._taps import frozen
from tsprune.scores._work import over_windows

if TYPE_CHECKING:
    from tsprune.models.chronos_t5 import ChronosT5

CLOSE = 0.05
"""How much larger than the whole model's the error of fewer layers may be to count as close."""
TOKENS = "chronos_t5"
LIKELY = 0.01


@dataclass(frozen=True)
class _Spread:
    """How undecided token logits are, means over target steps: entropy in nats, and tokens more likely than 0.01."""

    entropy: float
    vocabulary: float


class LogitLens(Probe):
    """The stack is cut after each layer by switching the later ones off.

    In a residual network that is what the lens means: the stream passes the layers that are off unchanged and meets
    the final norm and the head. The encoder of an encoder-decoder stays whole, its decoder is cut.
    """

    title = "Forecast after every layer"
    question = "After which layer is the forecast as good as the final one?"
    source = "logit lens as in arXiv 2602.01605 (released code) for Chronos; cutting by switched-off layers is ours"

    def refusal(self, model: Forecaster) -> str:
        """It takes one stack of residual layers of one width, whose norms do not come last."""
        stacks = _stacks(model)
        if not stacks:
            return f"this {model.family} model has no residual layers left"
        branches = [branch for _, layers in stacks for name in layers for branch in _branches(model, name)]
        if len(stacks) > 2 or len({branch.gate.width for branch in branches}) > 1:
            return (
                f"the layers of this {model.family} model work at several widths or in several stacks, and its head "
                "fits the last of them only"
            )
        if any(branch.after for branch in branches):
            return (
                f"this {model.family} model norms the sum after every branch, so that layers that are off still change "
                "what passes them, and the stream between layers is not what its head reads"
            )
        return ""

    def passes(self, study: Study) -> float:
        """One pass for each cut and for the whole; two over the later windows; for tokens their logits as well."""
        cuts = len(_layers(study.model)) + 1
        own = 2 * cuts if study.model.family == TOKENS else cuts
        return own + 2 * share_of_first(study)

    def run(self, study: Study, tick: Tick) -> Findings:
        """Forecasts of all cuts on the first windows; the smallest close one once more on the later windows."""
        model, layers = study.model, _layers(study.model)
        steps = steps_of(study.first, study.horizon)
        rows = rows_of_study(study.first, steps)
        forecasts, spreads = [], []
        for kept in range(len(layers) + 1):
            with switched_off(model, {name: [0] for name in layers[kept:]}):
                forecasts.append(medians(model, study.first, steps))
                if model.family == TOKENS:
                    spreads.append(_token_spread(model, study.first))
            tick(f"{kept} of {len(layers)} layers")
        errors = np.stack([_mean_error(rows, one, rows.target) for one in forecasts], axis=1)
        away = np.stack([_mean_error(rows, one, forecasts[-1]) for one in forecasts], axis=1)
        error = mean_intervals(rows.by_window(errors), study)
        distance = mean_intervals(rows.by_window(away), study)
        chosen = _enough(error)
        later = _confirmed(study, layers, chosen, steps) if windows_in(study.later) else None
        tick("later windows")
        return _findings(model, layers, error, distance, spreads, chosen, later)


def _stacks(model: Forecaster) -> list[tuple[str, list[str]]]:
    """Groups of whole layers by stack, in network order; layers of a stack share their path but for the number."""
    found: dict[str, list[str]] = {}
    for name, group in model.unit_groups().items():
        if group.kind == "layer":
            found.setdefault(group.path.rpartition(".")[0], []).append(name)
    return list(found.items())


def _layers(model: Forecaster) -> list[str]:
    """The groups of the stack that the head reads, which is the last."""
    return _stacks(model)[-1][1]


def _branches(model: Forecaster, name: str) -> list[Branch]:
    layer = model.get_submodule(name.rsplit("/", 1)[0])
    return layer.branches if isinstance(layer, Layer) else []


def _mean_error(rows: Rows, forecast: Floats, wanted: Floats) -> Floats:
    """Mean absolute difference over the steps that are there, in standard deviations of the context `[R]`."""
    there = ~np.isnan(wanted)
    total = np.where(there, np.abs(forecast - np.where(there, wanted, 0)), 0).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = total / there.sum(1) / rows.spread
    return found


def _enough(error: Sequence[Interval]) -> int:
    """The fewest layers, not all, whose error is close to that of all; where none are, those with the least error."""
    values = [np.inf if one.estimate is None else one.estimate for one in error]
    close = [kept for kept, value in enumerate(values[:-1]) if value <= (1 + CLOSE) * values[-1]]
    return close[0] if close else int(np.argmin(values[:-1]))


def _confirmed(study: Study, layers: Sequence[str], kept: int, steps: int) -> tuple[Interval, Interval]:
    """On later windows: error of all layers, and by how much that of the first `kept` is larger."""
    rows = rows_of_study(study.later, steps)
    whole = _mean_error(rows, medians(study.model, study.later, steps), rows.target)
    with switched_off(study.model, {name: [0] for name in layers[kept:]}):
        cut = _mean_error(rows, medians(study.model, study.later, steps), rows.target)
    found = mean_intervals(rows.by_window(np.stack([whole, cut - whole], axis=1)), study)
    return found[0], found[1]


def _token_spread(model: Forecaster, batches: Sequence[Batch]) -> _Spread:
    """Of the logits that a known target's tokens are forecast with."""
    tokens = cast("ChronosT5", model)

    def step(portion: Batch) -> tuple[float, float, int]:
        with frozen(model), torch.no_grad():
            logits, labels = tokens(portion.context, tokens.wanted(portion))
        there = labels >= 0
        likely = logits[there].double().softmax(-1)
        entropy = -(likely * likely.clamp(min=1e-300).log()).sum(-1)
        return float(entropy.sum()), float((likely > LIKELY).sum()), int(there.sum())

    sums = np.sum(list(over_windows(model, batches, step)), axis=0)
    return _Spread(sums[0] / max(1, sums[2]), sums[1] / max(1, sums[2]))


def _findings(
    model: Forecaster,
    layers: Sequence[str],
    error: Sequence[Interval],
    distance: Sequence[Interval],
    spreads: Sequence[_Spread],
    chosen: int,
    later: tuple[Interval, Interval] | None,
) -> Findings:
    x = [float(kept) for kept in range(len(layers) + 1)]
    paths = [name.rsplit("/", 1)[0] for name in layers]
    steps: list[float | None] = [
        None if one.estimate is None or other.estimate is None else one.estimate - other.estimate
        for one, other in zip(error[1:], error, strict=False)
    ]
    head = ["layers", "last layer", "error", "low", "high", "distance to the forecast"]
    table: list[list[Any]] = [
        [kept, paths[kept - 1] if kept else "none", one.estimate, one.low, one.high, other.estimate]
        for kept, (one, other) in enumerate(zip(error, distance, strict=True))
    ]
    if spreads:
        head += ["entropy of tokens (nats)", "tokens above 0.01"]
        table = [[*row, one.entropy, one.vocabulary] for row, one in zip(table, spreads, strict=True)]
    notes = ["layers that are off cost as much as before: the lens measures use, not speed"]
    if len(_stacks(model)) == 2:
        notes.append("the encoder stays whole, only the decoder is cut")
    words = "change of the mean absolute error, in standard deviations of the context, that the layer brings"
    return Findings(
        answer=_answer(len(layers), error, chosen, later),
        measures=[
            Measure("error brought by the layer", "layer", _by(paths, steps), "low", words),
            Measure("distance to the forecast after it", "layer", _by(paths, [one.estimate for one in distance[1:]])),
        ],
        curves=[_curve("error", x, error), _curve("distance to the forecast", x, distance)],
        axes=("layers kept", "mean absolute difference, in standard deviations of the context"),
        tables=[Table("Forecast after every layer", head, table)],
        notes=notes,
        facts={
            "layers": paths,
            "error": [one.to_json() for one in error],
            "distance": [one.to_json() for one in distance],
            "entropy": [one.entropy for one in spreads],
            "enough": chosen,
            "later": None if later is None else [one.to_json() for one in later],
        },
    )


def _by(paths: Sequence[str], values: Sequence[float | None]) -> dict[str, list[float | None]]:
    return {path: [value] for path, value in zip(paths, values, strict=True)}


def _curve(name: str, x: Sequence[float], found: Sequence[Interval]) -> Curve:
    return Curve(name, x, [f.estimate for f in found], [f.low for f in found], [f.high for f in found])


def _answer(count: int, error: Sequence[Interval], chosen: int, later: tuple[Interval, Interval] | None) -> str:
    whole, cut = error[-1].estimate, error[chosen].estimate
    if whole is None or cut is None:
        return "No window has a spread in its context and a target, so that errors have no unit."
    close = cut <= (1 + CLOSE) * whole
    what = "is within 5 % of the error of all" if close else "is the least that fewer layers reach"
    text = f"After {chosen} of {count} layers the error {cut:.3f} {what} ({whole:.3f})"
    if later is None:
        return f"{text}; there were no later windows to confirm it."
    return f"{text}; on later windows it is larger by {told(later[1], 3)}."


PROBE = LogitLens()
