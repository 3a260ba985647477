"""Residual branches and layers: the units that are removed whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from tsprune.blocks.attention import Attention
from tsprune.blocks.feedforward import FeedForward
from tsprune.blocks.gate import Gate
from tsprune.blocks.units import Block, UnitGroup, check_kept


class Branch(Block):
    """A pre-norm residual branch, `x + dropout(inner(norm(x)))`, that can be removed whole.

    Once nothing is left inside (no head, no hidden channel, no output bias) norm and projections are gone and
    the branch passes its input through.

    Args:
        name: attribute under which the inner block is registered, as in the public checkpoint.
        inner: an attention or a feed-forward block.
        norm: normalisation applied first.
        width: residual width D.
        dropout: probability on the branch's output, in training.
    """

    def __init__(
        self, name: str, inner: Attention | FeedForward, norm: nn.Module, width: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.inner_name = name
        self.kind = "attention" if isinstance(inner, Attention) else "ffn"
        self.add_module(name, inner)
        self.layer_norm: nn.Module | None = norm
        self.dropout = nn.Dropout(dropout)
        self.gate = Gate(1, width)

    @property
    def inner(self) -> Attention | FeedForward | None:
        """The block inside, or None once the branch is gone."""
        found: Attention | FeedForward | None = self._modules.get(self.inner_name)  # type: ignore[assignment]
        return found

    def forward(self, x: Tensor, **inputs: Any) -> Tensor:
        """`[B, T, D]` in and out; further inputs go to the inner block."""
        inner = self.inner
        if inner is None or self.layer_norm is None:
            return x
        out: Tensor = x + self.dropout(self.gate(inner(self.layer_norm(x), **inputs)))
        return out

    def unit_groups(self, path: str) -> list[UnitGroup]:
        """One group of one unit: the branch."""
        if self.inner is None:
            return []
        linear = sum(m.weight.numel() for m in self.inner.modules() if isinstance(m, nn.Linear))
        return [
            UnitGroup(
                name=f"{path}/{self.kind}",
                kind=self.kind,
                units=1,
                parameters=sum(p.numel() for p in self.parameters()),
                flops_per_token=2 * linear,
                floor=0,
                gates=(self.gate,),
            )
        ]

    def keep(self, kind: str, kept: Sequence[int]) -> Branch:
        """A copy with the branch (`[0]`) or without it (`[]`)."""
        if kind != self.kind:
            super().keep(kind, kept)
        if check_kept(kept, 1, f"whole {self.kind}"):
            return self
        smaller = self.shell()
        smaller._modules[self.inner_name] = None
        smaller._modules["layer_norm"] = None
        return smaller

    def tidy(self) -> Branch:
        """The branch itself, or its empty form when the inner block contributes nothing any more."""
        inner = self.inner
        if isinstance(inner, Attention):
            empty = inner.heads == 0 and inner.o.bias is None
        elif isinstance(inner, FeedForward):
            empty = inner.hidden == 0 and inner.wo.bias is None
        else:
            return self
        return self.keep(self.kind, []) if empty else self


class Layer(Block):
    """A stack of branches that can be removed whole.

    Args:
        branches: the branches in order, registered under `layer.0`, `layer.1`, ...
    """

    def __init__(self, branches: Sequence[Branch]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(branches)

    @property
    def branches(self) -> list[Branch]:
        """The branches in order."""
        return [branch for branch in self.layer if isinstance(branch, Branch)]

    def unit_groups(self, path: str) -> list[UnitGroup]:
        """One group of one unit: the layer, through the gates of its branches."""
        alive = [group for branch in self.branches for group in branch.unit_groups(path)]
        if not alive:
            return []
        return [
            UnitGroup(
                name=f"{path}/layer",
                kind="layer",
                units=1,
                parameters=sum(group.parameters for group in alive),
                flops_per_token=sum(group.flops_per_token for group in alive),
                floor=0,
                gates=tuple(gate for group in alive for gate in group.gates),
            )
        ]

    def keep(self, kind: str, kept: Sequence[int]) -> Layer:
        """A copy with the layer (`[0]`) or with all its branches gone (`[]`)."""
        if kind != "layer":
            super().keep(kind, kept)
        if check_kept(kept, 1, "whole layer"):
            return self
        smaller = self.shell()
        smaller.layer = nn.ModuleList([branch.keep(branch.kind, []) for branch in self.branches])
        return smaller
