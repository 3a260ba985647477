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


def largest(
    wanted: Sequence[Head], holds: Holds, trials: int = TRIALS, base: Sequence[Head] = ()
) -> tuple[list[Head], int]:
    """Heads that can all go at once, of those wanted, found by halving what does not hold.

    All are tried at once. Where that does not hold, the first half is tried and then, on top of what of it could go,
    the second, and so on down to single heads. So the set that is returned was tried as a whole, and every head that
    stays was tried on top of others, unless trials ran out: what is left then stays.

    Args:
        wanted: those that should go first come first.
        holds: whether a set may go.
        trials: most calls of `holds`.
        base: heads of which it is known that they can all go; where not all that are wanted can, these go first.

    Returns:
        The heads, and how many trials it took.
    """
    if not wanted or not trials:
        return list(base), 0
    if holds(wanted):
        return list(wanted), 1
    gone, taken = list(base), 1
    rest = [head for head in wanted if head not in set(base)]
    # Together with the base they may be what has just been tried.
    waiting = [rest] if rest and set(base) - set(wanted) else _halved(rest)
    while waiting and taken < trials:
        part = waiting.pop(0)
        taken += 1
        if holds([*gone, *part]):
            gone += part
        else:
            waiting[:0] = _halved(part)
    return gone, taken


def _halved(part: list[Head]) -> list[list[Head]]:
    """Both halves of two or more heads; nothing of a single one."""
    middle = len(part) // 2
    return [part[:middle], part[middle:]] if len(part) > 1 else []


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
    """Most joint sets that are tried for one limit: halving down to single heads takes one less than double."""
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
    by_unit = [np.bincount(unit, column, blocks.count) for column in columns.T]
    sums = np.stack(by_unit, axis=1).astype(np.float64)
    drawn = resample(sums, blocks.length, seed=seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second = drawn[:, 0] / drawn[:, 2], drawn[:, 1] / drawn[:, 2]
        values = np.exp(np.minimum(700.0, first - second)) if model.log_loss else first / second
    estimate = ablating.growth(model, float(off.mean()), float(intact.mean()))
    return stretched(estimate, values, blocks.stretches)
