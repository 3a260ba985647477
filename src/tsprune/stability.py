"""Whether scores stay the same on other windows: between random halves, and between early and late ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, cat

from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster
from tsprune.scores._ranks import spearman
from tsprune.scores._work import Dealt, combined

Scores = Mapping[str, Tensor]
PARTS = 4
FEWEST = 4 * PARTS
CLEARLY = 0.05
"""How far the agreement of early and late windows must lie below the lowest of random halves to be called drift."""


@dataclass(frozen=True)
class Agreement:
    """Rank correlations (Spearman) of the scores of one kind of unit; None where they mean nothing.

    Args:
        units: how many units of that kind.
        halves: mean over random halves of the windows, each half with as many early as late ones.
        halves_lowest: the lowest of these.
        early_late: between the earlier and the later half of the windows.
        drifts: whether that is clearly less than any random halves agree: what matters changes with time.
    """

    units: int
    halves: float | None
    halves_lowest: float | None
    early_late: float | None
    drifts: bool


def scored(
    module: ModuleType,
    model: Forecaster,
    batches_of: Callable[[NDArray[np.int64]], Sequence[Batch]],
    times: NDArray[Any],
    *,
    kinds: Sequence[str],
    seed: int,
    rank: str = "magnitude",
) -> tuple[dict[str, Tensor], dict[str, Agreement]]:
    """Scores, and for each kind of unit how far parts of the windows agree on them.

    The windows are dealt into 8 cells, 4 early and 4 late ones at random. A score that needs only sums over windows
    is computed from one pass over the cells, whose sums make up all halves; another is computed again for one pair of
    random halves and for early and late windows, in two passes more.

    Args:
        module: a score of `tsprune.scores`.
        model: left as it was found.
        batches_of: batches of the windows with these numbers, of `len(times)`.
        times: when each window is `[N]`, anything that sorts.
        kinds: kinds of units to score.
        seed: of the deal, and of scores that draw.
        rank: `magnitude` compares absolute scores, `signed` scores as they are; both per parameter.

    Returns:
        The scores as `module.scores` gives them, and the agreement by kind; empty for scores that need no windows and
        for fewer than 16 windows.
    """
    everything: NDArray[np.int64] = np.arange(len(times))
    if module.NEEDS == "weights" or len(times) < FEWEST:
        return module.scores(model, batches_of(everything), kinds=kinds, seed=seed), {}
    cells = deal(times, seed)
    if hasattr(module, "collect"):
        whole, halves, ages = _from_sums(module, model, [batches_of(cell) for cell in cells], kinds)
    else:

        def scores_of(chosen: Sequence[int]) -> Scores:
            windows = np.sort(np.concatenate([cells[number] for number in chosen]))
            found: Scores = module.scores(model, batches_of(windows), kinds=kinds, seed=seed)
            return found

        whole = dict(scores_of(range(2 * PARTS)))
        first, second = next(_halvings())
        halves = [(scores_of(first), scores_of(second))]
        ages = (scores_of(range(PARTS)), scores_of(range(PARTS, 2 * PARTS)))
    return whole, _agreements(model, kinds, halves, ages, rank)


def deal(times: NDArray[Any], seed: int) -> list[NDArray[np.int64]]:
    """Windows in 8 cells: 4 of the earlier half, then 4 of the later; sizes differ by one at most within a half."""
    order = np.argsort(times, kind="stable")
    generator = np.random.default_rng(np.random.SeedSequence([seed, 29]))
    middle = len(order) // 2
    return [
        np.sort(cell)
        for half in (order[:middle], order[middle:])
        for cell in np.array_split(generator.permutation(half), PARTS)
    ]


def _halvings() -> Iterator[tuple[list[int], list[int]]]:
    """Ways to put two of the early cells with two of the late ones, against the others; each way once."""
    everything = set(range(2 * PARTS))
    for early in combinations(range(PARTS), PARTS // 2):
        for late in combinations(range(PARTS, 2 * PARTS), PARTS // 2):
            one = {*early, *late}
            if 0 in one:
                yield sorted(one), sorted(everything - one)


def _from_sums(
    module: ModuleType, model: Forecaster, cells: Sequence[Sequence[Batch]], kinds: Sequence[str]
) -> tuple[dict[str, Tensor], list[tuple[Scores, Scores]], tuple[Scores, Scores]]:
    """All scores, those of all pairs of halves, and those of early and late windows."""
    dealt = [Dealt(batches, number) for number, batches in enumerate(cells)]
    sums = [module.collect(model, batches, kinds=kinds).shared() for batches in dealt]

    def scores_of(chosen: Sequence[int]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = module.finish(model, combined(sums[number] for number in chosen), kinds=kinds)
        return found

    halves: list[tuple[Scores, Scores]] = [(scores_of(one), scores_of(other)) for one, other in _halvings()]
    return scores_of(range(2 * PARTS)), halves, (scores_of(range(PARTS)), scores_of(range(PARTS, 2 * PARTS)))


def _agreements(
    model: Forecaster,
    kinds: Sequence[str],
    halves: Sequence[tuple[Scores, Scores]],
    ages: tuple[Scores, Scores],
    rank: str,
) -> dict[str, Agreement]:
    groups = model.unit_groups()
    costs = {name: group.costs.clamp(min=1).double() for name, group in groups.items()}
    names = {kind: [name for name, group in groups.items() if group.kind == kind] for kind in kinds}

    def agree(pair: tuple[Scores, Scores], kind: str) -> float | None:
        first, second = (
            cat([(s[name].abs() if rank == "magnitude" else s[name]) / costs[name] for name in names[kind]])
            for s in pair
        )
        return spearman(first, second)

    found = {}
    for kind in kinds:
        random = [value for pair in halves if (value := agree(pair, kind)) is not None]
        early_late = agree(ages, kind)
        lowest = min(random, default=None)
        drifts = early_late is not None and lowest is not None and early_late < lowest - CLEARLY
        mean = sum(random) / len(random) if random else None
        found[kind] = Agreement(sum(groups[n].units for n in names[kind]), mean, lowest, early_late, drifts)
    return found


def as_json(found: Mapping[str, Agreement]) -> dict[str, dict[str, Any]]:
    """What a file of scores stores, by kind."""
    return {kind: asdict(agreement) for kind, agreement in found.items()}


def told(found: Mapping[str, Agreement], needs: str) -> list[str]:
    """What to say of it, one line each."""
    if not found:
        why = "it needs none" if needs == "weights" else f"it needs at least {FEWEST} windows"
        return [f"how far the score agrees with itself on other windows was not measured: {why}"]
    lines = [
        f"rank agreement of {kind} scores: {_shown(a.halves)} between random halves of the windows, "
        f"{_shown(a.early_late)} between early and late ones"
        for kind, a in found.items()
    ]
    if drifting := [kind for kind, a in found.items() if a.drifts]:
        lines.append(
            f"what matters changes with time ({', '.join(drifting)}): early and late windows agree clearly less than "
            "random halves do, so the newest windows may call for another model"
        )
    return lines


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"
