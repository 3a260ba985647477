"""Series to compare on where the user gives none."""

from __future__ import annotations

import math

import torch

from tsprune.data.batch import Batch
from tsprune.exports._export import CALIBRATION

ROWS = 16
DRAWN = "series that were drawn, since no data were given"


def drawn_batches(count: int, context: int, horizon: int, seed: int = 0) -> list[Batch]:
    """Random walks with a season and noise, of any level and size, some short, some with gaps.

    Args:
        count: windows in all.
        context: steps of context L.
        horizon: steps of the target H.
        seed: decides everything.
    """
    draw = torch.Generator().manual_seed(seed)
    length = context + horizon
    walk = torch.randn(count, length, generator=draw).cumsum(-1) / math.sqrt(length)
    periods = torch.tensor([7.0, 12.0, 24.0, 52.0])[torch.randint(4, (count, 1), generator=draw)]
    phase = torch.rand(count, 1, generator=draw) * 2 * math.pi
    season = torch.sin(torch.arange(length) * 2 * math.pi / periods + phase)
    noise = 0.2 * torch.randn(count, length, generator=draw)
    size = 10 ** (3 * torch.rand(count, 1, generator=draw) - 1)
    series = size * (walk + season + noise + 4 * torch.randn(count, 1, generator=draw))
    for row in range(1, count, 3):
        series[row, : int(torch.randint(max(1, context // 2), (1,), generator=draw))] = torch.nan
    for row in range(2, count, 3):
        first = int(torch.randint(max(1, context - 4), (1,), generator=draw))
        series[row, first : first + max(1, context // 16)] = torch.nan
    return [Batch(part[:, :context].clone(), part[:, context:].clone()) for part in torch.split(series, ROWS)]


def drawn_calibration(context: int, horizon: int, seed: int = 0) -> list[Batch]:
    """Others of the same kind, to fit a form to; arguments as those of `drawn_batches`."""
    return drawn_batches(CALIBRATION, context, horizon, seed + 1)
