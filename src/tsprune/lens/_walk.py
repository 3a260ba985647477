"""Units that go one after the other, each on top of all before it, and as many parameters at random."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tsprune.budgets import Sizes
from tsprune.models._forecaster import Forecaster
from tsprune.ranking import Alive, Entry, Prunable

FEW = 3
"""Candidates that are measured again at one step."""

Loss = Callable[[Alive, str], float]
"""Mean loss with only these units on; the text says what is tried."""


@dataclass(frozen=True)
class Step:
    """One unit that goes.

    Args:
        unit: group and number.
        left: what stays once it and all before it are gone.
        removed: parameters gone so far.
        loss: mean loss of the windows that choose.
    """

    unit: Entry
    left: Alive
    removed: int
    loss: float


class Field:
    """What may go of a model, and what that takes of its parameters.

    Args:
        model: the uncut model.
        kinds: kinds of units that may go.
    """

    def __init__(self, model: Forecaster, kinds: Sequence[str]) -> None:
        names = [name for name, group in model.unit_groups().items() if group.kind in kinds]
        self.prunable, self._sizes = Prunable(model, names), Sizes.of(model)
        self.everything = self.prunable.everything()
        self.units: list[Entry] = [(name, unit) for name, units in self.everything.items() for unit in units]
        self.whole = int(self._sizes(self.everything))

    def removed(self, left: Alive) -> int:
        """Parameters that the model loses when only these units are left."""
        return self.whole - int(self._sizes(left))

    def without(self, left: Alive, unit: Entry) -> Alive | None:
        """What is left once a unit goes too, with all inside it; None where it has gone already or has to stay.

        It has to stay where its group is at its floor, or where a set of blocks of which one is needed would go.
        """
        name, number = unit
        if number not in left[name] or len(left[name]) <= self.prunable.groups[name].floor:
            return None
        found = self.prunable.without(left, [unit])
        return found if self.prunable.spares_essential(found) else None


class Walk:
    """Steps of least rise of the loss per parameter, each on top of all before it.

    What a unit adds to the loss mostly grows as others go. So what was measured with fewer units gone is taken for the
    least that it adds now: those that look cheapest are measured again, until one is cheaper than the next one can be,
    or `FEW` were; the cheapest of them goes. Where rises never fall as others go, and `FEW` is no limit, this is the
    exact greedy order. Parameters are counted anew at every step.

    Args:
        field: what may go.
        alone: mean loss without each unit alone.
        whole: mean loss of the intact model.
        loss: measures a joint set.
        trials: most calls of `loss`.
    """

    def __init__(self, field: Field, alone: Mapping[Entry, float], whole: float, loss: Loss, trials: int) -> None:
        self.field, self.loss, self.trials, self.taken = field, loss, trials, 0
        self.left, self.removed, self.now = field.everything, 0, whole
        self.steps: list[Step] = []
        self._losses = dict(alone)
        self._rises = {unit: found - whole if math.isfinite(found) else math.inf for unit, found in alone.items()}
        self._gains = {unit: self._gain(unit) for unit in alone}
        self._fresh = set(alone)

    def go(self, steps: int, most: float) -> list[Step]:
        """Take steps, at most so many, and none that leads to a loss beyond the most."""
        while len(self.steps) < steps:
            unit = self._cheapest()
            if unit is None or not self._losses[unit] <= most:
                break
            self._take(unit)
        return self.steps

    def _cheapest(self) -> Entry | None:
        """The unit that goes next; None where none may go or no trial is left to tell."""
        best, measured = None, 0
        for unit in sorted(self._rises, key=self._rate):
            if best is not None and (self._rate(best) <= self._rate(unit) or measured == FEW):
                break
            after = self.field.without(self.left, unit)
            if after is None or self._gains[unit] <= 0:
                # What may not go now never may again.
                del self._rises[unit]
                continue
            if unit not in self._fresh:
                if self.taken == self.trials:
                    break
                found = self._losses[unit] = self.loss(after, f"{len(self.steps) + 1} units together")
                self._rises[unit] = found - self.now if math.isfinite(found) else math.inf
                self._fresh.add(unit)
                self.taken, measured = self.taken + 1, measured + 1
            if best is None or self._rate(unit) < self._rate(best):
                best = unit
        return best

    def _take(self, unit: Entry) -> None:
        rise, path = self._rises.pop(unit), _path(unit)
        near = [other for other in self._rises if _nested(_path(other), path)]
        around = [other for other in near if self._holds(other, unit)]
        self.left = self.field.prunable.without(self.left, [unit])
        self.removed, self.now = self.field.removed(self.left), self._losses[unit]
        self.steps.append(Step(unit, self.left, self.removed, self.now))
        self._fresh.clear()
        for other in around:
            # What it holds has gone already, and has cost what it did.
            self._rises[other] -= rise
        for other in near:
            self._gains[other] = self._gain(other)

    def _holds(self, unit: Entry, inner: Entry) -> bool:
        after = self.field.without(self.left, unit)
        return after is not None and inner[1] not in after[inner[0]]

    def _gain(self, unit: Entry) -> int:
        """Parameters that go with a unit now; 0 where it may not go."""
        after = self.field.without(self.left, unit)
        return 0 if after is None else self.field.removed(after) - self.removed

    def _rate(self, unit: Entry) -> float:
        """Rise of the loss per parameter, as far as it is known."""
        return self._rises[unit] / self._gains[unit] if self._gains[unit] > 0 else math.inf


def _path(unit: Entry) -> str:
    return unit[0].rpartition("/")[0]


def _nested(one: str, other: str) -> bool:
    """Whether one block is the other or lies inside it."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def at_random(field: Field, alone: Mapping[Entry, int], parameters: int, generator: np.random.Generator) -> Alive:
    """What is left when units go in random order, each that does not take more parameters in all than given.

    Args:
        field: what may go.
        alone: parameters that each unit takes alone.
        parameters: at most so many go.
        generator: draws the order.
    """
    left, removed = field.everything, 0
    for place in generator.permutation(len(field.units)).tolist():
        unit = field.units[place]
        after = field.without(left, unit)
        if after is None:
            continue
        # Of a unit in which nothing is missing yet, the parameters are known.
        intact = sum(map(len, left.values())) - sum(map(len, after.values())) == _inside(field, unit)
        if intact and removed + alone[unit] > parameters:
            continue
        gone = field.removed(after)
        if gone <= parameters:
            left, removed = after, gone
    return left


def _inside(field: Field, unit: Entry) -> int:
    """Units that go with a unit of the intact model, itself included."""
    after = field.prunable.without(field.everything, [unit])
    return sum(map(len, field.everything.values())) - sum(map(len, after.values()))
