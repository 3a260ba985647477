"""Random series without structure in time beyond their spectrum, and small drawing helpers."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Integers = NDArray[np.int64]


def normal(rng: np.random.Generator, *shape: int) -> Array:
    """Standard normal values `[*shape]`, float32."""
    return rng.standard_normal(shape, dtype=np.float32)


def uniform(rng: np.random.Generator, low: float, high: float, *shape: int) -> Array:
    """Uniform values `[*shape]` in [low, high), float32."""
    return (low + (high - low) * rng.random(shape, dtype=np.float32)).astype(np.float32)


def log_uniform(rng: np.random.Generator, low: float, high: float, *shape: int) -> Array:
    """Values `[*shape]` whose logarithm is uniform between those of `low` and `high`."""
    return np.exp(uniform(rng, float(np.log(low)), float(np.log(high)), *shape))


def chance(rng: np.random.Generator, probability: float, *shape: int) -> Mask:
    """True `[*shape]` with the given probability."""
    drawn: Mask = rng.random(shape, dtype=np.float32) < probability
    return drawn


def pick(rng: np.random.Generator, weights: tuple[float, ...], n: int) -> Integers:
    """Indices `[n]` into `weights`, drawn in proportion to them."""
    edges = np.cumsum(weights)
    chosen: Integers = np.searchsorted(edges, rng.random(n) * edges[-1], side="right").clip(max=len(weights) - 1)
    return chosen


def standardised(values: Array) -> Array:
    """Rows with mean 0 and standard deviation 1 (a constant row becomes zeros)."""
    centred = values - values.mean(axis=1, keepdims=True)
    spread = np.sqrt(np.einsum("ij,ij->i", centred, centred) / values.shape[1])[:, None]
    factor = np.where(spread > 1e-6, 1 / np.maximum(spread, 1e-6), 0.0).astype(np.float32)
    result: Array = centred * factor
    return result


@cache
def transform_size(length: int) -> int:
    """A fast FFT size of at least 1.5 times `length`, so that the ends of a window are not neighbours."""
    wanted = length + length // 2
    sizes = [int(2**a * 3**b) for a in range(1, 24) for b in range(4)]
    return min(size for size in sizes if size >= wanted)


@cache
def frequencies(length: int) -> Array:
    """Angular frequencies `[F]` of the transform used for `length`, radians per step."""
    size = transform_size(length)
    return (2 * np.pi * np.arange(size // 2 + 1) / size).astype(np.float32)


def shaped(rng: np.random.Generator, response: Array, length: int) -> Array:
    """Stationary Gaussian series `[n, length]` with the given spectrum, unit variance in expectation.

    Args:
        rng: source of randomness.
        response: amplitude at each of `frequencies(length)`, `[n, F]`.
        length: steps.
    """
    rows, bins = response.shape
    size = transform_size(length)
    draws = normal(rng, rows, 2 * bins).view(np.complex64)
    power = np.einsum("ij,ij->i", response, response)[:, None]
    scaled = response * (size * 0.5 / np.sqrt(np.maximum(power, 1e-20)))
    drawn = np.fft.irfft(draws * scaled, n=size, axis=1)[:, :length]
    return np.ascontiguousarray(drawn, dtype=np.float32)


def autoregressive(rng: np.random.Generator, phi: Array, length: int) -> Array:
    """AR(1) series `[n, length]` of unit variance with coefficients `phi` `[n]` (|phi| < 1)."""
    cosine = np.cos(frequencies(length))[None, :]
    factor = phi[:, None]
    return shaped(rng, 1 / np.sqrt(np.maximum(1 - 2 * factor * cosine + factor**2, 1e-8)), length)


def correlated(rng: np.random.Generator, n: int, length: int, low: float = 2.0, high: float = 60.0) -> Array:
    """AR(1) series `[n, length]` whose memory is log-uniform between `low` and `high` steps."""
    return autoregressive(rng, np.exp(-1 / log_uniform(rng, low, high, n)), length)


def smooth(rng: np.random.Generator, scale: Array, length: int) -> Array:
    """Very smooth series `[n, length]` (squared-exponential kernel), length scales `scale` `[n]` in steps."""
    omega = frequencies(length)[None, :]
    return shaped(rng, np.exp(-((omega * scale[:, None]) ** 2) / 4), length)


def walk(rng: np.random.Generator, n: int, length: int) -> Array:
    """Random walks `[n, length]` of unit standard deviation over the window."""
    return standardised(np.cumsum(normal(rng, n, length), axis=1))


def mean_reverting(rng: np.random.Generator, scale: Array, length: int) -> Array:
    """AR(1) with a long memory `scale` `[n]` in steps, started off its mean so that the return is visible.

    The recursion is solved by one cumulative sum of rescaled shocks, which stays accurate for scales of at
    least a fiftieth of the length.
    """
    rate = (np.arange(length)[None, :] / np.maximum(scale, length / 50)[:, None]).astype(np.float64)
    shocks = rng.standard_normal((len(scale), length)) * np.sqrt(2 / np.maximum(scale, 1.0))[:, None]
    start = rng.standard_normal((len(scale), 1)) * 1.3
    return ((start + np.cumsum(shocks * np.exp(rate), axis=1)) * np.exp(-rate)).astype(np.float32)


def heavy_tailed(rng: np.random.Generator, n: int, length: int) -> Array:
    """White noise `[n, length]` with Student tails (3 to 8 degrees of freedom), roughly unit variance."""
    freedom = uniform(rng, 3.0, 8.0, n)[:, None]
    mixing = rng.standard_gamma(np.broadcast_to(freedom / 2, (n, length)), dtype=np.float32) * (2 / freedom)
    drawn = normal(rng, n, length) / np.sqrt(np.maximum(mixing, 0.02)) * np.sqrt((freedom - 2) / freedom)
    result: Array = drawn.astype(np.float32)
    return result


def noise(rng: np.random.Generator, n: int, length: int) -> Array:
    """Noise `[n, length]` of unit variance: white, correlated or heavy tailed, one kind per row."""
    kind = pick(rng, (0.5, 0.35, 0.15), n)
    result = normal(rng, n, length)
    for code in (1, 2):
        rows = np.flatnonzero(kind == code)
        if rows.size:
            if code == 1:
                result[rows] = correlated(rng, rows.size, length, 1.0, 30.0)
            else:
                result[rows] = heavy_tailed(rng, rows.size, length)
    return result
