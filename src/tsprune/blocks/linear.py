"""A linear map whose input and output channels can be masked, zeroed or cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from tsprune.blocks.gate import Gate, Rows
from tsprune.blocks.prepacked import Linear, Packed, fits
from tsprune.blocks.units import Later, Part, UnitGroup, shell

CHANNELS = ("in_channel", "out_channel")
FEW = 256
"""Tokens up to which one product for several maps is faster than one for each."""


class ChannelLinear(Linear):
    """A linear map that knows its channels.

    Channels on the residual width cannot shrink the stream they read from or write to. Removed ones are zeroed where
    they are, or, where that is faster, cut: then the map reads and writes by an index.

    Args:
        in_features: inputs I.
        out_features: outputs O.
        bias: whether there is a bias.
        device: of the weight.
        dtype: of the weight.

    Attributes:
        reads: `[I]` which entries of the given vector it reads, or None for all of them.
        writes: `[O]` which entries of the vector that it gives back are its outputs, or None for all of them.
        span: entries of the vector that it gives back, where `writes` is set.
        dead: indices of inputs (`in_channel`) and outputs (`out_channel`) that are zeroed in place.
        numbers: `[I or O]` for both kinds: which channel of the uncut map each one was; None before any cut.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.reads: Tensor | None = None
        self.writes: Tensor | None = None
        self.span = out_features
        self.dead: dict[str, tuple[int, ...]] = dict.fromkeys(CHANNELS, ())
        self.numbers: dict[str, Tensor | None] = dict.fromkeys(CHANNELS)
        # Not registered as modules, and only made when asked for: an unused map costs nothing.
        self.channel_gates: dict[str, Gate] = {}

    def forward(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        """`[..., I]` in, `[..., O]` out; `rows` where tokens of all rows of the batch come together."""
        if not self.channel_gates and self.reads is None and self.writes is None:
            return self.product(x)
        if self.reads is not None:
            x = x.index_select(-1, self.reads.to(x.device))
        gates = self.channel_gates
        if gates and gates["in_channel"].used:
            x = gates["in_channel"](x, rows)
        out = self.product(x)
        if gates and gates["out_channel"].used:
            out = gates["out_channel"](out, rows)
        if self.writes is not None:
            whole = out.new_zeros(*out.shape[:-1], self.span)
            out = whole.index_copy(-1, self.writes.to(out.device), out)
        return out

    def gate_of(self, kind: str) -> Gate:
        """The gate of the input or the output channels."""
        if not self.channel_gates:
            self.channel_gates = {"in_channel": Gate(self.in_features), "out_channel": Gate(self.out_features)}
        return self.channel_gates[kind]

    def channel_groups(self, path: str) -> list[UnitGroup]:
        """The groups of input and output channels of the map at `path`."""
        sizes = {"in_channel": (self.in_features, 1), "out_channel": (self.out_features, 0)}
        return [
            UnitGroup(
                name=f"{path}/{kind}",
                kind=kind,
                units=units,
                floor=0,
                gates=Later(self._gates_of, kind),
                parts=Later(self._parts_of, axis, units),
            )
            for kind, (units, axis) in sizes.items()
            if units
        ]

    def _gates_of(self, kind: str) -> tuple[Gate]:
        return (self.gate_of(kind),)

    def _parts_of(self, axis: int, units: int) -> tuple[Part]:
        return (Part(self, axis, torch.arange(units, device="cpu")),)

    def alive(self, kind: str) -> Tensor:
        """bool `[I or O]`: False where a channel is zeroed already."""
        units = self.in_features if kind == "in_channel" else self.out_features
        found = torch.ones(units, dtype=torch.bool, device="cpu")
        if dead := self.dead[kind]:
            found[list(dead)] = False
        return found

    def live_numbers(self, kind: str) -> tuple[int, ...]:
        """The channels that are not zeroed, as the uncut map counts."""
        live, numbers = self.alive(kind), self.numbers[kind]
        return _indices(live) if numbers is None else tuple(numbers[live].tolist())

    def shrunk(
        self,
        rows: Tensor | None = None,
        columns: Tensor | None = None,
        *,
        live_rows: Tensor | None = None,
        live_columns: Tensor | None = None,
        reading: bool = False,
        writing: bool = False,
    ) -> ChannelLinear:
        """A copy with fewer channels.

        Args:
            rows: indices of the outputs that stay; None keeps all.
            columns: indices of the inputs that stay; None keeps all.
            live_rows: bool `[O]` before the cut; outputs that stay but are not live are zeroed.
            live_columns: bool `[I]` before the cut; the same for inputs.
            reading: the vector that is read keeps its width, so the inputs that stay are picked by an index.
            writing: the vector that is written keeps its width, so outputs are put in place by an index.
        """
        smaller = cut_linear(self, rows, columns)
        live_rows = self._still_live("out_channel", rows, live_rows)
        live_columns = self._still_live("in_channel", columns, live_columns)
        smaller.numbers = dict(self.numbers)
        for kind, chosen in (("in_channel", columns), ("out_channel", rows)):
            if chosen is not None:
                numbers = self.numbers[kind]
                smaller.numbers[kind] = chosen if numbers is None else numbers[chosen]
        smaller.dead = {
            kind: () if live is None else _indices(~live)
            for kind, live in (("in_channel", live_columns), ("out_channel", live_rows))
        }
        if smaller.weight.device.type != "meta":
            with torch.no_grad():
                if live_rows is not None:
                    smaller.weight[~live_rows] = 0
                if live_columns is not None:
                    smaller.weight[:, ~live_columns] = 0
                if live_rows is not None and smaller.bias is not None:
                    smaller.bias[~live_rows] = 0
        if columns is not None and reading:
            smaller.reads = columns if self.reads is None else self.reads[columns]
        if rows is not None and writing:
            smaller.writes = rows if self.writes is None else self.writes[rows]
        elif rows is not None and self.writes is None:
            smaller.span = len(rows)
        return smaller

    def _still_live(self, kind: str, chosen: Tensor | None, live: Tensor | None) -> Tensor | None:
        """bool, of the channels that stay: which are not zeroed, after a further choice; None where none is."""
        if self.dead[kind]:
            live = self.alive(kind) if live is None else live & self.alive(kind)
        if live is not None and chosen is not None:
            live = live[chosen]
        return None if live is None or bool(live.all()) else live


def plain(layer: object) -> TypeGuard[ChannelLinear]:
    """Whether a map is a matrix and nothing else at present: no adapter, index, gate, or hook of somebody who looks."""
    return (
        type(layer) is ChannelLinear
        and layer.reads is None
        and layer.writes is None
        and not any(gate.used for gate in layer.channel_gates.values())
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
    )


def together(packed: Packed | None, maps: Sequence[ChannelLinear], x: Tensor) -> Sequence[Tensor | None]:
    """What several maps make of the same tokens, `[..., O]` each, in one product where that is faster; else Nones.

    Args:
        packed: of these maps together; None where nothing is laid out.
        maps: with bias or without, all of them.
        x: `[..., I]`.
    """
    if packed is not None and x.numel() <= FEW * x.shape[-1] and all(map(plain, maps)):
        outputs = sum(one.out_features for one in maps)
        if all(fits(x, one.weight, outputs) for one in maps):
            return packed.products(x, maps)
    return (None,) * len(maps)


def cut_linear(layer: ChannelLinear, rows: Tensor | None = None, columns: Tensor | None = None) -> ChannelLinear:
    """A new map with the given output rows and input columns (None keeps all), and gates of its own."""
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
    smaller.channel_gates = {}
    vars(smaller).pop("packed", None)
    smaller.out_features, smaller.in_features = weight.shape
    smaller.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    if bias is not None:
        smaller.bias = nn.Parameter(bias.clone() if rows is None else bias, requires_grad=layer.bias.requires_grad)
    return smaller


def _indices(chosen: Tensor) -> tuple[int, ...]:
    return tuple(chosen.nonzero().flatten().tolist())
