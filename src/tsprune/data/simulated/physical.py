"""Series like those of a weather station, sampled from every 5 minutes to every hour."""

from __future__ import annotations

import numpy as np

from tsprune.data.simulated.noise import (
    Array,
    Integers,
    autoregressive,
    chance,
    correlated,
    log_uniform,
    normal,
    pick,
    smooth,
    uniform,
)
from tsprune.data.simulated.waveforms import autoregressive_cycles

_DAYS = (24, 48, 96, 144, 288)


def _memory(rng: np.random.Generator, days: Integers, low: float, high: float, length: int) -> Array:
    """Correlated weather `[n, length]` whose memory is a share (`low` to `high`) of a day, unit variance."""
    memory = np.clip(days * log_uniform(rng, low, high, len(days)), 1.0, length).astype(np.float32)
    return autoregressive(rng, np.exp(-1 / memory), length)


def draw_physical(rng: np.random.Generator, n: int, length: int) -> Array:
    """Windows `[n, length]`: temperature, humidity, wind, rain, pressure or sunshine."""
    usable = [day for day in _DAYS if day <= max(length // 2, _DAYS[0])]
    days = np.array(usable)[pick(rng, (0.2, 0.1, 0.2, 0.4, 0.1)[: len(usable)], n)]
    kind = pick(rng, (0.3, 0.2, 0.15, 0.08, 0.12, 0.15), n)
    offsets = rng.integers(0, 288, n)
    time = (np.arange(length)[None, :] + offsets[:, None]).astype(np.float32)
    angle = (2 * np.pi * time / days[:, None]).astype(np.float32)
    cycle = ((np.arange(length)[None, :] + (offsets % days)[:, None]) // days[:, None]).astype(np.int64)
    daily = np.take_along_axis(autoregressive_cycles(rng, n, int(cycle.max()) + 1), cycle, axis=1)
    wave = np.cos(angle) + 0.3 * np.cos(2 * angle + uniform(rng, 0.0, 6.283, n)[:, None])
    strength = np.exp(0.35 * smooth(rng, days * uniform(rng, 1.0, 4.0, n), length))
    weather = _memory(rng, days, 1.0, 6.0, length) * log_uniform(rng, 0.3, 1.5, n)[:, None]
    fast = _memory(rng, days, 0.02, 0.2, length)
    result = wave * strength + weather + fast * log_uniform(rng, 0.02, 0.25, n)[:, None]
    rows = np.flatnonzero(kind == 1)
    if rows.size:
        result[rows] = np.minimum(-result[rows], uniform(rng, 0.2, 1.8, rows.size)[:, None])
    rows = np.flatnonzero(kind == 2)
    if rows.size:
        log_speed = 0.5 * weather[rows] + 0.5 * fast[rows] + 0.3 * wave[rows] + 0.25 * normal(rng, rows.size, length)
        result[rows] = np.exp(log_speed * uniform(rng, 0.5, 1.0, rows.size)[:, None])
    rows = np.flatnonzero(kind == 3)
    if rows.size:
        wet = weather[rows] + 0.7 * fast[rows] - uniform(rng, 0.6, 1.3, rows.size)[:, None]
        result[rows] = np.maximum(wet, 0.0) ** 1.5
    rows = np.flatnonzero(kind == 4)
    if rows.size:
        slow = smooth(rng, days[rows] * uniform(rng, 0.4, 1.5, rows.size), length)
        result[rows] = slow + 0.1 * wave[rows] + 0.2 * weather[rows]
    rows = np.flatnonzero(kind == 5)
    if rows.size:
        height = np.maximum(np.cos(angle[rows]) - uniform(rng, -0.4, 0.4, rows.size)[:, None], 0.0)
        cloud = np.exp(-np.maximum(0.6 * daily[rows] + 0.4 * correlated(rng, rows.size, length, 1.0, 12.0), 0.0))
        clear = chance(rng, 0.25, rows.size)[:, None]
        result[rows] = height * np.where(clear, 1.0, cloud)
    values: Array = result.astype(np.float32)
    return values
