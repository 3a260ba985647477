"""In what order heads are switched off, and how the loss grows while they are.

Letters: H heads of an attention.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tsprune.blocks.units import UnitGroup
from tsprune.lens import _ablating as ablating
from tsprune.lens import _batched as batched
from tsprune.lens._probe import Study, Tick
from tsprune.scores import fisher
from tsprune.scores.stable_rank import stable_ranks

SEEDS = 5
"""Random orders beside the informed ones."""
LOW, HIGH = "stable rank, low first", "stable rank, high first"
FISHER, ABLATION = "fisher, low first", "loss change, low first"
INFORMED = (LOW, HIGH, FISHER, ABLATION)
FISHER_PASSES = 3
"""A forward and a backward pass."""


@dataclass
class Course:
    """What switching off the heads of one attention does, by order.

    Args:
        group: its heads.
        alone: growth of the loss without each head alone, `[H]`.
        orders: heads in the order in which they go, by name of the order.
        curves: growth of the loss without the first n heads of an order, n from 0 to H.
    """

    group: UnitGroup
    alone: list[float]
    orders: dict[str, list[int]] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)

    def removable(self, order: str, limit: float) -> int:
        """How many heads can go one after the other without the loss growing beyond the limit on the way."""
        return next((n for n, growth in enumerate(self.curves[order]) if growth > limit), len(self.alone) + 1) - 1

    def chosen(self, limit: float) -> tuple[str, int]:
        """The informed order that lets most heads go, and how many; of equal ones that with the lower curve."""
        found = {order: self.removable(order, limit) for order in INFORMED}
        best = min(INFORMED, key=lambda order: (-found[order], sum(self.curves[order]), INFORMED.index(order)))
        return best, found[best]


def passes(groups: Sequence[UnitGroup]) -> int:
    """Forward passes that `courses` takes at most: one for every set of heads that an order may come by.

    That is one set for each order and number of heads, but no more than there are sets of that number.
    """
    orders = len(INFORMED) + SEEDS
    sets = [min(orders, math.comb(group.units, n)) for group in groups for n in range(2, group.units + 1)]
    return FISHER_PASSES + sum(group.units for group in groups) + sum(sets)


def courses(study: Study, groups: Mapping[str, UnitGroup], whole: float, tick: Tick) -> tuple[dict[str, Course], int]:
    """How the loss grows on the first windows, attention by attention, everything else being left on.

    Args:
        study: model and windows.
        groups: heads of every attention.
        whole: mean loss of the intact model on the first windows.
        tick: called as often as `passes` says.

    Returns:
        Courses by group name, and how many forward passes it really took: orders may come by the same heads.
    """
    known = _Known(study, whole, tick)
    known.look([(name, {head}) for name, group in groups.items() for head in range(group.units)])
    found = {
        name: Course(group, [known.growth(name, {head}) for head in range(group.units)])
        for name, group in groups.items()
    }
    curvature = fisher.scores(study.model, study.first, kinds=("head",))
    for _ in range(FISHER_PASSES):
        tick("fisher scores of all heads")
    ranks = stable_ranks(study.model)
    for number, (name, course) in enumerate(found.items()):
        course.orders = _orders(study.seed, number, course, curvature[name], ranks[course.group.path])
        known.look([(name, set(order[: n + 1])) for order in course.orders.values() for n in range(len(order))])
        for order_name, order in course.orders.items():
            course.curves[order_name] = [1.0, *(known.growth(name, set(order[: n + 1])) for n in range(len(order)))]
    taken = FISHER_PASSES + len(known.found)
    for _ in range(passes(list(groups.values())) - taken):
        tick("heads that several orders come by")
    return found, taken


def _orders(seed: int, number: int, course: Course, curvature: Tensor, ranks: Tensor) -> dict[str, list[int]]:
    values = {LOW: ranks, HIGH: -ranks, FISHER: curvature, ABLATION: torch.tensor(course.alone)}
    found = {name: torch.argsort(value, stable=True).tolist() for name, value in values.items()}
    for draw in range(SEEDS):
        generator = np.random.default_rng(np.random.SeedSequence([seed, number, draw, 19]))
        found[random_name(draw)] = generator.permutation(course.group.units).tolist()
    return found


def random_name(draw: int) -> str:
    """Name of a random order."""
    return f"random {draw}"


class _Known:
    """Growth on the first windows without sets of heads of one attention; every set is measured once."""

    def __init__(self, study: Study, whole: float, tick: Tick) -> None:
        self.study, self.whole, self.tick = study, whole, tick
        self.groups = ablating.groups_of(study.model, "head")
        self.found: dict[tuple[str, frozenset[int]], float] = {}

    def look(self, wanted: Sequence[tuple[str, Collection[int]]]) -> None:
        """Measure those that are not known yet, as many in a pass as pays."""
        new = list(dict.fromkeys((name, frozenset(gone)) for name, gone in wanted))
        for some in batched.slices([key for key in new if key not in self.found]):
            several = [ablating.without(self.groups[name], gone) for name, gone in some]
            growths = batched.growths_of(self.study.model, self.study.first, several, self.whole)
            for key, growth in zip(some, growths, strict=True):
                self.found[key] = growth
                self.tick(f"heads of {key[0].rpartition('/')[0]}")

    def growth(self, name: str, gone: Collection[int]) -> float:
        """Of heads that were looked at."""
        return self.found[name, frozenset(gone)]
