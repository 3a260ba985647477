"""Residual branches and layers: the units that are removed whole."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tsprune.blocks.attention import Attention
from tsprune.blocks.experts import MixtureOfExperts
from tsprune.blocks.feedforward import FeedForward
from tsprune.blocks.folded import FoldedAttention
from tsprune.blocks.gate import Gate
from tsprune.blocks.mixer import Mixer
from tsprune.blocks.units import Block, Later, Part, UnitGroup

Inner = Attention | FoldedAttention | FeedForward | MixtureOfExperts | Mixer


class Branch(Block):
    """A residual branch that can be removed whole.

    Its norm comes first, `x + dropout(inner(norm(x)))`, or last, `norm(x + dropout(inner(x)))`, or there are two,
    `x + dropout(closing(inner(norm(x))))`. Once nothing is left inside (no head, no hidden channel, no output bias) the
    projections are gone, and with them the norms of the inner path; a norm that comes last works on the residual
    itself, so it stays.

    Args:
        name: attribute under which the inner block is registered, as in the public checkpoint.
        inner: an attention, as it is or folded, a feed-forward block, a mixture of experts or a mixer.
        norm: normalisation applied first, or last with `after`.
        width: residual width D, the last axis of what `inner` returns.
        dropout: probability on the branch's output, in training.
        after: whether the norm is applied to the sum.
        closing: a norm of the inner block's output that maps 0 to 0, such as RMSNorm; None for none.
    """

    def __init__(
        self,
        name: str,
        inner: Inner,
        norm: nn.Module,
        width: int,
        dropout: float = 0.0,
        *,
        after: bool = False,
        closing: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.inner_name = name
        self.kind = "attention" if isinstance(inner, Attention | FoldedAttention) else "ffn"
        self.add_module(name, inner)
        self.after = after
        self.layer_norm: nn.Module | None = norm
        self.closing_norm = closing
        self.dropout = nn.Dropout(dropout)
        self.gate = Gate(1, width)

    @property
    def inner(self) -> Inner | None:
        """The block inside, or None once the branch is gone."""
        found: Inner | None = self._modules.get(self.inner_name)  # type: ignore[assignment]
        return found

    def forward(self, x: Tensor, **inputs: Any) -> Tensor:
        """`[B, T, D]` in and out; further inputs go to the inner block."""
        inner, norm = self.inner, self.layer_norm
        if norm is None:
            return x
        if inner is not None:
            out = inner(x if self.after else norm(x), **inputs)
            if self.closing_norm is not None:
                out = self.closing_norm(out)
            out = self.gate(out)
            x = x + (self.dropout(out) if self.training else out)
        result: Tensor = norm(x) if self.after else x
        return result

    def holding(self, inner: Inner) -> Branch:
        """A copy with another block inside, of the same kind."""
        other = self.shell()
        other._modules[self.inner_name] = inner
        return other

    def unit_groups(self, path: str) -> list[UnitGroup]:
        """One group of one unit: the branch."""
        if self.inner is None:
            return []
        return [UnitGroup(f"{path}/{self.kind}", self.kind, 1, 0, (self.gate,), Later(self._everything))]

    def _everything(self) -> list[Part]:
        """Every weight that leaves with the branch, as belonging to its one unit."""
        found = []
        stays = set() if self.layer_norm is None or not self.after else set(self.layer_norm.modules())
        for module in self.modules():
            if module in stays:
                continue
            weight = getattr(module, "weight", None)
            if isinstance(weight, nn.Parameter):
                found.append(Part(module, 0, torch.zeros(weight.shape[0], dtype=torch.long, device="cpu")))
        return found

    def cut(self, kept: Mapping[str, Sequence[int]], indexed: Collection[str] = ()) -> Branch:
        """A copy with the branch (`[0]`) or without it (`[]`)."""
        if self.inner is None or self.settled(kept)[self.kind]:
            return self
        return self._emptied()

    def _emptied(self) -> Branch:
        smaller = self.shell()
        smaller._modules[self.inner_name] = None
        smaller._modules["closing_norm"] = None
        if not self.after:
            smaller._modules["layer_norm"] = None
        return smaller

    def tidy(self) -> Branch:
        """The branch itself, or its empty form when the inner block contributes nothing any more."""
        inner = self.inner
        return self._emptied() if inner is not None and inner.silent else self


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
        alive = [group for branch in self.branches for group in branch.groups(path)]
        if not alive:
            return []
        gates = tuple(gate for group in alive for gate in group.gates)
        return [UnitGroup(f"{path}/layer", "layer", 1, 0, gates, Later(self._everything))]

    def _everything(self) -> list[Part]:
        """Every weight of the branches that are left."""
        return [part for branch in self.branches if branch.inner is not None for part in branch._everything()]

    def cut(self, kept: Mapping[str, Sequence[int]], indexed: Collection[str] = ()) -> Layer:
        """A copy with the layer (`[0]`) or with all its branches gone (`[]`)."""
        chosen = self.settled(kept)
        if not chosen or chosen["layer"]:
            return self
        smaller = self.shell()
        smaller.layer = nn.ModuleList([branch._emptied() for branch in self.branches])
        return smaller
