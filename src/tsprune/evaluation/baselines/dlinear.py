"""DLinear: trend and remainder of the context, each with a linear map of its own (arXiv 2205.13504)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tsprune.evaluation.baselines._linear import Linear

KERNEL = 25
"""Steps of the moving average, as published."""


class DLinear(Linear):
    """`y = V t + W (x - t) + b`, t being the moving average of x; see `Linear`.

    The average is centred, and the first and the last value are repeated outwards where it reaches beyond the
    context. The published model has a bias in each map; their sum is all that could be told apart.
    """

    @staticmethod
    def inputs(rows: Tensor) -> Tensor:
        """Trend, then remainder `[n, 2 L]`."""
        padded = F.pad(rows[:, None], (KERNEL // 2, KERNEL // 2), mode="replicate")
        trend = F.avg_pool1d(padded, KERNEL, stride=1)[:, 0]
        return torch.cat([trend, rows - trend], dim=1)

    @staticmethod
    def centre(rows: Tensor) -> Tensor:
        """Nothing, `[n, 1]`."""
        return torch.zeros_like(rows[:, :1])


BASELINE = DLinear
