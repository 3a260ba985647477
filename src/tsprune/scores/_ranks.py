"""Ranks of scores or forecasts, and how far two rankings agree."""

from __future__ import annotations

import torch
from torch import Tensor


def average_ranks(values: Tensor) -> Tensor:
    """Ranks along the last axis, from 1; equal values share the mean of theirs: `[..., n]`, float64."""
    ordered = values.sort(-1).values.contiguous()
    values = values.contiguous()
    below = torch.searchsorted(ordered, values)
    upto = torch.searchsorted(ordered, values, right=True)
    return (below + upto + 1).double() / 2


def ranks(values: Tensor) -> Tensor:
    """Ranks `[n]` from 0 for the lowest to 1 for the highest, float64; equal values share the mean of theirs."""
    if len(values) < 2:
        return torch.zeros(len(values), dtype=torch.float64)
    return (average_ranks(values.double()) - 1) / (len(values) - 1)


def rank_correlations(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rank correlation along the last axis of `[..., n]`: `[...]`, float64, NaN where one is constant."""
    a, b = average_ranks(first), average_ranks(second)
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    return (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()


def spearman(first: Tensor, second: Tensor) -> float | None:
    """Rank correlation of two score vectors `[n]`; None where one of them is constant or has fewer than 2 entries."""
    if len(first) < 2 or not bool(torch.isfinite(first).all() and torch.isfinite(second).all()):
        return None
    found = rank_correlations(first.double(), second.double())
    return None if bool(found.isnan()) else float(found)
