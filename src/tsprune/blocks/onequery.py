"""Attention of a single query to many tokens: keys and values of all of them are never made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from tsprune.blocks.linear import plain

if TYPE_CHECKING:
    from tsprune.blocks.attention import Attention


def alone(x: Tensor, memory: Tensor | None, *, cached: bool, turned: bool) -> bool:
    """Whether a single query asks other tokens, which then need no keys and values where the attention `fits`.

    Args:
        x: what asks, `[B, T, D]`.
        memory: what is asked, `[B, S, D]`, or None for `x` itself.
        cached: whether keys and values are kept for later.
        turned: whether queries or keys have rotary positions.
    """
    return memory is not None and x.shape[1] == 1 and not cached and not turned


def fits(attention: Attention) -> bool:
    """Whether an attention's maps allow it: nothing but matrices, in single precision or better.

    Heads have one width and keys and values of their own, and nobody looks at keys, values or weights.
    """
    shape, weight = attention.shape, attention.k.weight
    return (
        weight.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled(weight.device.type if weight.device.type != "meta" else "cpu")
        and attention.k_norm is None
        and attention.watch is None
        and not (attention.pair_gate.used or attention.value_gate.used)
        and shape.kv_index is None
        and shape.padded_k is None
        and shape.padded_v is None
        and min(shape.pair_width, shape.value_width) > 0
        and plain(attention.k)
        and getattr(attention.k, "bias", None) is None
        and plain(attention.v)
    )


def one_query(attention: Attention, query: Tensor, memory: Tensor, added: Tensor | None) -> Tensor:
    """Head outputs of one query: `q (x W_K^T)^T = (q W_K) x^T` and `a (x W_V^T) = (a x) W_V^T`.

    Two maps of one token and two products with the memory in place of two maps of every token of it. A bias of the
    values is added once, since weights add up to 1.

    Args:
        attention: one that `fits`.
        query: `[B, H, 1, W]`.
        memory: `[B, S, D]`.
        added: additive mask, broadcastable to `[B, H, 1, S]`, or None.

    Returns:
        Head by head, `[B, 1, H * V]`.
    """
    heads = attention.heads
    keys = attention.k.weight.view(heads, -1, memory.shape[-1])
    values = attention.v.weight.view(heads, -1, memory.shape[-1])
    # Head by head over the batch, so that the weights are not repeated for every row.
    asked = (query.squeeze(2).transpose(0, 1) @ keys).transpose(0, 1)
    logits = asked @ memory.transpose(1, 2)
    if attention.scale != 1.0:
        logits = logits * attention.scale
    weights = (logits if added is None else logits + added.squeeze(2)).softmax(-1)
    if attention.training and attention.dropout:
        weights = F.dropout(weights, attention.dropout)
    mixed = ((weights @ memory).transpose(0, 1) @ values.transpose(1, 2)).transpose(0, 1)
    if attention.v.bias is not None:
        total = weights.sum(-1, keepdim=True) if attention.training and attention.dropout else None
        bias = attention.v.bias.view(heads, -1)
        mixed = mixed + (bias if total is None else total * bias)
    return mixed.reshape(mixed.shape[0], 1, -1)
