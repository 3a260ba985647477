"""Repeated random waveforms: the windows that teach a forecaster to copy a season."""

from __future__ import annotations

import numpy as np

from tsprune.data.simulated.noise import (
    Array,
    Integers,
    chance,
    correlated,
    log_uniform,
    noise,
    normal,
    pick,
    smooth,
    standardised,
    uniform,
    walk,
)

CALENDAR = (4, 7, 12, 24, 48, 52, 96, 144, 168, 288, 336)
_CALENDAR_WEIGHTS = (1.0, 3.0, 3.0, 6.0, 2.5, 1.5, 5.0, 4.0, 2.0, 1.5, 1.0)
BINS = 512
_HARMONICS = 64


def draw_periods(rng: np.random.Generator, n: int, longest: int) -> Integers:
    """Periods `[n]`, 2 to `longest` steps: half calendar ones, a quarter log-uniform, a quarter uniform."""
    allowed = [i for i, period in enumerate(CALENDAR) if period <= max(longest, CALENDAR[0])]
    calendar = np.array(CALENDAR)[allowed][pick(rng, tuple(_CALENDAR_WEIGHTS[i] for i in allowed), n)]
    spread = np.floor(log_uniform(rng, 2.0, longest + 1.0, n)).astype(np.int64)
    even = rng.integers(2, longest + 1, n)
    kind = pick(rng, (0.5, 0.25, 0.25), n)
    drawn: Integers = np.clip(np.choose(kind, (calendar, spread, even)), 2, longest).astype(np.int64)
    return drawn


