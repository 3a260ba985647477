"""Tails and quantiles of Student's t distribution, from the incomplete beta function of `blocks/special.py`."""

from __future__ import annotations

import math
from functools import lru_cache

from tsprune.errors import TspruneError

_WIDTH = 64
_ROUNDS = 12


def two_sided_p(t: float, df: float) -> float:
    """Probability that |T| is at least |t| when T has `df` degrees of freedom (Abramowitz and Stegun 26.7.1).

    Args:
        t: the statistic; infinity gives 0.
        df: degrees of freedom, positive, not necessarily whole.

    Raises:
        TspruneError: for NaN or degrees of freedom that are not positive.
    """
    if not df > 0 or math.isnan(t):
        raise TspruneError(f"Student's t: t is {t} with {df} degrees of freedom, expected a number and more than 0")
    return 0.0 if math.isinf(t) else _tails([t], df)[0]


@lru_cache(maxsize=256)
def two_sided_quantile(level: float, df: float) -> float:
    """The t with P(|T| <= t) = level, relative error below 1e-9; `level` 0.95 gives the usual critical value.

    Raises:
        TspruneError: for a level outside 0 to 1 or degrees of freedom that are not positive.
    """
    if not 0 < level < 1 or not df > 0:
        raise TspruneError(f"Student's t: level {level} with {df} degrees of freedom, expected 0 to 1 and more than 0")
    high = 1.0
    while two_sided_p(high, df) > 1 - level:
        high *= 2
    low = 0.0
    # Many points per round: one call of the beta function on 64 numbers costs hardly more than on one.
    for _ in range(_ROUNDS):
        points = [low + (high - low) * place / _WIDTH for place in range(1, _WIDTH)]
        above = sum(tail > 1 - level for tail in _tails(points, df))
        ends = [low, *points, high]
        low, high = ends[above], ends[above + 1]
    return (low + high) / 2


def _tails(values: list[float], df: float) -> list[float]:
    import torch

    from tsprune.blocks.special import betainc

    squares = torch.tensor(values, dtype=torch.float64) ** 2
    both = squares + df
    half = torch.full_like(squares, 0.5)
    found: list[float] = betainc(half * df, half, df / both, squares / both).tolist()
    return found
