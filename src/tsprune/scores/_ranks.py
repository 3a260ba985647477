"""Ranks of scores, and how far two rankings agree."""

from __future__ import annotations

import torch
from torch import Tensor


def ranks(values: Tensor) -> Tensor:
    """Ranks `[n]` from 0 for the lowest to 1 for the highest, float64; equal values share the mean of theirs."""
    if len(values) < 2:
        return torch.zeros(len(values), dtype=torch.float64)
    _, inverse, counts = torch.unique(values.double(), return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    middle = ends - (counts.double() + 1) / 2
    found: Tensor = middle[inverse] / (len(values) - 1)
    return found


def spearman(first: Tensor, second: Tensor) -> float | None:
    """Rank correlation of two score vectors `[n]`; None where one of them is constant or has fewer than 2 entries."""
    if len(first) < 2 or not bool(torch.isfinite(first).all() and torch.isfinite(second).all()):
        return None
    a, b = ranks(first), ranks(second)
    a, b = a - a.mean(), b - b.mean()
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size > 1e-12 else None
