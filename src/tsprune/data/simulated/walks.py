"""Random walks and their relatives: series whose best forecast is close to the last value."""

from __future__ import annotations

import numpy as np

from tsprune.data.simulated.noise import (
    Array,
    chance,
    correlated,
    heavy_tailed,
    log_uniform,
    mean_reverting,
    normal,
    pick,
    standardised,
    uniform,
)


def increments(rng: np.random.Generator, n: int, length: int) -> Array:
    """Unpredictable steps `[n, length]`: Gaussian or heavy tailed, calm or with changing volatility."""
    steps = normal(rng, n, length)
    rows = np.flatnonzero(chance(rng, 0.3, n))
    if rows.size:
        steps[rows] = heavy_tailed(rng, rows.size, length)
    rows = np.flatnonzero(chance(rng, 0.4, n))
    if rows.size:
        volatility = correlated(rng, rows.size, length, 10.0, length / 3)
        steps[rows] *= np.exp(volatility * uniform(rng, 0.2, 0.9, rows.size)[:, None])
    return steps


def draw_walks(rng: np.random.Generator, n: int, length: int) -> Array:
    """Windows `[n, length]`: pure and drifting walks, mean reversion, walks under noise, local trends."""
    kind = pick(rng, (0.42, 0.12, 0.2, 0.14, 0.06, 0.06), n)
    steps = increments(rng, n, length)
    rows = np.flatnonzero(kind == 1)
    if rows.size:
        steps[rows] += normal(rng, rows.size, 1) * 0.08
    result = np.cumsum(steps, axis=1)
    rows = np.flatnonzero(kind == 2)
    if rows.size:
        result[rows] = mean_reverting(rng, log_uniform(rng, length / 12, length * 1.5, rows.size), length)
    rows = np.flatnonzero(kind == 3)
    if rows.size:
        white = normal(rng, rows.size, length) * log_uniform(rng, 0.05, 1.5, rows.size)[:, None]
        result[rows] = standardised(result[rows]) + white
    rows = np.flatnonzero(kind == 4)
    if rows.size:
        result[rows] = np.exp(standardised(result[rows]) * uniform(rng, 0.2, 1.0, rows.size)[:, None])
    rows = np.flatnonzero(kind == 5)
    if rows.size:
        slope = standardised(np.cumsum(normal(rng, rows.size, length), axis=1))
        result[rows] = np.cumsum(slope, axis=1) * 0.05 + result[rows]
    return standardised(result.astype(np.float32))
