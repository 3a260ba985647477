"""Heads of all layers off at once: the largest set that holds, and whether it holds on later windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from tsprune.blocks.units import UnitGroup
from tsprune.evaluation.intervals import Interval, resample, stretched
from tsprune.evaluation.timeblocks import Blocks
from tsprune.lens import _ablating as ablating
from tsprune.models._forecaster import Forecaster

TRIALS = 48
"""Most joint sets that are tried for one limit."""

Head = tuple[str, int]
"""Group and number of a head."""
Holds = Callable[[Sequence[Head]], bool]


def kept_without(groups: Mapping[str, UnitGroup], gone: Iterable[Head]) -> dict[str, list[int]]:
    """What stays of every attention that loses a head."""
    off: dict[str, set[int]] = {}
    for name, head in gone:
        off.setdefault(name, set()).add(head)
    found: dict[str, list[int]] = {}
    for name, heads in off.items():
        found |= ablating.without(groups[name], heads)
    return found


def largest(wanted: Sequence[Head], holds: Holds, trials: int = TRIALS) -> tuple[list[Head], int]:
    """Heads that can all go at once, of those wanted, found by halving what does not hold.

    All are tried at once. Where that does not hold, the first half is tried and then, on top of what of it could go,
    the second, and so on down to single heads. So the set that is returned was tried as a whole, and every head that
    stays was tried on top of others, unless trials ran out: what is left then stays.

    Args:
        wanted: those that should go first come first.
        holds: whether a set may go.
        trials: most calls of `holds`.

    Returns:
        The heads, and how many trials it took.
    """
    gone: list[Head] = []
    waiting = [list(wanted)] if wanted else []
    taken = 0
    while waiting and taken < trials:
        part = waiting.pop(0)
        taken += 1
        if holds([*gone, *part]):
            gone += part
        elif len(part) > 1:
            middle = len(part) // 2
            waiting[:0] = [part[:middle], part[middle:]]
    return gone, taken


def spare_essential(model: Forecaster, groups: Mapping[str, UnitGroup], wanted: Sequence[Head]) -> list[Head]:
    """The same without the last one, where all heads would go of attentions of which one has to keep a head."""
    left = list(wanted)
    for paths in model.essential():
        names = {f"{path}/head" for path in paths} & set(groups)
        inside = [head for head in left if head[0] in names]
        if names and len(inside) == sum(groups[name].units for name in names):
            left.remove(inside[-1])
    return left


def most_trials(groups: Mapping[str, UnitGroup]) -> int:
    """Most joint sets that are tried for one limit: halving all heads down to single ones takes twice as many."""
    return min(TRIALS, 2 * sum(group.units for group in groups.values()) - 1)


def random_set(groups: Mapping[str, UnitGroup], count: int, generator: np.random.Generator) -> list[Head]:
    """So many heads of the whole model at random."""
    every = [(name, head) for name, group in groups.items() for head in range(group.units)]
    return [every[place] for place in sorted(generator.choice(len(every), count, replace=False))]


def units_of_windows(blocks: Blocks | None, windows: int) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    """The unit of every window `[N]` from that of every target row; None where a window is not of one unit."""
    if blocks is None or not windows or len(blocks.unit) % windows:
        return None
    table = blocks.unit.reshape(windows, -1)
    return table[:, 0] if bool((table == table[:, :1]).all()) else None


def growth_interval(
    model: Forecaster, off: Tensor, intact: Tensor, blocks: Blocks | None, seed: int = 0
) -> Interval | None:
    """Interval of `growth` over the windows: blocks of origins drawn with replacement, the same for both losses.

    Args:
        model: says how losses are compared.
        off: losses with units off `[N]`.
        intact: losses of the intact model `[N]`.
        blocks: which windows depend on each other.
        seed: of the draws.

    Returns:
        None where it is unknown which windows depend on each other, or a loss is no number.
    """
    unit = units_of_windows(blocks, len(off))
    columns = np.stack([off.numpy(), intact.numpy(), np.ones(len(off))], axis=1)
    if blocks is None or unit is None or not np.isfinite(columns).all():
        return None
    sums = np.stack([np.bincount(unit, column, blocks.count) for column in columns.T], axis=1).astype(np.float64)
    drawn = resample(sums, blocks.length, seed=seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second = drawn[:, 0] / drawn[:, 2], drawn[:, 1] / drawn[:, 2]
        values = np.exp(np.minimum(700.0, first - second)) if model.log_loss else first / second
    estimate = ablating.growth(model, float(off.mean()), float(intact.mean()))
    return stretched(estimate, values, blocks.stretches)
