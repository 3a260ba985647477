"""What can be removed from a model, and what every prunable block has to answer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import torch
from torch import Tensor, nn

from tsprune.blocks.gate import Gate
from tsprune.errors import TspruneError

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class UnitGroup:
    """Equal units of one block that can be removed one by one.

    Args:
        name: `<module path>/<kind>`, unique in a model.
        kind: `head`, `ffn_channel`, `attention`, `ffn` or `layer`.
        units: how many there are, U.
        parameters: parameters that leave the model with one unit.
        flops_per_token: floating point operations one unit costs per token in its linear maps (2 per weight);
            the attention map, which grows with the square of the length, is not part of it.
        floor: how few units may stay.
        gates: the gates that mask the group. One gate of U units, or, for a whole branch or layer (U = 1),
            one or several gates that are switched together and whose gradients add up.
    """

    name: str
    kind: str
    units: int
    parameters: int
    flops_per_token: int
    floor: int
    gates: tuple[Gate, ...]

    @property
    def path(self) -> str:
        """Path of the block inside the model."""
        return self.name.rsplit("/", 1)[0]

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

    def keep(self, kind: str, kept: Sequence[int]) -> Block:
        """A smaller copy of the block that has only the `kept` units of `kind`, in their old order."""
        raise TspruneError(f"{type(self).__name__} has no units of kind {kind!r}")

    @property
    def output(self) -> nn.Linear | None:
        """The linear map behind the gate, whose input columns belong to the units; None if there is none."""
        return None

    def shell(self) -> Self:
        """A copy with dictionaries of its own: parts can be replaced without touching the original."""
        return shell(self)


def shell(module: Module) -> Module:
    """A copy of a module whose dictionaries are its own; parameters and children are still shared."""
    twin = copy.copy(module)
    for name, value in vars(module).items():
        if isinstance(value, dict | set):
            object.__setattr__(twin, name, value.copy())
    return twin


def check_kept(kept: Sequence[int], units: int, what: str) -> list[int]:
    """Sorted unit indices, or an error that names what is wrong with them."""
    wanted = sorted(int(index) for index in kept)
    if len(set(wanted)) != len(wanted):
        raise TspruneError(f"{what}: units are listed twice in {wanted[:5]}; list each kept unit once")
    if wanted and (wanted[0] < 0 or wanted[-1] >= units):
        wrong = wanted[0] if wanted[0] < 0 else wanted[-1]
        raise TspruneError(f"{what}: unit {wrong} does not exist, it has 0..{units - 1}")
    return wanted


def spread(kept: Sequence[int], width: int) -> Tensor:
    """Entry indices of units that are each `width` entries wide."""
    starts = torch.tensor(list(kept), dtype=torch.long) * width
    return (starts[:, None] + torch.arange(width)).reshape(-1)


def cut_linear(layer: nn.Linear, rows: Tensor | None = None, columns: Tensor | None = None) -> nn.Linear:
    """A new linear map with the given output rows and input columns (None keeps all)."""
    weight = layer.weight.detach()
    bias = None if layer.bias is None else layer.bias.detach()
    if rows is not None:
        rows = rows.to(weight.device)
        weight = weight.index_select(0, rows)
        bias = None if bias is None else bias.index_select(0, rows)
    if columns is not None:
        weight = weight.index_select(1, columns.to(weight.device))
    if rows is None and columns is None:
        weight = weight.clone()
    # A shell rather than a new map: a constructor would initialise weights, from the global random state.
    smaller = shell(layer)
    smaller.out_features, smaller.in_features = weight.shape
    smaller.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    if bias is not None:
        smaller.bias = nn.Parameter(bias.clone() if rows is None else bias, requires_grad=layer.bias.requires_grad)
    return smaller
