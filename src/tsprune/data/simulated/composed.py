"""Trends with changes, several seasons with harmonics, and shifts, put together."""

from __future__ import annotations

import numpy as np

from tsprune.data.simulated.noise import (
    Array,
    chance,
    log_uniform,
    noise,
    normal,
    pick,
    standardised,
    uniform,
)
from tsprune.data.simulated.waveforms import draw_periods


def bent_lines(rng: np.random.Generator, n: int, length: int) -> Array:
    """Piecewise linear series `[n, length]` with up to about five changes of slope, standardised."""
    rate = uniform(rng, 0.0, 5.0, n)[:, None] / length
    bends = (rng.random((n, length), dtype=np.float32) < rate) * normal(rng, n, length)
    bends[:, 0] = normal(rng, n)
    return standardised(np.cumsum(np.cumsum(bends, axis=1), axis=1).astype(np.float32))


def trends(rng: np.random.Generator, n: int, length: int) -> Array:
    """Trends `[n, length]`: bent lines, exponential growth or decay, saturating growth, or steps."""
    kind = pick(rng, (0.45, 0.15, 0.2, 0.2), n)
    result = bent_lines(rng, n, length)
    time = np.linspace(0.0, 1.0, length, dtype=np.float32)[None, :]
    rows = np.flatnonzero(kind == 1)
    if rows.size:
        result[rows] = standardised(np.exp(time * uniform(rng, -3.0, 2.0, rows.size)[:, None])) * np.sign(
            normal(rng, rows.size, 1)
        )
    rows = np.flatnonzero(kind == 2)
    if rows.size:
        steep = uniform(rng, 3.0, 15.0, rows.size)[:, None]
        result[rows] = np.tanh(steep * (time - uniform(rng, 0.0, 0.9, rows.size)[:, None])) * np.sign(
            normal(rng, rows.size, 1)
        )
    rows = np.flatnonzero(kind == 3)
    if rows.size:
        rate = uniform(rng, 0.5, 6.0, rows.size)[:, None] / length
        jumps = (rng.random((rows.size, length), dtype=np.float32) < rate) * normal(rng, rows.size, length)
        result[rows] = np.cumsum(jumps, axis=1)
    return result


def harmonics(rng: np.random.Generator, n: int, length: int) -> Array:
    """One season `[n, length]` of up to four harmonics whose amplitude may itself swing, unit variance."""
    periods = draw_periods(rng, n, max(2, length // 2)).astype(np.float32)
    angle = (2 * np.pi * np.arange(length, dtype=np.float32)[None, :] / periods[:, None]).astype(np.float32)
    total = np.zeros((n, length), dtype=np.float32)
    for order in (1, 2, 3, 5):
        weight = normal(rng, n)[:, None] / order
        total += weight * np.sin(order * angle + uniform(rng, 0.0, 6.283, n)[:, None])
    slow = angle / uniform(rng, 4.0, 20.0, n)[:, None] + uniform(rng, 0.0, 6.283, n)[:, None]
    swing = chance(rng, 0.3, n) * uniform(rng, 0.1, 0.8, n)
    return standardised(total * (1 + swing[:, None] * np.sin(slow)))


def draw_composed(rng: np.random.Generator, n: int, length: int) -> Array:
    """Windows `[n, length]` of a trend, up to two seasons and noise, added or multiplied."""
    trend = trends(rng, n, length) * (chance(rng, 0.85, n) * log_uniform(rng, 0.3, 3.0, n))[:, None]
    season = harmonics(rng, n, length) * (chance(rng, 0.7, n) * log_uniform(rng, 0.2, 2.0, n))[:, None]
    season += harmonics(rng, n, length) * (chance(rng, 0.3, n) * log_uniform(rng, 0.2, 1.0, n))[:, None]
    rest = noise(rng, n, length) * log_uniform(rng, 0.01, 0.6, n)[:, None]
    total = trend + season + rest
    growing = season * np.exp(np.clip(0.6 * trend, -3, 2)) + trend + rest
    values: Array = np.where(chance(rng, 0.25, n)[:, None], growing, total).astype(np.float32)
    return values