def _harmonic_tables(rng: np.random.Generator, n: int) -> Array:
    """Waveforms `[n, BINS]` as random Fourier series whose roughness differs per row."""
    order = np.arange(1, _HARMONICS + 1, dtype=np.float32)[None, :]
    decay = uniform(rng, 0.3, 2.5, n)[:, None]
    limit = np.floor(log_uniform(rng, 1.0, _HARMONICS, n))[:, None]
    spectrum = np.zeros((n, BINS // 2 + 1), dtype=np.complex64)
    draws = normal(rng, n, 2 * _HARMONICS).view(np.complex64)
    spectrum[:, 1 : _HARMONICS + 1] = draws * order**-decay * (order <= limit)
    return standardised(np.fft.irfft(spectrum, n=BINS, axis=1).astype(np.float32))


def _peak_tables(rng: np.random.Generator, n: int) -> Array:
    """Waveforms `[n, BINS]` of one to four bumps, broad (load curves) to needle-like (spikes)."""
    angle = (2 * np.pi * np.arange(BINS, dtype=np.float32) / BINS)[None, None, :]
    peaks = 4
    centre = uniform(rng, 0.0, 2 * np.pi, n, peaks)[:, :, None]
    sharp = log_uniform(rng, 1.0, 400.0, n, peaks)[:, :, None]
    count = rng.integers(1, peaks + 1, (n, 1, 1))
    height = normal(rng, n, peaks)[:, :, None] + 1.0
    bumps = height * np.exp(sharp * (np.cos(angle - centre) - 1)) * (np.arange(peaks)[None, :, None] < count)
    return standardised(bumps.sum(axis=1))


def draw_tables(rng: np.random.Generator, n: int) -> Array:
    """One cycle of a random waveform per row, `[n, BINS]`, standardised.

    Smooth, rough, spiky, step-like, half-rectified (solar), skewed, or unrelated values at every phase.
    """
    kind = pick(rng, (0.38, 0.18, 0.12, 0.12, 0.12, 0.08), n)
    tables = _harmonic_tables(rng, n)
    rows = np.flatnonzero(kind == 1)
    if rows.size:
        tables[rows] = _peak_tables(rng, rows.size)
    rows = np.flatnonzero(kind == 2)
    if rows.size:
        levels = uniform(rng, 0.6, 2.0, rows.size)[:, None]
        tables[rows] = np.round(tables[rows] * levels + 0.25) / levels
    rows = np.flatnonzero(kind == 3)
    if rows.size:
        angle = 2 * np.pi * np.arange(BINS, dtype=np.float32)[None, :] / BINS
        mixed = tables[rows] * uniform(rng, 0.0, 0.4, rows.size)[:, None] + np.cos(angle)
        tables[rows] = np.maximum(mixed - uniform(rng, -0.5, 0.6, rows.size)[:, None], 0.0)
    rows = np.flatnonzero(kind == 4)
    if rows.size:
        tables[rows] = np.exp(tables[rows] * uniform(rng, 0.4, 1.4, rows.size)[:, None])
    rows = np.flatnonzero(kind == 5)
    if rows.size:
        tables[rows] = normal(rng, rows.size, BINS)
    return standardised(tables)


def repeated(tables: Array, periods: Array | Integers, offsets: Integers, length: int) -> Array:
    """Waveforms repeated over time `[n, length]`.

    Args:
        tables: one cycle per row `[n, BINS]`.
        periods: period of each row in steps `[n]`; a whole number repeats exactly.
        offsets: step within the cycle at time 0 `[n]`.
        length: steps.
    """
    # Whole numbers below 2**24 are exact in float32, and so is their remainder.
    span = periods.astype(np.float32)[:, None]
    time = np.arange(length, dtype=np.float32)[None, :] + offsets.astype(np.float32)[:, None]
    place = np.fmod(time, span) * (tables.shape[1] / span)
    low = np.minimum(place.astype(np.int64), tables.shape[1] - 1)
    share = place - low.astype(np.float32)
    high = low + 1
    high[high == tables.shape[1]] = 0
    left = np.take_along_axis(tables, low, axis=1)
    right = np.take_along_axis(tables, high, axis=1)
    values: Array = (left + share * (right - left)).astype(np.float32)
    return values


def _nested(rng: np.random.Generator, base: Array, cycle: Integers) -> Array:
    """Scale and shift each cycle by its place in a longer one (days of a week), `[n, length]`."""
    n = base.shape[0]
    ratio: Integers = np.array((7, 5, 4, 12, 2, 3, 6))[pick(rng, (0.7, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05), n)]
    slots = 12
    spread = uniform(rng, 0.05, 0.8, n)[:, None]
    factor = np.exp(normal(rng, n, slots) * spread)
    weekend = np.arange(slots)[None, :] >= 5
    is_week = (ratio == 7) & chance(rng, 0.7, n)
    rest = np.where(weekend, uniform(rng, 0.1, 1.2, n)[:, None], 1.0) * np.exp(normal(rng, n, slots) * spread * 0.1)
    factor = np.where(is_week[:, None], rest, factor).astype(np.float32)
    shift = normal(rng, n, slots) * uniform(rng, 0.0, 0.8, n)[:, None]
    shift = np.where(is_week[:, None], weekend * normal(rng, n, 1), shift).astype(np.float32)
    begin: Integers = rng.integers(0, slots, (n, 1))
    slot = (cycle + begin) % ratio[:, None]
    lift = uniform(rng, 0.0, 1.5, n)[:, None]
    scaled = (base + lift) * np.take_along_axis(factor, slot, axis=1) + np.take_along_axis(shift, slot, axis=1)
    return standardised(scaled)


def _drifting(rng: np.random.Generator, season: Array, cycle: Integers) -> Array:
    """Let the amplitude wander, jump, or differ from cycle to cycle, `[n, length]`."""
    n, length = season.shape
    kind = pick(rng, (0.5, 0.2, 0.2, 0.1), n)
    amplitude = np.ones((n, length), dtype=np.float32)
    rows = np.flatnonzero(kind == 1)
    if rows.size:
        wander = smooth(rng, log_uniform(rng, length / 8, length, rows.size), length)
        amplitude[rows] = np.exp(wander * uniform(rng, 0.1, 0.6, rows.size)[:, None])
    rows = np.flatnonzero(kind == 2)
    if rows.size:
        cycles = int(cycle.max()) + 1
        drawn = autoregressive_cycles(rng, rows.size, cycles) * uniform(rng, 0.05, 0.5, rows.size)[:, None]
        amplitude[rows] = np.exp(np.take_along_axis(drawn, cycle[rows], axis=1))
    rows = np.flatnonzero(kind == 3)
    if rows.size:
        moment = uniform(rng, 0.1, 0.7, rows.size)[:, None] * length
        later = np.arange(length)[None, :] >= moment
        amplitude[rows] = np.where(later, log_uniform(rng, 0.3, 3.0, rows.size)[:, None], 1.0)
    lift = uniform(rng, 0.0, 1.5, n)[:, None]
    return ((season + lift) * amplitude - lift).astype(np.float32)


def autoregressive_cycles(rng: np.random.Generator, n: int, cycles: int) -> Array:
    """One value per cycle `[n, cycles]`, unit variance, from unrelated to slowly changing."""
    if cycles < 8:
        return normal(rng, n, cycles)
    return correlated(rng, n, cycles, 0.3, 6.0)


def _levels(rng: np.random.Generator, n: int, length: int) -> Array:
    """A slow level `[n, length]` beside the season: none, random walk, correlated, smooth or a line."""
    kind = pick(rng, (0.3, 0.3, 0.15, 0.15, 0.1), n)
    level = np.zeros((n, length), dtype=np.float32)
    rows = np.flatnonzero(kind == 1)
    if rows.size:
        level[rows] = walk(rng, rows.size, length)
    rows = np.flatnonzero(kind == 2)
    if rows.size:
        level[rows] = correlated(rng, rows.size, length, 10.0, length / 4)
    rows = np.flatnonzero(kind == 3)
    if rows.size:
        level[rows] = smooth(rng, log_uniform(rng, length / 10, length, rows.size), length)
    rows = np.flatnonzero(kind == 4)
    if rows.size:
        level[rows] = np.linspace(-1.7, 1.7, length, dtype=np.float32) * np.sign(normal(rng, rows.size, 1))
    return level * log_uniform(rng, 0.05, 2.5, n)[:, None]


def _disturbance(rng: np.random.Generator, season: Array) -> Array:
    """Noise `[n, length]` from none to as strong as the season, at times growing with the season."""
    n, length = season.shape
    strength = log_uniform(rng, 0.02, 1.2, n) * chance(rng, 0.8, n)
    made = noise(rng, n, length) * strength[:, None]
    rows = np.flatnonzero(chance(rng, 0.25, n))
    if rows.size:
        made[rows] *= 0.15 + 0.6 * np.abs(season[rows] - season[rows].min(axis=1, keepdims=True))
    return made.astype(np.float32)


def draw_waveforms(rng: np.random.Generator, n: int, length: int) -> Array:
    """Windows `[n, length]` of repeated waveforms, from clean copies to noisy drifting seasons."""
    longest = max(2, min(350, length // 2))
    periods = draw_periods(rng, n, longest)
    offsets = rng.integers(0, 100_000, n) % periods
    exact = periods.astype(np.float32) + uniform(rng, -0.5, 0.5, n) * (chance(rng, 0.12, n) & (periods > 8))
    season = repeated(draw_tables(rng, n), exact, offsets, length)
    cycle = ((np.arange(length)[None, :] + offsets[:, None]) // periods[:, None]).astype(np.int64)
    rows = np.flatnonzero(chance(rng, 0.35, n) & (periods * 7 <= length * 1.2))
    if rows.size:
        season[rows] = _nested(rng, season[rows], cycle[rows])
    rows = np.flatnonzero(chance(rng, 0.2, n))
    if rows.size:
        tables, other = draw_tables(rng, rows.size), draw_periods(rng, rows.size, longest)
        second = repeated(tables, other, offsets[rows], length)
        season[rows] += second * log_uniform(rng, 0.1, 1.5, rows.size)[:, None]
    season = standardised(season)
    plain = chance(rng, 0.12, n)[:, None]
    moved = _drifting(rng, season, cycle) + _levels(rng, n, length) + _disturbance(rng, season)
    return np.where(plain, season, moved).astype(np.float32)


def draw_restless(rng: np.random.Generator, n: int, length: int) -> Array:
    """Seasons `[n, length]` under a strong random-walk level, as in transformer temperatures and loads.

    Neither copying the season nor repeating the last value is best here.
    """
    days = np.array([p for p in (24, 24, 48, 96, 96, 12, 7, 144) if p <= max(7, length // 3)])
    periods = days[rng.integers(0, len(days), n)]
    offsets = rng.integers(0, 100_000, n) % periods
    season = repeated(draw_tables(rng, n), periods, offsets, length)
    cycle = ((np.arange(length)[None, :] + offsets[:, None]) // periods[:, None]).astype(np.int64)
    season = _drifting(rng, season, cycle)
    level = walk(rng, n, length)
    slow = correlated(rng, n, length, 24.0, length / 3)
    level = np.where(chance(rng, 0.5, n)[:, None], level, slow) * log_uniform(rng, 0.4, 3.0, n)[:, None]
    fast = correlated(rng, n, length, 1.0, 12.0) * log_uniform(rng, 0.1, 1.0, n)[:, None]
    white = normal(rng, n, length) * log_uniform(rng, 0.02, 0.6, n)[:, None]
    total: Array = (season + level + fast + white).astype(np.float32)
    return total
