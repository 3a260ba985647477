"""Ranks of methods over tasks: mean ranks, Friedman's test, Nemenyi's critical difference, and who is told apart.

Two questions need two tables. How often a method comes first is counted over all tasks. Whether that is more than
chance is asked of data sets: errors are averaged over seeds, then their logarithms over horizons and models, so that
every data set speaks once. Tasks of one data set share their series, and counted apart they would look like many
independent witnesses that all repeat one another.

Letters: T tasks, M methods.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsprune.bench.pages.signedrank import holm, midranks, signed_rank_p, smallest_p
from tsprune.bench.pages.tails import chi_square_tail, f_tail, range_quantile
from tsprune.bench.pages.tasking import Matrix
from tsprune.data.words import many
from tsprune.errors import TspruneError

ALPHA = 0.05
FEWEST = 5
"""Fewer data sets than this are not tested."""
_EXACT_METHODS, _EXACT_TASKS = 4, 12

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Friedman:
    """Whether the methods differ at all.

    Attributes:
        chi_square: Friedman's statistic, corrected for ties.
        chi_square_p: its asymptotic p.
        f: Iman and Davenport's statistic (1980), which is less conservative.
        p_value: p of it, or, for up to 4 methods on 12 tasks, the exact p of all orders in which ranks may fall.
        exact: which of the two it is.
    """

    chi_square: float
    chi_square_p: float
    f: float
    p_value: float
    exact: bool


@dataclass(frozen=True)
class Ranking:
    """Methods in the order of their mean ranks, and which of them may be told apart.

    Attributes:
        methods: the best first.
        mean_ranks: of each, 1 being the best.
        tasks: how many.
        friedman: None where nothing can be tested.
        critical_difference: Nemenyi's, at `alpha`; None likewise.
        p_values: Holm-adjusted p by pair of methods, the better first.
        groups: first and last place of each run of methods no two of which are told apart.
        alpha: error level.
        refused: why nothing was tested, or "".
        notes: what to keep in mind.
    """

    methods: tuple[str, ...]
    mean_ranks: tuple[float, ...]
    tasks: int
    friedman: Friedman | None
    critical_difference: float | None
    p_values: dict[tuple[str, str], float]
    groups: tuple[tuple[int, int], ...]
    alpha: float
    refused: str = ""
    notes: tuple[str, ...] = ()

    @property
    def apart(self) -> list[tuple[str, str]]:
        """Pairs that are told apart, the better first."""
        return [pair for pair, p in self.p_values.items() if p <= self.alpha]


def rank(matrix: Matrix, alpha: float = ALPHA) -> Ranking:
    """Rank methods over tasks and test which of them differ.

    Groups are what Wilcoxon's signed-rank tests of all pairs leave together after Holm's correction, on the logarithms
    of errors, which no data set with large errors decides. Nemenyi's critical difference of mean ranks is given along
    with them: whether it tells two methods apart depends on which others are in the pool, so it is not what groups
    are made from (Benavoli, Corani and Mangili 2016).

    Args:
        matrix: one row per data set, if the tests are to be believed.
        alpha: error level of all pairs together.

    Returns:
        Mean ranks always; tests only for two or more methods on `FEWEST` or more tasks.

    Raises:
        TspruneError: there is no task or no method, or alpha is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise TspruneError(f"the error level is {alpha}, expected a number between 0 and 1, such as 0.05")
    if not matrix.errors.size:
        raise TspruneError("there is no task that every method was measured on, so there are no ranks; finish the grid")
    order, means = mean_ranks(matrix)
    methods = tuple(matrix.methods[i] for i in order)
    tasks, count = matrix.errors.shape
    refused = _refusal(tasks, count)
    if refused:
        return Ranking(methods, means, tasks, None, None, {}, (), alpha, refused, matrix.notes)
    logs = np.log(matrix.errors[:, order])
    pairs = list(combinations(range(count), 2))
    raw = [signed_rank_p((logs[:, a] - logs[:, b]).tolist()) for a, b in pairs]
    adjusted = dict(zip(pairs, holm(raw), strict=True))
    return Ranking(
        methods,
        means,
        tasks,
        friedman(matrix.errors),
        critical_difference(count, tasks, alpha),
        {(methods[a], methods[b]): p for (a, b), p in adjusted.items()},
        _runs({pair for pair, p in adjusted.items() if p > alpha}, count),
        alpha,
        notes=(*matrix.notes, *_powerless(tasks, len(pairs), alpha)),
    )


def mean_ranks(matrix: Matrix) -> tuple[list[int], tuple[float, ...]]:
    """Columns of a matrix in the order of their mean ranks, and these; equal ones keep their order."""
    means = midranks(matrix.errors).mean(axis=0)
    order = sorted(range(len(means)), key=lambda i: means[i])
    return order, tuple(float(means[i]) for i in order)


