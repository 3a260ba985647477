"""Values that float32 or a scaler cannot take: a few far from all others, or all far from zero. Notes only."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tsprune.data.panel import FloatArray, Panel, Series
from tsprune.data.words import listed, many

Floats = NDArray[np.float64]
Exact = Callable[[list[Series]], list[Floats]]

# Heavy tails of real data (prices, floods, visits to a page) stay far below both.
_DEVIATIONS = 1e4
_GAP = 1e3
# Where all other values are zero nothing gives a scale; only the absurd is noted there.
_ABSURD = 1e9
_FEW = 0.05
_SAMPLE, _BLOCK = 256, 4096
_FEWEST = 8
# Float32 steps that one standard deviation has to span.
_STEPS = 16.0


@dataclass(frozen=True)
class Extent:
    """Lowest and highest value `[S]` of each series, NaN where it has none, and how many are missing `[S]`."""

    low: Floats
    high: Floats
    missing: NDArray[np.int64]

    def take(self, chosen: NDArray[np.int64] | NDArray[np.bool_] | slice) -> Extent:
        """Some of the series."""
        return Extent(self.low[chosen], self.high[chosen], self.missing[chosen])


def measure(arrays: Sequence[FloatArray]) -> Extent:
    """Range and number of missing values of each array."""
    low = np.array([np.fmin.reduce(array) if len(array) else np.nan for array in arrays], np.float64)
    high = np.array([np.fmax.reduce(array) if len(array) else np.nan for array in arrays], np.float64)
    return Extent(low, high, np.array([np.count_nonzero(np.isnan(array)) for array in arrays], np.int64))


def note_extremes(
    series: Sequence[Series], extent: Extent, frequency: str, said: Collection[float], exact: Exact
) -> list[str]:
    """Notes on values far from all others and on series that float32 holds too coarsely; all values stay.

    Args:
        series: the series; their covariates are looked at too.
        extent: of the targets of `series`.
        frequency: alias of the step, to say when a value occurred.
        said: suspected sentinels that a note names already.
        exact: targets of some series as float64, to tell constant series from rounded ones.
    """
    columns = [_Column(repr(one.id), one.values, one) for one in series]
    extras = _covariates(series)
    if extras:
        more = measure([column.values for column in extras])
        parts = ((extent.low, more.low), (extent.high, more.high), (extent.missing, more.missing))
        extent = Extent(*(np.concatenate(part) for part in parts))  # type: ignore[arg-type]
    columns += extras
    # In blocks, so that the samples of many series take little memory.
    blocks = [slice(first, first + _BLOCK) for first in range(0, len(columns), _BLOCK)]
    judged = [_suspects([column.values for column in columns[block]], extent.take(block)) for block in blocks]
    suspects, narrow = (np.concatenate(masks) for masks in zip(*judged, strict=True))
    far = [(columns[index], _far(columns[index].values)) for index in np.flatnonzero(suspects).tolist()]
    notes = _far_notes([(column, places) for column, places in far if len(places)], frequency, said)
    chosen = np.flatnonzero(narrow[: len(series)])
    return notes + _coarse_notes([series[index] for index in chosen.tolist()], extent.take(chosen), exact)


def _suspects(arrays: Sequence[FloatArray], extent: Extent) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which arrays are worth a closer look, for far values `[S]` and for a narrow spread `[S]`.

    A sample of each decides, so it is generous.
    """
    sample = _samples(arrays)
    counts = np.count_nonzero(~np.isnan(sample), axis=1)
    rows = np.arange(len(sample))
    sample.sort(axis=1)
    middle = sample[rows, np.maximum(counts - 1, 0) // 2]
    deviation = np.sort(np.abs(sample - middle[:, None]), axis=1)
    usual = deviation[rows, np.maximum((counts * 9) // 10 - 1, 0)]
    least = np.fmin.reduce(np.where(deviation > 0, deviation, np.nan), axis=1)
    reach = np.maximum(extent.high - middle, middle - extent.low)
    wide = reach > _GAP / 5 * np.maximum(usual, np.abs(middle))
    wide &= ~(reach <= _GAP / 5 * least) | (reach > _ABSURD)
    observed = np.array([len(values) for values in arrays]) - extent.missing
    scarce = counts < _FEWEST
    largest = np.maximum(np.abs(extent.low), np.abs(extent.high)).astype(np.float32)
    narrow = scarce | (_spread(sample, counts) < 4 * _STEPS * np.spacing(largest))
    return (observed >= _FEWEST) & (scarce | wide), (observed > 1) & narrow


@dataclass(frozen=True)
class _Column:
    """A target or covariate, its name in messages, and the series that dates it."""

    name: str
    values: FloatArray
    series: Series


def _covariates(series: Sequence[Series]) -> list[_Column]:
    """Covariates, those that series share once."""
    found: dict[int, _Column] = {}
    for one in series:
        for name, values in (*one.past.items(), *one.known.items()):
            key = values.__array_interface__["data"][0]
            found.setdefault(key, _Column(repr(name), values, one))
    return list(found.values())


def _samples(arrays: Sequence[FloatArray]) -> Floats:
    """Values evenly spread over each array `[S, 256]`, NaN behind the end of shorter ones."""
    sample = np.full((len(arrays), min(_SAMPLE, max(map(len, arrays), default=1) or 1)), np.nan)
    places: dict[int, NDArray[np.int64]] = {}
    for row, values in enumerate(arrays):
        length = len(values)
        if length <= sample.shape[1]:
            sample[row, :length] = values
        else:
            if length not in places:
                places[length] = np.linspace(0, length - 1, sample.shape[1]).astype(np.int64)
            sample[row] = values[places[length]]
    return sample


def _spread(sample: Floats, counts: NDArray[np.int64]) -> Floats:
    """Standard deviation of every row `[S]`, NaN left out."""
    filled = np.where(np.isnan(sample), 0.0, sample)
    means = filled.sum(axis=1) / np.maximum(counts, 1)
    squares = np.where(np.isnan(sample), 0.0, sample - means[:, None]) ** 2
    return np.asarray(np.sqrt(squares.sum(axis=1) / np.maximum(counts, 1)))


def _far(values: FloatArray) -> NDArray[np.int64]:
    """Where the few values stand that lie beyond a wide gap from all others."""
    seen = np.flatnonzero(~np.isnan(values))
    exact = values[seen].astype(np.float64)
    middle = float(np.median(exact))
    deviation = np.abs(exact - middle)
    quarter, three = np.partition(exact, [len(exact) // 4, 3 * len(exact) // 4])[[len(exact) // 4, 3 * len(exact) // 4]]
    few = max(1, int(_FEW * len(exact)))
    top = np.sort(np.partition(deviation, len(exact) - few - 1)[len(exact) - few - 1 :])
    scale = max(abs(middle), float(three - quarter) * _DEVIATIONS / _GAP)
    below = np.maximum(top[:-1], scale)
    gaps = np.flatnonzero(top[1:] > np.where(below > 0, _GAP * below, _ABSURD))
    return seen[deviation >= top[gaps[0] + 1]] if len(gaps) else seen[:0]


def _far_notes(far: Sequence[tuple[_Column, NDArray[np.int64]]], frequency: str, said: Collection[float]) -> list[str]:
    """One line for the panel."""
    kept = [(column, places[~np.isin(column.values[places], np.array([*said], np.float32))]) for column, places in far]
    kept = [(column, places) for column, places in kept if len(places)]
    if not kept:
        return []
    column, places = kept[0]
    when = _moment(column.series, int(places[0]), frequency)
    distinct, times = np.unique(np.concatenate([one.values[rows] for one, rows in kept]), return_counts=True)
    often = [_shortest(value) for value in distinct[np.argsort(-times, kind="stable")]]
    count = sum(len(rows) for _, rows in kept)
    return [
        f"{many(count, 'value')} of {listed([one.name for one, _ in kept])} {'lies' if count == 1 else 'lie'} more "
        f"than {_GAP:,.0f} times as far from the median as any other ({_shortest(column.values[places[0]])} at "
        f"{when}); kept; if it stands for a missing value give --sentinel {','.join(often[:3])}"
    ]


def _moment(series: Series, place: int, frequency: str) -> str:
    moment = Panel((series,), frequency).horizon_timestamps(0, place, 1)[0]
    return f"step {moment}" if isinstance(moment, int | np.integer) else str(moment)


def _shortest(value: np.float32) -> str:
    """Digits that give the same float32 when typed."""
    text = f"{value:g}"
    return text if np.float32(text) == value else str(value)


def _coarse_notes(series: list[Series], extent: Extent, exact: Exact) -> list[str]:
    """One line for the panel on series whose variation spans too few steps of float32."""
    # Constant in float32; the data may have varied below its steps.
    flat = [one for one, low, high in zip(series, extent.low, extent.high, strict=True) if low == high != 0]
    varied = [one for one, low, high in zip(series, extent.low, extent.high, strict=True) if low != high]
    columns = [one.values.astype(np.float64) for one in varied]
    for one, raw in zip(flat, exact(flat) if flat else [], strict=True):
        with np.errstate(over="ignore"):
            columns.append(raw[raw.astype(np.float32) == np.fmax.reduce(one.values)])
    coarse = []
    for one, values in zip([*varied, *flat], columns, strict=True):
        mean, spread = float(np.nanmean(values)), float(np.nanstd(values))
        step = float(np.spacing(np.float32(abs(mean))))
        # A sum in float64 that wanders in its last digits is constant all the same.
        if 1e-13 * abs(mean) < spread < _STEPS * step:
            coarse.append(
                f"{one.id!r} (varies by {spread:.2g} around {mean:.6g}, where float32 goes in steps of {step:.2g})"
            )
    if not coarse:
        return []
    return [
        f"{many(len(coarse), 'series loses', 'series lose')} precision, since float32 holds too few digits of what "
        f"varies: {listed(coarse, 3)}; subtract a constant from the values first"
    ]
