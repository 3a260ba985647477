"""Measures as fev and gluonts define them: averages over single steps, in the units of the data.

They differ from `metrics.RowErrors` in three ways: every observed step weighs the same (there, MASE and sMAPE are
averaged within a window first), MSE and MAE are not z-scored, and MASE divides by what lies before each window. Missing
targets play no part, nor does a quotient that is not finite, such as one over a seasonal-naive error of 0.

Sources: fev 0.10.0 `metrics.py`, gluonts 0.17.0 `ev/metrics.py`, `ev/stats.py`, `ev/aggregations.py` and
`model/forecast.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsprune.errors import TspruneError
from tsprune.evaluation.forecasts import Forecasts
from tsprune.evaluation.metrics import DECILES

Floats = NDArray[np.float64]

GLUONTS = (
    "MSE[mean]",
    "MSE[0.5]",
    "MAE[0.5]",
    "MASE[0.5]",
    "MAPE[0.5]",
    "sMAPE[0.5]",
    "MSIS",
    "RMSE[mean]",
    "NRMSE[mean]",
    "ND[0.5]",
    "mean_weighted_sum_quantile_loss",
)
"""What GIFT-Eval reports, in its order."""

_TINY = 1e-8


def gluonts_measures(found: Forecasts) -> dict[str, float]:
    """The measures of `GLUONTS` over all rows and steps, as `evaluate_forecasts(..., axis=None)` gives them.

    The mean is the median, since there are quantiles only, and the interval of MSIS is where exponential tails through
    the outer two deciles have 0.025 and 0.975: what gluonts does with forecasts that are deciles.

    Args:
        found: forecasts at the nine deciles at least.

    Returns:
        By name; NaN where nothing could be measured.
    """
    truth, median = found.truth, found.at(0.5)
    error, size = np.abs(truth - median), np.abs(truth)
    scale = found.absolute[:, None]
    low, high = _tail(found, 0.025), _tail(found, 0.975)
    outside = np.where(truth < low, low - truth, 0.0) + np.where(truth > high, truth - high, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mse, level = _mean((truth - median) ** 2), _mean(size)
        rmse, total = math.sqrt(mse), np.nansum(size)
        losses = [np.nansum(_pinball(truth, found.at(q), q)) / total for q in DECILES]
        interval = np.where(np.isnan(truth), np.nan, (high - low + 40 * outside) / scale)
        return {
            "MSE[mean]": mse,
            "MSE[0.5]": mse,
            "MAE[0.5]": _mean(error),
            "MASE[0.5]": _mean(error / scale),
            "MAPE[0.5]": _mean(error / size),
            "sMAPE[0.5]": _mean(2 * error / (size + np.abs(median))),
            "MSIS": _mean(interval),
            "RMSE[mean]": rmse,
            "NRMSE[mean]": float(np.divide(rmse, level)),
            "ND[0.5]": float(np.nansum(error) / total),
            "mean_weighted_sum_quantile_loss": float(np.mean(losses)),
        }


def fev_measures(
    found: Forecasts, metrics: Sequence[str | Mapping[str, Any]], levels: Sequence[float], targets: int = 1
) -> dict[str, float]:
    """Measures of one evaluation window by fev's names, each averaged over the target columns.

    Args:
        found: forecasts at 0.5 and at `levels`; the rows of an item follow each other, one per target column.
        metrics: names, or mappings with a `name` and an `epsilon`.
        levels: the task's quantile levels; the quantile losses are averaged over them.
        targets: number of target columns.

    Returns:
        By name, in the order of `metrics`.

    Raises:
        TspruneError: for a measure that fev does not have, or a quantile loss without levels.
    """
    values = {}
    for metric in metrics:
        name, epsilon = metric_name(metric), 0.0 if isinstance(metric, str) else float(metric.get("epsilon", 0.0))
        if name in QUANTILE_LOSSES and not levels:
            raise TspruneError(f"the measure {name} needs quantile_levels, but the task has none; add them to the task")
        by_target = [_FEV[name](_Rows(found, slice(start, None, targets), levels), epsilon) for start in range(targets)]
        values[name] = float(np.mean(by_target))
    return values


def metric_name(metric: str | Mapping[str, Any]) -> str:
    """fev's spelling of a measure; TspruneError if it has none of that name."""
    name = metric if isinstance(metric, str) else str(metric.get("name", ""))
    if name.upper() not in _FEV:
        raise TspruneError(f"the measure {name!r} is not one of fev's: {', '.join(sorted(_FEV))}")
    return name.upper()


