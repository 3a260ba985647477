"""Windows of a panel, described by numbers and cut only when asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tsprune.data.panel import FloatArray, Panel, Series
from tsprune.data.scaling import Scaler
from tsprune.data.words import listed, many
from tsprune.errors import TspruneError

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from tsprune.data.batch import Batch

Ints = NDArray[np.int64]
Grouping = Literal["none", "all"]


@dataclass(frozen=True, eq=False)
class WindowSet:
    """Windows `(series, origin)` over a panel; an origin is the first step to forecast.

    A window covers the steps `origin - context .. origin - 1` (what reaches before the series is missing) and
    `origin .. origin + horizon - 1`. It becomes one row of a batch, or several: with covariates, the target
    row first, then past, then known covariates; with grouping "all", the targets of all series, then all
    covariates.

    Args:
        panel: where the values are; never copied per window.
        series_index: int32 `[N]`, sorted; all 0 with grouping "all".
        origin: int32 `[N]`, ascending within a series.
        context: steps L before the origin.
        horizon: steps H from the origin on.
        scaler: scales what `batch` returns; None leaves the units of the data.
        grouping: "none" or "all".
        stride: steps between neighbouring origins.
        notes: windows that were left out, and why.
    """

    panel: Panel
    series_index: NDArray[np.int32]
    origin: NDArray[np.int32]
    context: int
    horizon: int
    scaler: Scaler | None = None
    grouping: Grouping = "none"
    stride: int = 1
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.origin)

    @property
    def rows_per_window(self) -> int:
        """Rows of a batch that one window takes."""
        return self.targets_per_window + len(self._covariates(0))

    @property
    def targets_per_window(self) -> int:
        """Rows of a window that are forecast."""
        return len(self.panel.series) if self.grouping == "all" else 1

    def batch(self, indices: ArrayLike) -> Batch:
        """The windows `indices [n]` as a batch of `n * rows_per_window` rows, scaled, NaN = missing."""
        chosen = np.asarray(indices, np.int64).reshape(-1)
        return _batch(self, self.series_index[chosen], self.origin[chosen].astype(np.int64), with_target=True)

    def batches(self, size: int) -> Iterator[tuple[Ints, Batch]]:
        """All windows in order, `size` at a time, with their indices; the last batch may be smaller."""
        for first in range(0, len(self), size):
            chosen = np.arange(first, min(first + size, len(self)))
            yield chosen, self.batch(chosen)

    def target_series(self, indices: ArrayLike) -> Ints:
        """Series index of every target row of `batch(indices)`, in row order."""
        chosen = np.asarray(indices, np.int64).reshape(-1)
        if self.grouping == "all":
            return np.tile(np.arange(len(self.panel.series)), len(chosen))
        return self.series_index[chosen].astype(np.int64)

    def targets(self, indices: ArrayLike) -> FloatArray:
        """What came, in the units of the data: `[target rows, H]`, NaN = missing; rows as `target_series`."""
        return self._target_steps(indices, 0, self.horizon)

    def contexts(self, indices: ArrayLike) -> FloatArray:
        """What went before, in the units of the data: `[target rows, L]`, NaN = missing."""
        return self._target_steps(indices, -self.context, self.context)

    def horizon_timestamps(self, index: int) -> pd.Index:
        """Stamps of the steps to forecast of one window `[H]`."""
        return self.panel.horizon_timestamps(int(self.series_index[index]), int(self.origin[index]), self.horizon)

    def thin(self, most: int) -> tuple[WindowSet, int]:
        """At most `most` windows, spread evenly, and the stride between origins that gives.

        The last window of every series stays; where there are more series than `most`, some series give none,
        which the notes of the result say.

        Raises:
            TspruneError: if `most` is below 1.
        """
        if most < 1:
            raise TspruneError(f"{most} windows were asked for, expected at least 1")
        if len(self) <= most:
            return self, self.stride
        counts = np.bincount(self.series_index)
        owners = counts[counts > 0]
        low, high = 1, int(owners.max())
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if int((-(-owners // middle)).sum()) <= most else (middle + 1, high)
        ends = np.cumsum(counts)[self.series_index]
        kept = np.flatnonzero((ends - 1 - np.arange(len(self))) % low == 0)
        notes = self.notes
        if len(kept) > most:
            notes = (
                *notes,
                f"{most:,} of {many(len(owners), 'series', 'series')} were picked evenly, one window each",
            )
            kept = kept[(np.arange(most) * len(kept)) // most]
        return self._take(kept, self.stride * low, notes), self.stride * low

    def sample(self, count: int, generator: np.random.Generator | torch.Generator) -> Ints:
        """Indices of `count` windows at random `[count]`, without repetition while there are enough."""
        if not isinstance(generator, np.random.Generator):
            import torch

            seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
            generator = np.random.default_rng(seed)
        if not len(self):
            raise TspruneError("there is no window to sample from")
        return generator.choice(len(self), count, replace=count > len(self))

    def latest(self, share: float) -> WindowSet:
        """The most recent share of the windows of every series, at least one each.

        Raises:
            TspruneError: if the share is not above 0 and at most 1.
        """
        if not 0 < share <= 1:
            raise TspruneError(f"a share of {share} windows was asked for, expected more than 0 and at most 1")
        counts = np.bincount(self.series_index)
        wanted = np.maximum(1, np.floor(share * counts + 0.5))[self.series_index]
        until_end = np.cumsum(counts)[self.series_index] - np.arange(len(self))
        return self._take(np.flatnonzero(until_end <= wanted), self.stride, self.notes)

    def subset(self, indices: ArrayLike) -> WindowSet:
        """Only the windows `indices`, in ascending order."""
        return self._take(np.unique(np.asarray(indices, np.int64)), self.stride, self.notes)

    def _take(self, kept: Ints, stride: int, notes: tuple[str, ...]) -> WindowSet:
        return replace(self, series_index=self.series_index[kept], origin=self.origin[kept], stride=stride, notes=notes)

    def _target_steps(self, indices: ArrayLike, shift: int, count: int) -> FloatArray:
        chosen = np.asarray(indices, np.int64).reshape(-1)
        firsts = np.repeat(self.origin[chosen].astype(np.int64) + shift, self.targets_per_window)
        rows = self.target_series(chosen)
        out = np.full((len(rows), count), np.nan, np.float32)
        for place, (row, first) in enumerate(zip(rows.tolist(), firsts.tolist(), strict=True)):
            _copy(self.panel.series[row].values, first, out[place])
        return out

    def _covariates(self, series: int) -> list[_Row]:
        return self._members(series)[self.targets_per_window :]

    def _members(self, series: int) -> list[_Row]:
        """The rows of a window of `series`; a window over all series has one list for all."""
        return self._shared if self.grouping == "all" else _rows(self.panel, [series])

    @cached_property
    def _shared(self) -> list[_Row]:
        return _rows(self.panel, range(len(self.panel.series)))


@dataclass(frozen=True)
class _Row:
    """One variate of a window: its values, and where its scale is kept."""

    values: FloatArray
    series: int
    variate: int
    known: bool = False


def _rows(panel: Panel, chosen: list[int] | range) -> list[_Row]:
    """Targets of the chosen series, then their covariates, those that series share once."""
    rows = [_Row(panel.series[index].values, index, 0) for index in chosen]
    seen: set[tuple[str, int]] = set()
    for first, names, known in (
        (1, panel.past_names, False),
        (1 + len(panel.past_names), panel.known_names, True),
    ):
        for variate, name in enumerate(names, first):
            for index in chosen:
                series = panel.series[index]
                array = (series.known if known else series.past)[name]
                key = (name, array.__array_interface__["data"][0])
                if key not in seen:
                    seen.add(key)
                    rows.append(_Row(array, index, variate, known))
    return rows


def _copy(values: FloatArray, first: int, out: FloatArray) -> None:
    """Steps `first ..` of `values` into `out`, as far as there are any."""
    low, high = max(first, 0), min(first + len(out), len(values))
    if low < high:
        out[low - first : high - first] = values[low:high]


def _batch(windows: WindowSet, series: NDArray[np.int32], origins: Ints, with_target: bool) -> Batch:
    import torch

    from tsprune.data.batch import Batch

    length, horizon = windows.context, windows.horizon
    per_window, own = windows.rows_per_window, windows.targets_per_window
    context = np.full((len(origins), per_window, length), np.nan, np.float32)
    ahead = np.full((len(origins), per_window, horizon), np.nan, np.float32)
    scale_rows = np.empty((len(origins), per_window), np.int64)
    members: list[_Row] = []
    units: dict[str, torch.Tensor] = {}
    before = -1
    for place, (index, origin) in enumerate(zip(series.tolist(), origins.tolist(), strict=True)):
        if index != before:
            members, before = windows._members(index), index
        for row, member in enumerate(members):
            _copy(member.values, origin - length, context[place, row])
            if member.known or (with_target and row < own):
                _copy(member.values, origin, ahead[place, row])
            scale_rows[place, row] = member.series
    if windows.scaler is not None and len(origins):
        variates = np.array([member.variate for member in members])
        mean = windows.scaler.mean[scale_rows, variates][..., None]
        std = windows.scaler.std[scale_rows, variates][..., None]
        context = ((context - mean) / std).astype(np.float32)
        ahead = ((ahead - mean) / std).astype(np.float32)
        units = {"location": torch.from_numpy(mean.reshape(-1)), "scale": torch.from_numpy(std.reshape(-1))}
    count = len(origins) * per_window
    flat = torch.from_numpy(context).reshape(count, length)
    grouped = per_window > 1 or windows.grouping == "all"
    target: torch.Tensor | None = None
    if with_target:
        observed = ahead.copy()
        observed[:, own:] = np.nan
        target = torch.from_numpy(observed).reshape(count, horizon)
    if per_window == own:
        groups = torch.arange(len(origins)).repeat_interleave(per_window) if grouped else None
        return Batch(flat, target, groups, **units)
    ahead[:, :own] = np.nan
    return Batch(
        flat,
        target,
        torch.arange(len(origins)).repeat_interleave(per_window),
        torch.from_numpy(ahead).reshape(count, horizon),
        (torch.arange(per_window) < own).repeat(len(origins)),
        **units,
    )


def cut_windows(
    panel: Panel,
    first: ArrayLike,
    last: ArrayLike,
    context: int,
    horizon: int,
    *,
    stride: int = 1,
    scaler: Scaler | None = None,
    grouping: Grouping = "none",
) -> WindowSet:
    """Windows whose origins lie between `first [S]` and `last [S]`, both included.

    Origins are counted back from the last one, which is always there. Windows without any observed target, or
    without any observed value in the context, are left out and counted in `notes`.

    Raises:
        TspruneError: for a stride below 1, or grouping "all" over series that are not aligned.
    """
    if stride < 1:
        raise TspruneError(f"the stride is {stride}, expected at least 1 step")
    firsts, lasts = np.asarray(first, np.int64), np.asarray(last, np.int64)
    count = len(panel.series)
    if grouping == "all":
        _check_aligned(panel)
        count = 1
    indices, origins, lost = [], [], np.zeros(2, np.int64)
    for index in range(count):
        low, high = int(firsts[index]), int(lasts[index])
        # Counted back from the last origin; none where the part is too short.
        steps = np.arange(high, low - 1, -stride, dtype=np.int64)[::-1]
        steps, missed = _worthwhile(panel, index, grouping, steps, context, horizon)
        lost += missed
        origins.append(steps.astype(np.int32))
        indices.append(np.full(len(steps), index, np.int32))
    reasons = ("no observed target", "no observed context")
    notes = [f"{many(int(n), 'window')} with {why} left out" for n, why in zip(lost, reasons, strict=True) if n]
    return WindowSet(
        panel,
        np.concatenate(indices),
        np.concatenate(origins),
        context,
        horizon,
        scaler,
        grouping,
        stride,
        tuple(notes),
    )


def _check_aligned(panel: Panel) -> None:
    if not panel.aligned:
        other = next(
            series.id
            for series in panel.series
            if len(series) != len(panel.series[0]) or series.start != panel.series[0].start
        )
        raise TspruneError(
            f"--together (grouping 'all') needs series over the same steps, but {other!r} covers others than "
            f"{panel.ids[0]!r}"
        )


def _worthwhile(
    panel: Panel, index: int, grouping: Grouping, origins: Ints, context: int, horizon: int
) -> tuple[Ints, Ints]:
    """Origins with something to learn from and to forecast, and how many lack a target or a context `[2]`."""
    members = panel.series if grouping == "all" else (panel.series[index],)
    missing = np.isnan(members[0].values)
    for member in members[1:]:
        missing &= np.isnan(member.values)
    if not missing.any() or not len(origins):
        return origins, np.zeros(2, np.int64)
    seen = np.zeros(len(missing) + 1, np.int32)
    np.cumsum(~missing, out=seen[1:])
    targets = seen[origins + horizon] > seen[origins]
    contexts = seen[origins] > seen[np.maximum(origins - context, 0)]
    return origins[targets & contexts], np.array([(~targets).sum(), (targets & ~contexts).sum()])


def forecast_batch(
    panel: Panel,
    context: int,
    horizon: int,
    scaler: Scaler | None = None,
    *,
    grouping: Grouping = "none",
    series: ArrayLike | None = None,
) -> Batch:
    """The end of every series as a batch without targets, to forecast the steps that follow.

    Args:
        panel: the series; known covariates must reach `horizon` steps beyond their end.
        context: steps L taken from the end; shorter series are padded with NaN on the left.
        horizon: steps H to forecast.
        scaler: fitted on this panel, or None to leave the units of the data.
        grouping: "none" or "all", as in `WindowSet`.
        series: indices of the series wanted; all by default, always all with grouping "all".

    Raises:
        TspruneError: if a known covariate ends too early; names it and the number of missing steps.
    """
    if grouping == "all":
        _check_aligned(panel)
    chosen = np.arange(len(panel.series), dtype=np.int32) if series is None else np.asarray(series, np.int32)
    for index in chosen.tolist():
        _check_known(panel.series[index], horizon)
    if grouping == "all":
        chosen = np.zeros(1, np.int32)
    ends = panel.lengths[chosen]
    windows = WindowSet(panel, chosen, ends.astype(np.int32), context, horizon, scaler, grouping)
    return _batch(windows, chosen, ends, with_target=False)


def _check_known(series: Series, horizon: int) -> None:
    reach = {}
    for name, array in series.known.items():
        observed = np.flatnonzero(~np.isnan(array[len(series) : len(series) + horizon]))
        reach[name] = int(observed[-1]) + 1 if len(observed) else 0
    short = {name: horizon - steps for name, steps in reach.items() if steps < horizon}
    if short:
        words = listed([f"{name!r} lacks {many(steps, 'step')}" for name, steps in short.items()])
        raise TspruneError(
            f"series {series.id!r}: known covariates must reach {many(horizon, 'step')} beyond the last "
            f"target, but {words}; "
            "add rows with their future values and an empty target, or give a shorter --horizon"
        )
