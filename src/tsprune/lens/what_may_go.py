"""Which heads, parts and layers may go, each on top of all before it, and what every step costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np
from torch import Tensor

from tsprune.blocks.kinds import WHOLE
from tsprune.evaluation.intervals import Interval
from tsprune.lens import _ablating as ablating
from tsprune.lens import _joint as joint
from tsprune.lens._probe import Curve, Findings, Probe, Study, Table, Tick
from tsprune.lens._walk import Field, Step, Walk, at_random
from tsprune.models._forecaster import Forecaster
from tsprune.ranking import Alive, Entry

KINDS = ("head", "expert", "attention", "ffn", "layer")
PERCENT = (0.0, 1.0, 5.0)
MAIN = 1.0
MOST = 1.5
"""Growth of the loss beyond which no step is taken."""
STEPS, TRIALS = 24, 60
"""Most steps, and most joint sets that are tried on the way, of a model with few candidates."""
ORDERS, POINTS = 5, 4
"""Random orders of the control, and most numbers of parameters at which they are compared."""
_WORDS = {"ffn": "feed-forward part", "layer": "layer", "attention": "attention"}


@dataclass(frozen=True)
class Checked:
    """A step, and what the later windows say of it.

    Args:
        step: the unit, what stays, and the loss on the first windows.
        first: growth of the loss on the first windows, by which the step was chosen.
        later: growth on the later windows.
        interval: of that; None where there is none.
    """

    step: Step
    first: float
    later: float
    interval: Interval | None

    @property
    def ends(self) -> tuple[float | None, float | None]:
        """Ends of the interval; None where there is none."""
        return (None, None) if self.interval is None else (self.interval.low, self.interval.high)


@dataclass(frozen=True)
class Control:
    """As many parameters gone at random as after some step.

    Args:
        removed: parameters that each random order takes, at most as many as the step.
        growth: growth of the loss on the later windows, order by order.
    """

    removed: tuple[int, ...]
    growth: tuple[float, ...]


class WhatMayGo(Probe):
    """See the module."""

    title = "What may go"
    question = "Which parts can the model do without on these series, in which order, and what does each step cost?"
    source = (
        "ours: greedy removal of the unit with the least rise of the loss per parameter, on top of all that went "
        "before; the lazy order of measurements is that of Minoux (1978)"
    )

    def refusal(self, model: Forecaster) -> str:
        """Refuses a model of which nothing is left."""
        return "" if ablating.groups_of(model, *KINDS) else "the model has no head, part or layer left that could go"

    def passes(self, study: Study) -> float:
        """At most: units alone that no probe has measured, joint sets, and steps and control on the later windows."""
        entries = [(g.name, unit) for g in ablating.groups_of(study.model, *KINDS).values() for unit in range(g.units)]
        share = ablating.windows(study.later) / ablating.windows(study.first)
        unknown = sum(entry not in study.alone for entry in entries)
        return 1 + unknown + trials(len(entries)) + share * (1 + steps(len(entries)) + POINTS * ORDERS)

    def run(self, study: Study, tick: Tick) -> Findings:
        """Choose on the first windows, measure again on the later ones; the model is left as it was found."""
        field = Field(study.model, KINDS)
        whole = float(ablating.losses(study.model, study.first).mean())
        tick("loss of the intact model")
        alone = _alone(study, field, tick)

        def loss(left: Alive, what: str) -> float:
            found = float(ablating.losses(study.model, study.first, left).mean())
            tick(what)
            return found

        most = _limit(study.model, whole, MOST)
        path = Walk(field, alone, whole, loss, trials(len(field.units)))
        taken = path.go(steps(len(field.units)), most)
        for _ in range(path.trials - path.taken):
            tick("joint sets that were not needed")
        intact = ablating.losses(study.model, study.later)
        tick("loss of the intact model on the later windows")
        found = [_checked(study, one, whole, intact, tick) for one in taken]
        control = _control(study, field, found, intact, tick)
        return _findings(study, field, found, control)


def steps(candidates: int) -> int:
    """Most steps for so many candidates."""
    return max(STEPS, candidates // 3)


def trials(candidates: int) -> int:
    """Most joint sets for so many candidates."""
    return max(TRIALS, candidates)


def _limit(model: Forecaster, whole: float, growth: float) -> float:
    """The loss that is `growth` times that of the intact model, in the sense of `ablating.growth`."""
    return whole + math.log(growth) if model.log_loss else whole * growth


def _alone(study: Study, field: Field, tick: Tick) -> dict[Entry, float]:
    """Mean loss of the first windows without each unit alone; what other probes have measured is taken over."""
    for name, unit in field.units:
        if (name, unit) in study.alone:
            continue
        group = field.prunable.groups[name]
        if group.units - 1 < group.floor:
            study.alone[name, unit] = math.inf
        else:
            off = ablating.losses(study.model, study.first, ablating.without(group, [unit]))
            study.alone[name, unit] = float(off.mean())
        tick(called(name, unit))
    return {entry: study.alone[entry] for entry in field.units}


def _checked(study: Study, step: Step, whole: float, intact: Tensor, tick: Tick) -> Checked:
    model = study.model
    off = ablating.losses(model, study.later, step.left)
    tick("later windows")
    later = ablating.growth(model, float(off.mean()), float(intact.mean()))
    interval = joint.growth_interval(model, off, intact, study.blocks, study.seed)
    return Checked(step, ablating.growth(model, step.loss, whole), later, interval)


def _control(study: Study, field: Field, found: Sequence[Checked], intact: Tensor, tick: Tick) -> dict[int, Control]:
    """By number of steps: as many parameters gone at random, on the later windows.

    Steps are spread evenly, and the last one within the limit that the answer tells of is among them.
    """
    taken = [one.step for one in found]
    even = {math.ceil(len(taken) * (point + 1) / (POINTS - 1)) for point in range(POINTS - 1)}
    points = sorted({*even, within(found, MAIN)} - {0})
    costs = {}
    for entry in field.units:
        left = field.without(field.everything, entry)
        costs[entry] = 0 if left is None else field.removed(left)
    controls = {}
    for number in points:
        removed, growth = [], []
        for draw in range(ORDERS):
            generator = np.random.default_rng(np.random.SeedSequence([study.seed, draw, 23]))
            left = at_random(field, costs, taken[number - 1].removed, generator)
            off = ablating.losses(study.model, study.later, left)
            tick("as many parameters at random")
            removed.append(field.removed(left))
            growth.append(ablating.growth(study.model, float(off.mean()), float(intact.mean())))
        controls[number] = Control(tuple(removed), tuple(growth))
    return controls


def called(name: str, unit: int) -> str:
    """A unit for people, such as `head 3 of encoder.block.0.layer.0.self_attention`."""
    path, _, kind = name.rpartition("/")
    return f"{_WORDS[kind]} {path}" if kind in WHOLE else f"{kind} {unit} of {path}"


def within(found: Sequence[Checked], percent: float) -> int:
    """How many steps can be taken with a loss within so much on the first windows, all of them together."""
    return max((n for n, one in enumerate(found, 1) if one.first <= 1 + percent / 100), default=0)


def _findings(study: Study, field: Field, found: Sequence[Checked], control: Mapping[int, Control]) -> Findings:
    notes = [
        "a step removes the unit with the least rise of the loss per parameter on the first windows, on top of all "
        f"before it; up to {steps(len(field.units))} steps, none beyond {MOST:g} times the loss",
        "an order found one by one need not be the best: two units that only pay if both go are not found",
        f"control: units in {ORDERS} random orders, each as long as it takes no more parameters than the step",
        "before any tuning: what a model can do without once it is tuned is usually more",
    ]
    if found and any(one.interval is None for one in found):
        notes.append("no intervals: it is not known which of the later windows depend on each other")
    notes += sorted({one.interval.note for one in found if one.interval is not None and one.interval.note})
    return Findings(
        answer=_answer(field, found, control),
        curves=_curves(field, found, control),
        axes=("parameters removed, %", f"loss, as a multiple ({ablating.growth_words(study.model)})"),
        tables=[_table(field, found, control)],
        notes=notes,
        facts=_facts(field, found, control),
    )


def _answer(field: Field, found: Sequence[Checked], control: Mapping[int, Control]) -> str:
    count = within(found, MAIN)
    if not found:
        return f"Nothing may go: every removal makes the loss more than {MOST:g} times as large."
    if not count:
        first = found[0]
        return (
            f"Nothing may go with a loss within {MAIN:g} %: cheapest for its size is the {called(*first.step.unit)}, "
            f"without which the loss changes by {_percent(first.first)} (later windows: {_percent(first.later)})."
        )
    last = found[count - 1]
    low, high = last.ends
    spread = "" if low is None or high is None else f" (95 % {_percent(low)} to {_percent(high)})"
    random = f", without as many at random by {_percent(mean(control[count].growth))} (mean of {ORDERS})"
    return (
        f"{count} steps, {_share(field, last.step.removed)} of the parameters, may go with a loss within {MAIN:g} % on "
        f"the windows they were chosen on; without them the loss changes by {_percent(last.later)}{spread} on later "
        f"windows{random}."
    )


def _percent(growth: float) -> str:
    return f"{100 * (growth - 1):+.1f} %"


def _share(field: Field, removed: int) -> str:
    return f"{100 * removed / field.whole:.1f} %"


def _table(field: Field, found: Sequence[Checked], control: Mapping[int, Control]) -> Table:
    rows: list[list[Any]] = []
    for number, one in enumerate(found, 1):
        chance = mean(control[number].growth) if number in control else None
        rows.append(
            [
                number,
                called(*one.step.unit),
                one.step.removed,
                _share(field, one.step.removed),
                ablating.number(one.first),
                ablating.number(one.later),
                *one.ends,
                ablating.number(chance),
            ]
        )
    head = ["step", "goes", "parameters gone", "share", "growth, first windows", "growth, later windows", "low", "high"]
    return Table("What may go, each step on top of all before it", [*head, f"at random (mean of {ORDERS})"], rows)


def _curves(field: Field, found: Sequence[Checked], control: Mapping[int, Control]) -> list[Curve]:
    """Growth over the share of parameters that are gone."""
    if not found:
        return []

    def share(removed: float) -> float:
        return 100 * removed / field.whole

    x = [0.0, *(share(one.step.removed) for one in found)]
    ends = [one.ends for one in found]
    known = all(low is not None for low, _ in ends)
    first = Curve("first windows", x, [1.0, *(ablating.number(one.first) for one in found)])
    later = Curve(
        "later windows",
        x,
        [1.0, *(ablating.number(one.later) for one in found)],
        [1.0, *(low for low, _ in ends)] if known else (),
        [1.0, *(high for _, high in ends)] if known else (),
    )
    drawn = list(control.values())
    low, high = ([1.0, *(ablating.number(end(one.growth)) for one in drawn)] for end in (min, max))
    random = Curve(
        f"random, mean of {ORDERS}, later windows",
        [0.0, *(share(mean(one.removed)) for one in drawn)],
        [1.0, *(ablating.number(mean(one.growth)) for one in drawn)],
        low,
        high,
        control=True,
    )
    return [later, first, random]


def _facts(field: Field, found: Sequence[Checked], control: Mapping[int, Control]) -> dict[str, Any]:
    return {
        "parameters": field.whole,
        "steps": [
            {
                "group": one.step.unit[0],
                "unit": one.step.unit[1],
                "removed": one.step.removed,
                "first": ablating.number(one.first),
                "later": ablating.number(one.later),
                "low": one.ends[0],
                "high": one.ends[1],
            }
            for one in found
        ],
        "within": {f"{percent:g}": within(found, percent) for percent in PERCENT},
        "control": [
            {"step": number, "removed": list(one.removed), "growth": [ablating.number(g) for g in one.growth]}
            for number, one in control.items()
        ],
    }


PROBE = WhatMayGo()
