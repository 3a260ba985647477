"""Feed-forward network, plain or gated, whose hidden channels can be removed one by one, down to none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsprune.blocks.gate import Gate
from tsprune.blocks.units import Block, UnitGroup, check_kept, cut_linear
from tsprune.errors import TspruneError


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation function of that name; an unknown name is an error that lists the known ones."""
    known: dict[str, Callable[[Tensor], Tensor]] = {
        "relu": F.relu,
        "gelu": F.gelu,
        "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
        "silu": F.silu,
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
            self.wi_0 = nn.Linear(width, hidden, bias=bias)
            self.wi_1 = nn.Linear(width, hidden, bias=bias)
        else:
            self.wi = nn.Linear(width, hidden, bias=bias)
        self.wo = nn.Linear(hidden, width, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.act = activation(act)
        self.gate = Gate(hidden)

    @property
    def _inputs(self) -> tuple[str, ...]:
        return ("wi_0", "wi_1") if self.gated else ("wi",)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D]` in and out."""
        if self.hidden == 0:
            empty = torch.zeros_like(x)
            return empty if self.wo.bias is None else empty + self.wo.bias
        inner = self.act(self.wi_0(x)) * self.wi_1(x) if self.gated else self.act(self.wi(x))
        projected: Tensor = self.wo(self.gate(self.dropout(inner)))
        return projected

    @property
    def output(self) -> nn.Linear:
        """The down projection."""
        return self.wo

    def unit_groups(self, path: str) -> list[UnitGroup]:
        """One group: the hidden channels."""
        if self.hidden == 0:
            return []
        inputs = [getattr(self, name) for name in self._inputs]
        own = sum(p.numel() for layer in inputs for p in layer.parameters()) + self.wo.weight.numel()
        linear = sum(layer.weight.numel() for layer in (*inputs, self.wo))
        return [
            UnitGroup(
                name=f"{path}/ffn_channel",
                kind="ffn_channel",
                units=self.hidden,
                parameters=own // self.hidden,
                flops_per_token=2 * linear // self.hidden,
                floor=0,
                gates=(self.gate,),
            )
        ]

    def keep(self, kind: str, kept: Sequence[int]) -> FeedForward:
        """A copy with the `kept` hidden channels."""
        if kind != "ffn_channel":
            super().keep(kind, kept)
        channels = check_kept(kept, self.hidden, "feed-forward channels")
        index = torch.tensor(channels, dtype=torch.long)
        smaller = self.shell()
        smaller.hidden = len(channels)
        for name in self._inputs:
            setattr(smaller, name, cut_linear(getattr(self, name), rows=index))
        smaller.wo = cut_linear(self.wo, columns=index)
        smaller.gate = Gate(len(channels))
        return smaller
