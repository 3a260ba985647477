"""Series that are copies of each other: the same values, shifted in time, scaled, or moved by a constant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tsprune.data.panel import FloatArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_WINDOW = 12
_PLACE = 5
_REACH = 4
_ALL_UP_TO = 512
_FINENESS = 64.0
_DISTINCT = 5
_MOST = 5000
_LONGEST_PROOF = 64
_SPARE_BITS = 10.0
_PORTION = 1 << 18
_EXACT = 1e-4
_SPACING = 2.0**-23


@dataclass(frozen=True)
class Copy:
    """Two series that agree: step t of `other` is step `t + shift` of `one`, but for scale and offset.

    Args:
        one: number of the first series.
        other: number of the second series, above `one`.
        shift: steps between them.
        first: first step of the agreement, counted in `other`.
        last: first step after it, counted in `other`.
    """

    one: int
    other: int
    shift: int
    first: int
    last: int


def find_copies(values: Sequence[FloatArray]) -> list[Copy]:
    """Pairs of series that hold a copy of each other, up to an affine map and a shift in time.

    Windows of 12 observed steps are standardised, rounded and hashed: at every step of a series of up to 512 steps,
    at local extremes of longer ones, so that the same content gives the same windows wherever it stands. Pairs with a
    hash in common are then compared value by value. They must agree, to the precision of float32, over a stretch of
    half the shorter series, at least 12 and at most 64 steps, that carries enough information not to agree by chance
    among all stretches of the panel: steps where the slope changes count, each by the resolution of the values.

    Not found: copies that were rounded anew (degrees Celsius and Fahrenheit to one decimal), copies without 12
    observed steps in a row, and series that repeat themselves exactly, such as a plain sine. Of many copies of the
    same series each is paired with the next one only.

    Args:
        values: `[T]` each, NaN = missing.

    Returns:
        Copies in the order of their series, one per pair.
    """
    if len(values) < 2:
        return []
    series, place, key = _hashed(values)
    points = sum(len(one) for one in values)
    found: dict[tuple[int, int], Copy] = {}
    for one, other, at_one, at_other in _candidates(series, place, key).tolist():
        if (one, other) in found:
            continue
        shift = at_one - at_other
        if (stretch := _agreement(values[one], values[other], shift, at_one, points)) is not None:
            found[one, other] = Copy(one, other, shift, stretch[0] - shift, stretch[1] - shift)
    return [found[pair] for pair in sorted(found)]


def _hashed(values: Sequence[FloatArray]) -> tuple[Ints, Ints, NDArray[np.uint64]]:
    """Series, first step and hash of every window that is worth one, each `[N]`."""
    gap = np.full(_WINDOW, np.nan, np.float32)
    flat = np.concatenate([piece for one in values for piece in (one, gap)])
    lengths = np.array([len(one) + _WINDOW for one in values])
    starts = np.cumsum(lengths) - lengths
    short = np.repeat(lengths - _WINDOW <= _ALL_UP_TO, lengths)
    chosen = np.flatnonzero(_extremes(flat) | (short & ~np.isnan(flat)))
    chosen = chosen[(chosen >= _PLACE) & (chosen + _WINDOW - _PLACE <= len(flat))]
    firsts, keys = [], []
    for low in range(0, len(chosen), _PORTION):
        first = chosen[low : low + _PORTION] - _PLACE
        key, good = _hash(flat[first[:, None] + np.arange(_WINDOW)].astype(np.float64))
        firsts.append(first[good])
        keys.append(key[good])
    first = np.concatenate([np.zeros(0, np.int64), *firsts])
    series = np.searchsorted(starts, first, side="right") - 1
    return series, first - starts[series], np.concatenate([np.zeros(0, np.uint64), *keys])


def _extremes(flat: FloatArray) -> NDArray[np.bool_]:
    """Steps above, or below, all of the four before and none of the four after."""
    high, low = np.ones(len(flat), bool), np.ones(len(flat), bool)
    for step in range(1, _REACH + 1):
        before, after = flat[:-step], flat[step:]
        high[step:] &= after > before
        low[step:] &= after < before
        high[:-step] &= before >= after
        low[:-step] &= before <= after
    return high | low


def _hash(windows: Floats) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """A hash of every window `[N, 12]` that no affine map changes, and whether the window has enough to tell."""
    middle, spread = windows.mean(1, keepdims=True), windows.std(1, keepdims=True)
    good = spread[:, 0] > 32 * _SPACING * np.abs(windows).max(1)
    score = np.where(good[:, None], (windows - middle) / np.where(spread > 0, spread, 1), 0)
    score *= np.where(score[:, _PLACE] < 0, -1, 1)[:, None]
    slopes = np.sort(np.rint(np.diff(score, axis=1) * 1000), axis=1)
    good &= (np.diff(slopes, axis=1) > 1).sum(1) + 1 >= _DISTINCT
    factors = np.random.default_rng(12).integers(1, 2**63, _WINDOW, dtype=np.uint64) | np.uint64(1)
    rounded = np.rint(score * _FINENESS).astype(np.int64).astype(np.uint64)
    return (rounded * factors).sum(1, dtype=np.uint64), good


def _candidates(series: Ints, place: Ints, key: NDArray[np.uint64]) -> Ints:
    """Pairs of series with a window in common, `[M, 4]`: both series and where the window stands in each.

    Those with the most windows in common come first. A window that stands in a series more than once says nothing
    about where a copy would start; a series mostly of such windows repeats itself and is left out.
    """
    order = np.lexsort((place, series, key))
    series, place, key = series[order], place[order], key[order]
    same = (key[1:] == key[:-1]) & (series[1:] == series[:-1])
    repeated = np.zeros(len(key), bool)
    repeated[1:] |= same
    repeated[:-1] |= same
    counts = np.bincount(series, minlength=1)
    loops = np.bincount(series[repeated], minlength=len(counts)) * 2 > counts
    kept = ~(repeated | loops[series])
    series, place, key = series[kept], place[kept], key[kept]
    links = np.flatnonzero(key[1:] == key[:-1])
    pairs = np.stack([series[links], series[links + 1], place[links], place[links + 1]], axis=1)
    if not len(pairs):
        return pairs
    kinds = np.column_stack([pairs[:, :2], pairs[:, 2] - pairs[:, 3]])
    _, index, votes = np.unique(kinds, axis=0, return_index=True, return_counts=True)
    return np.asarray(pairs[index[np.argsort(-votes, kind="stable")][:_MOST]])


def _agreement(one: FloatArray, other: FloatArray, shift: int, seed: int, points: int) -> tuple[int, int] | None:
    """The stretch around a window at step `seed` of `one` over which both agree, if it proves a copy.

    The affine map is fitted on the stretch found so far, which may grow fourfold at a time, so that what the map
    lacks in precision never counts much.
    """
    first = max(0, shift)
    a = one[first : min(len(one), len(other) + shift)].astype(np.float64)
    b = other[first - shift : first - shift + len(a)].astype(np.float64)
    seen = np.flatnonzero(~(np.isnan(a) | np.isnan(b)))
    a, b = a[seen], b[seen]
    low = int(np.searchsorted(seen, seed - first))
    start, high, before = low, low + _WINDOW, -1
    while high - low != before:
        before = high - low
        near, far = max(0, low - 2 * before), min(len(a), high + 2 * before)
        agree = agreeing(a[near:far], b[near:far], slice(low - near, high - near))
        wrong = np.flatnonzero(~agree) + near
        cut = int(np.searchsorted(wrong, start))
        low = int(wrong[cut - 1]) + 1 if cut else near
        high = int(wrong[cut]) if cut < len(wrong) else far
        if high - low < _WINDOW:
            return None
    needed = min(_LONGEST_PROOF, max(_WINDOW, min(len(one), len(other)) // 2))
    if high - low < needed or _bits(a[low:high]) < 2 * math.log2(points) + _SPARE_BITS:
        return None
    return first + int(seen[low]), first + int(seen[high - 1]) + 1


def agreeing(a: Floats, b: Floats, fitted: slice) -> NDArray[np.bool_]:
    """Where `a` is an affine map of `b` to the precision of float32; the map is fitted on the steps `fitted`."""
    x, y = b[fitted], a[fitted]
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread > 0 else 0.0
    if slope == 0:
        return np.zeros(len(a), bool)
    rest = (a - y.mean()) - slope * (b - x.mean())
    noise = _SPACING * (np.abs(a) + np.abs(slope) * np.abs(b))
    return np.asarray(np.abs(rest) <= _EXACT * y.std() + noise)


def _bits(values: Floats) -> float:
    """How much a stretch tells: half the bits of its resolution for every step at which its slope changes."""
    levels = np.unique(values)
    if len(levels) < 2:
        return 0.0
    steps = np.diff(levels)
    finest = float(steps[steps > _SPACING * np.abs(levels).max()].min(initial=math.inf))
    if not math.isfinite(finest):
        return 0.0
    size = math.log2(float(levels[-1] - levels[0]) / finest + 1)
    bends = np.abs(np.diff(values, n=2)) > max(finest / 2, _EXACT * float(values.std()))
    return 0.5 * size * int(bends.sum())
