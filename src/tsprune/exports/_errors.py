"""How far the forecasts of a changed model are from those of the model it was made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster, at_levels

Forecasts = list[tuple[Tensor, Tensor]]
"""For each batch the quantiles `[B, Q, H]` and the medians `[B, H]`."""


def forecasts(model: Forecaster, batches: Sequence[Batch], horizon: int) -> Forecasts:
    """Forecasts of all batches."""
    found = []
    for batch in batches:
        quantiles = model.forecast(batch, horizon)
        found.append((quantiles, at_levels(quantiles, model.levels, (0.5,))[:, 0]))
    return found


def forecast_errors(before: Forecasts, after: Forecasts, batches: Sequence[Batch]) -> dict[str, float]:
    """Change of the forecasts, and of their error where the batches have targets.

    Returns:
        `relative_difference`: root mean square change of the forecasts over their standard deviation, all rows in
        units of their context's standard deviation; with targets `mse_ratio`: mean squared error of the medians after
        over before, in the same units.
    """
    changed = level = square = 0.0
    count = 0
    errors = [0.0, 0.0]
    for (quantiles, median), (other, other_median), batch in zip(before, after, batches, strict=True):
        unit = _spread(batch.context)
        scaled, moved = quantiles.double() / unit[:, None], (other - quantiles).double() / unit[:, None]
        centred = scaled - (batch.context.nanmean(1).nan_to_num().double()[:, None, None] / unit[:, None])
        changed += float(moved.square().sum())
        level += float(centred.sum())
        square += float(centred.square().sum())
        count += centred.numel()
        if batch.target is not None:
            steps = min(batch.target.shape[1], median.shape[1])
            target = batch.target[:, :steps].double()
            for side, found in enumerate((median, other_median)):
                errors[side] += float(((found[:, :steps].double() - target) / unit).square().nansum())
    variance = square / max(1, count) - (level / max(1, count)) ** 2
    told = {"relative_difference": (changed / max(1, count) / variance) ** 0.5 if variance > 0 else 0.0}
    return told | ({"mse_ratio": errors[1] / errors[0]} if errors[0] else {})


def _spread(context: Tensor) -> Tensor:
    """Standard deviation of what was observed in each row `[B, 1]`, float64; 1 for a row that is constant or empty."""
    values = context.double()
    centred = values - values.nanmean(1, keepdim=True)
    spread = centred.square().nanmean(1, keepdim=True).sqrt()
    return torch.where(spread > 0, spread, 1.0)
