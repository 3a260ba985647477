"""Which windows the lens looks at: some to measure and choose on, later ones to confirm on; never test windows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tsprune.data.batch import Batch
from tsprune.data.windows import WindowSet
from tsprune.errors import TspruneError
from tsprune.evaluation.timeblocks import Blocks
from tsprune.lens._probe import Study
from tsprune.preparing import STEERING_ROWS, Prepared, cut_targets


def study_of(ready: Prepared, windows: int, later: int) -> tuple[Study, list[str]]:
    """The study of a prepared task, and what to say about its windows.

    The validation part of every series is halved in time: windows whose targets end before its middle are the first
    ones, those whose targets begin after it the later ones. Where it is too short for both, the last windows of the
    train part come first and the validation windows later.

    Args:
        ready: data, split and model.
        windows: first windows at most, evenly spread.
        later: later windows at most, evenly spread.

    Raises:
        TspruneError: fewer than one window was asked for.
    """
    if windows < 1 or later < 1:
        raise TspruneError(f"--windows {windows} and --later {later} must be at least 1")
    everything = ready.split.validation()
    early, late = halves(everything)
    notes = [
        f"validation windows before the middle of the part measure ({len(early)}), later ones confirm ({len(late)})"
    ]
    if not len(early) or not len(late):
        train = ready.train.windows
        early, late = train.latest(min(1.0, max(2 * windows, 1) / len(train))), everything
        notes = [
            "the validation part is too short to be halved: the last windows of the train part measure, the "
            "validation windows confirm"
        ]
    first, _ = early.thin(windows)
    second, _ = late.thin(later)
    notes.append(f"{len(first)} windows measure and choose, {len(second)} later ones confirm; test windows are not cut")
    blocks = Blocks.of(second)
    batches = batches_of(ready, first), batches_of(ready, second)
    return Study(ready, *batches, ready.task.seed, blocks, rows_of(first)), notes


def rows_of(windows: WindowSet) -> list[str]:
    """Series and first step to forecast of every target row."""
    panel = windows.panel
    origins = np.repeat(windows.origin, windows.targets_per_window).tolist()
    series = windows.target_series(np.arange(len(windows))).tolist()
    return [
        f"{panel.ids[number]} from {panel.horizon_timestamps(number, origin, 1)[0]}"
        for number, origin in zip(series, origins, strict=True)
    ]


def halves(windows: WindowSet) -> tuple[WindowSet, WindowSet]:
    """Windows whose targets end before the middle of what their series' windows span, and those that begin after it."""
    series, origin = windows.series_index, windows.origin.astype(np.int64)
    count = int(series.max()) + 1 if len(windows) else 0
    low: NDArray[np.int64] = np.full(count, np.iinfo(np.int64).max)
    high: NDArray[np.int64] = np.zeros(count, np.int64)
    np.minimum.at(low, series, origin)
    np.maximum.at(high, series, origin + windows.horizon)
    middle = ((low + high) // 2)[series]
    early, late = np.flatnonzero(origin + windows.horizon <= middle), np.flatnonzero(origin >= middle)
    return windows.subset(early), windows.subset(late)


def batches_of(ready: Prepared, windows: WindowSet) -> list[Batch]:
    """Windows as batches with targets of one pass of the model."""
    size = max(1, STEERING_ROWS // windows.rows_per_window)
    return [cut_targets(batch, ready.model.native_horizon) for _, batch in windows.batches(size)]
