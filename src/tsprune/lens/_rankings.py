"""How far two rankings of a few modules agree, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tsprune.evaluation.intervals import LEVEL
from tsprune.scores._ranks import ranks, spearman

EXACT = 8
"""Most entries whose orders are all tried: 8! = 40,320."""
DRAWS = 20_000
REPLICATES = 1_000
FEWEST = 4


@dataclass(frozen=True)
class RankAgreement:
    """Spearman's correlation of two vectors.

    Args:
        count: entries.
        value: the correlation; None with fewer than 2 entries or where one vector is constant.
        low: lower end of the 95 % interval; None with fewer than 4 entries.
        high: upper end.
        p: two-sided p of no relation; None where there is no correlation.
        exact: whether all orders were tried for p, rather than drawn.
    """

    count: int
    value: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    exact: bool = False

    def words(self) -> str:
        """Such as `0.62 (95 % 0.2 to 0.9, p 0.01)`."""
        if self.value is None or self.p is None:
            return "none"
        spread = "" if self.low is None or self.high is None else f"95 % {self.low:.2g} to {self.high:.2g}, "
        return f"{self.value:.2f} ({spread}p {self.p:.2g})"


def rank_agreement(first: Tensor, second: Tensor, seed: int = 0) -> RankAgreement:
    """Spearman's correlation of `[n]` and `[n]`, with an interval and a p.

    The interval is the percentile interval of a bootstrap over the entries, which takes them for independent; the p is
    the share of all orders of one vector (for more than 8 entries: of 20,000 drawn ones, this one counted in) that
    agree or disagree at least as much.
    """
    value, count = spearman(first, second), len(first)
    if value is None:
        return RankAgreement(count, None)
    low, high = _bootstrap(first, second, seed)
    exact = count <= EXACT
    return RankAgreement(count, value, low, high, _permutation_p(first, second, seed), exact)


def _bootstrap(first: Tensor, second: Tensor, seed: int) -> tuple[float | None, float | None]:
    if len(first) < FEWEST:
        return None, None
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(first), (REPLICATES, len(first)))
    a, b = (_centred_ranks(values.double().numpy()[drawn]) for values in (first, second))
    size = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    found = (a * b).sum(1)[size > 0] / size[size > 0]
    tail = (1 - LEVEL) / 2
    return float(np.quantile(found, tail)), float(np.quantile(found, 1 - tail))


def _centred_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks within each row of `[B, n]`, ties sharing the mean of theirs, less the mean rank."""
    ranked = np.stack(
        [(values < one).sum(1) + 0.5 * (values == one).sum(1) for one in np.split(values, values.shape[1], 1)]
    )
    found: NDArray[np.float64] = ranked.T - values.shape[1] / 2
    return found


def _permutation_p(first: Tensor, second: Tensor, seed: int) -> float:
    a, b = ((ranks(values) - ranks(values).mean()).numpy() for values in (first, second))
    count = len(a)
    if count <= EXACT:
        orders: NDArray[np.int64] = np.array(list(permutations(range(count))))
    else:
        generator = np.random.default_rng(seed)
        orders = generator.permuted(np.tile(np.arange(count), (DRAWS - 1, 1)), axis=1)
        orders = np.concatenate([np.arange(count)[None], orders])
    sizes = np.abs(a[orders] @ b)
    return float((sizes >= abs(float(a @ b)) - 1e-9).mean())
