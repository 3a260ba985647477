"""What happens to a window after it is drawn: mixing, sensors' defects, gaps, and the guard."""

from __future__ import annotations

import numpy as np

from tsprune.data.simulated.noise import (
    Array,
    Mask,
    chance,
    log_uniform,
    normal,
    standardised,
    uniform,
)


def mix_rows(rng: np.random.Generator, values: Array, share: float) -> Array:
    """Replace a share of rows by convex mixtures with another row, `[n, length]`, standardised."""
    values = standardised(values)
    rows = np.flatnonzero(chance(rng, share, len(values)))
    if rows.size:
        partner = rng.integers(0, len(values), rows.size)
        weight = uniform(rng, 0.15, 0.85, rows.size)[:, None]
        values[rows] = weight * values[rows] + (1 - weight) * values[partner]
    return values


def reshape(rng: np.random.Generator, values: Array) -> Array:
    """Exponentials, sign flips, time reversal, shifts and spikes on a minority of rows, `[n, length]`."""
    n, length = values.shape
    rows = np.flatnonzero(chance(rng, 0.06, n))
    if rows.size:
        values[rows] = np.exp(np.clip(values[rows] * uniform(rng, 0.2, 0.9, rows.size)[:, None], -6, 3))
    rows = np.flatnonzero(chance(rng, 0.1, n))
    if rows.size:
        values[rows] = -values[rows]
    rows = np.flatnonzero(chance(rng, 0.04, n))
    if rows.size:
        values[rows] = values[rows][:, ::-1]
    rows = np.flatnonzero(chance(rng, 0.04, n))
    if rows.size:
        moment = uniform(rng, 0.05, 0.7, rows.size)[:, None] * length
        values[rows] += (np.arange(length)[None, :] >= moment) * normal(rng, rows.size, 1) * 2
    rows = np.flatnonzero(chance(rng, 0.06, n))
    if rows.size:
        hit = rng.random((rows.size, length), dtype=np.float32) < log_uniform(rng, 0.002, 0.02, rows.size)[:, None]
        values[rows] += hit * normal(rng, rows.size, length) * uniform(rng, 2.0, 6.0, rows.size)[:, None]
    return values


def sense(rng: np.random.Generator, values: Array) -> Array:
    """Defects of sensors on a minority of rows: saturation, coarse steps, plateaus, `[n, length]`."""
    n, length = values.shape
    values = standardised(values)
    rows = np.flatnonzero(chance(rng, 0.06, n))
    if rows.size:
        low = np.where(chance(rng, 0.5, rows.size), uniform(rng, -1.5, -0.3, rows.size), -100.0)[:, None]
        high = np.where(chance(rng, 0.5, rows.size), uniform(rng, 0.5, 1.8, rows.size), 100.0)[:, None]
        values[rows] = np.clip(values[rows], low, high)
    rows = np.flatnonzero(chance(rng, 0.1, n))
    if rows.size:
        grain = log_uniform(rng, 0.02, 0.6, rows.size)[:, None]
        values[rows] = np.round(values[rows] / grain) * grain
    rows = np.flatnonzero(chance(rng, 0.02, n))
    if rows.size:
        begin = uniform(rng, 0.0, 0.6, rows.size)[:, None] * length
        span = log_uniform(rng, 0.01, 0.1, rows.size)[:, None] * length
        time = np.arange(length)[None, :]
        floor = values[rows].min(axis=1, keepdims=True)
        values[rows] = np.where((time >= begin) & (time < begin + span), floor, values[rows])
    return values.astype(np.float32)


def rescale(rng: np.random.Generator, values: Array) -> Array:
    """Rows `[n, length]` with roughly unit spread and a random offset; NaN stay NaN."""
    seen = ~np.isnan(values)
    count = np.maximum(seen.sum(axis=1, keepdims=True), 1).astype(np.float32)
    filled = np.where(seen, values, np.float32(0))
    mean = filled.sum(axis=1, keepdims=True) / count
    centred = np.where(seen, filled - mean, np.float32(0))
    spread = np.sqrt(np.einsum("ij,ij->i", centred, centred)[:, None] / count)
    tiny = spread < 1e-6
    scale = log_uniform(rng, 0.5, 2.0, len(values))[:, None] / np.where(tiny, 1.0, spread)
    offset = normal(rng, len(values), 1) * 2
    return np.where(seen, centred * scale + offset, np.nan).astype(np.float32)


def lose(rng: np.random.Generator, values: Array, context: int) -> Array:
    """Missing values on a minority of rows: scattered, in blocks, or a short history, `[n, length]`."""
    n, length = values.shape
    time = np.arange(length)[None, :]
    rows = np.flatnonzero(chance(rng, 0.05, n))
    if rows.size:
        rate = log_uniform(rng, 0.005, 0.3, rows.size)[:, None]
        gone = rng.random((rows.size, length), dtype=np.float32) < rate
        values[rows] = np.where(gone, np.nan, values[rows])
    rows = np.flatnonzero(chance(rng, 0.05, n))
    if rows.size:
        begin = uniform(rng, 0.0, 1.0, rows.size)[:, None] * length
        span = log_uniform(rng, 3.0, max(4.0, length / 5), rows.size)[:, None]
        values[rows] = np.where((time >= begin) & (time < begin + span), np.nan, values[rows])
    rows = np.flatnonzero(chance(rng, 0.12, n))
    if rows.size:
        kept = log_uniform(rng, min(24.0, context), context, rows.size)[:, None]
        values[rows] = np.where(time < context - kept, np.nan, values[rows])
    return values


def unusable(values: Array, context: int) -> Mask:
    """Rows `[n]` that would teach nothing or too much: no spread in the context, or a future far outside it.

    Args:
        values: windows `[n, length]`, NaN = missing.
        context: steps before the part that will be forecast.
    """
    seen = ~np.isnan(values)
    filled = np.where(seen, values, np.float32(0))
    past, count = filled[:, :context], seen[:, :context].sum(axis=1).astype(np.float32)
    mean = past.sum(axis=1) / np.maximum(count, 1)
    centred = np.where(seen, filled - mean[:, None], np.float32(0))
    spread = np.sqrt((centred[:, :context] ** 2).sum(axis=1) / np.maximum(count, 1))
    reach = np.abs(centred[:, context:]).max(axis=1, initial=0.0)
    infinite = np.isinf(filled).any(axis=1)
    blind = seen[:, context:].sum(axis=1) == 0
    bad: Mask = (count < 8) | (spread < 1e-3) | (reach > 12 * spread) | infinite | blind
    return bad
