"""Which units leave first, what goes along with them, and how many have to leave to reach a size."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from tsprune.blocks.experts import MixtureOfExperts
from tsprune.blocks.kinds import WHOLE
from tsprune.blocks.units import Block, UnitGroup, named_blocks, own_name
from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster

Alive = dict[str, list[int]]
"""Units that stay, by group name, in the numbers of the uncut model."""

Entry = tuple[str, int]
"""One unit: the name of its group, and its number."""

RANKS = ("signed", "magnitude")


class Prunable:
    """The groups of a model that may lose units, and how they hang together.

    Units overlap: a layer holds branches, these hold heads and channels, and a head holds query/key pairs and value
    entries. Nothing here adds up sizes; they are measured on the model cut accordingly (`tsprune.budgets`).

    Args:
        model: the uncut model.
        names: the groups that may lose units.

    Raises:
        TspruneError: the model has no such group.
    """

    def __init__(self, model: Forecaster, names: Sequence[str]) -> None:
        everything = model.unit_groups()
        if missing := [name for name in names if name not in everything]:
            raise TspruneError(f"the model has no unit group {missing[0]!r}; score this model first")
        chosen = set(names)
        self.groups: dict[str, UnitGroup] = {name: g for name, g in everything.items() if name in chosen}
        self.costs: dict[str, list[int]] = {name: g.costs.clamp(min=1).tolist() for name, g in self.groups.items()}
        self.whole = [name for name, group in self.groups.items() if group.kind in WHOLE]
        self._model = model
        self._seeing: dict[object, bool] = {}
        self.essential = [tuple(paths) for paths in model.essential() if any(map(self._there, paths))]

    def _there(self, path: str) -> bool:
        return bool(_heads_left(self._block(path), {}))

    def _block(self, path: str) -> Block | None:
        """The block at a path, or None where an earlier cut has taken it."""
        try:
            found = self._model.get_submodule(path)
        except AttributeError:
            return None
        return found if isinstance(found, Block) else None

    @cached_property
    def _blocks(self) -> dict[str, tuple[Block, dict[str, str]]]:
        """By path: each block with chosen groups of several kinds, and its own words for them."""
        found = {}
        for path, block in named_blocks(self._model):
            own = [group.name for group in block.groups(path) if group.name in self.groups]
            if len(own) > 1:
                found[path] = (block, {name: own_name(name, path) for name in own})
        return found

    @cached_property
    def _inside(self) -> dict[Entry, list[str]]:
        """Groups that lie inside a unit of another block: of a whole branch or layer, or of an expert."""
        paths: dict[Entry, str] = {(name, 0): self.groups[name].path for name in self.whole}
        for name, group in self.groups.items():
            block = self._block(group.path) if group.kind == "expert" else None
            if isinstance(block, MixtureOfExperts):
                paths |= {(name, unit): f"{group.path}.experts.{key}" for unit, key in enumerate(block.experts)}
        return {
            (name, unit): [
                inner
                for inner, group in self.groups.items()
                if inner != name and (group.path == path or group.path.startswith(f"{path}."))
            ]
            for (name, unit), path in paths.items()
        }

    def everything(self) -> Alive:
        """Nothing removed."""
        return {name: list(range(group.units)) for name, group in self.groups.items()}

    def order(
        self, scores: Mapping[str, Tensor], alive: Mapping[str, Sequence[int]], rank: str, uniform: bool = False
    ) -> list[Entry]:
        """Units in the order in which they leave: one ranking over all layers, by score per parameter.

        Dividing by the unit's parameters lets a head compete with the feed-forward channels it costs as much as; among
        units of equal cost it changes nothing. Units that have to stay as their group is at its floor are left out.

        Args:
            scores: importance `[U]` by group, higher = keep.
            alive: units still there.
            rank: `signed` removes first what is predicted to lower the loss; `magnitude` ranks by absolute score.
            uniform: take the same share of every group, so that equal layers stay equal; the score decides within a
                group.

        Raises:
            TspruneError: an unknown rank, or a score that is not a number.
        """
        if rank not in RANKS:
            raise TspruneError(f"--rank {rank!r} is unknown; use signed or magnitude")
        entries: list[tuple[float, float, str, int]] = []
        for name, units in alive.items():
            values, costs = self._values(scores, name, rank), self.costs[name]
            own = sorted((values[unit] / costs[unit], unit) for unit in units)
            gone, all_units = self.groups[name].units - len(own), self.groups[name].units
            leaving = own[: max(0, len(own) - self.groups[name].floor)]
            for place, (value, unit) in enumerate(leaving, start=1):
                entries.append(((gone + place) / all_units if uniform else 0.0, value, name, unit))
        entries.sort()
        return [(name, unit) for _, _, name, unit in entries]

    def _values(self, scores: Mapping[str, Tensor], name: str, rank: str) -> list[float]:
        found = scores[name]
        if not bool(torch.isfinite(found).all()):
            raise TspruneError(
                f"the scores of {name!r} are not all finite, so they cannot be ranked; the loss of some window is "
                "infinite or not a number: look for extreme values in the data, or score in float32"
            )
        values: list[float] = found.double().tolist()
        return [abs(value) for value in values] if rank == "magnitude" else values

    def without(self, alive: Mapping[str, Sequence[int]], leaving: Sequence[Entry]) -> Alive:
        """What is left once some units have gone, with all that only served them."""
        return self.settled(_removed(alive, leaving))

    def settled(self, alive: Mapping[str, Sequence[int]]) -> Alive:
        """The same choice with everything gone that lies inside units that are gone, or only serves them."""
        left = {name: list(units) for name, units in alive.items()}
        for block, words in self._blocks.values():
            if any(len(left[name]) < self.groups[name].units for name in words if name in left):
                closed = block.settled({word: left[name] for name, word in words.items() if name in left})
                for name, word in words.items():
                    if name in left:
                        left[name] = list(closed[word])
        for (name, unit), inside in self._inside.items():
            if name in left and unit not in left[name]:
                for inner in inside:
                    # One that has a floor is not listed as empty: masks and cuts would refuse that.
                    if inner in left and not self.groups[inner].floor:
                        left[inner] = []
        return left

    def spares_essential(self, alive: Mapping[str, Sequence[int]]) -> bool:
        """Whether of every set of blocks that must not all go, such as a decoder's cross-attentions, one is left."""
        if not self.essential:
            return True
        closed = [self.groups[name].path for name in self.whole if name in alive and not alive[name]]

        def left(path: str) -> bool:
            if any(path == outer or path.startswith(f"{outer}.") for outer in closed):
                return False
            own = {own_name(n, path): tuple(units) for n, units in alive.items() if _belongs(self.groups[n], path)}
            key = (path, *own.items())
            if key not in self._seeing:
                self._seeing[key] = _heads_left(self._block(path), own)
            return self._seeing[key]

        return all(any(map(left, paths)) for paths in self.essential)


