"""What can be removed from a model, and what every prunable block has to answer."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Self, TypeVar, overload

import torch
from torch import Tensor, nn

from tsprune.blocks.gate import Gate
from tsprune.blocks.kinds import KINDS as KINDS
from tsprune.errors import TspruneError

Module = TypeVar("Module", bound=nn.Module)
Item = TypeVar("Item")
KNOWN_GROUPS = "_known_groups"


@dataclass(frozen=True, eq=False)
class Part:
    """Rows or columns of one weight that belong to the units of a group.

    Args:
        layer: a linear map, or the table of relative biases.
        axis: 0 for rows of the weight (outputs, with their bias), 1 for columns (inputs).
        owner: `[rows or columns]` int64, the unit of each; -1 where it belongs to none.
    """

    layer: nn.Module
    axis: int
    owner: Tensor

    @property
    def weight(self) -> Tensor:
        """The weight, `[out, in]`."""
        found: Tensor = self.layer.weight  # type: ignore[assignment]
        return found

    @property
    def bias(self) -> Tensor | None:
        """The bias that goes with the rows; None for columns or without one."""
        return None if self.axis == 1 else getattr(self.layer, "bias", None)

    def sum_by_unit(self, values: Tensor, units: int) -> Tensor:
        """Sums of `values`, one for each row or column, over the entries of each unit: `[U]`, float64."""
        owner = self.owner.to(values.device)
        own = owner >= 0
        total = torch.zeros(units, dtype=torch.float64, device=values.device)
        return total.index_add(0, owner[own], values[own].double())


class Later(Sequence[Item]):
    """A tuple that is made when somebody looks into it: a checkpoint that is loaded asks for names and sizes alone.

    Args:
        make: gives the items; a method, so that a copy of its object has a tuple of its own.
        given: arguments of it.
    """

    def __init__(self, make: Callable[..., Iterable[Item]], *given: Any) -> None:
        self._make, self._given = make, given

    @cached_property
    def _items(self) -> tuple[Item, ...]:
        return tuple(self._make(*self._given))

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Item, ...]: ...

    def __getitem__(self, index: int | slice) -> Item | tuple[Item, ...]:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)


@dataclass(frozen=True, eq=False)
class UnitGroup:
    """Units of one block that can be removed one by one.

    Args:
        name: `<module path>/<kind>`, unique in a model.
        kind: one of `KINDS`.
        units: how many there are, U.
        floor: how few units may stay.
        gates: the gates that mask the group. One gate of U units, or, for a whole branch or layer (U = 1),
            one or several gates that are switched together and whose gradients add up.
        parts: what of the block's weights belongs to the units.
    """

    name: str
    kind: str
    units: int
    floor: int
    gates: Sequence[Gate]
    parts: Sequence[Part]

    @property
    def path(self) -> str:
        """Path of the block inside the model."""
        return self.name.rsplit("/", 1)[0]

    @property
    def costs(self) -> Tensor:
        """Parameters that leave the model with each unit alone: `[U]`, int64."""
        total = torch.zeros(self.units, dtype=torch.float64, device="cpu")
        for part in self.parts:
            entries = part.weight.shape[part.axis]
            across = part.weight.numel() // max(1, entries) + (part.bias is not None)
            total += part.sum_by_unit(torch.full((entries,), float(across), device="cpu"), self.units)
        return total.long()

    @property
    def parameters(self) -> int:
        """Parameters that leave the model with one unit; the mean, rounded down, where units differ."""
        return int(self.costs.sum()) // self.units

    @property
    def flops_per_token(self) -> int:
        """Floating point operations one unit costs per token in its linear maps (2 per weight), as a mean.

        The attention map, which grows with the square of the length, is not part of it.
        """
        weights = 0.0
        for part in self.parts:
            if isinstance(part.layer, nn.Linear):
                entries = torch.full(
                    (part.weight.shape[part.axis],), float(part.weight.shape[1 - part.axis]), device="cpu"
                )
                weights += float(part.sum_by_unit(entries, self.units).sum())
        return 2 * int(weights) // self.units

    def set_mask(self, keep: Tensor | None) -> None:
        """Switch units off: `keep` is bool `[U]`; None removes the mask."""
        for gate in self.gates:
            if keep is None or bool(keep.all()):
                gate.mask = None
            elif gate.units == self.units:
                gate.mask = keep.to(torch.float32)
            else:
                gate.mask = keep.to(torch.float32).expand(gate.units)


class Block(nn.Module):
    """Base of every prunable part.

    A block is built from the sizes it really has. It lists its unit groups under the path it is given and can
    return a physically smaller copy of itself.
    """

    def unit_groups(self, path: str) -> list[UnitGroup]:
        """The groups of this block itself, not of the blocks inside it."""
        raise TspruneError(f"{type(self).__name__} at {path} does not say which units it has")

    def groups(self, path: str) -> list[UnitGroup]:
        """The same, made once: a block never changes its units, it returns a smaller block."""
        known: dict[str, list[UnitGroup]] = self.__dict__.setdefault(KNOWN_GROUPS, {})
        if path not in known:
            before, made = next(iter(known.items()), ("", None))
            known[path] = (
                self.unit_groups(path)
                if made is None
                else [replace(group, name=path + group.name[len(before) :]) for group in made]
            )
        return known[path]

    def settled(self, kept: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """What of every kind is left once units that only serve units that go have gone too.

        Args:
            kept: units that stay by kind, in the block's own numbers; a kind that is not named stays whole.

        Returns:
            The same for all kinds that the block has, sorted.
        """
        # The same at every path, so groups that were made for another one do as well.
        path, made = next(iter(vars(self).get(KNOWN_GROUPS, {}).items()), ("", None))
        groups = {own_name(group.name, path): group.units for group in made or self.groups("")}
        if unknown := [kind for kind in kept if kind not in groups]:
            raise TspruneError(f"{type(self).__name__} has no units of kind {unknown[0]!r}")
        return {
            kind: check_kept(kept[kind], units, kind) if kind in kept else list(_numbers(units))
            for kind, units in groups.items()
        }

    def cut(self, kept: Mapping[str, Sequence[int]], indexed: Collection[str] = ()) -> Block:
        """A smaller copy with the units of every kind that stay, in their old order; see `settled`.

        Args:
            kept: units that stay by kind; a kind that is not named stays whole. A `Settled` of this block is taken
                as it is.
            indexed: groups of channels on the residual width that are cut by an index instead of zeroed in place.
        """
        raise TspruneError(f"{type(self).__name__} has no units of kind {next(iter(kept), '')!r}")

    def keep(self, kind: str, kept: Sequence[int]) -> Block:
        """A smaller copy of the block that has only the `kept` units of `kind`, in their old order."""
        return self.cut({kind: kept})

    @property
    def output(self) -> nn.Linear | None:
        """The linear map behind the gate, whose input columns belong to the units; None if there is none."""
        return None

    def output_entries(self, kept: Mapping[str, Sequence[int]]) -> Tensor:
        """Indices of the input columns of `output` that stay, when the given units do (by kind, all others whole)."""
        raise TspruneError(f"{type(self).__name__} has no output map")

    def shell(self) -> Self:
        """A copy with dictionaries of its own: parts can be replaced without touching the original."""
        return shell(self)


def named_blocks(network: nn.Module) -> list[tuple[str, Block]]:
    """All blocks by path, in network order; a walk of its own, as `named_modules` goes back up for every module."""
    found: list[tuple[str, Block]] = []
    seen: set[nn.Module] = set()
    waiting: list[tuple[str, nn.Module]] = [("", network)]
    while waiting:
        path, module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        if isinstance(module, Block):
            found.append((path, module))
        before = f"{path}." if path else ""
        waiting += [(before + name, child) for name, child in reversed(module._modules.items()) if child is not None]
    return found


class Settled(dict[str, list[int]]):
    """What stays of every kind of one block, closed already: `cut` need not settle it once more."""


def shell(module: Module) -> Module:
    """A copy of a module whose dictionaries are its own; parameters and children are still shared."""
    twin = object.__new__(type(module))
    vars(twin).update(
        {
            name: value.copy() if isinstance(value, dict | set) else value
            for name, value in vars(module).items()
            if name != KNOWN_GROUPS
        }
    )
    return twin


def without_groups(module: Module) -> Module:
    """The module itself, which forgets the groups that it made: parts of it are about to be replaced."""
    vars(module).pop(KNOWN_GROUPS, None)
    return module


@lru_cache(maxsize=64)
def _numbers(units: int) -> tuple[int, ...]:
    """All of so many units: numbers that exist already are listed several times as fast."""
    return tuple(range(units))


def check_kept(kept: Sequence[int], units: int, what: str) -> list[int]:
    """Sorted unit indices, or an error that names what is wrong with them."""
    wanted = sorted(map(int, kept))
    if len(set(wanted)) != len(wanted):
        raise TspruneError(f"{what}: units are listed twice in {wanted[:5]}; list each kept unit once")
    if wanted and (wanted[0] < 0 or wanted[-1] >= units):
        wrong = wanted[0] if wanted[0] < 0 else wanted[-1]
        raise TspruneError(f"{what}: unit {wrong} does not exist, it has 0..{units - 1}")
    return wanted


def own_name(name: str, path: str) -> str:
    """What the block at `path` calls its group of that name: `head`, or `.q/in_channel` for the channels of a map."""
    return name[len(path) :].removeprefix("/")


def group_name(path: str, kind: str) -> str:
    """The way back: the name of a group that the block at `path` calls so."""
    return f"{path}{kind}" if kind.startswith(".") else f"{path}/{kind}"


def as_mask(units: Sequence[int] | None, size: int) -> Tensor:
    """bool `[size]`, on the CPU: which units are listed; None stands for all."""
    if units is None or len(units) == size:
        return torch.ones(size, dtype=torch.bool, device="cpu")
    # By way of bytes: torch takes several times as long over a list of numbers.
    found = bytearray(size)
    for unit in units:
        found[unit] = 1
    return torch.frombuffer(found, dtype=torch.bool)


def as_index(units: Sequence[int]) -> Tensor:
    """int64 `[units]`, on the CPU."""
    found = array("q", units)
    return torch.frombuffer(found, dtype=torch.int64) if found else torch.zeros(0, dtype=torch.int64, device="cpu")


def check_floor(group: UnitGroup, kept: list[int]) -> list[int]:
    """The same units, or an error when they are fewer than the group's floor."""
    if len(kept) < group.floor:
        raise TspruneError(f"{group.name}: {len(kept)} units would stay, at least {group.floor} are needed")
    return kept
