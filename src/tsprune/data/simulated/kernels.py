"""Gaussian processes by their spectra, summed and multiplied at random."""

from __future__ import annotations

import numpy as np

from tsprune.data.simulated.noise import (
    Array,
    chance,
    frequencies,
    log_uniform,
    normal,
    pick,
    shaped,
    standardised,
    uniform,
)
from tsprune.data.simulated.waveforms import draw_periods, draw_tables, repeated


def stationary(rng: np.random.Generator, n: int, length: int) -> Array:
    """Stationary series `[n, length]`, unit variance in expectation, one spectrum per row.

    Squared-exponential, Matern of three orders, power law, or damped oscillations (complex AR roots).
    """
    omega = frequencies(length)[None, :]
    scale = log_uniform(rng, 1.0, length / 3, n)[:, None]
    kind = pick(rng, (0.2, 0.35, 0.2, 0.25), n)
    response = np.exp(-((omega * scale) ** 2) / 4)
    rows = np.flatnonzero(kind == 1)
    if rows.size:
        order = np.array((0.5, 1.5, 2.5), dtype=np.float32)[rng.integers(0, 3, rows.size)][:, None]
        response[rows] = (1 + (omega * scale[rows]) ** 2) ** (-(order + 0.5) / 2)
    rows = np.flatnonzero(kind == 2)
    if rows.size:
        slope = uniform(rng, 0.2, 2.0, rows.size)[:, None]
        response[rows] = np.maximum(omega, 2 * np.pi / (3 * length)) ** (-slope)
    rows = np.flatnonzero(kind == 3)
    if rows.size:
        response[rows] = _oscillation(rng, rows.size, omega, length)
    return shaped(rng, response.astype(np.float32), length)


def _oscillation(rng: np.random.Generator, n: int, omega: Array, length: int) -> Array:
    """Amplitude response `[n, F]` of one or two damped oscillators in a row (an ARMA process)."""
    total = np.ones((n, omega.shape[1]), dtype=np.float32)
    for stage in range(2):
        radius = 1 - log_uniform(rng, 0.003, 0.4, n)[:, None]
        centre = 2 * np.pi / log_uniform(rng, 3.0, length / 2, n)[:, None]
        pole = radius * np.exp(1j * centre)
        turn = np.exp(-1j * omega)
        gain = 1 / np.maximum(np.abs((1 - pole * turn) * (1 - pole.conj() * turn)), 1e-4)
        used = np.ones((n, 1), dtype=bool) if stage == 0 else chance(rng, 0.4, n)[:, None]
        total = np.where(used, total * gain, total).astype(np.float32)
    return total


def draw_kernels(rng: np.random.Generator, n: int, length: int) -> Array:
    """Windows `[n, length]`: stationary, periodic, linear and white parts, added and multiplied at random."""
    first = stationary(rng, n, length)
    second = stationary(rng, n, length)
    periods = draw_periods(rng, n, max(2, min(350, length // 2)))
    periodic = repeated(draw_tables(rng, n), periods, rng.integers(0, 350, n), length)
    line = np.linspace(-1.7, 1.7, length, dtype=np.float32)[None, :] * normal(rng, n, 1)
    modulated = periodic * (1 + second * (0.8 * chance(rng, 0.3, n))[:, None])
    with_season = chance(rng, 0.6, n)[:, None] * log_uniform(rng, 0.3, 3.0, n)[:, None]
    total = first + with_season * modulated
    total += line * (chance(rng, 0.3, n) * log_uniform(rng, 0.3, 2.0, n))[:, None]
    total += second * (chance(rng, 0.3, n) * log_uniform(rng, 0.3, 1.0, n))[:, None]
    product = (first * np.where(chance(rng, 0.5, n)[:, None], second, line)) + with_season * periodic
    total = np.where(chance(rng, 0.15, n)[:, None], product, total)
    total = standardised(total.astype(np.float32))
    total += normal(rng, n, length) * (chance(rng, 0.6, n) * log_uniform(rng, 0.01, 0.5, n))[:, None]
    return total.astype(np.float32)
