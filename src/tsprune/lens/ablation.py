"""Every head, every feed-forward part and every attention off, one at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from tsprune.blocks.units import UnitGroup
from tsprune.evaluation.intervals import quotient
from tsprune.lens import _ablating as ablating
from tsprune.lens import _batched as batched
from tsprune.lens import _similarity as similarity
from tsprune.lens._probe import Findings, Measure, Probe, Study, Table, Tick, Unit
from tsprune.models._forecaster import Forecaster
from tsprune.scores._ranks import spearman

KINDS: tuple[Unit, ...] = ("head", "attention", "ffn")
MODES = {"zero": "set to zero", "mean": "replaced by its mean over the windows"}
LITTLE = 1.01
"""A loss that grows less than that is hardly a change."""
PASSES = 2
"""For a unit in each mode: the loss and the forecast."""

Needed = Literal["high", "low", ""]
QUANTITIES: dict[str, tuple[str, Needed, str]] = {
    "loss": (
        "loss change",
        "high",
        "mean loss of the windows without the unit minus that of the intact model, in the loss's own units",
    ),
    "error": (
        "error",
        "high",
        "mean squared error of the median forecast against what came, over that of the intact model; 1 is no change",
    ),
    "order": (
        "Spearman distance",
        "high",
        "1 - rank correlation of the median forecasts with and without the unit, step by step, averaged over rows; "
        "ties get average ranks; a forecast that collapsed to a constant counts as 1, two constant ones as 0",
    ),
    "difference": (
        "relative difference",
        "high",
        "root of the squared differences of the median forecasts with and without the unit over that of the intact "
        "forecast's squares, on the scale of the windows",
    ),
}


@dataclass
class _Whole:
    """What the intact model says of the windows."""

    loss: float
    forecast: Tensor
    truth: Tensor
    error: float | None


@dataclass
class _Found:
    """Values by quantity and group, and how often the loss grows how much."""

    values: dict[str, dict[str, list[float | None]]] = field(default_factory=lambda: {name: {} for name in QUANTITIES})
    growth: dict[str, list[float]] = field(default_factory=dict)


class Ablation(Probe):
    """See the module."""

    title = "One unit off at a time"
    question = "Which heads, attentions and feed-forward parts does the model need on these series?"
    source = (
        "2602.01605, zero-ablation at the input of the output projection; ours: every stack and both attentions, and "
        "the mean over the windows in place of zero, since zero is a value that the next block may never have seen"
    )

    def refusal(self, model: Forecaster) -> str:
        """Refuses a model of which nothing is left."""
        return "" if ablating.groups_of(model, *KINDS) else "the model has no attention and no feed-forward part left"

    def passes(self, study: Study) -> float:
        """Loss and forecast of the intact model, one pass for the means, and both again for every unit in both ways."""
        units = sum(group.units for group in ablating.groups_of(study.model, *KINDS).values())
        return PASSES + 1 + PASSES * len(MODES) * units

    def run(self, study: Study, tick: Tick) -> Findings:
        """Both ways for every unit; the model is left as it was found."""
        model, batches = study.model, study.first
        groups = ablating.groups_of(model, *KINDS)
        whole = _intact(study, tick)
        means = ablating.dataset_means(model, batches, groups.values())
        tick("means of all units")
        found = {mode: _tried(study, groups, means if mode == "mean" else None, whole, tick) for mode in MODES}
        return _findings(model, groups, whole, found)


def _intact(study: Study, tick: Tick) -> _Whole:
    loss = float(ablating.losses(study.model, study.first).mean())
    tick("loss of the intact model")
    forecast, truth = ablating.medians(study.model, study.first), ablating.truth(study.first)
    tick("forecast of the intact model")
    return _Whole(loss, forecast, truth, similarity.squared_error(forecast, truth))


def _tried(
    study: Study, groups: Mapping[str, UnitGroup], fills: ablating.Fills | None, whole: _Whole, tick: Tick
) -> _Found:
    """Every unit off alone; as many share a pass as pays."""
    model, found = study.model, _Found()
    for name in groups:
        found.growth[name] = []
        for values in found.values.values():
            values[name] = []
    units = [(name, unit) for name, group in groups.items() for unit in range(group.units)]
    for some in batched.slices(units):
        several = [ablating.without(groups[name], [unit]) for name, unit in some]
        losses = batched.losses_of(model, study.first, several, fills)
        for name, unit in some:
            tick(f"{name} {unit}")
        forecasts = batched.medians_of(model, study.first, several, fills)
        growths = batched.growths(model, losses, whole.loss)
        for (name, unit), growth, loss, forecast in zip(some, growths, losses, forecasts, strict=True):
            found.growth[name].append(growth)
            if fills is None:
                study.alone[name, unit] = float(loss.mean())
            for quantity, values in found.values.items():
                values[name].append(ablating.number(_value(quantity, loss, forecast, whole)))
            tick(f"{name} {unit}")
    return found


def _value(quantity: str, loss: Tensor, forecast: Tensor, whole: _Whole) -> float | Tensor | None:
    """A quantity of one unit, from losses `[N]` and forecasts `[R, H]` without it."""
    if quantity == "loss":
        return loss.mean() - whole.loss
    if quantity == "error":
        return quotient(similarity.squared_error(forecast, whole.truth), whole.error)
    if quantity == "order":
        return similarity.spearman_distance(whole.forecast, forecast).mean()
    return similarity.relative_difference(forecast, whole.forecast)


def _findings(
    model: Forecaster, groups: Mapping[str, UnitGroup], whole: _Whole, found: Mapping[str, _Found]
) -> Findings:
    kinds = [kind for kind in KINDS if any(group.kind == kind for group in groups.values())]
    notes = [
        "one unit at a time: two units that stand in for each other both look idle here, see heads_at",
        "the mean stands in at every token alike; tokens that the model hides, such as empty patches, are not in it",
    ]
    if int(similarity.constant(whole.forecast).sum()):
        flat = int(similarity.constant(whole.forecast).sum())
        notes.append(f"{flat} of {len(whole.forecast)} forecasts of the intact model are constant and have no order")
    return Findings(
        answer=_answer(groups, found["zero"]),
        measures=[
            measure for mode in MODES for kind in kinds for measure in _measures(groups, mode, kind, found[mode])
        ],
        tables=[_summary(model, groups, kinds, found)],
        notes=notes,
        facts={
            "intact": {"loss": whole.loss, "error": whole.error},
            **{mode: found[mode].values for mode in MODES},
            "growth": {
                mode: {name: [ablating.number(v) for v in values] for name, values in found[mode].growth.items()}
                for mode in MODES
            },
        },
    )


def _measures(groups: Mapping[str, UnitGroup], mode: str, kind: Unit, found: _Found) -> list[Measure]:
    made = []
    for name, (title, needed, words) in QUANTITIES.items():
        values = {g.path: found.values[name][g.name] for g in groups.values() if g.kind == kind}
        made.append(Measure(f"{title}, {kind} {MODES[mode]}", kind, values, needed, words))
    return made


def _summary(
    model: Forecaster, groups: Mapping[str, UnitGroup], kinds: Sequence[Unit], found: Mapping[str, _Found]
) -> Table:
    rows: list[list[Any]] = []
    for kind in kinds:
        names = [name for name, group in groups.items() if group.kind == kind]
        flat = {mode: [g for name in names for g in found[mode].growth[name]] for mode in MODES}
        agree = spearman(*(torch.tensor(flat[mode], dtype=torch.float64) for mode in MODES))
        for mode in MODES:
            idle = sum(growth <= LITTLE for growth in flat[mode])
            better = sum(growth < 1 for growth in flat[mode])
            worst = _most_needed(groups, names, found[mode])
            rows.append(
                [kind, MODES[mode], len(flat[mode]), idle, better, worst, ablating.number(max(flat[mode])), agree]
            )
    head = ["units", "while off", "how many", "loss grows by at most 1 %", "loss falls", "needed most", "its growth"]
    return Table(
        f"Each unit off alone; growth: {ablating.growth_words(model)}", [*head, "rank correlation of both ways"], rows
    )


def _most_needed(groups: Mapping[str, UnitGroup], names: Sequence[str], found: _Found) -> str:
    _, name, unit = max((g, name, u) for name in names for u, g in enumerate(found.growth[name]))
    return f"{groups[name].path} {unit}" if groups[name].units > 1 else groups[name].path


def _answer(groups: Mapping[str, UnitGroup], found: _Found) -> str:
    said = []
    for kind, word in (("head", "heads"), ("ffn", "feed-forward parts"), ("attention", "whole attentions")):
        growth = [g for name, group in groups.items() if group.kind == kind for g in found.growth[name]]
        if growth:
            said.append(f"{sum(g <= LITTLE for g in growth)} of {len(growth)} {word}")
    return f"Set to zero alone, {', '.join(said)} change the loss by at most 1 % for the worse."


PROBE = Ablation()