def _removed(alive: Mapping[str, Sequence[int]], leaving: Sequence[Entry]) -> Alive:
    gone: dict[str, set[int]] = {}
    for name, unit in leaving:
        gone.setdefault(name, set()).add(unit)
    return {name: [u for u in units if u not in gone.get(name, ())] for name, units in alive.items()}


def _belongs(group: UnitGroup, path: str) -> bool:
    return group.path == path or group.path.startswith(f"{path}.")


def _heads_left(block: Block | None, kept: Mapping[str, Sequence[int]]) -> bool:
    if block is None:
        return False
    closed = block.settled(kept)
    return bool(closed.get("head")) and closed.get(".o/out_channel") != []


def shortest(
    prunable: Prunable,
    alive: Mapping[str, Sequence[int]],
    order: Sequence[Entry],
    size: Callable[[Alive], float],
    goal: float,
) -> tuple[Alive, bool]:
    """What is left when units leave in order until the size is at most the goal, and not one unit longer.

    A unit that would take the last of an essential set of blocks is passed over.

    Args:
        prunable: how units hang together.
        alive: units still there.
        order: in which they leave.
        size: of the model cut to what is left; it never grows as units leave, and counts what goes along with them.
        goal: the size to reach.

    Returns:
        The units that stay, and whether the goal was reached; where it was not, all that may go is gone.
    """
    leaving, safe = list(order), 0
    while True:
        count = _shortest_prefix(leaving, prunable.costs, alive, size, goal)
        if prunable.spares_essential(_removed(alive, leaving[:count])):
            left = prunable.without(alive, leaving[:count])
            return left, count < len(leaving) or size(left) <= goal
        # Prefixes grow: the first that takes the last block of a set ends with the unit to be passed over.
        safe += bisect_left(
            range(safe + 1, count + 1),
            True,
            key=lambda n: not prunable.spares_essential(_removed(alive, leaving[:n])),
        )
        del leaving[safe]


def _shortest_prefix(
    order: Sequence[Entry],
    costs: Mapping[str, Sequence[int]],
    alive: Mapping[str, Sequence[int]],
    size: Callable[[Alive], float],
    goal: float,
) -> int:
    """How many units have to leave; all of them where that is not enough."""

    def measured(count: int) -> float:
        return size(_removed(alive, order[:count]))

    at_low = measured(0)
    if at_low <= goal or not order:
        return 0
    totals = [0, *accumulate(costs[name][unit] for name, unit in order)]
    low, high, per_cost, halve = 0, len(order), 1.0, False
    while high - low > 1:
        # By the units' own costs the place is mostly hit at once; where they overlap, halving still gets there.
        guess = bisect_left(totals, totals[low] + (at_low - goal) / per_cost, low, high)
        middle = (low + high) // 2 if halve else min(max(guess, low + 1), high - 1)
        span, found = high - low, measured(middle)
        if found < at_low:
            per_cost = (at_low - found) / (totals[middle] - totals[low])
        if found <= goal:
            high = middle
        else:
            low, at_low = middle, found
        halve = not halve and 2 * (high - low) > span
    return high
