"""Feed-forward network, plain or gated, whose hidden channels can be removed one by one, down to none."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsprune.blocks.gate import Gate, Rows
from tsprune.blocks.linear import ChannelLinear, plain, together
from tsprune.blocks.prepacked import Packed
from tsprune.blocks.units import Block, Later, Part, Settled, UnitGroup, as_index, as_mask
from tsprune.errors import TspruneError


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation function of that name; an unknown name is an error that lists the known ones."""
    known: dict[str, Callable[[Tensor], Tensor]] = {
        "relu": F.relu,
        "gelu": F.gelu,
        "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
        "silu": F.silu,
        "swish": F.silu,
        "tanh": torch.tanh,
    }
    if name not in known:
        raise TspruneError(f"unknown activation {name!r} in the model's config; known: {', '.join(known)}")
    return known[name]


class FeedForward(Block):
    """Two linear maps with an activation between, or three with a multiplicative gate (GLU variants).

    Args:
        width: residual width D.
        hidden: number of hidden channels; with 0 the network contributes only its output bias, if it has one.
        act: name of the activation.
        gated: whether a second input map multiplies the activation.
        bias: whether the maps have biases.
        dropout: probability on the hidden channels, in training.
    """

    packed: Packed | None = None

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        act: str = "relu",
        gated: bool = False,
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.gated = gated
        self.act_name = act
        if gated:
            self.wi_0 = ChannelLinear(width, hidden, bias=bias)
            self.wi_1 = ChannelLinear(width, hidden, bias=bias)
        else:
            self.wi = ChannelLinear(width, hidden, bias=bias)
        self.wo = ChannelLinear(hidden, width, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.act = activation(act)
        self.gate = Gate(hidden)

    @property
    def _inputs(self) -> tuple[str, ...]:
        return ("wi_0", "wi_1") if self.gated else ("wi",)

    def forward(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        """`[..., D]` in and out; `rows` where tokens of all rows of the batch come together, as `[n, D]`."""
        if self.hidden == 0:
            empty: Tensor = self.wo(x.new_zeros(*x.shape[:-1], 0), rows)
            return empty
        inner = self._gated(x, rows) if self.gated else self._activated(x, rows)
        inner = self.dropout(inner) if self.training else inner
        projected: Tensor = self.wo(self.gate(inner, rows), rows)
        return projected

    def _activated(self, x: Tensor, rows: Rows | None) -> Tensor:
        """Hidden channels without a multiplicative gate, `[..., H]`."""
        if self.packed is not None and self.act is F.relu and plain(self.wi):
            return self.wi.rectified(x)
        return self.act(self.wi(x, rows))

    def _gated(self, x: Tensor, rows: Rows | None) -> Tensor:
        """Hidden channels with one, `[..., H]`."""
        left, right = together(self.packed, (self.wi_0, self.wi_1), x)
        if left is None or right is None:
            left, right = self.wi_0(x, rows), self.wi_1(x, rows)
        return self.act(left) * right

    @property
    def output(self) -> nn.Linear:
        """The down projection."""
        return self.wo

    @property
    def silent(self) -> bool:
        """Whether nothing is left that it could contribute."""
        return self.hidden == 0 and self.wo.bias is None

    def unit_groups(self, path: str) -> list[UnitGroup]:
        """The hidden channels, and the channels of the maps."""
        if self.hidden == 0:
            return []
        parts = Later(self._parts)
        found = [UnitGroup(f"{path}/ffn_channel", "ffn_channel", self.hidden, 0, (self.gate,), parts)]
        for name in (*self._inputs, "wo"):
            found += getattr(self, name).channel_groups(f"{path}.{name}")
        return found

    def _parts(self) -> list[Part]:
        own = torch.arange(self.hidden, device="cpu")
        return [*(Part(getattr(self, name), 0, own) for name in self._inputs), Part(self.wo, 1, own)]

    def settled(self, kept: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """Close a choice of units: a hidden channel goes when any map loses it, as every activation is 0 at 0."""
        chosen = super().settled(kept)
        if not self.hidden:
            return chosen
        inner = ["ffn_channel", ".wo/in_channel", *(f".{name}/out_channel" for name in self._inputs)]
        # Maps that lose nothing have no say, and in a large network they are nearly all.
        fewer = [set(chosen[kind]) for kind in inner if len(chosen[kind]) < self.hidden]
        alive = sorted(set.intersection(*fewer)) if fewer else range(self.hidden)
        return chosen | {kind: list(alive) for kind in inner}

    def cut(self, kept: Mapping[str, Sequence[int]], indexed: Collection[str] = ()) -> FeedForward:
        """A copy with the units that stay; `indexed` as in `tsprune.blocks.headcuts.cut_attention`."""
        chosen = kept if isinstance(kept, Settled) else self.settled(kept)
        if not self.hidden:
            return self
        index = as_index(chosen["ffn_channel"])
        smaller = self.shell()
        smaller.hidden = len(index)
        for name in self._inputs:
            layer, kind = getattr(self, name), f".{name}/in_channel"
            live = as_mask(chosen.get(kind, []), layer.in_features)
            columns = live.nonzero().flatten() if kind in indexed else None
            setattr(smaller, name, layer.shrunk(index, columns, live_columns=live, reading=kind in indexed))
        live = as_mask(chosen.get(".wo/out_channel", []), self.wo.out_features)
        writing = ".wo/out_channel" in indexed
        stay = live.nonzero().flatten() if writing else None
        smaller.wo = self.wo.shrunk(stay, index, live_rows=live, writing=writing)
        smaller.gate = Gate(len(index))
        return smaller

    def output_entries(self, kept: Mapping[str, Sequence[int]]) -> Tensor:
        """Indices of the down projection's columns that stay."""
        return (
            torch.tensor(self.settled(kept)["ffn_channel"], dtype=torch.long, device="cpu")
            if self.hidden
            else torch.arange(0, device="cpu")
        )
