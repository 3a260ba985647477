"""Forecasts of a set of windows in the units of the data, for result rows that others define."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tsprune.errors import TspruneError

if TYPE_CHECKING:
    from tsprune.data.split import Split
    from tsprune.data.windows import WindowSet
    from tsprune.evaluation.evaluate import Predictor

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Forecasts:
    """What was forecast and what came, one row per target row in window order.

    Args:
        ids: series of every row.
        series: its index in the panel `[R]`.
        origin: first forecast step `[R]`.
        truth: what came `[R, H]`, NaN = missing.
        levels: quantile levels Q, ascending.
        quantiles: forecasts `[R, Q, H]`.
        absolute: mean absolute seasonal-naive error of what lies before each origin `[R]`, NaN = none.
        squared: its square counterpart `[R]`.
        seconds: how long the model took.
        blind: rows without any observed context.
    """

    ids: tuple[str, ...]
    series: Ints
    origin: Ints
    truth: Floats
    levels: tuple[float, ...]
    quantiles: Floats
    absolute: Floats
    squared: Floats
    seconds: float = 0.0
    blind: int = 0

    def at(self, level: float) -> Floats:
        """Forecasts at one of the levels `[R, H]`; TspruneError if there is no such level."""
        if level not in self.levels:
            raise TspruneError(f"there is no forecast at level {level:g}, only at {', '.join(map(str, self.levels))}")
        return self.quantiles[:, self.levels.index(level)]


def windows_at(split: Split, series: ArrayLike, origins: ArrayLike) -> WindowSet:
    """Exactly these windows of a split, also those in which nothing is observed.

    Args:
        split: gives panel, context, horizon and scaler.
        series: series of every window `[N]`, ascending; with grouping "all" those of the first series count.
        origins: first step to forecast `[N]`, ascending within a series.
    """
    from tsprune.data.windows import WindowSet

    rows, steps = np.asarray(series, np.int32), np.asarray(origins, np.int32)
    if split.grouping == "all":
        rows, steps = rows[rows == 0], steps[rows == 0]
    return WindowSet(split.panel, rows, steps, split.context, split.horizon, split.scaler, split.grouping)


def collect(
    model: Predictor, windows: WindowSet, levels: Sequence[float], *, batch_size: int = 256
) -> tuple[Floats, float, int]:
    """Forecast every window.

    Args:
        model: a forecaster or a baseline; it never sees a target.
        windows: what to forecast.
        levels: wanted quantile levels Q.
        batch_size: rows per batch.

    Returns:
        Quantiles in the units of the data `[R, Q, H]`, seconds the model took, rows without any observed context; where
        a model gives no number for these, the mean of the train part stands in.

    Raises:
        TspruneError: if a forecast is not finite although something was observed.
    """
    import torch

    from tsprune.blocks.prepacked import prepacked
    from tsprune.evaluation.evaluate import device_of

    found, seconds, blind = [], 0.0, 0
    with prepacked(model, len(windows) * windows.rows_per_window):
        for chosen, batch in windows.batches(max(1, batch_size // windows.rows_per_window)):
            hidden = replace(batch, target=None).to(device_of(model))
            start = time.perf_counter()
            with torch.no_grad():
                quantiles = model.forecast(hidden, windows.horizon, list(levels)).cpu().double()
            seconds += time.perf_counter() - start
            is_target = torch.ones(batch.rows, dtype=torch.bool) if batch.is_target is None else batch.is_target
            part = quantiles[is_target].numpy()
            empty = torch.isnan(batch.context[is_target]).all(dim=1).numpy()
            part = np.where(empty[:, None, None] & ~np.isfinite(part), 0.0, part)
            blind += int(empty.sum())
            if not np.isfinite(part).all():
                row = int(np.flatnonzero(~np.isfinite(part).all(axis=(1, 2)))[0])
                name = windows.panel.ids[int(windows.target_series(chosen)[row])]
                raise TspruneError(
                    f"the forecast of series {name!r} is not finite; result rows need a number at every step"
                )
            if windows.scaler is not None:
                rows = windows.target_series(chosen)
                mean, std = windows.scaler.mean[rows, 0], windows.scaler.std[rows, 0]
                part = part * std[:, None, None] + mean[:, None, None]
            found.append(part)
    return np.concatenate(found), seconds, blind


def forecasts_of(
    model: Predictor,
    windows: WindowSet,
    levels: Sequence[float],
    season: int,
    *,
    short: int = 0,
    history: int | None = None,
    batch_size: int = 256,
) -> Forecasts:
    """Forecast windows and take the seasonal-naive errors; arguments as in `collect` and `seasonal_errors`."""
    ascending = tuple(sorted({float(level) for level in levels}))
    quantiles, seconds, blind = collect(model, windows, ascending, batch_size=batch_size)
    indices = np.arange(len(windows))
    rows = windows.target_series(indices)
    return Forecasts(
        ids=tuple(windows.panel.ids[row] for row in rows.tolist()),
        series=rows,
        origin=np.repeat(windows.origin.astype(np.int64), windows.targets_per_window),
        truth=windows.targets(indices).astype(np.float64),
        levels=ascending,
        quantiles=quantiles,
        absolute=naive_errors(windows, season, short=short, history=history),
        squared=naive_errors(windows, season, short=short, history=history, power=2),
        seconds=seconds,
        blind=blind,
    )


def naive_errors(
    windows: WindowSet, season: int, *, short: int = 0, history: int | None = None, power: int = 1
) -> Floats:
    """Seasonal-naive error of what lies before the origin of every target row `[R]`; as `seasonal_errors`."""
    series = windows.target_series(np.arange(len(windows)))
    origins = np.repeat(windows.origin.astype(np.int64), windows.targets_per_window)
    errors = np.full(len(series), np.nan)
    for index in np.unique(series).tolist():
        own = np.flatnonzero(series == index) if windows.grouping == "all" else slice(*_span(series, index))
        values = windows.panel.series[index].values
        errors[own] = seasonal_errors(values, origins[own], season, short=short, history=history, power=power)
    return errors


def _span(series: Ints, index: int) -> tuple[int, int]:
    return int(np.searchsorted(series, index)), int(np.searchsorted(series, index, "right"))


def seasonal_errors(
    values: ArrayLike, ends: ArrayLike, season: int, *, short: int = 0, history: int | None = None, power: int = 1
) -> Floats:
    """Mean of |y[t] - y[t - season]| ** power before each end, over pairs of which both are observed.

    Args:
        values: one series `[T]`, NaN = missing.
        ends: first step that does not count `[N]`.
        season: season in steps.
        short: season that stands in where fewer steps than a season are there; 0: none (fev), 1: as gluonts does.
        history: at most so many steps before an end count; None: all.
        power: 1 or 2.

    Returns:
        `[N]`; NaN where there is no pair.
    """
    line, limits = np.asarray(values, np.float64), np.asarray(ends, np.int64)
    found = np.full(len(limits), np.nan)
    firsts = np.zeros_like(limits) if history is None else np.maximum(limits - history, 0)
    for place, (first, end) in enumerate(zip(firsts.tolist(), limits.tolist(), strict=True)):
        step = season if season <= end - first or not short else short
        gaps = np.abs(line[first + step : end] - line[first : max(first, end - step)]) ** power
        gaps = gaps[~np.isnan(gaps)]
        if len(gaps):
            found[place] = gaps.mean()
    return found
