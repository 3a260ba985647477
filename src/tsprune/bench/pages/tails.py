"""Tail probabilities and quantiles that rank tests need: chi-square, F and the studentised range."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tsprune.errors import TspruneError

_REACH = 9.0
_POINTS = 721


def chi_square_tail(x: float, df: int) -> float:
    """P(X > x) for `df` degrees of freedom, by the finite sums of Abramowitz and Stegun 26.4.4 and 26.4.5."""
    _whole(df)
    if x <= 0:
        return 1.0
    half = x / 2
    # Q(a + 1, y) = Q(a, y) + y^a e^-y / Gamma(a + 1), up from a = 1/2 or 1.
    start, total = (1.0, math.exp(-half)) if df % 2 == 0 else (0.5, math.erfc(math.sqrt(half)))
    for step in range((df - 1) // 2):
        a = start + step
        total += math.exp(a * math.log(half) - half - math.lgamma(a + 1))
    return min(total, 1.0)


def f_tail(x: float, first: int, second: int) -> float:
    """P(F > x) with `first` and `second` degrees of freedom (Abramowitz and Stegun 26.6.2); infinity gives 0."""
    import torch

    from tsprune.blocks.special import betainc

    _whole(first)
    _whole(second)
    if x <= 0:
        return 1.0
    if math.isinf(x):
        return 0.0
    parts = torch.tensor([second / 2, first / 2, second, first * x], dtype=torch.float64)
    both = parts[2] + parts[3]
    return float(betainc(parts[0], parts[1], parts[2] / both, parts[3] / both))


def range_tail(q: float, groups: int) -> float:
    """P(R > q) for the range R of `groups` independent standard normal variables.

    This is the studentised range with infinitely many degrees of freedom. Its distribution function is
    `k * integral of phi(z) (Phi(z) - Phi(z - q))^(k - 1)`; the sum over even steps converges faster than any power of
    the step for such integrands.
    """
    _whole(groups - 1)
    if q <= 0:
        return 1.0
    z, density = _nodes()
    inside = np.clip(_normal(z) - _normal(z - q), 0.0, 1.0)
    return 1 - min(float(groups * (density * inside ** (groups - 1)).sum()), 1.0)


@lru_cache(maxsize=256)
def range_quantile(alpha: float, groups: int) -> float:
    """The q with P(R > q) = alpha, within 1e-10; arguments as in `range_tail`.

    Raises:
        TspruneError: an alpha outside 0 to 1.
    """
    if not 0 < alpha < 1:
        raise TspruneError(f"the error level is {alpha}, expected a number between 0 and 1, such as 0.05")
    low, high = 0.0, 1.0
    while range_tail(high, groups) > alpha:
        low, high = high, 2 * high
    while high - low > 1e-10:
        middle = (low + high) / 2
        low, high = (middle, high) if range_tail(middle, groups) > alpha else (low, middle)
    return (low + high) / 2


@lru_cache(maxsize=1)
def _nodes() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    z = np.linspace(-_REACH, _REACH, _POINTS)
    return z, np.exp(-z * z / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])


def _normal(z: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([math.erfc(-value / math.sqrt(2)) / 2 for value in z.tolist()])


def _whole(df: int) -> None:
    if df < 1:
        raise TspruneError(
            f"there are {df} degrees of freedom, expected at least 1: at least two methods and two tasks"
        )
