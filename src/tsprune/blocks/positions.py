"""Positions: rotary tables and the relative buckets of T5."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tsprune.blocks.tracing import tracing


def rotary_table(
    positions: Tensor, width: int, theta: float = 10000.0, *, neighbours: bool = False, turned: int | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines for rotary positions.

    Args:
        positions: `[T]` or `[B, T]`, integers.
        width: head width, even.
        theta: base of the frequencies.
        neighbours: whether pairs are (2i, 2i + 1) rather than (i, i + width / 2).
        turned: entries that are turned, even; the pairs behind them stay as they are. None means all.

    Returns:
        Two tensors `[T, width]` or `[B, T, width]`, float32.
    """
    turned = width if turned is None else turned
    exponents = torch.arange(0, turned, 2, device=positions.device, dtype=torch.float32) / max(1, turned)
    angles = positions.float()[..., None] * (1.0 / theta**exponents)
    if turned < width:
        angles = torch.nn.functional.pad(angles, (0, (width - turned) // 2))
    angles = angles.repeat_interleave(2, -1) if neighbours else torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, table: tuple[Tensor, Tensor], neighbours: bool = False) -> Tensor:
    """Apply a rotary table, broadcastable to `x`, to `[..., T, width]`."""
    cosine, sine = (part.to(x.dtype) for part in table)
    if neighbours:
        pairs = x.reshape(*x.shape[:-1], -1, 2)
        turned = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
    else:
        half = x.shape[-1] // 2
        turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cosine + turned * sine


def sinusoids(tokens: int, width: int) -> Tensor:
    """Positions as sines and cosines side by side, centred, with a deviation of 0.1 over the whole table: `[T, D]`."""
    rates = torch.exp(torch.arange(0, width, 2) * -(math.log(10000.0) / width))
    angles = torch.arange(tokens)[:, None] * rates
    table = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]
    table = table - table.mean()
    return table / (table.std() * 10)


def causal_mask(seen: Tensor) -> Tensor:
    """Which tokens may be attended to when none may look ahead.

    Args:
        seen: bool `[B, T]`, False for padding.

    Returns:
        bool `[B, 1, T, T]`. Padding attends to itself, so that no query is left with nothing.
    """
    length = seen.shape[-1]
    square = torch.ones(length, length, dtype=torch.bool, device=seen.device)
    allowed: Tensor = (square.tril() & seen[:, None, :]) | torch.eye(length, dtype=torch.bool, device=seen.device)
    return allowed[:, None]


def relative_buckets(
    queries: int, keys: int, *, bidirectional: bool, buckets: int = 32, max_distance: int = 128
) -> Tensor:
    """Bucket of each (query, key) distance: exact when near, logarithmic when far (T5, 1910.10683).

    Args:
        queries: query length.
        keys: key length.
        bidirectional: whether keys after the query get buckets of their own (encoders) or bucket 0.
        buckets: number of buckets.
        max_distance: distance from which all share the last bucket.

    Returns:
        `[queries, keys]` int64.
    """
    return buckets_of(
        torch.arange(keys)[None, :] - torch.arange(queries)[:, None],
        bidirectional=bidirectional,
        buckets=buckets,
        max_distance=max_distance,
    )


def looked_up_buckets(length: int, *, bidirectional: bool, buckets: int, max_distance: int) -> Tensor:
    """The same of a sequence and itself, read from a list of all distances up to the last that matters.

    In a graph the list is a constant, where the logarithms would be taken again in every run.
    """
    steps, reach = torch.arange(length), max_distance
    distances = torch.arange(-reach, reach + 1)
    known = buckets_of(distances, bidirectional=bidirectional, buckets=buckets, max_distance=max_distance)
    places = (steps[None, :] - steps[:, None]).clamp(-reach, reach) + reach
    return known.index_select(0, places.flatten()).view(length, length)


def buckets_of(distance: Tensor, *, bidirectional: bool, buckets: int, max_distance: int) -> Tensor:
    """Buckets of any distances, key minus query; see `relative_buckets`."""
    offset = torch.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset = (distance > 0).long() * buckets
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    exact = buckets // 2
    growth = torch.log(distance.float().clamp(min=1) / exact) / math.log(max_distance / exact)
    far = (exact + (growth * (buckets - exact)).long()).clamp(max=buckets - 1)
    return offset + torch.where(distance < exact, distance, far)


def with_order(mask: Tensor | None, causal: bool, queries: int, key: Tensor, fused: bool) -> tuple[Tensor | None, bool]:
    """The mask with causality in it, or causality left to the fused kernel, which has no other mask then."""
    keys = key.shape[2]
    if not causal or (not tracing() and queries == 1):
        return mask, False
    if mask is None and fused and queries == keys:
        return None, True
    ordered = torch.ones(queries, keys, dtype=torch.bool, device=key.device).tril(keys - queries)[None, None]
    return (ordered if mask is None else mask & ordered), False


def blind(mask: Tensor | None) -> bool:
    """Whether a bool mask leaves some query nothing to attend to."""
    return mask is not None and not bool(mask.any(-1).all())
