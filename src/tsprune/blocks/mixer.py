"""Mixing along one axis by a feed-forward network, as in the time-series mixers (TTM)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tsprune.blocks.feedforward import FeedForward
from tsprune.blocks.prepacked import Linear
from tsprune.blocks.units import Block, UnitGroup


class Mixer(Block):
    """A feed-forward network along one axis, with a softmax gate along the same behind or before it.

    The hidden channels are units of the network inside. The gate's map is square over the mixed axis and fixed.

    Args:
        size: entries of the mixed axis.
        hidden: hidden channels of the network.
        axis: the mixed axis, counted from the end: -1 channels of a token, -2 tokens, -3 series.
        act: name of the activation.
        gated: whether there is a gate, which weighs what it gets by a softmax of a linear map of the same.
        gate_first: whether the gate comes before the network; else behind it.
        dropout: probability on the hidden channels and on the network's output, in training.
    """

    def __init__(
        self,
        size: int,
        hidden: int,
        *,
        axis: int = -1,
        act: str = "gelu",
        gated: bool = True,
        gate_first: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.axis = axis
        self.gate_first = gate_first
        self.mlp = FeedForward(size, hidden, act=act, bias=True, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.gating = Linear(size, size) if gated else None

    def forward(self, x: Tensor) -> Tensor:
        """`[B, ..., D]` in and out."""
        x = x.transpose(self.axis, -1)
        mixed = self._mixed(self._weighed(x)) if self.gate_first else self._weighed(self._mixed(x))
        return mixed.transpose(self.axis, -1)

    def _mixed(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp(x)
        return self.dropout(out) if self.training else out

    def _weighed(self, x: Tensor) -> Tensor:
        return x if self.gating is None else x * torch.softmax(self.gating(x), dim=-1)

    @property
    def silent(self) -> bool:
        """Whether nothing is left that it could contribute."""
        return self.mlp.silent

    def unit_groups(self, path: str) -> list[UnitGroup]:
        """None of its own."""
        return []
