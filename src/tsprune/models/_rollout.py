"""Forecasts beyond the native horizon: several quantile paths are fed back and their forecasts pooled."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from tsprune.blocks.tracing import tracing

DECILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def unrounded(context: Tensor) -> Tensor:
    """The context of a roll-out in float64, so that everything but the network works in it.

    A forecast that is fed back is scaled anew, by statistics that subtract nearly equal numbers: those of a row that
    is almost constant would be made of the rounding of its float32 values, and so would the forecasts behind it.
    """
    return context.double()


def widest(*kinds: torch.dtype) -> torch.dtype:
    """The widest of these types and float32."""
    return reduce(torch.promote_types, kinds, torch.float32)


def as_given(quantiles: Tensor, context: Tensor) -> Tensor:
    """Forecasts in the type of the context that was asked about, at least float32."""
    return quantiles.to(widest(context.dtype))


def level_masses(levels: Sequence[float]) -> Tensor:
    """Probability mass around each level: half the distance of its neighbours, 0 and 1 being the ends."""
    edges = torch.tensor([0.0, *levels, 1.0], dtype=torch.float64)
    mass = (edges[2:] - edges[:-2]) / 2
    return mass / mass.sum()


def weighted_quantiles(samples: Tensor, weights: Tensor, levels: Sequence[float]) -> Tensor:
    """Quantiles of weighted samples, linear in their cumulative mass, constant outside it.

    Args:
        samples: `[B, S, H]`.
        weights: `[S]`, positive. Their sums are taken in float64: two of them may lie close together, and how far a
            level is from the one to the other is a difference of such sums.
        levels: wanted levels Q.

    Returns:
        `[B, Q, H]`.
    """
    ordered, order = samples.transpose(1, 2).sort(dim=-1)
    wide = weights.to(ordered.device, torch.float64)
    reached = (wide / wide.sum())[order].cumsum(-1)
    query = torch.tensor(list(levels), dtype=torch.float64, device=ordered.device)
    query = query.expand(*reached.shape[:-1], len(levels)).contiguous()
    # Graphs have no search; counting what is less comes to the same.
    right = (reached[:, :, None, :] < query[..., None]).sum(-1) if tracing() else torch.searchsorted(reached, query)
    right = right.clamp(1, reached.shape[-1] - 1)
    x0, x1 = reached.gather(-1, right - 1), reached.gather(-1, right)
    y0, y1 = ordered.gather(-1, right - 1), ordered.gather(-1, right)
    share = ((query - x0) / (x1 - x0)).clamp(0, 1).to(ordered.dtype)
    return (y0 + (y1 - y0) * share).transpose(1, 2)


def empirical_quantiles(samples: Tensor, levels: Sequence[float]) -> Tensor:
    """Quantiles of equally weighted samples, linear between order statistics, for any number of them.

    Args:
        samples: `[B, S, H]`.
        levels: wanted levels Q.

    Returns:
        `[B, Q, H]`.
    """
    ordered = samples.sort(dim=1).values
    place = torch.tensor(list(levels), dtype=ordered.dtype, device=ordered.device) * (samples.shape[1] - 1)
    below = place.floor().long()
    above = place.ceil().long()
    return torch.lerp(ordered[:, below], ordered[:, above], (place - below)[None, :, None])
