"""Rotary positions that also fade with distance (xPos, 2212.10554), in the layout of Toto."""

from __future__ import annotations

import torch
from torch import Tensor

from tsprune.blocks.positions import rotary_table

FADING = 512.0
"""Distance in tokens at which the product of a query and a key has faded by the base factor once."""
Table = tuple[Tensor, Tensor]


def fading_tables(positions: Tensor, width: int, centre: int, theta: float = 10000.0) -> tuple[Table, Table]:
    """Rotary tables of neighbouring pairs for queries and keys, the factors multiplied in.

    A query entry grows by its factor to the power of its position, a key entry shrinks by it, so that their product
    fades with the distance alone. The factors repeat after half the width, as in the public code, although the entries
    that are turned together are neighbours: the two of a pair fade differently, so that it matters a little where
    positions begin.

    Args:
        positions: `[T]` or `[B, T]`, integers.
        width: head width, even.
        centre: position whose factors are 1. Which one it is cancels between queries and keys of the same centre.
        theta: base of the frequencies.

    Returns:
        Cosines and sines `[T, width]` or `[B, T, width]` for queries, and the same for keys, float32.
    """
    cosine, sine = rotary_table(positions, width, theta, neighbours=True)
    base = (torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) + 0.4 * width) / (1.4 * width)
    factors = base ** ((positions - centre).float()[..., None] / FADING)
    grown = torch.cat([factors, factors], dim=-1)
    return (cosine * grown, sine * grown), (cosine / grown, sine / grown)
