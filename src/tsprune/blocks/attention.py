"""Multi-head attention that can lose heads, key/value groups, query/key pairs and value entries, down to none."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsprune.blocks.gate import Gate
from tsprune.blocks.headcuts import cut_attention, settle_attention
from tsprune.blocks.headshape import HeadShape
from tsprune.blocks.linear import ChannelLinear
from tsprune.blocks.positions import rotate
from tsprune.blocks.units import Block, Part, UnitGroup
from tsprune.errors import TspruneError

Watch = Callable[[Tensor, Tensor, Tensor, Tensor | None], None]
"""Sees weights `[B, H, T, S]`, values `[B, H, S, V]`, head outputs `[B, H, T, V]` and which keys are live, bool
`[B, 1, T or 1, S]` or None for all. Where every row attends to itself alone, T = S = 1 and B counts tokens."""


class Attention(Block):
    """Dot-product attention: self or cross, scaled or not, with rotary positions or a relative bias table.

    Args:
        width: residual width D.
        heads: number of query heads; 0 is an attention that contributes only its output bias, if it has one.
        head_width: width of the queries and keys of one head, and of its values.
        kv_heads: number of key/value heads, which query heads share in equal runs; None means one for each.
        rotary: whether queries and keys are turned by rotary positions, in pairs (i, i + head_width / 2).
        scale: factor on the attention logits; None means 1 / sqrt(head_width), 1.0 is none (T5, Chronos). A cut
            does not change it.
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
        kv_heads: int | None = None,
        rotary: bool = False,
        scale: float | None = None,
        buckets: int = 0,
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sharing = heads if kv_heads is None else kv_heads
        if (sharing and heads % sharing) or (rotary and head_width % 2):
            raise TspruneError(
                f"{heads} heads of width {head_width} do not fit {sharing} key/value heads"
                + (" or rotary positions, which need an even width" if rotary else "")
            )
        self.shape = HeadShape.full(heads, sharing, head_width, head_width, 2 if rotary else 1)
        self.head_width = head_width
        self.grouped = sharing != heads
        self.scale = head_width**-0.5 if scale is None else scale
        self.dropout = dropout
        self.q = ChannelLinear(width, heads * head_width, bias=bias)
        self.k = ChannelLinear(width, sharing * head_width, bias=bias)
        self.v = ChannelLinear(width, sharing * head_width, bias=bias)
        self.o = ChannelLinear(heads * head_width, width, bias=bias)
        if buckets:
            self.relative_attention_bias = nn.Embedding(buckets, heads)
        self.has_table = bool(buckets)
        self.watch: Watch | None = None
        self.make_gates()

    @property
    def heads(self) -> int:
        """Query heads that are left."""
        return self.shape.heads

    def make_gates(self) -> None:
        """Gates that fit the shape."""
        shape = self.shape
        self.gate = Gate(shape.heads, shape.value_width, None if shape.joined is None else shape.head_of_column)
        kv_of_column = torch.tensor(shape.kv_of_head, dtype=torch.long, device="cpu")[shape.head_of_column]
        self.group_gate = Gate(shape.kv_heads, owner=kv_of_column) if self.grouped else None
        self.pair_gate = Gate(len(shape.kv_of_pair), owner=shape.pair_of_k)
        self.value_gate = Gate(len(shape.kv_of_value))

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
        query, key, value = self._queries(x), self._keys(source), self._values(source)
        if rotary is not None:
            query, key = self._turn(query, rotary, self.shape.kv_of_head), self._turn(key, rotary)
        added = self._full_mask(mask, buckets, query)
        mixed = self._attend(query, key, value, added, live=mask)
        return self._join(mixed.transpose(1, 2).flatten(2))

    def _queries(self, x: Tensor) -> Tensor:
        """`[B, H, T, W]`, heads padded with zeros to the widest."""
        return _heads(self.q(x), self.heads, self.shape.pair_width, self.shape.padded_q)

    def _keys(self, x: Tensor) -> Tensor:
        """`[B, G, S, W]`."""
        key = self.pair_gate(self.k(x))
        return _heads(key, self.shape.kv_heads, self.shape.pair_width, self.shape.padded_k)

    def _values(self, x: Tensor) -> Tensor:
        """`[B, G, S, V]`."""
        value = self.value_gate(self.v(x))
        return _heads(value, self.shape.kv_heads, self.shape.value_width, self.shape.padded_v)

    def _turn(self, x: Tensor, table: tuple[Tensor, Tensor], heads: Sequence[int] | None = None) -> Tensor:
        """Rotary positions on `[B, heads, T, W]`; each pair keeps the frequency it had before any cut."""
        if not x.shape[-1]:
            return x
        heads = range(self.shape.kv_heads) if heads is None else heads
        columns = self.shape.turned(self.head_width // 2, heads)
        if columns is None:
            return rotate(x, table)
        cosine, sine = (part[:, columns.to(part.device)].transpose(0, 1) for part in table)
        return rotate(x, (cosine, sine))

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, added: Tensor | None, *, live: Tensor | None = None
    ) -> Tensor:
        """Attention under an additive mask; `live` is the bool mask it was made of.

        Args:
            query: `[B, H, T, W]`.
            key: `[B, G, S, W]`.
            value: `[B, G, S, V]`.
            added: additive mask, broadcastable to `[B, H, T, S]`, or None.
            live: bool, broadcastable to `[B, 1, T, S]`, or None.

        Returns:
            `[B, H, T, V]`.
        """
        if (index := self.shape.kv_index) is not None:
            index = index.to(key.device)
            key, value = key.index_select(1, index), value.index_select(1, index)
        dropout = self.dropout if self.training else 0.0
        # Where every key is masked, the fused kernel's backward pass on CPUs is wrong (torch 2.13).
        half = query.dtype not in (torch.float32, torch.float64)
        plain = query.device.type == "cpu" and (half or _blind(live))
        if plain or self.watch is not None or not query.shape[-1] or not value.shape[-1]:
            return self._attend_plainly(query, key, value, added, dropout, live)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=added, dropout_p=dropout, scale=self.scale)

    def _attend_plainly(
        self, query: Tensor, key: Tensor, value: Tensor, added: Tensor | None, dropout: float, live: Tensor | None
    ) -> Tensor:
        """The same in separate steps: the fused kernel's half-precision backward is much slower on CPUs."""
        logits = query @ key.transpose(-1, -2)
        if self.scale != 1.0:
            logits = logits * self.scale
        weights = (logits if added is None else logits + added).softmax(-1).to(value.dtype)
        weights = F.dropout(weights, dropout) if dropout else weights
        mixed = weights @ value
        if self.watch is not None:
            self.watch(weights, value, mixed, live)
        return mixed

    def _join(self, heads: Tensor) -> Tensor:
        """The output of equally wide heads `[B, T, H * V]`, through gates and output map, `[B, T, D]`."""
        if (entries := self.shape.joined) is not None:
            heads = heads.index_select(-1, entries.to(heads.device))
        if self.group_gate is not None:
            heads = self.group_gate(heads)
        projected: Tensor = self.o(self.gate(heads))
        return projected

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
        value = self._values(x)
        if (index := self.shape.kv_index) is not None:
            value = value.index_select(1, index.to(x.device))
        rows, heads, length, width = value.shape
        joined = value.transpose(1, 2)
        if self.watch is not None:
            mixed = joined.reshape(rows * length, heads, 1, width)
            self.watch(mixed.new_ones(rows * length, heads, 1, 1), mixed, mixed, None)
            joined = mixed.view(rows, length, heads, width)
        return self._join(joined.flatten(2))

    def _without_heads(self, x: Tensor) -> Tensor:
        out: Tensor = self.o(x.new_zeros(*x.shape[:-1], 0))
        return out

    @property
    def output(self) -> nn.Linear:
        """The output projection."""
        return self.o

    @property
    def silent(self) -> bool:
        """Whether nothing is left that it could contribute."""
        return self.heads == 0 and self.o.bias is None

    def unit_groups(self, path: str) -> list[UnitGroup]:
        """Heads, key/value groups where heads share them, query/key pairs, value entries, channels of the maps."""
        shape = self.shape
        if shape.heads == 0:
            return []
        heads = [
            Part(self.q, 0, shape.head_of_q),
            Part(self.o, 1, shape.head_of_column),
        ]
        kv_of_q = torch.tensor(shape.kv_of_head, dtype=torch.long, device="cpu")[shape.head_of_q]
        kv_of_column = torch.tensor(shape.kv_of_head, dtype=torch.long, device="cpu")[shape.head_of_column]
        shared = [Part(self.k, 0, shape.kv_of_pair[shape.pair_of_k]), Part(self.v, 0, shape.kv_of_value)]
        table = (
            [Part(self.relative_attention_bias, 1, torch.arange(shape.heads, device="cpu"))] if self.has_table else []
        )
        own = heads if self.grouped else [heads[0], *shared, heads[1]]
        found = [UnitGroup(f"{path}/head", "head", shape.heads, 0, (self.gate,), (*own, *table))]
        if self.group_gate is not None:
            parts = (Part(self.q, 0, kv_of_q), *shared, Part(self.o, 1, kv_of_column))
            found.append(UnitGroup(f"{path}/kv_group", "kv_group", shape.kv_heads, 0, (self.group_gate,), parts))
        pairs, values = len(shape.kv_of_pair), len(shape.kv_of_value)
        if pairs:
            parts = (Part(self.q, 0, shape.pair_of_q), Part(self.k, 0, shape.pair_of_k))
            found.append(UnitGroup(f"{path}/qk_pair", "qk_pair", pairs, 0, (self.pair_gate,), parts))
        if values:
            parts = (Part(self.v, 0, torch.arange(values, device="cpu")), Part(self.o, 1, shape.value_of_column))
            found.append(UnitGroup(f"{path}/value_dim", "value_dim", values, 0, (self.value_gate,), parts))
        for name in ("q", "k", "v", "o"):
            found += getattr(self, name).channel_groups(f"{path}.{name}")
        return found

    def settled(self, kept: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """What is left of every kind; see `tsprune.blocks.headcuts`."""
        return settle_attention(self, super().settled(kept))

    def cut(self, kept: Mapping[str, Sequence[int]], indexed: Collection[str] = ()) -> Attention:
        """A copy with the units that stay: rows of q, k, v, columns of o, columns of the bias table."""
        return cut_attention(self, self.settled(kept), indexed)

    def output_entries(self, kept: Mapping[str, Sequence[int]]) -> Tensor:
        """Indices of the output map's columns that stay."""
        return (
            torch.tensor(self.settled(kept)[".o/in_channel"], dtype=torch.long, device="cpu")
            if self.heads
            else torch.arange(0, device="cpu")
        )


def _heads(x: Tensor, heads: int, width: int, padded: Tensor | None) -> Tensor:
    """`[B, T, entries]` to `[B, heads, T, width]`, narrow heads padded with zeros."""
    if padded is not None:
        x = F.pad(x, (0, 1)).index_select(-1, padded.to(x.device))
    return x.view(*x.shape[:-1], heads, width).transpose(1, 2)


def _blind(mask: Tensor | None) -> bool:
    """Whether a bool mask leaves some query nothing to attend to."""
    return mask is not None and not bool(mask.any(-1).all())