def friedman(errors: _Floats) -> Friedman:
    """Friedman's test that methods rank alike (1937), with Iman and Davenport's correction.

    Args:
        errors: `[T, M]`, at least 2 by 2.

    Raises:
        TspruneError: fewer tasks or methods.
    """
    tasks, methods = errors.shape
    if min(tasks, methods) < 2:
        raise TspruneError(f"Friedman's test needs two tasks and two methods, found {tasks} and {methods}")
    ranks = midranks(errors)
    chi = _chi_square(ranks)
    room = tasks * (methods - 1) - chi
    f = (tasks - 1) * chi / room if room > 1e-9 * chi else (math.inf if chi > 0 else 0.0)
    exact = methods <= _EXACT_METHODS and tasks <= _EXACT_TASKS
    p = _exact_p(ranks) if exact else f_tail(f, methods - 1, (methods - 1) * (tasks - 1))
    return Friedman(chi, chi_square_tail(chi, methods - 1), f, p, exact)


def critical_difference(methods: int, tasks: int, alpha: float = ALPHA) -> float:
    """Difference of mean ranks that Nemenyi's test asks for (Demsar 2006).

    Raises:
        TspruneError: fewer than two methods, no task, or alpha out of range.
    """
    if tasks < 1:
        raise TspruneError(f"there are {tasks} tasks, expected at least 1")
    return range_quantile(alpha, methods) * math.sqrt(methods * (methods + 1) / (12 * tasks))


def win_rates(matrix: Matrix) -> _Floats:
    """Share of tasks on which the method of the row has the lower error than that of the column `[M, M]`.

    Ties count half; the diagonal is NaN, since no method plays against itself.
    """
    first, second = matrix.errors[:, :, None], matrix.errors[:, None, :]
    if not len(matrix.errors):
        return np.full((len(matrix.methods),) * 2, np.nan)
    rates: _Floats = ((first < second) + 0.5 * (first == second)).mean(axis=0)
    np.fill_diagonal(rates, np.nan)
    return rates


def to_json(ranking: Ranking) -> dict[str, Any]:
    """A ranking as plain data."""
    tested = ranking.friedman
    return {
        "tasks": ranking.tasks,
        "alpha": ranking.alpha,
        "mean_ranks": dict(zip(ranking.methods, ranking.mean_ranks, strict=True)),
        "friedman": None if tested is None else {**vars(tested), "f": tested.f if math.isfinite(tested.f) else None},
        "critical_difference": ranking.critical_difference,
        "pairs": [{"better": a, "other": b, "p_holm": p} for (a, b), p in ranking.p_values.items()],
        "groups": [list(ranking.methods[low : high + 1]) for low, high in ranking.groups],
        "refused": ranking.refused,
        "notes": list(ranking.notes),
    }


def _refusal(tasks: int, methods: int) -> str:
    if methods < 2:
        return "there is only one method, so there is nothing to tell apart"
    if tasks < FEWEST:
        return (
            f"every method was measured on {many(tasks, 'data set')}, and fewer than {FEWEST} are not tested: even a "
            f"method that is ahead on all of them has p = {smallest_p(tasks):g}"
        )
    return ""


def _powerless(tasks: int, pairs: int, alpha: float) -> list[str]:
    """A warning where the groups would look the same whatever the errors were."""
    least = smallest_p(tasks) * pairs
    if least <= alpha:
        return []
    needed = math.ceil(1 - math.log2(alpha / pairs))
    return [
        f"With {tasks} data sets and {pairs} pairs no pair can be told apart, even if one method always won (its p "
        f"would be {min(least, 1):.2g} after Holm's correction); it takes {needed} data sets, or fewer methods."
    ]


def _chi_square(ranks: _Floats) -> float:
    """Conover's form, which is Friedman's statistic corrected for ties; 0 where all methods tie everywhere."""
    tasks, methods = ranks.shape
    middle = (methods + 1) / 2
    spread = float(((ranks - middle) ** 2).sum())
    between = float(((ranks.sum(axis=0) - tasks * middle) ** 2).sum())
    return (methods - 1) * between / spread if spread > 0 else 0.0


def _exact_p(ranks: _Floats) -> float:
    """Share of all orders of the ranks within tasks whose rank sums lie at least as far apart.

    Sums are kept sorted, since every order of the methods is as likely as any other. Ranks are doubled to be whole.
    """
    tasks, methods = ranks.shape
    ways: dict[tuple[int, ...], float] = {(0,) * methods: 1.0}
    for line in np.rint(2 * ranks).astype(int).tolist():
        orders = Counter(permutations(line))
        number = sum(orders.values())
        after: dict[tuple[int, ...], float] = {}
        for sums, share in ways.items():
            for order, times in orders.items():
                key = tuple(sorted(a + b for a, b in zip(sums, order, strict=True)))
                after[key] = after.get(key, 0.0) + share * times / number
        ways = after
    middle = tasks * (methods + 1)

    def apart(sums: Sequence[int]) -> int:
        return sum((value - middle) ** 2 for value in sums)

    found = apart(np.rint(2 * ranks).astype(int).sum(axis=0).tolist())
    return min(1.0, math.fsum(share for sums, share in ways.items() if apart(sums) >= found))


def _runs(together: set[tuple[int, int]], count: int) -> tuple[tuple[int, int], ...]:
    """The longest runs of two or more neighbouring places no two of which are told apart, none within another."""
    runs: list[tuple[int, int]] = []
    for low in range(count):
        high = low
        while high + 1 < count and all((place, high + 1) in together for place in range(low, high + 1)):
            high += 1
        if high > low and (not runs or high > runs[-1][1]):
            runs.append((low, high))
    return tuple(runs)
