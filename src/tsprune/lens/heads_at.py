"""How many heads are needed for a loss within X %: layer by layer, and of all layers at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from tsprune.blocks.units import UnitGroup
from tsprune.evaluation.intervals import Interval
from tsprune.lens import _ablating as ablating
from tsprune.lens import _batched as batched
from tsprune.lens import _joint as joint
from tsprune.lens._joint import Head
from tsprune.lens._orders import INFORMED, SEEDS, Course, courses, passes, random_name
from tsprune.lens._probe import Curve, Findings, Measure, Probe, Study, Table, Tick
from tsprune.models._forecaster import Forecaster

PERCENT = (0.0, 1.0, 5.0)
MAIN = 1.0
GRID = 10
"""Shares of the heads of an attention at which curves of attentions of different sizes are averaged."""


@dataclass
class Verdict:
    """What holds for one limit.

    Args:
        percent: how much the loss may grow.
        alone: informed order and number of heads that can go, by attention, everything else being left on.
        gone: heads that can go together, by the first windows.
        first: growth on the first windows without them.
        all_alone: growth on the first windows without all that could go alone, at once.
        later: growth on the later windows.
        interval: of that; None where there is none.
        random: growth on the later windows without as many heads at random, by seed.
        trials: how many joint sets were tried.
    """

    percent: float
    alone: dict[str, tuple[str, int]]
    gone: list[Head]
    first: float
    all_alone: float
    later: float = 1.0
    interval: Interval | None = None
    random: tuple[float, ...] = ()
    trials: int = 0

    @property
    def limit(self) -> float:
        """How many times as large the loss may be."""
        return 1 + self.percent / 100

    @property
    def word(self) -> str:
        """What the later windows say, by the interval where there is one."""
        low = high = self.later
        if self.interval is not None and self.interval.low is not None:
            low, high = self.interval.low, self.interval.high or math.inf
        return "confirm" if high <= self.limit else "refute" if low > self.limit else "neither confirm nor refute"


class HeadsAt(Probe):
    """See the module."""

    title = "Heads needed for a loss within 1 %"
    question = "How many heads does the model need on these series, one layer at a time and all layers together?"
    source = (
        "heads@X of 2602.01605, one layer at a time, direction chosen on test data; ours: order and "
        "number from the first windows, none beyond one that is missed, all layers at once, later windows to confirm"
    )

    def refusal(self, model: Forecaster) -> str:
        """Refuses a model without heads."""
        return "" if ablating.groups_of(model, "head") else f"a {model.family} model has no attention heads left"

    def passes(self, study: Study) -> float:
        """At most: curves of every attention, all joint sets that may be tried; random sets on the later windows."""
        groups = ablating.groups_of(study.model, "head")
        share = ablating.windows(study.later) / ablating.windows(study.first)
        first = 1 + passes(list(groups.values())) + len(PERCENT) * joint.most_trials(groups)
        return first + share * (1 + len(PERCENT) * (1 + SEEDS))

    def run(self, study: Study, tick: Tick) -> Findings:
        """Choose on the first windows, confirm on the later ones; the model is left as it was found."""
        groups = ablating.groups_of(study.model, "head")
        whole = float(ablating.losses(study.model, study.first).mean())
        tick("loss of the intact model")
        found, taken = courses(study, groups, whole, tick)
        verdicts: list[Verdict] = []
        for percent in PERCENT:
            before = verdicts[-1] if verdicts else None
            verdicts.append(_chosen(study, groups, found, whole, percent, before, tick))
        intact = ablating.losses(study.model, study.later)
        for verdict in verdicts:
            _confirm(study, groups, intact, verdict)
        return _findings(study, groups, found, verdicts, taken)


def _chosen(
    study: Study,
    groups: Mapping[str, UnitGroup],
    found: Mapping[str, Course],
    whole: float,
    percent: float,
    before: Verdict | None,
    tick: Tick,
) -> Verdict:
    """The heads that can go alone in every attention, and which of them can go together, by the first windows.

    `before` is what holds for the limit below: these heads can go here too.
    """
    base = before.gone if before is not None else []
    limit = 1 + percent / 100
    alone = {name: course.chosen(limit) for name, course in found.items()}
    # What cost least in its own attention goes first.
    cost = {
        (name, head): (found[name].curves[order][place + 1], place)
        for name, (order, count) in alone.items()
        for place, head in enumerate(found[name].orders[order][:count])
    }
    rest = [head for head in sorted(cost, key=lambda head: cost[head]) if head not in base]
    wanted = [head for head in joint.spare_essential(study.model, groups, [*base, *rest]) if head in cost]
    seen: list[float] = []
    held: dict[tuple[Head, ...], float] = {}

    def holds(gone: Sequence[Head]) -> bool:
        # Rounded like the growths by which heads were called removable alone.
        seen.extend(batched.growths_of(study.model, study.first, [joint.kept_without(groups, gone)], whole))
        tick(f"{len(gone)} heads together, {percent:g} %")
        if seen[-1] <= limit:
            held[tuple(gone)] = seen[-1]
        return seen[-1] <= limit

    most = joint.most_trials(groups)
    gone, taken = joint.largest(wanted, holds, most, base)
    for _ in range(most - taken):
        tick(f"heads together, {percent:g} %")
    # Where nothing joins those of the limit below, they have been measured there.
    first = held.get(tuple(gone), before.first if before is not None else 1.0)
    return Verdict(percent, alone, gone, first, seen[0] if seen else 1.0, trials=taken)


def _confirm(study: Study, groups: Mapping[str, UnitGroup], intact: Tensor, verdict: Verdict) -> None:
    """Growth on the later windows without the heads, and without as many at random."""
    model, whole = study.model, float(intact.mean())
    off = ablating.losses(model, study.later, joint.kept_without(groups, verdict.gone))
    verdict.later = ablating.growth(model, float(off.mean()), whole)
    verdict.interval = joint.growth_interval(model, off, intact, study.blocks, study.seed)
    random = []
    for draw in range(SEEDS):
        generator = np.random.default_rng(np.random.SeedSequence([study.seed, draw, 17]))
        chosen = joint.random_set(groups, len(verdict.gone), generator)
        off = ablating.losses(model, study.later, joint.kept_without(groups, chosen))
        random.append(ablating.growth(model, float(off.mean()), whole))
    verdict.random = tuple(random)


def _findings(
    study: Study,
    groups: Mapping[str, UnitGroup],
    found: Mapping[str, Course],
    verdicts: Sequence[Verdict],
    taken: int,
) -> Findings:
    notes = [
        "orders are chosen among the informed ones; random orders are a control and never chosen",
        "a head counts as removable only if no head before it in the order is missed, and together with all others",
    ]
    if any(verdict.interval is None for verdict in verdicts):
        notes.append("no intervals: it is not known which of the later windows depend on each other")
    notes += [
        f"{verdict.percent:g} %: {verdict.interval.note}"
        for verdict in verdicts
        if verdict.interval is not None and verdict.interval.note
    ]
    return Findings(
        answer=_answer(groups, next(verdict for verdict in verdicts if verdict.percent == MAIN)),
        measures=[_removed(groups, verdict) for verdict in verdicts],
        curves=_curves(found),
        axes=("share of the heads of one attention off", f"loss, as a multiple ({ablating.growth_words(study.model)})"),
        tables=[_together(groups, verdicts), _by_attention(groups, found, verdicts), _orders_table(found)],
        notes=notes,
        facts={"passes": taken, **_facts(found, verdicts)},
    )


def _answer(groups: Mapping[str, UnitGroup], verdict: Verdict) -> str:
    total = sum(group.units for group in groups.values())
    alone = sum(count for _, count in verdict.alone.values())
    change = 100 * (verdict.later - 1)
    return (
        f"{len(verdict.gone)} of {total} heads can go together with a loss within {verdict.percent:g} % on the windows "
        f"they were chosen on ({alone} if layers are looked at alone); later windows {verdict.word} that "
        f"({change:+.1f} %)."
    )


def _removed(groups: Mapping[str, UnitGroup], verdict: Verdict) -> Measure:
    gone = set(verdict.gone)
    values = {g.path: [float((name, head) not in gone) for head in range(g.units)] for name, g in groups.items()}
    words = f"1 for heads that stay, 0 for those that can go together at {verdict.percent:g} % (first windows)"
    return Measure(f"needed at {verdict.percent:g} %", "head", values, "high", words)


def _together(groups: Mapping[str, UnitGroup], verdicts: Sequence[Verdict]) -> Table:
    total = sum(group.units for group in groups.values())
    rows: list[list[Any]] = []
    for v in verdicts:
        ends = [None, None] if v.interval is None else [v.interval.low, v.interval.high]
        random = [ablating.number(x) for x in (sum(v.random) / len(v.random), min(v.random), max(v.random))]
        alone = sum(count for _, count in v.alone.values())
        rows.append(
            [
                f"{v.percent:g} %",
                total - alone,
                ablating.number(v.all_alone),
                total - len(v.gone),
                ablating.number(v.first),
                ablating.number(v.later),
                *ends,
                v.word,
                *random,
            ]
        )
    head = [
        "loss may grow by",
        "kept, layers alone",
        "growth without the rest, all at once",
        "kept, together",
        "growth, first windows",
        "growth, later windows",
        "low",
        "high",
        "later windows",
        f"as many at random (mean of {SEEDS})",
        "lowest",
        "highest",
    ]
    return Table(f"Heads of all {len(groups)} attentions off at once", head, rows)


def _by_attention(groups: Mapping[str, UnitGroup], found: Mapping[str, Course], verdicts: Sequence[Verdict]) -> Table:
    rows: list[list[Any]] = []
    for name, group in groups.items():
        row: list[Any] = [group.path, group.units]
        for v in verdicts:
            gone = sum(1 for other, _ in v.gone if other == name)
            order, count = v.alone[name]
            row += [group.units - count, order if count else "", group.units - gone]
        rows.append(row)
    head = ["attention", "heads"]
    for v in verdicts:
        head += [f"kept at {v.percent:g} %, alone", "order", f"kept at {v.percent:g} %, together"]
    return Table("Heads kept by attention", head, rows)


def _orders_table(found: Mapping[str, Course]) -> Table:
    """How many heads each order lets go, layers alone: whether any ranking is better than chance."""
    rows: list[list[Any]] = []
    for order in INFORMED:
        rows.append([order, *(sum(c.removable(order, 1 + p / 100) for c in found.values()) for p in PERCENT)])
    drawn = [
        [sum(c.removable(random_name(draw), 1 + p / 100) for c in found.values()) for p in PERCENT]
        for draw in range(SEEDS)
    ]
    rows.append([f"random (mean of {SEEDS})", *(sum(column) / SEEDS for column in zip(*drawn, strict=True))])
    return Table("Heads that can go by each order, layers alone", ["order", *(f"at {p:g} %" for p in PERCENT)], rows)


def _curves(found: Mapping[str, Course]) -> list[Curve]:
    """Growth over the share of heads off, averaged over attentions; random orders as their mean and range."""
    shares = [step / GRID for step in range(GRID + 1)]

    def averaged(order: str) -> list[float]:
        return [sum(_at(c.curves[order], share) for c in found.values()) / len(found) for share in shares]

    made = [Curve(order, shares, [ablating.number(y) for y in averaged(order)]) for order in INFORMED]
    columns = list(zip(*(averaged(random_name(draw)) for draw in range(SEEDS)), strict=True))
    mean = [ablating.number(sum(column) / SEEDS) for column in columns]
    low, high = ([ablating.number(end(column)) for column in columns] for end in (min, max))
    return [*made, Curve(f"random, mean of {SEEDS}", shares, mean, low, high, control=True)]


def _at(curve: Sequence[float], share: float) -> float:
    """The curve at a share of its heads, by a straight line between neighbours."""
    place = share * (len(curve) - 1)
    low = min(int(place), len(curve) - 2)
    weight = place - low
    return curve[low] if weight == 0 else (1 - weight) * curve[low] + weight * curve[low + 1]


def _facts(found: Mapping[str, Course], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    return {
        "orders": {name: course.orders for name, course in found.items()},
        "growth": {
            name: {order: [ablating.number(y) for y in curve] for order, curve in course.curves.items()}
            for name, course in found.items()
        },
        "removable": {
            f"{v.percent:g}": {
                "alone": {name: found[name].orders[order][:count] for name, (order, count) in v.alone.items()},
                "together": [list(head) for head in v.gone],
                "trials": v.trials,
                "later": ablating.number(v.later),
                "random": [ablating.number(growth) for growth in v.random],
            }
            for v in verdicts
        },
    }


PROBE = HeadsAt()
