"""Errors of rows and units made up for tests of intervals, tests and comparisons."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from tsprune.data.panel import Panel, Series
from tsprune.evaluation.metrics import RowErrors
from tsprune.evaluation.timeblocks import Blocks


def rows_of(squared: ArrayLike, observed: ArrayLike = 1.0) -> RowErrors:
    """Rows with these sums of squared errors `[R]`; the other sums follow from them."""
    sums = np.asarray(squared, np.float64)
    count = np.broadcast_to(np.asarray(observed, np.float64), sums.shape).copy()
    root = np.sqrt(sums)
    return RowErrors(count, sums, root, root / 2, 3 * root, 10 + 0 * root, np.minimum(200.0, root))


def origins(count: int, overlap: int = 1, series: int = 1) -> Blocks:
    """Units that are origins, each with a row of every series, window by window."""
    return Blocks(np.repeat(np.arange(count), series), count, overlap, "origins")


def window_losses(generator: np.random.Generator, count: int, horizon: int, models: int = 2) -> np.ndarray:
    """Mean losses of windows one step apart, models equally good with some error in common `[models, count]`."""
    steps = count + horizon - 1
    shared = generator.normal(size=steps)
    own = generator.normal(size=(models, steps)) * 0.5
    totals = np.cumsum((shared + own) ** 2, axis=1)
    return (totals[:, horizon - 1 :] - np.pad(totals, ((0, 0), (1, 0)))[:, :count]) / horizon


def panel_of(*lengths: int, starts: ArrayLike | None = None, dated: bool = True, seed: int = 0) -> Panel:
    """Hourly series of noise of these lengths; `starts` in hours."""
    generator = np.random.default_rng(seed)
    hours = np.zeros(len(lengths), int) if starts is None else np.asarray(starts, int)
    begin = pd.Timestamp("2020-01-01")
    series = []
    for number, (length, hour) in enumerate(zip(lengths, hours.tolist(), strict=True)):
        start = begin + pd.Timedelta(hours=hour) if dated else None
        series.append(Series(f"s{number}", generator.normal(size=length).astype(np.float32) + number, start=start))
    return Panel(tuple(series), "h" if dated else "", period=4)
