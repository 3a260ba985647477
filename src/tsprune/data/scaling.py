"""Standard scores fitted on the train part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tsprune.data.panel import FloatArray, Panel
from tsprune.data.words import listed, many
from tsprune.errors import TspruneError

_SMALLEST = 1e-7


@dataclass(frozen=True, eq=False)
class Scaler:
    """Mean and standard deviation of every series and of its covariates.

    Column 0 belongs to the target; the past and then the known covariates follow in the order of the panel.

    Args:
        mean: float64 `[S, V]`.
        std: float64 `[S, V]`, population standard deviation, never 0.
        notes: series for which 1 stands in for a standard deviation of 0.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    notes: tuple[str, ...] = ()

    @classmethod
    def fit(cls, panel: Panel, ends: ArrayLike) -> Scaler:
        """Fit on the steps before `ends [S]` of every series; missing values play no part.

        Raises:
            TspruneError: if there is not one end per series.
        """
        limits = np.asarray(ends, np.int64)
        if limits.shape != (len(panel.series),):
            raise TspruneError(f"ends has shape {limits.shape}, expected one per series ({len(panel.series)},)")
        width = 1 + len(panel.past_names) + len(panel.known_names)
        mean, std = np.zeros((len(limits), width)), np.ones((len(limits), width))
        # Covariates shared by many series are measured once.
        seen: dict[tuple[int, int], tuple[float, float]] = {}
        for row, (series, end) in enumerate(zip(panel.series, limits.tolist(), strict=True)):
            for column, array in enumerate((series.values, *series.past.values(), *series.known.values())):
                key = (array.__array_interface__["data"][0], end)
                if key not in seen:
                    seen[key] = _moments(array[:end])
                mean[row, column], std[row, column] = seen[key]
        flat = [panel.ids[row] for row in np.flatnonzero(std[:, 0] == 0)]
        notes: tuple[str, ...] = ()
        if flat:
            notes = (f"{many(len(flat), 'series', 'series')} constant in the train part, scaled by 1: {listed(flat)}",)
        return cls(mean, np.where(std == 0, 1.0, std), notes)

    def transform(self, values: ArrayLike, series: ArrayLike, variate: int = 0) -> FloatArray:
        """Scaled values.

        Args:
            values: `[N, ...]` in the units of the data.
            series: index of the series of every row `[N]`.
            variate: 0 for targets, 1 and up for covariates.

        Returns:
            float32 of the same shape.
        """
        mean, std, raw = self._for(values, series, variate)
        return ((raw - mean) / std).astype(np.float32)

    def inverse(self, values: ArrayLike, series: ArrayLike, variate: int = 0) -> FloatArray:
        """Values in the units of the data from scaled ones, e.g. quantiles `[N, Q, H]`, as float32.

        `values`, `series` and `variate` as in `transform`.
        """
        mean, std, raw = self._for(values, series, variate)
        return (raw * std + mean).astype(np.float32)

    def _for(
        self, values: ArrayLike, series: ArrayLike, variate: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        raw, rows = np.asarray(values, np.float64), np.asarray(series, np.int64)
        if rows.shape != raw.shape[:1]:
            raise TspruneError(f"series has shape {rows.shape}, expected one index per row of values {raw.shape}")
        shape = (len(rows),) + (1,) * (raw.ndim - 1)
        return self.mean[rows, variate].reshape(shape), self.std[rows, variate].reshape(shape), raw


def _moments(values: FloatArray) -> tuple[float, float]:
    seen = values[~np.isnan(values)].astype(np.float64)
    if not len(seen):
        return 0.0, 0.0
    mean, std = float(seen.mean()), float(seen.std())
    # Below the resolution of float32 there is only rounding.
    return mean, std if std > _SMALLEST * abs(mean) else 0.0
