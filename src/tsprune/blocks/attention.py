"""Multi-head attention whose heads can be removed one by one, down to none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsprune.blocks.gate import Gate
from tsprune.blocks.positions import rotate
from tsprune.blocks.units import Block, UnitGroup, check_kept, cut_linear, shell, spread


class Attention(Block):
    """Dot-product attention: self or cross, scaled or not, with rotary positions or a relative bias table.

    Args:
        width: residual width D.
        heads: number of heads; 0 is an attention that contributes only its output bias, if it has one.
        head_width: width of queries, keys and values of one head.
        scale: factor on the attention logits; None means 1 / sqrt(head_width), 1.0 is none (T5, Chronos).
        buckets: size of the relative bias table, or 0 for no table.
        bias: whether the four projections have biases.
        dropout: probability on the attention weights, in training.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        *,
        scale: float | None = None,
        buckets: int = 0,
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.head_width = head_width
        self.scale = scale
        self.dropout = dropout
        self.q = nn.Linear(width, inner, bias=bias)
        self.k = nn.Linear(width, inner, bias=bias)
        self.v = nn.Linear(width, inner, bias=bias)
        self.o = nn.Linear(inner, width, bias=bias)
        if buckets:
            self.relative_attention_bias = nn.Embedding(buckets, heads)
        self.has_table = bool(buckets)
        self.gate = Gate(heads, head_width)

    def forward(
        self,
        x: Tensor,
        *,
        memory: Tensor | None = None,
        mask: Tensor | None = None,
        rotary: tuple[Tensor, Tensor] | None = None,
        buckets: Tensor | None = None,
    ) -> Tensor:
        """Attend from `x` to itself or to `memory`.

        Args:
            x: `[B, T, D]`.
            memory: `[B, S, D]` for cross-attention, or None.
            mask: bool `[B, 1, T or 1, S]`, True where attention is allowed, or None for everywhere.
            rotary: tables `[T, head_width]`, or None.
            buckets: relative buckets `[T, S]` for the bias table, or None.

        Returns:
            `[B, T, D]`.
        """
        if self.heads == 0:
            return self._without_heads(x)
        source = x if memory is None else memory
        query, key, value = (self._split(part) for part in (self.q(x), self.k(source), self.v(source)))
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        mixed = self._attend(query, key, value, self._full_mask(mask, buckets, query), blind=_blind(mask))
        return self._join(mixed)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, blind: bool = False) -> Tensor:
        """Attention under an additive mask; `blind` where some query has nothing to attend to."""
        dropout = self.dropout if self.training else 0.0
        # Where every key is masked, the fused kernel's backward pass on CPUs is wrong (torch 2.13).
        half = query.dtype not in (torch.float32, torch.float64)
        if query.device.type == "cpu" and (half or blind):
            return self._attend_plainly(query, key, value, mask, dropout)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=self.scale)

    def _attend_plainly(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
        """The same in separate steps: the fused kernel's half-precision backward is much slower on CPUs."""
        logits = query @ key.transpose(-1, -2)
        if self.scale != 1.0:
            logits = logits * (self.head_width**-0.5 if self.scale is None else self.scale)
        weights = (logits if mask is None else logits + mask).softmax(-1).to(value.dtype)
        weights = F.dropout(weights, dropout) if dropout else weights
        return weights @ value

    def _join(self, mixed: Tensor) -> Tensor:
        joined = mixed.transpose(1, 2).flatten(2)
        projected: Tensor = self.o(self.gate(joined))
        return projected

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, self.head_width).transpose(1, 2)

    def _full_mask(self, mask: Tensor | None, buckets: Tensor | None, query: Tensor) -> Tensor | None:
        """Additive mask; a row with nothing to attend to gets uniform weights rather than NaN."""
        added = None
        if mask is not None:
            hidden = torch.zeros(mask.shape, dtype=query.dtype, device=query.device)
            # Half of the smallest number: a bias on top must not overflow to -inf in half precision.
            added = hidden.masked_fill(~mask, torch.finfo(query.dtype).min / 2)
        if buckets is None or not self.has_table:
            return added
        bias: Tensor = self.relative_attention_bias(buckets).permute(2, 0, 1)[None].to(query.dtype)
        return bias if added is None else bias + added

    def _alone(self, x: Tensor) -> Tensor:
        """Each position attends to itself alone: a softmax over one entry is 1, whatever query and key."""
        projected: Tensor = self.o(self.gate(self.v(x)))
        return projected

    def _without_heads(self, x: Tensor) -> Tensor:
        empty = torch.zeros_like(x)
        return empty if self.o.bias is None else empty + self.o.bias

    @property
    def output(self) -> nn.Linear:
        """The output projection."""
        return self.o

    def unit_groups(self, path: str) -> list[UnitGroup]:
        """One group: the heads."""
        if self.heads == 0:
            return []
        own = sum(p.numel() for layer in (self.q, self.k, self.v) for p in layer.parameters())
        own += self.o.weight.numel()
        linear = sum(layer.weight.numel() for layer in (self.q, self.k, self.v, self.o))
        table = self.relative_attention_bias.weight.numel() if self.has_table else 0
        return [
            UnitGroup(
                name=f"{path}/head",
                kind="head",
                units=self.heads,
                parameters=(own + table) // self.heads,
                flops_per_token=2 * linear // self.heads,
                floor=0,
                gates=(self.gate,),
            )
        ]

    def keep(self, kind: str, kept: Sequence[int]) -> Attention:
        """A copy with the `kept` heads: rows of q, k, v, columns of o, columns of the bias table."""
        if kind != "head":
            super().keep(kind, kept)
        heads = check_kept(kept, self.heads, "attention heads")
        entries = spread(heads, self.head_width)
        smaller = self.shell()
        smaller.heads = len(heads)
        smaller.q, smaller.k, smaller.v = (cut_linear(part, rows=entries) for part in (self.q, self.k, self.v))
        smaller.o = cut_linear(self.o, columns=entries)
        smaller.gate = Gate(len(heads), self.head_width)
        if self.has_table:
            table = self.relative_attention_bias.weight.detach()
            columns = table.index_select(1, torch.tensor(heads, dtype=torch.long, device=table.device))
            smaller.relative_attention_bias = shell(self.relative_attention_bias)
            smaller.relative_attention_bias.embedding_dim = len(heads)
            needs = self.relative_attention_bias.weight.requires_grad
            smaller.relative_attention_bias.weight = nn.Parameter(columns, requires_grad=needs)
        return smaller


