"""Scoring forecasters and baselines over a set of windows, and the forecasts that a report draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from tsprune.blocks.prepacked import prepacked
from tsprune.data.batch import Batch
from tsprune.data.split import Split
from tsprune.data.windows import WindowSet
from tsprune.errors import TspruneError
from tsprune.evaluation.baselines import Baseline
from tsprune.evaluation.metrics import DECILES, Accumulator, Metrics, RowErrors, naive_error

if TYPE_CHECKING:
    from tsprune.report import ForecastExample

Progress = Callable[[int, int], None]
"""Called with the windows done and the windows there are."""


@runtime_checkable
class Predictor(Protocol):
    """Whatever forecasts: a Forecaster of any family, or a baseline."""

    def forecast(self, batch: Batch, horizon: int, levels: Sequence[float]) -> Tensor:
        """Quantiles `[B, Q, H]` on the scale of the context."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured over a set of windows.

    Attributes:
        metrics: the four measures; None where there is no denominator.
        notes: what was left out or stands in for something, one line each.
        rows: the sums behind the measures, one row per target row in window order; for intervals and
            comparisons window by window.
    """

    metrics: Metrics
    notes: tuple[str, ...]
    rows: RowErrors


def evaluate(
    model: Predictor,
    windows: WindowSet,
    split: Split,
    *,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> Metrics:
    """The four measures of a model; the same as `measure(...).metrics`."""
    return measure(model, windows, split, batch_size=batch_size, progress=progress).metrics


def measure(
    model: Predictor,
    windows: WindowSet,
    split: Split,
    *,
    batch_size: int = 256,
    progress: Progress | None = None,
    scale_ends: ArrayLike | None = None,
    naive_errors: ArrayLike | None = None,
) -> Evaluation:
    """Forecast every window and score its target rows; the model never gets to see a target.

    What the measures are is said at `Accumulator`.

    Args:
        model: a forecaster or a baseline.
        windows: what to score, scaled by the split's scaler.
        split: gives the scaler and the train parts, for MASE and WQL.
        batch_size: rows per batch; a window is never divided.
        progress: called after every batch.
        scale_ends: first step after the part of each series whose seasonal-naive error is the denominator of MASE
            `[S]`; by default the end of the train part.
        naive_errors: these denominators themselves, one per target row in window order, where they differ from window
            to window.

    Raises:
        TspruneError: if there is no window, if the windows are of other series or scaled otherwise than the
            split says, or if a forecast is not finite where the target is observed.
    """
    _check_scale(windows, split)
    accumulator, empty = Accumulator(), 0
    _remarks(model)
    naive = _naive_errors(windows, split, scale_ends) if naive_errors is None else None
    each = _one_per_row(naive_errors, windows)
    scale = split.scaler.std[:, 0]
    with prepacked(model, len(windows) * windows.rows_per_window):
        for chosen, batch in _batches(windows, batch_size):
            quantiles = _forecast(model, batch, windows.horizon)
            target = _target(batch)
            is_target = _target_rows(batch)
            series = windows.target_series(chosen)
            original = windows.targets(chosen)
            places = slice(
                int(chosen[0]) * windows.targets_per_window, (int(chosen[-1]) + 1) * windows.targets_per_window
            )
            denominators = each[places] if naive is None else naive[series]
            accumulator.add(target[is_target], quantiles[is_target], original, scale[series], denominators)
            empty += int(torch.isnan(batch.context[is_target]).all(dim=1).sum())
            if progress is not None:
                progress(int(chosen[-1]) + 1, len(windows))
    notes = [*_remarks(model), *accumulator.notes()]
    if empty:
        rows = len(windows) * windows.targets_per_window
        notes.append(f"{empty} of {rows} windows have no observed value in their context")
    rows_errors = accumulator.rows()
    return Evaluation(rows_errors.metrics(), tuple(notes), rows_errors)


def examples(
    model: Predictor,
    windows: WindowSet,
    which: Sequence[int],
    *,
    others: Mapping[str, Predictor] | None = None,
    levels: Sequence[float] = DECILES,
    history: int | None = None,
) -> list[ForecastExample]:
    """Forecasts in the units of the data, for the report.

    Args:
        model: the model whose quantiles are drawn.
        windows: where to take the examples from.
        which: numbers of target rows. Without grouping that is the number of the window; with it, window w
            has the rows from `w * targets_per_window` on.
        others: further models by name, of which only the median is drawn.
        levels: quantile levels, in any order.
        history: steps of context to show; None means twice the horizon.

    Returns:
        One example per entry of `which`.

    Raises:
        TspruneError: if there is no such row.
    """
    from tsprune.report import ForecastExample

    per_window = windows.targets_per_window
    total = len(windows) * per_window
    if bad := [row for row in which if not 0 <= row < total]:
        raise TspruneError(f"example {bad[0]} does not exist: there are {total} target rows, numbered from 0")
    tail = min(windows.context, 2 * windows.horizon if history is None else history)
    made = []
    for row in which:
        window, place = divmod(row, per_window)
        series = int(windows.target_series([window])[place])
        paths = _original(model, windows, window, place, levels)
        medians = {
            name: _original(other, windows, window, place, [0.5])[0].tolist() for name, other in (others or {}).items()
        }
        made.append(
            ForecastExample(
                series=windows.panel.series[series].id,
                window=str(windows.horizon_timestamps(window)[0]),
                history=windows.contexts([window])[place][windows.context - tail :].tolist(),
                truth=windows.targets([window])[place].tolist(),
                quantiles={float(level): path.tolist() for level, path in zip(levels, paths, strict=True)},
                other=medians,
            )
        )
    return made


def device_of(model: object) -> torch.device:
    """Device of a network's weights; the CPU for anything without weights."""
    if isinstance(model, torch.nn.Module):
        for parameter in model.parameters():
            return parameter.device
    return torch.device("cpu")


