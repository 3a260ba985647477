"""Positions: rotary tables and the relative buckets of T5."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rotary_table(positions: Tensor, width: int, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines for rotary positions, pairs being (i, i + width / 2).

    Args:
        positions: `[T]` integer positions.
        width: head width, even.
        theta: base of the frequencies.

    Returns:
        Two tensors `[T, width]`, float32.
    """
    exponents = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width
    angles = positions.float()[:, None] * (1.0 / theta**exponents)[None, :]
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Apply a rotary table `[T, width]` to `[..., T, width]`."""
    cosine, sine = (part.to(x.dtype) for part in table)
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cosine + turned * sine


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
    distance = torch.arange(keys)[None, :] - torch.arange(queries)[:, None]
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
