"""Series that belong together: common factors, lags, and one series driving the others."""

from __future__ import annotations

import numpy as np

from tsprune.data.simulated.noise import (
    Array,
    chance,
    log_uniform,
    normal,
    pick,
    standardised,
    uniform,
)

LATENT = 3
LONGEST_LAG = 48


def _events(rng: np.random.Generator, n: int, length: int) -> Array:
    """Sparse on-off series `[n, length]`: campaigns, holidays, machines switched on."""
    rate = log_uniform(rng, 0.005, 0.05, n)[:, None]
    started = (rng.random((n, length), dtype=np.float32) < rate).astype(np.float32)
    span = np.floor(log_uniform(rng, 1.0, 24.0, n)).astype(np.int64)
    total = np.cumsum(started, axis=1)
    earlier = np.maximum(np.arange(length)[None, :] - span[:, None], -1)
    before = np.where(earlier >= 0, np.take_along_axis(total, np.maximum(earlier, 0), axis=1), 0.0)
    return ((total - before) > 0).astype(np.float32)


def _response(rng: np.random.Generator, driver: Array, rows: int) -> Array:
    """What each of `rows` series makes of the driver `[g, T]`: `[g, rows, T]`, as is, bent or flat."""
    n = driver.shape[0]
    spread = driver[:, None, :]
    bend = pick(rng, (0.6, 0.15, 0.15, 0.1), n * rows).reshape(n, rows, 1)
    threshold = uniform(rng, -0.8, 0.8, n, rows)[:, :, None]
    bent = np.maximum(spread - threshold, 0.0) * 1.5
    options = [np.broadcast_to(spread, bent.shape), bent, np.broadcast_to(np.tanh(2 * spread), bent.shape)]
    return np.choose(bend, [*options, np.broadcast_to(spread**2, bent.shape)]).astype(np.float32)


def lagged(values: Array, lag: Array, length: int) -> Array:
    """Cut `length` steps out of `[g, r, length + LONGEST_LAG]`, delayed by `lag` `[g, r]` steps."""
    time = np.arange(length)[None, None, :] + LONGEST_LAG - lag[:, :, None]
    return np.take_along_axis(values, time.astype(np.int64), axis=2)


def related(rng: np.random.Generator, latent: Array, own: Array) -> Array:
    """Groups of series `[g, size, length]` made of common latent series and parts of their own.

    Args:
        rng: source of randomness.
        latent: common series `[g, LATENT, length + LONGEST_LAG]`, standardised.
        own: each row's own series `[g, size, length]`, standardised.
    """
    n, size, length = own.shape
    kind = pick(rng, (0.4, 0.4, 0.2), n)
    switch = chance(rng, 0.25, n)
    events = _events(rng, n, latent.shape[2])
    driver = np.where(switch[:, None], events * 2 - 0.5, latent[:, 0]).astype(np.float32)
    reach = np.floor(log_uniform(rng, 1.0, LONGEST_LAG, n, size)) * chance(rng, 0.5, n, size)
    answer = lagged(_response(rng, driver, size), reach, length)
    sign = np.where(chance(rng, 0.25, n, size), -1.0, 1.0)[:, :, None]
    ownness = log_uniform(rng, 0.05, 1.5, n, size)[:, :, None]
    quiet = normal(rng, n, size, length) * log_uniform(rng, 0.02, 0.5, n, size)[:, :, None]
    driven = sign * answer + ownness * np.where(chance(rng, 0.5, n, size)[:, :, None], own, quiet)
    driven[:, 0] = driver[:, LONGEST_LAG:]
    weight = normal(rng, n, size, LATENT) * np.array((1.0, 0.7, 0.4), dtype=np.float32)
    lag = (reach * chance(rng, 0.4, n)[:, None])[:, :, None]
    shifted = [lagged(latent[:, [k] * size], lag[:, :, 0], length) * weight[:, :, [k]] for k in range(LATENT)]
    factor = np.sum(shifted, axis=0) + ownness * 0.7 * np.where(chance(rng, 0.5, n, size)[:, :, None], own, quiet)
    chosen = kind[:, None, None]
    values = np.where(chosen == 0, factor, np.where(chosen == 1, driven, own)).astype(np.float32)
    return standardised(values.reshape(n * size, length)).reshape(n, size, length)
