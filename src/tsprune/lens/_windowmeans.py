"""Target rows of a study's windows, and means over windows with intervals.

Letters: R target rows, L steps of context, H steps to forecast, N windows, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.evaluation.intervals import LEVEL, REPLICATES, Interval, resample
from tsprune.evaluation.student import two_sided_quantile
from tsprune.evaluation.timeblocks import Blocks
from tsprune.lens import _ablating as ablating
from tsprune.lens._heads import windows_in
from tsprune.lens._probe import Study
from tsprune.models._forecaster import Forecaster, window_index
from tsprune.scores._work import count_windows

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """Target rows of windows, in order.

    Args:
        context: `[R, L]`, NaN = missing; shorter contexts are filled with NaN in front.
        target: `[R, H]`, NaN = missing.
        window: `[R]`, the window of each row, from 0 on.
    """

    context: Floats
    target: Floats
    window: NDArray[np.int64]

    @property
    def spread(self) -> Floats:
        """Standard deviation of the observed context `[R]`; NaN where it is 0 or nothing is observed."""
        seen = ~np.isnan(self.context)
        number = np.maximum(seen.sum(1), 1)
        values = np.where(seen, self.context, 0)
        mean = values.sum(1) / number
        found = np.sqrt((np.where(seen, self.context - mean[:, None], 0) ** 2).sum(1) / number)
        return np.where(found > 1e-12 * np.maximum(np.abs(mean), 1e-300), found, np.nan)

    def by_window(self, values: Floats) -> Floats:
        """Means over the rows of each window `[N, C]` of values `[R, C]`; NaN only where no row has a value."""
        there = ~np.isnan(values)
        count = int(self.window.max()) + 1
        columns = [
            (
                np.bincount(self.window, np.where(there[:, column], values[:, column], 0), count),
                np.bincount(self.window, there[:, column], count),
            )
            for column in range(values.shape[1])
        ]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.stack([total / number for total, number in columns], axis=1)


def steps_of(batches: Sequence[Batch], horizon: int) -> int:
    """Steps of the horizon that the batches' targets have.

    Raises:
        TspruneError: no batch, or one without target.
    """
    lengths = [0 if batch.target is None else batch.target.shape[1] for batch in batches]
    if not lengths or not min(lengths):
        raise TspruneError(
            "the lens needs windows with a target, got none; give a shorter --horizon or another --split"
        )
    return min(horizon, *lengths)


def rows_of_study(batches: Sequence[Batch], steps: int) -> Rows:
    """What the windows hold, on the CPU in float64."""
    longest = max(batch.context.shape[1] for batch in batches)
    contexts, targets, windows, done = [], [], [], 0
    for batch in batches:
        if batch.target is None:
            raise TspruneError("a window has no target to compare forecasts with; give windows with targets")
        keep = _targets(batch)
        context = batch.context[keep].double().cpu().numpy()
        contexts.append(np.pad(context, ((0, 0), (longest - context.shape[1], 0)), constant_values=np.nan))
        targets.append(batch.target[keep][:, :steps].double().cpu().numpy())
        windows.append(window_index(batch)[keep].cpu().numpy() + done)
        done += count_windows(batch)
    return Rows(np.concatenate(contexts), np.concatenate(targets), np.concatenate(windows))


def medians(model: Forecaster, batches: Sequence[Batch], steps: int) -> Floats:
    """Median forecasts of the target rows `[R, H]`, with whatever is off at present."""
    found: Floats = ablating.medians(model, batches, steps=steps).numpy()
    return found


def share_of_first(study: Study) -> float:
    """What a pass over the later windows costs, in passes over the first ones."""
    return windows_in(study.later) / max(1, windows_in(study.first))


def mean_intervals(values: Floats, study: Study) -> list[Interval]:
    """Mean of each column of window values `[N, C]`, with its interval.

    Windows are drawn in circular blocks of consecutive ones, long enough for the overlap of their targets, and the
    percentile interval is widened for few blocks as `tsprune.evaluation.intervals` does. Windows of several series
    at one origin are taken for independent. Windows without a value are left out.
    """
    overlap = max(1, math.ceil(study.horizon / max(1, study.ready.validation[1])))
    return [_mean_interval(column[~np.isnan(column)], overlap, study.seed) for column in values.T]


def _mean_interval(values: Floats, overlap: int, seed: int) -> Interval:
    count = len(values)
    if not count:
        return Interval(None, None, None, LEVEL, "no window has a value")
    blocks = Blocks(np.arange(count), count, min(overlap, count), "origins")
    mean = float(values.mean())
    if blocks.stretches < 2:
        return Interval(mean, None, None, LEVEL, "fewer than two independent stretches of windows: no interval")
    drawn = resample(values[:, None], blocks.length, REPLICATES, seed)[:, 0] / count
    tail = (1 - LEVEL) / 2
    few = math.sqrt(blocks.stretches / (blocks.stretches - 1)) * two_sided_quantile(LEVEL, blocks.stretches - 1)
    factor = few / NormalDist().inv_cdf(1 - tail)
    low, high = (mean + factor * (float(np.quantile(drawn, q)) - mean) for q in (tail, 1 - tail))
    return Interval(mean, low, high, LEVEL)


def told(found: Interval, digits: int = 2) -> str:
    """Such as `0.31 (95 % 0.2 to 0.4)`."""
    if found.estimate is None:
        return "none"
    shown = f"{found.estimate:.{digits}f}"
    if found.low is None or found.high is None:
        return shown
    return f"{shown} ({found.level:.0%} {found.low:.{digits}f} to {found.high:.{digits}f})".replace("%", " %")


def _targets(batch: Batch) -> Tensor:
    """bool `[B]`, on the batch's device."""
    if batch.is_target is not None:
        return batch.is_target.bool()
    return torch.ones(batch.rows, dtype=torch.bool, device=batch.context.device)
