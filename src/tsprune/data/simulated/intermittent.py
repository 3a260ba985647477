"""Counts, sporadic demand and bursts."""

from __future__ import annotations

import numpy as np

from tsprune.data.simulated.noise import (
    Array,
    chance,
    correlated,
    log_uniform,
    normal,
    pick,
    uniform,
)
from tsprune.data.simulated.waveforms import draw_periods, draw_tables, repeated


def rates(rng: np.random.Generator, n: int, length: int) -> Array:
    """Logarithmic rates `[n, length]` around 0: a season, a slow wander, or neither."""
    periods = draw_periods(rng, n, max(2, min(350, length // 2)))
    season = repeated(draw_tables(rng, n), periods, rng.integers(0, 350, n), length)
    total = season * (chance(rng, 0.65, n) * uniform(rng, 0.3, 1.3, n))[:, None]
    strength = chance(rng, 0.4, n) * uniform(rng, 0.1, 0.6, n)
    wander = correlated(rng, n, length, 10.0, length / 3) * strength[:, None]
    return np.clip(total + wander, -4.0, 3.0).astype(np.float32)


def draw_intermittent(rng: np.random.Generator, n: int, length: int) -> Array:
    """Windows `[n, length]`, not negative: seasonal counts, sporadic demand, or bursts between zeros."""
    kind = pick(rng, (0.5, 0.3, 0.2), n)
    rate = rates(rng, n, length)
    mean = np.exp(rate) * log_uniform(rng, 0.3, 60.0, n)[:, None]
    result = rng.poisson(mean).astype(np.float32)
    rows = np.flatnonzero(kind == 1)
    if rows.size:
        often = uniform(rng, 0.05, 0.5, rows.size)[:, None]
        occurs = rng.random((rows.size, length), dtype=np.float32) < np.clip(often * np.exp(rate[rows]), 0, 0.95)
        size = np.exp(normal(rng, rows.size, length) * uniform(rng, 0.1, 0.9, rows.size)[:, None] + 1.0)
        result[rows] = occurs * np.ceil(size)
    rows = np.flatnonzero(kind == 2)
    if rows.size:
        floor = uniform(rng, 0.0, 1.0, rows.size)[:, None]
        excess = correlated(rng, rows.size, length, 2.0, 40.0) + rate[rows] - floor
        result[rows] = np.maximum(excess, 0.0) ** uniform(rng, 0.5, 2.0, rows.size)[:, None]
    return result
