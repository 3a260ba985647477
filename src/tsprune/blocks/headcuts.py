"""What leaves an attention with a unit, and the attention without it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tsprune.blocks.units import as_mask, shell

if TYPE_CHECKING:
    from tsprune.blocks.attention import Attention

Alive = dict[str, Tensor]
INNER = (("q", "out_channel"), ("k", "out_channel"), ("v", "out_channel"), ("o", "in_channel"))
"""Maps of an attention and those of their channels that lie inside it."""
RESIDUAL = (("q", "in_channel"), ("k", "in_channel"), ("v", "in_channel"), ("o", "out_channel"))
"""And those that read from or write to the residual width."""


def settle_attention(attention: Attention, kept: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """Close a choice of units: what only serves units that go, goes too.

    A head goes with its key/value group, and when none of its value entries reaches the output. A group goes with its
    last head or value entry. A pair goes when both members are gone from the keys, or from the queries of all its
    heads; without pairs a head weighs all keys alike, so it stays.

    Args:
        attention: gives the shape, and the channels that are zeroed already.
        kept: units that stay, for every kind the attention has.

    Returns:
        The same for every kind, closed.
    """
    shape = attention.shape
    if not shape.heads:
        return {kind: list(units) for kind, units in kept.items()}
    sizes = {
        "head": shape.heads,
        "kv_group": shape.kv_heads,
        "qk_pair": len(shape.kv_of_pair),
        "value_dim": len(shape.kv_of_value),
    }
    alive = {kind: as_mask(kept.get(kind), size) for kind, size in sizes.items()}
    for name, kind in INNER:
        known = getattr(attention, name).alive(kind)
        alive[f".{name}/{kind}"] = known & as_mask(kept.get(f".{name}/{kind}"), len(known))
    kv = torch.tensor(shape.kv_of_head, dtype=torch.long, device="cpu")
    before = -1
    while before != (before := int(torch.cat(list(alive.values())).sum())):
        _close_values(attention, alive, kv)
        _close_pairs(attention, alive, kv)
    found = {kind: units.nonzero().flatten().tolist() for kind, units in alive.items() if kind in kept}
    for name, kind in RESIDUAL:
        if (label := f".{name}/{kind}") in kept:
            # Channels of the residual width stand for nothing inside, so nothing else goes with them.
            dead = set(getattr(attention, name).dead[kind])
            found[label] = [unit for unit in kept[label] if unit not in dead] if dead else list(kept[label])
    return {kind: found[kind] for kind in kept}


def _close_values(attention: Attention, alive: Alive, kv: Tensor) -> None:
    """Value entries, output columns, heads and groups that can no longer contribute."""
    shape = attention.shape
    columns = alive[".o/in_channel"] & alive["head"][shape.head_of_column] & alive["value_dim"][shape.value_of_column]
    alive["value_dim"] &= _any(columns, shape.value_of_column, len(alive["value_dim"]))
    alive["value_dim"] &= alive[".v/out_channel"] & alive["kv_group"][shape.kv_of_value]
    columns &= alive["value_dim"][shape.value_of_column]
    alive["head"] &= _any(columns, shape.head_of_column, shape.heads) & alive["kv_group"][kv]
    alive["kv_group"] &= _any(alive["head"], kv, shape.kv_heads)
    alive[".o/in_channel"] = columns & alive["head"][shape.head_of_column]
    alive[".v/out_channel"] = alive["value_dim"].clone()


def _close_pairs(attention: Attention, alive: Alive, kv: Tensor) -> None:
    """Query/key pairs that no longer reach any logit."""
    shape, count = attention.shape, len(alive["qk_pair"])
    queries = alive[".q/out_channel"] & alive["head"][shape.head_of_q]
    alive["qk_pair"] &= _any(alive[".k/out_channel"], shape.pair_of_k, count) & _any(queries, shape.pair_of_q, count)
    alive["qk_pair"] &= alive["kv_group"][shape.kv_of_pair]
    alive[".q/out_channel"] = queries & alive["qk_pair"][shape.pair_of_q]
    alive[".k/out_channel"] &= alive["qk_pair"][shape.pair_of_k]


def cut_attention(attention: Attention, kept: Mapping[str, Sequence[int]], indexed: Collection[str]) -> Attention:
    """A copy with the units that stay.

    Args:
        attention: left as it is.
        kept: a closed choice, see `settle_attention`.
        indexed: channel groups of the residual width (such as `.q/in_channel`) that are cut by an index; the others
            are zeroed in place.
    """
    shape = attention.shape
    if not shape.heads:
        return attention
    heads = as_mask(kept["head"], shape.heads)
    pairs = as_mask(kept.get("qk_pair"), len(shape.kv_of_pair))
    values = as_mask(kept.get("value_dim"), len(shape.kv_of_value))
    kv = torch.tensor(shape.kv_of_head, dtype=torch.long, device="cpu")
    groups = _any(heads, kv, shape.kv_heads)
    rows = {
        "q": heads[shape.head_of_q] & pairs[shape.pair_of_q],
        "k": groups[shape.kv_of_pair][shape.pair_of_k] & pairs[shape.pair_of_k],
        "v": groups[shape.kv_of_value] & values,
    }
    columns = heads[shape.head_of_column] & values[shape.value_of_column]
    smaller = attention.shell()
    for name, stay in rows.items():
        layer = getattr(attention, name)
        live = _fewer(kept.get(f".{name}/in_channel"), layer.in_features)
        reading = f".{name}/in_channel" in indexed
        cut = layer.shrunk(
            _index(stay),
            _index(as_mask(kept.get(f".{name}/in_channel"), layer.in_features)) if reading else None,
            live_rows=_fewer(kept.get(f".{name}/out_channel"), layer.out_features),
            live_columns=live,
            reading=reading,
        )
        setattr(smaller, name, cut)
    live = _fewer(kept.get(".o/out_channel"), attention.o.out_features)
    writing = ".o/out_channel" in indexed
    smaller.o = attention.o.shrunk(
        _index(as_mask(kept.get(".o/out_channel"), attention.o.out_features)) if writing else None,
        _index(columns),
        live_rows=live,
        live_columns=_fewer(kept.get(".o/in_channel"), attention.o.in_features),
        writing=writing,
    )
    smaller.shape = shape.kept(heads, pairs, values)
    if attention.has_table:
        smaller.relative_attention_bias = _cut_table(attention.relative_attention_bias, heads)
    smaller.make_gates()
    return smaller


def _fewer(units: Sequence[int] | None, size: int) -> Tensor | None:
    """A mask of the units, or None where they are all."""
    return None if units is None or len(units) == size else as_mask(units, size)


def _cut_table(table: nn.Embedding, heads: Tensor) -> nn.Embedding:
    smaller = shell(table)
    smaller.embedding_dim = int(heads.sum())
    weight = table.weight.detach()
    columns = weight.index_select(1, _index(heads).to(weight.device))
    smaller.weight = nn.Parameter(columns, requires_grad=table.weight.requires_grad)
    return smaller


def _index(stay: Tensor) -> Tensor:
    return stay.nonzero().flatten()


def _any(entries: Tensor, owner: Tensor, size: int) -> Tensor:
    """For each owner, whether any of its entries is set."""
    return torch.zeros(size, dtype=torch.long, device="cpu").index_add(0, owner, entries.long()) > 0
