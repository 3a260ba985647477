"""Error measures, summed exactly so that the way windows are batched cannot change them.

Letters: R rows (one series in one window), H horizon steps, Q quantile levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tsprune.errors import TspruneError

DECILES: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Levels that WQL is taken over; every forecast that is scored is asked for exactly these."""

MEASURES: tuple[str, ...] = ("mse", "mae", "mase", "wql", "smape")
"""Names of all measures; in each of them less is better."""

_Floats = NDArray[np.float64]
_FLOAT32_STEPS = 4


class Terms(NamedTuple):
    """A measure over any rows is the sum of their numerators over the sum of their denominators, both `[R]`."""

    numerator: _Floats
    denominator: _Floats


class Metrics(TypedDict):
    """The four measures of a results file; None where a measure has no denominator."""

    mse: float | None
    mae: float | None
    mase: float | None
    wql: float | None


@dataclass(frozen=True)
class RowErrors:
    """Sums over the observed targets of each row, in the order in which rows were added, all float64 `[R]`.

    Attributes:
        observed: number of observed targets.
        squared: squared errors of the median, z-scored scale.
        absolute: absolute errors of the median, z-scored scale.
        scaled: mean absolute error of the median over the seasonal-naive error of the series' train part;
            NaN where that error is 0 or unknown, or the row has no observed target.
        pinball: pinball losses summed over the deciles, original scale.
        size: absolute target values, original scale.
        symmetric: 200 |y - f| / (|y| + |f|), f being the median, original scale; 0 where both are 0.
    """

    observed: _Floats
    squared: _Floats
    absolute: _Floats
    scaled: _Floats
    pinball: _Floats
    size: _Floats
    symmetric: _Floats

    def __len__(self) -> int:
        return len(self.observed)

    def metrics(self) -> Metrics:
        """The measures over all rows."""
        count = _exact(self.observed)
        usable = self.scaled[~np.isnan(self.scaled)]
        return {
            "mse": _ratio(_exact(self.squared), count),
            "mae": _ratio(_exact(self.absolute), count),
            "mase": _ratio(_exact(usable), len(usable)),
            "wql": _ratio(2 * _exact(self.pinball) / len(DECILES), _exact(self.size)),
        }

    def value(self, measure: str) -> float | None:
        """One of `MEASURES` over all rows; None where it has no denominator.

        sMAPE, in percent from 0 to 200, is averaged within each row and then over rows (Makridakis, Spiliotis and
        Assimakopoulos 2020, the M4 competition).

        Raises:
            TspruneError: there is no such measure.
        """
        if measure == "wql":  # the same rounding as in `metrics`
            return self.metrics()["wql"]
        terms = self.terms(measure)
        return _ratio(_exact(terms.numerator), _exact(terms.denominator))

    def terms(self, measure: str) -> Terms:
        """What the rows contribute to one of `MEASURES`, to add it up over other sets of rows.

        Raises:
            TspruneError: there is no such measure.
        """
        seen = self.observed > 0
        if measure in ("mse", "mae"):
            return Terms(self.squared if measure == "mse" else self.absolute, self.observed)
        if measure == "mase":
            usable = ~np.isnan(self.scaled)
            return Terms(np.where(usable, self.scaled, 0.0), usable.astype(np.float64))
        if measure == "wql":
            return Terms(2 * self.pinball / len(DECILES), self.size)
        if measure == "smape":
            return Terms(np.where(seen, self.symmetric / np.maximum(self.observed, 1), 0.0), seen.astype(np.float64))
        raise TspruneError(f"the measure {measure!r} is not known: expected one of {', '.join(MEASURES)}")

    @classmethod
    def joined(cls, parts: Sequence[RowErrors]) -> RowErrors:
        """The rows of several evaluations one after the other, e.g. of the folds of a back-test."""
        none = np.zeros(0)
        return cls(**{n: np.concatenate([none, *(getattr(p, n) for p in parts)]) for n in cls.__dataclass_fields__})