def _blind(mask: Tensor | None) -> bool:
    """Whether a bool mask leaves some query nothing to attend to."""
    return mask is not None and not bool(mask.any(-1).all())


@dataclass(frozen=True)
class Groups:
    """Which rows of a batch belong together, as a padded table.

    Args:
        members: `[G, M]` row indices, padded with 0.
        present: `[G, M]` bool, False on padding.
        place: `[B]` where each row stands in the flattened table.
    """

    members: Tensor
    present: Tensor
    place: Tensor

    @property
    def alone(self) -> bool:
        """Whether every row is a group of its own."""
        return self.members.shape[1] == 1

    @classmethod
    def of(cls, group_ids: Tensor) -> Groups:
        """From group ids `[B]`; ids may be any integers in any order."""
        _, group = torch.unique(group_ids, return_inverse=True)
        order = torch.argsort(group, stable=True)
        counts = torch.bincount(group)
        starts = torch.cumsum(counts, 0) - counts
        rank = torch.arange(len(group), device=group.device) - starts[group[order]]
        size = int(counts.max())
        members = torch.zeros(len(counts), size, dtype=torch.long, device=group.device)
        members[group[order], rank] = order
        present = torch.arange(size, device=group.device)[None, :] < counts[:, None]
        place = torch.empty_like(group)
        place[order] = group[order] * size + rank
        return cls(members, present, place)


class AcrossSeriesAttention(Attention):
    """Attention among the rows of a group at each time position: no positions, no order (Chronos-2)."""

    def forward(  # type: ignore[override]
        self, x: Tensor, *, groups: Groups | None = None, observed: Tensor | None = None
    ) -> Tensor:
        """Mix rows of the same group.

        Args:
            x: `[B, T, D]`.
            groups: the rows' groups; None means every row is alone.
            observed: bool `[B, T]`, False for tokens nobody may attend to; None means all observed.

        Returns:
            `[B, T, D]`.
        """
        if self.heads == 0:
            return self._without_heads(x)
        if groups is None or groups.alone:
            return self._alone(x)
        length = x.shape[1]
        count, size = groups.members.shape
        table = groups.members.reshape(-1)

        def lay_out(part: Tensor) -> Tensor:
            rows = part[table].view(count, size, length, self.heads, self.head_width)
            return rows.permute(0, 2, 3, 1, 4).reshape(count * length, self.heads, size, self.head_width)

        allowed = groups.present[:, :, None].expand(count, size, length)
        if observed is not None:
            allowed = allowed & observed[table].view(count, size, length)
        allowed = allowed.permute(0, 2, 1).reshape(count * length, 1, 1, size)
        query = lay_out(self.q(x))
        # Where nobody of a group is observed the weights become uniform; such positions are never read later.
        mask = self._full_mask(allowed, None, query)
        mixed = self._attend(query, lay_out(self.k(x)), lay_out(self.v(x)), mask, blind=_blind(allowed))
        mixed = mixed.view(count, length, self.heads, size, self.head_width).permute(0, 3, 1, 2, 4)
        joined = mixed.reshape(count * size, length, self.heads * self.head_width)[groups.place]
        projected: Tensor = self.o(self.gate(joined))
        return projected


class SingleStepAttention(Attention):
    """Self-attention over a sequence of length one, such as a decoder that runs a single step (Chronos-Bolt).

    Queries, keys and the bias table exist in the public checkpoint but cannot matter.
    """

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """`[B, 1, D]` in and out."""
        return self._without_heads(x) if self.heads == 0 else self._alone(x)
