"""How far the forecasts of a changed model are from those of the model it was made of."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
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


def graph_errors(
    before: Forecasts, after: Forecasts, batches: Sequence[Batch], levels: Sequence[float]
) -> dict[str, float]:
    """As `forecast_errors`, of batches with targets, and what a change is expected to cost.

    Returns:
        also `moved`, mean squared change of the quantiles over the mean squared error of the medians before, which is
        the share that a change unrelated to the errors adds to them; and `quantile_loss_ratio`, mean quantile loss over
        all levels after over before. Not a number where the forecasts are none.

    Raises:
        TspruneError: the windows have no targets, or the forecasts before are perfect on them.
    """
    changed = square = 0.0
    count = seen = 0
    losses = [0.0, 0.0]
    asked = torch.tensor(list(levels), dtype=torch.float64)[None, :, None]
    for (quantiles, median), (other, _), batch in zip(before, after, batches, strict=True):
        unit = _spread(batch.context)
        changed += float(((other - quantiles).double() / unit[:, None]).square().sum())
        count += quantiles.numel()
        target = torch.empty(len(unit), 0) if batch.target is None else batch.target[:, : median.shape[1]]
        steps, scaled = target.shape[1], target.double() / unit
        square += float((scaled - median[:, :steps].double() / unit).square().nansum())
        seen += int((~target.isnan()).sum())
        for side, found in enumerate((quantiles, other)):
            over = scaled[:, None] - found[:, :, :steps].double() / unit[:, None]
            losses[side] += float(torch.maximum(asked * over, (asked - 1) * over).nansum())
    if not seen or square <= 0:
        why = "none of the steps to forecast is observed" if not seen else "float32 forecasts them without any error"
        raise TspruneError(f"the windows cannot tell what int8 costs: {why}; give other series by --data")
    told = {"moved": changed / max(1, count) / (square / seen)}
    if any(not bool(other.isfinite().all()) for other, _ in after):
        return {"relative_difference": math.nan, "mse_ratio": math.nan, "quantile_loss_ratio": math.nan, **told}
    return {
        **forecast_errors(before, after, batches),
        "quantile_loss_ratio": losses[1] / losses[0] if losses[0] else 1.0,
        **told,
    }


def _spread(context: Tensor) -> Tensor:
    """Standard deviation of what was observed in each row `[B, 1]`, float64; 1 for a row that is constant or empty."""
    values = context.double()
    centred = values - values.nanmean(1, keepdim=True)
    spread = centred.square().nanmean(1, keepdim=True).sqrt()
    return torch.where(spread > 0, spread, 1.0)