def _forecast(model: Predictor, batch: Batch, horizon: int, levels: Sequence[float] = DECILES) -> Tensor:
    """Quantiles on the CPU `[B, Q, H]`; the target stays here."""
    blind = replace(batch, target=None).to(device_of(model))
    with torch.no_grad():
        return model.forecast(blind, horizon, levels).cpu().double()


def _remarks(model: Predictor) -> list[str]:
    """What a baseline has to say about its forecasts since it was last asked."""
    return model.remarks() if isinstance(model, Baseline) else []


def _original(
    model: Predictor, windows: WindowSet, window: int, place: int, levels: Sequence[float]
) -> NDArray[np.float32]:
    """Quantiles of one target row in the units of the data `[Q, H]`."""
    batch = windows.batch([window])
    quantiles = _forecast(model, batch, windows.horizon, levels)[_target_rows(batch)]
    chosen = quantiles[place : place + 1].numpy()
    if windows.scaler is None:
        return np.asarray(chosen[0], np.float32)
    return np.asarray(windows.scaler.inverse(chosen, windows.target_series([window])[place : place + 1])[0])


def _batches(windows: WindowSet, batch_size: int) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    if batch_size < 1:
        raise TspruneError(f"batch_size is {batch_size}, expected at least 1 row")
    if not len(windows):
        raise TspruneError("there is no window to score; give a shorter --horizon or another --split")
    return windows.batches(max(1, batch_size // windows.rows_per_window))


def _target(batch: Batch) -> Tensor:
    if batch.target is None:
        raise TspruneError("the windows come without targets, so nothing can be scored")
    return batch.target.double()


def _target_rows(batch: Batch) -> Tensor:
    """Which rows are forecast and scored `[B]`."""
    if batch.is_target is not None:
        return batch.is_target
    return torch.ones(batch.rows, dtype=torch.bool)


def _check_scale(windows: WindowSet, split: Split) -> None:
    if windows.panel is not split.panel:
        raise TspruneError("the windows are of another panel than the split; take them from the split")
    if windows.scaler is None:
        raise TspruneError("the windows are not scaled; take them from the split, MSE and MAE need z-scores")
    own, said = windows.scaler, split.scaler
    if not (np.array_equal(own.mean, said.mean) and np.array_equal(own.std, said.std)):
        raise TspruneError("the windows are scaled otherwise than the split; take them from the split")


def _one_per_row(naive_errors: ArrayLike | None, windows: WindowSet) -> NDArray[np.float64]:
    """Given denominators `[R]`, checked; none where none are given."""
    if naive_errors is None:
        return np.zeros(0)
    found, rows = np.asarray(naive_errors, np.float64), len(windows) * windows.targets_per_window
    if found.shape != (rows,):
        raise TspruneError(f"naive_errors has shape {list(found.shape)}, expected one per target row [{rows}]")
    return found


def _naive_errors(windows: WindowSet, split: Split, scale_ends: ArrayLike | None) -> NDArray[np.float64]:
    """Seasonal-naive error of the beginning of every series that has windows `[S]`, NaN elsewhere."""
    season = split.panel.season()
    ends = split.train_end if scale_ends is None else np.asarray(scale_ends, np.int64)
    if ends.shape != split.train_end.shape:
        raise TspruneError(
            f"scale_ends has shape {list(ends.shape)}, expected one step per series {len(split.train_end)}"
        )
    errors = np.full(len(split.panel.series), np.nan)
    used = range(len(errors)) if windows.grouping == "all" else np.unique(windows.series_index).tolist()
    for index in used:
        errors[index] = naive_error(split.panel.series[index].values[: int(ends[index])], season)
    return errors
