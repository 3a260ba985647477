"""Wilcoxon's signed-rank test, exact also where differences tie, and Holm's correction for many tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

EXACT = 200
"""Up to so many differences the distribution is counted out; beyond it is as good as normal."""


def midranks(values: ArrayLike) -> NDArray[np.float64]:
    """Ranks from 1 on, ties sharing the mean of theirs; of the same shape, along the last axis."""
    table = np.asarray(values, np.float64)
    below = (table[..., :, None] > table[..., None, :]).sum(axis=-1)
    same = (table[..., :, None] == table[..., None, :]).sum(axis=-1)
    return np.asarray(below + (same + 1) / 2, np.float64)


def signed_rank_p(differences: Sequence[float]) -> float:
    """Two-sided p of the hypothesis that differences lie evenly around 0.

    Differences of 0 say nothing and are left out (Wilcoxon's own rule). For up to `EXACT` differences, p is that of
    all 2^n ways to give signs to the ranks, ties or none; beyond, that of the normal approximation with the variance
    that ties leave.

    Returns:
        p; 1 where every difference is 0.
    """
    known = np.array([value for value in differences if value != 0], np.float64)
    if not len(known):
        return 1.0
    # Twice the midranks are whole numbers, which can be counted.
    doubled = np.rint(2 * midranks(np.abs(known))).astype(np.int64)
    positive, total = int(doubled[known > 0].sum()), int(doubled.sum())
    smaller = min(positive, total - positive)
    if len(known) > EXACT:
        # The statistic lives on a lattice of step 2, or 1 where midranks are halves: no correction of continuity.
        spread = math.sqrt(float((doubled.astype(np.float64) ** 2).sum()) / 4)
        return min(1.0, math.erfc((total / 2 - smaller) / spread / math.sqrt(2)))
    ways = np.zeros(total + 1)
    ways[0] = 1
    for rank in doubled.tolist():
        # Half of the signs each way; probabilities stay within range where counts would not.
        moved = np.zeros_like(ways)
        moved[rank:] = ways[: total + 1 - rank]
        ways = (ways + moved) / 2
    return min(1.0, 2 * float(ways[: smaller + 1].sum()))


def smallest_p(tasks: int) -> float:
    """The least two-sided p that so many tasks can give: one method ahead on all of them."""
    return min(1.0, 2.0 ** (1 - tasks))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979), in the same order: reject where one is at most alpha."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    least = 0.0
    for place, i in enumerate(order):
        least = max(least, min(1.0, (len(order) - place) * p_values[i]))
        adjusted[i] = least
    return adjusted
