"""Multi-head attention that can lose heads, key/value groups, query/key pairs and value entries, down to none."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsprune.blocks.gate import Gate
from tsprune.blocks.headcuts import cut_attention, settle_attention
from tsprune.blocks.headshape import HeadShape
from tsprune.blocks.keycache import KeyCache
from tsprune.blocks.linear import ChannelLinear, together
from tsprune.blocks.norms import QueryScale
from tsprune.blocks.onequery import alone, fits, one_query
from tsprune.blocks.positions import blind, rotate, with_order
from tsprune.blocks.prepacked import Packed
from tsprune.blocks.tracing import tracing
from tsprune.blocks.units import Block, Later, Part, Settled, UnitGroup
from tsprune.errors import TspruneError

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines, see `tsprune.blocks.positions.rotary_table`."""
Watch = Callable[[Tensor, Tensor, Tensor, Tensor | None], None]
"""Sees weights `[B, H, T, S]`, values `[B, H, S, V]`, head outputs `[B, H, T, V]` and which keys are live, bool
`[B, 1, T or 1, S]` or None for all. Where every row attends to itself alone, T = S = 1 and B counts tokens."""


LONG = 40_000
"""Queries times keys from which on CPUs the fused kernel is faster in half precision too, backward pass included."""


class Attention(Block):
    """Dot-product attention: self or cross, scaled or not, with rotary positions or a relative bias table.

    Args:
        width: residual width D.
        heads: number of query heads; 0 is an attention that contributes only its output bias, if it has one.
        head_width: width of the queries and keys of one head, and of its values.
        kv_heads: number of key/value heads, which query heads share in equal runs; None means one for each.
        rotary: whether queries and keys are turned by rotary positions, in pairs (i, i + head_width / 2).
        neighbours: whether the pairs are (2i, 2i + 1) instead.
        scale: factor on the attention logits; None means 1 / sqrt(head_width), 1.0 is none (T5, Chronos). A cut
            does not change it.
        buckets: size of the table of biases on the logits, or 0 for no table.
        scaled_table: whether `scale` applies to these biases too.
        bias: whether the query, key and value maps have biases.
        out_bias: whether the output map has one; None means as the others.
        qk_norm: makes a norm over the entries of a head, one for queries and one for keys; None for none. With it,
            query/key pairs cannot leave one by one, since what is left would be normed differently.
        norm_last: whether that norm follows the rotary positions instead of coming before them.
        query_scale: whether a learned factor for every entry of a query takes the place of `scale`.
        dropout: probability on the attention weights, in training.
    """

    packed: Packed | None = None

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        *,
        kv_heads: int | None = None,
        rotary: bool = False,
        neighbours: bool = False,
        scale: float | None = None,
        buckets: int = 0,
        scaled_table: bool = False,
        bias: bool = False,
        out_bias: bool | None = None,
        qk_norm: Callable[[], nn.Module] | None = None,
        norm_last: bool = False,
        query_scale: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sharing = heads if kv_heads is None else kv_heads
        if (sharing and heads % sharing) or (rotary and head_width % 2):
            raise TspruneError(
                f"{heads} heads of width {head_width} do not fit {sharing} key/value heads"
                + (" or rotary positions, which need an even width" if rotary else "")
            )
        self.shape = HeadShape.full(heads, sharing, head_width, head_width, 2 if rotary else 1, neighbours)
        self.head_width = head_width
        self.grouped = sharing != heads
        self.scale = head_width**-0.5 if scale is None else scale
        self.scaled_table = scaled_table
        self.norm_last = norm_last
        self.dropout = dropout
        self.q = ChannelLinear(width, heads * head_width, bias=bias)
        self.k = ChannelLinear(width, sharing * head_width, bias=bias)
        self.v = ChannelLinear(width, sharing * head_width, bias=bias)
        self.o = ChannelLinear(heads * head_width, width, bias=bias if out_bias is None else out_bias)
        if buckets:
            self.relative_attention_bias = nn.Embedding(buckets, heads)
        self.has_table = bool(buckets)
        self.q_norm = None if qk_norm is None else qk_norm()
        self.k_norm = None if qk_norm is None else qk_norm()
        self.query_scale = QueryScale(head_width) if query_scale else None
        if query_scale:
            self.scale = 1.0
        self.watch: Watch | None = None
        self.make_gates()

    @property
    def heads(self) -> int:
        """Query heads that are left."""
        return self.shape.heads

    def make_gates(self) -> None:
        """Gates that fit the shape."""
        shape = self.shape
        uneven = None if shape.even else partial(getattr, shape, "head_of_column")
        self.gate = Gate(shape.heads, shape.value_width, uneven)
        kv_of_column = partial(getattr, shape, "kv_of_column")
        self.group_gate = Gate(shape.kv_heads, owner=kv_of_column) if self.grouped else None
        self.pair_gate = Gate(shape.pair_count, owner=partial(getattr, shape, "pair_of_k"))
        self.value_gate = Gate(sum(shape.values))

    def forward(
        self,
        x: Tensor,
        *,
        memory: Tensor | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        rotary: Rotary | None = None,
        key_rotary: Rotary | None = None,
        buckets: Tensor | None = None,
        cache: KeyCache | None = None,
    ) -> Tensor:
        """Attend from `x` to itself or to `memory`.

        Args:
            x: `[B, T, D]`.
            memory: `[B, S, D]` for cross-attention, or None.
            mask: bool `[B, 1, T or 1, S]`, True where attention is allowed, or None for everywhere.
            causal: whether the T queries, which are the last of the S tokens, see none that comes after them.
            rotary: tables `[T, head_width]` or `[B, T, head_width]`, or None.
            key_rotary: the same for keys, where they are turned differently.
            buckets: rows of the table of biases, `[T, S]` or `[B, T, S]`, or None.
            cache: keys and values of earlier tokens, extended by those of `x`; of cross-attention, those of `memory`.

        Returns:
            `[B, T, D]`.
        """
        if self.heads == 0:
            return self._without_heads(x)
        q, k, v = together(self.packed, (self.q, self.k, self.v), x) if memory is None else (None, None, None)
        query = self._placed(self._queries(x, q), rotary, self.q_norm, self.shape.kv_of_head)
        if self.query_scale is not None:
            query = self.query_scale(query, self.shape.turned(self._full_pairs, self.shape.kv_of_head))
        turned = rotary is not None or key_rotary is not None
        if memory is not None and alone(x, memory, cached=cache is not None, turned=turned) and fits(self):
            return self._join(one_query(self, query, memory, self._full_mask(mask, buckets, query)))
        if cache is None or memory is None or cache.key is None or cache.value is None:
            source, turn = (x if memory is None else memory), (rotary if key_rotary is None else key_rotary)
            key = self._placed(self._keys(source, k), turn, self.k_norm, range(self.shape.kv_heads))
            value = self._values(source, v)
            if cache is not None:
                key, value = cache.extended(key, value)
        else:
            key, value = cache.key, cache.value
        plain = self._plain(query, value)
        fused = not plain and not (self.has_table and buckets is not None)
        mask, causal = with_order(mask, causal, query.shape[2], key, fused)
        added = self._full_mask(mask, buckets, query)
        mixed = self._attend(query, key, value, added, live=mask, causal=causal)
        return self._join(mixed.transpose(1, 2).flatten(2))

    def _queries(self, x: Tensor, made: Tensor | None = None) -> Tensor:
        """`[B, H, T, W]`, heads padded with zeros to the widest; `made` is what the map makes of `x`, if known."""
        return _heads(self.q(x) if made is None else made, self.heads, self.shape.pair_width, self.shape.padded_q)

    def _keys(self, x: Tensor, made: Tensor | None = None) -> Tensor:
        """`[B, G, S, W]`."""
        key = self.pair_gate(self.k(x) if made is None else made)
        return _heads(key, self.shape.kv_heads, self.shape.pair_width, self.shape.padded_k)

    def _values(self, x: Tensor, made: Tensor | None = None) -> Tensor:
        """`[B, G, S, V]`."""
        value = self.value_gate(self.v(x) if made is None else made)
        return _heads(value, self.shape.kv_heads, self.shape.value_width, self.shape.padded_v)

    @property
    def _full_pairs(self) -> int:
        """Pairs of a head before any cut."""
        return self.head_width // self.shape.members

    def _placed(self, x: Tensor, table: Rotary | None, norm: nn.Module | None, heads: Sequence[int]) -> Tensor:
        """Norm and rotary positions of queries or keys `[B, heads, T, W]`, in the family's order."""
        if norm is not None and not self.norm_last:
            x = norm(x)
        if table is not None:
            x = self._turn(x, table, heads)
        if norm is not None and self.norm_last:
            x = norm(x)
        return x

    def _turn(self, x: Tensor, table: Rotary, heads: Sequence[int]) -> Tensor:
        """Rotary positions on `[B, heads, T, W]`; each pair keeps the frequency it had before any cut."""
        if not x.shape[-1]:
            return x
        columns = self.shape.turned(self._full_pairs, heads)
        if columns is not None:
            columns = columns.to(x.device)
            table = tuple(part[..., columns].transpose(-2, -3) for part in table)  # type: ignore[assignment]
        elif table[0].ndim == 3:
            table = table[0][:, None], table[1][:, None]
        return rotate(x, table, self.shape.neighbours)

    def _plain(self, query: Tensor, value: Tensor) -> bool:
        """Whether attention runs in separate steps: watched, without widths, short in half precision on a CPU, traced.

        So it does over a single key, too: that one takes all, so that no gradient reaches queries and keys. The fused
        kernel leaves rounding in its place.
        """
        if tracing():
            return True
        cpu = query.device.type == "cpu"
        half = cpu and (query.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled("cpu"))
        short = half and query.shape[-2] * value.shape[-2] < LONG
        single = value.shape[-2] == 1
        return short or single or self.watch is not None or not query.shape[-1] or not value.shape[-1]

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        added: Tensor | None,
        *,
        live: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """Attention under an additive mask; `live` is the bool mask it was made of.

        Args:
            query: `[B, H, T, W]`.
            key: `[B, G, S, W]`.
            value: `[B, G, S, V]`.
            added: additive mask, broadcastable to `[B, H, T, S]`, or None.
            live: bool, broadcastable to `[B, 1, T, S]`, or None.
            causal: whether no query sees keys after it; only without a mask.

        Returns:
            `[B, H, T, V]`.
        """
        if (index := self.shape.kv_index) is not None:
            index = index.to(key.device)
            key, value = key.index_select(1, index), value.index_select(1, index)
        dropout = self.dropout if self.training else 0.0
        # Where every key is masked, the fused kernel's backward pass on CPUs is wrong (torch 2.13).
        if self._plain(query, value) or (query.device.type == "cpu" and blind(live)):
            return self._attend_plainly(query, key, value, added, dropout, live)
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=added, dropout_p=dropout, scale=self.scale, is_causal=causal
        )

    def _attend_plainly(
        self, query: Tensor, key: Tensor, value: Tensor, added: Tensor | None, dropout: float, live: Tensor | None
    ) -> Tensor:
        """The same in separate steps: on CPUs the fused kernel's half-precision backward is slow on short rows."""
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
            # Half of the smallest number: a bias on top must not overflow to -inf in half precision.
            added = torch.where(mask, query.new_zeros(()), torch.finfo(query.dtype).min / 2)
        if buckets is None or not self.has_table:
            return added
        # By heads, so that the kernel gets them without a copy in another order.
        table = self.relative_attention_bias.weight.t()
        several = buckets.ndim == 3
        shape = (-1, *buckets.shape) if several else (1, -1, *buckets.shape)
        bias = table.index_select(1, buckets.flatten()).view(shape).to(query.dtype)
        if self.scaled_table:
            bias = bias * self.scale
        bias = bias.transpose(0, 1) if several else bias
        return bias if added is None else bias + added

    def _alone(self, x: Tensor) -> Tensor:
        """Each position attends to itself alone: a softmax over one entry is 1, whatever query and key."""
        if self.watch is None and self.shape.kv_index is None and self.shape.padded_v is None:
            # As the map gives them, values lie head by head.
            return self._join(self.value_gate(self.v(x)))
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
        pairs, values = shape.pair_count, sum(shape.values)
        own: list[tuple[str, int, Gate | None]] = [
            ("head", shape.heads, self.gate),
            ("kv_group", shape.kv_heads, self.group_gate),
            ("qk_pair", pairs if self.q_norm is None else 0, self.pair_gate),
            ("value_dim", values, self.value_gate),
        ]
        found = [
            UnitGroup(f"{path}/{kind}", kind, units, 0, (gate,), Later(self._parts_of, kind))
            for kind, units, gate in own
            if units and gate is not None
        ]
        for name in ("q", "k", "v", "o"):
            found += getattr(self, name).channel_groups(f"{path}.{name}")
        if self.q_norm is None:
            return found
        fixed = [f"{path}.{name}/out_channel" for name in ("q", "k")]
        return [group for group in found if group.name not in fixed]

    def _parts_of(self, kind: str) -> list[Part]:
        """What of the maps belongs to the units of one kind."""
        shape = self.shape
        if kind == "qk_pair":
            return [Part(self.q, 0, shape.pair_of_q), Part(self.k, 0, shape.pair_of_k)]
        if kind == "value_dim":
            return [
                Part(self.v, 0, torch.arange(sum(shape.values), device="cpu")),
                Part(self.o, 1, shape.value_of_column),
            ]
        shared = [Part(self.k, 0, shape.kv_of_pair[shape.pair_of_k]), Part(self.v, 0, shape.kv_of_value)]
        if kind == "kv_group":
            return [Part(self.q, 0, shape.kv_of_q), *shared, Part(self.o, 1, shape.kv_of_column)]
        first, last = Part(self.q, 0, shape.head_of_q), Part(self.o, 1, shape.head_of_column)
        own = [first, last] if self.grouped else [first, *shared, last]
        if self.has_table:
            own.append(Part(self.relative_attention_bias, 1, torch.arange(shape.heads, device="cpu")))
        return own

    def settled(self, kept: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """What is left of every kind; see `tsprune.blocks.headcuts`."""
        return settle_attention(self, super().settled(kept))

    def cut(self, kept: Mapping[str, Sequence[int]], indexed: Collection[str] = ()) -> Attention:
        """A copy with the units that stay: rows of q, k, v, columns of o, columns of the bias table."""
        return cut_attention(self, kept if isinstance(kept, Settled) else self.settled(kept), indexed)

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