class _Rows:
    """The rows of one target column, with the arrays that measures share."""

    def __init__(self, found: Forecasts, rows: slice, levels: Sequence[float]) -> None:
        self.truth, self.median = found.truth[rows], found.at(0.5)[rows]
        self.error, self.size = self.truth - self.median, np.abs(self.truth)
        self.absolute, self.squared = found.absolute[rows][:, None], found.squared[rows][:, None]
        self.losses = [_pinball(self.truth, found.at(level)[rows], level) for level in levels]

    def mae(self) -> float:
        return _observed(np.abs(self.error))

    def bias(self) -> float:
        return abs(_observed(self.error))

    def level(self, epsilon: float) -> float:
        return max(_observed(self.size), epsilon)


def _over(numerator: float, denominator: float) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(numerator) / np.float64(denominator))


def _scaled(values: Floats, scale: Floats, epsilon: float) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return _mean(values / np.maximum(scale, epsilon))


def _rmsle(rows: _Rows) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return math.sqrt(_observed((np.log1p(rows.truth) - np.log1p(rows.median)) ** 2))


_FEV: dict[str, Callable[[_Rows, float], float]] = {
    "MAE": lambda rows, _: rows.mae(),
    "MAEB": lambda rows, _: rows.mae() + rows.bias(),
    "WAPE": lambda rows, epsilon: _over(rows.mae(), rows.level(epsilon)),
    "WAPEB": lambda rows, epsilon: _over(rows.mae() + rows.bias(), rows.level(epsilon)),
    "MASE": lambda rows, epsilon: _scaled(np.abs(rows.error), rows.absolute, epsilon),
    "MSE": lambda rows, _: _observed(rows.error**2),
    "RMSE": lambda rows, _: math.sqrt(_observed(rows.error**2)),
    "RMSSE": lambda rows, epsilon: math.sqrt(_scaled(rows.error**2, rows.squared, epsilon)),
    "RMSLE": lambda rows, _: _rmsle(rows),
    "MAPE": lambda rows, _: _scaled(np.abs(rows.error), rows.size, 0.0),
    "SMAPE": lambda rows, _: _scaled(2 * np.abs(rows.error), rows.size + np.abs(rows.median), 0.0),
    "MQL": lambda rows, _: float(np.mean([_observed(loss) for loss in rows.losses])),
    "SQL": lambda rows, epsilon: float(np.mean([_scaled(loss, rows.absolute, epsilon) for loss in rows.losses])),
    "WQL": lambda rows, epsilon: float(np.mean([_over(_observed(loss), rows.level(epsilon)) for loss in rows.losses])),
}

QUANTILE_LOSSES = ("MQL", "SQL", "WQL")
"""Measures that need quantile levels."""


def _pinball(truth: Floats, forecast: Floats, level: float) -> Floats:
    """Twice the pinball loss, as both libraries have it `[R, H]`."""
    gap = truth - forecast
    return 2 * np.maximum(level * gap, (level - 1) * gap)


def _mean(values: Floats) -> float:
    """Mean of what is finite; NaN if nothing is."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def _observed(values: Floats) -> float:
    """Mean of what is not NaN; NaN if nothing is."""
    seen = values[~np.isnan(values)]
    return float(seen.mean()) if len(seen) else math.nan


def _tail(found: Forecasts, level: float) -> Floats:
    """Forecast beyond the outer deciles `[R, H]`: the quantile grows with the logarithm of the tail's probability."""
    outer, inner = (0.1, 0.2) if level < 0.5 else (0.9, 0.8)
    far, near, wanted = (min(share, 1 - share) for share in (outer, inner, level))
    slope = (found.at(inner) - found.at(outer)) / _log(near, far)
    return found.at(inner) - slope * _log(near, wanted)


def _log(one: float, two: float) -> float:
    return math.log((one + _TINY) / (two + _TINY) + _TINY)