@dataclass
class Accumulator:
    """Collects batches of forecasts and gives the four measures.

    - MSE, MAE: errors of the median forecast on the z-scored scale, averaged over every observed target value
      of all rows, as in the long-horizon forecasting protocol.
    - MASE: mean absolute error of a row over the in-sample seasonal-naive error of its series' train part,
      averaged over rows (Hyndman and Koehler 2006). A ratio, so the scale plays no part. Rows whose
      denominator is 0 or unknown are left out and counted in `without_scale`.
    - WQL: twice the pinball loss, averaged over the nine deciles and summed over all targets, over the sum of
      absolute targets. On the original scale: a z-scored target has no level, so its absolute sum means
      nothing. Series with large values weigh more, as is usual for this measure.

    Targets that are NaN are skipped whatever is forecast for them. Rows keep their own sums, which are added
    up without rounding: the result is bit for bit independent of the order and of the batches.
    """

    _parts: list[RowErrors] = field(default_factory=list)
    without_scale: int = 0
    without_target: int = 0

    def add(
        self,
        truth: ArrayLike,
        quantiles: ArrayLike,
        original: ArrayLike,
        scale: ArrayLike,
        naive: ArrayLike,
    ) -> None:
        """Score rows.

        Args:
            truth: targets `[R, H]`, z-scored, NaN = missing.
            quantiles: forecasts `[R, 9, H]` at `DECILES`, z-scored.
            original: the same targets in original units `[R, H]`; taken as they are, because a 0 that went
                through the z-score and back would hardly be 0 again.
            scale: z-score scale of each row's series `[R]`, positive.
            naive: seasonal-naive error of each row's series on train `[R]`, original scale; 0 or NaN: none.

        Raises:
            TspruneError: if a forecast of an observed target is not finite, or shapes do not fit.
        """
        target, forecast = np.asarray(truth, np.float64), np.asarray(quantiles, np.float64)
        plain = np.asarray(original, np.float64)
        wanted = (*target.shape[:1], len(DECILES), *target.shape[1:])
        if target.ndim != 2 or plain.shape != target.shape or forecast.shape != wanted:
            raise TspruneError(
                f"forecasts have shape {list(forecast.shape)} for targets of shape {list(target.shape)}, "
                f"expected [rows, {len(DECILES)} deciles, steps]"
            )
        seen = ~np.isnan(target)
        bad = ~np.isfinite(forecast) & seen[:, None, :]
        if bad.any():
            raise TspruneError(
                f"{int(bad.any(axis=(1, 2)).sum())} of {len(target)} forecasts are not finite where a target "
                "is observed; a model that gives NaN or infinity cannot be scored"
            )
        # Unobserved steps become a perfect forecast of 0, so that nothing in them can leak into a sum; rows
        # lie one after the other in memory, because the order of a row's sum would follow the layout.
        target = np.ascontiguousarray(np.where(seen, target, 0.0))
        forecast = np.ascontiguousarray(np.where(seen[:, None, :], forecast, 0.0))
        factors = (np.asarray(values, np.float64) for values in (scale, naive))
        rows = _row_errors(target, forecast, seen, plain, *factors)
        self._parts.append(rows)
        has_target = rows.observed > 0
        self.without_target += int((~has_target).sum())
        self.without_scale += int((np.isnan(rows.scaled) & has_target).sum())

    def rows(self) -> RowErrors:
        """The sums of every row added so far."""
        return RowErrors.joined(self._parts)

    def metrics(self) -> Metrics:
        """The measures over all rows added so far; None where nothing could be measured."""
        return self.rows().metrics()

    def notes(self) -> list[str]:
        """What was left out, one line each."""
        total = sum(len(part) for part in self._parts)
        lines = []
        if self.without_scale:
            lines.append(
                f"MASE leaves out {self.without_scale} of {total} windows: the seasonal-naive error of the "
                "series' train part is 0, or the part is too short"
            )
        if self.without_target:
            lines.append(f"{self.without_target} of {total} windows have no observed target")
        return lines


def naive_error(train: ArrayLike, season: int) -> float:
    """In-sample seasonal-naive error: the mean of |y[t] - y[t - season]| where both are observed.

    Args:
        train: the train part of one series `[T]`, original scale, NaN = missing.
        season: season in steps, at least 1.

    Returns:
        The error; NaN if no pair of values lies one season apart.
    """
    values = np.asarray(train, np.float64)
    if season < 1:
        raise TspruneError(f"season is {season}, expected a positive number of steps")
    steps = np.abs(values[season:] - values[:-season])
    steps = steps[~np.isnan(steps)]
    return float(steps.mean()) if len(steps) else math.nan


def pinball(truth: _Floats, quantiles: _Floats, levels: Sequence[float]) -> _Floats:
    """Pinball loss `[R, Q, H]`: level * (y - q) above the forecast, (1 - level) * (q - y) below."""
    gap = truth[:, None, :] - quantiles
    tau = np.asarray(levels, np.float64)[None, :, None]
    return np.maximum(tau * gap, (tau - 1) * gap)


def _row_errors(
    target: _Floats,
    forecast: _Floats,
    seen: NDArray[np.bool_],
    original: _Floats,
    scale: _Floats,
    naive: _Floats,
) -> RowErrors:
    error = target - forecast[:, DECILES.index(0.5)]
    absolute = np.abs(error).sum(axis=1)
    observed = seen.sum(axis=1).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = absolute / observed * scale / naive
    scaled[~(naive > 0)] = np.nan  # 0 over 0 observed targets is NaN already
    size = np.ascontiguousarray(np.where(seen, np.abs(original), 0.0)).sum(axis=1)
    # Pinball is homogeneous and blind to the location: scaling the loss equals scaling both sides.
    losses = pinball(target, forecast, DECILES).reshape(len(target), len(DECILES) * target.shape[1])
    symmetric = _symmetric(error, target, np.where(seen, original, 0.0), scale)
    return RowErrors(observed, (error**2).sum(axis=1), absolute, scaled, losses.sum(axis=1) * scale, size, symmetric)


def _symmetric(error: _Floats, target: _Floats, original: _Floats, scale: _Floats) -> _Floats:
    """Sums of 200 |y - f| / (|y| + |f|) `[R]`; error and target z-scored, `original` 0 where unobserved."""
    # Windows are z-scored in single precision. A target of 0 makes 200 of any error at all, so that what lies below
    # that resolution counts as no error.
    resolved = np.abs(error) > _FLOAT32_STEPS * np.finfo(np.float32).eps * np.abs(target)
    gap = np.where(resolved, error, 0.0) * scale[:, None]
    together = np.abs(original) + np.abs(original - gap)
    terms = 200 * np.abs(gap) / np.where(together > 0, together, 1.0)
    sums: _Floats = np.ascontiguousarray(terms).sum(axis=1)
    return sums


def _exact(values: _Floats) -> float:
    return math.fsum(values.tolist())


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator > 0 else None
