"""A statistic of the activations and the loss in one rank."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster
from tsprune.scores import fisher, wanda
from tsprune.scores._ranks import ranks
from tsprune.scores._taps import chosen_groups, gate_gradients
from tsprune.scores._work import Totals, combined, totals_over

NEEDS = "backward"
GRADIENT = "gradient of "
INPUT = "input of "


def scores(
    model: Forecaster, batches: Iterable[Batch], *, kinds: Sequence[str] = ("head", "ffn_channel"), seed: int = 0
) -> dict[str, Tensor]:
    """Mean of a unit's ranks by `fisher` and by `wanda`, both per parameter, times its parameters.

    Ranks go from 0 for the lowest of all units to 1; units that are equal share one. Scores of different scale can
    only be joined as ranks, and since pruning divides a score by the parameters that leave with the unit, the ranks
    are taken after that division and multiplied back. (One of the open questions of 2505.23195.)

    Args:
        model: left as it was found.
        batches: windows with targets; one forward and one backward pass serves both.
        kinds: kinds of units to score.
        seed: not used; part of every score's signature.

    Returns:
        For each group name `[U]`, float64.

    Raises:
        TspruneError: no batch, or the model has no unit of a wanted kind.
    """
    return finish(model, collect(model, batches, kinds=kinds), kinds=kinds)


def collect(model: Forecaster, batches: Iterable[Batch], *, kinds: Sequence[str]) -> Totals:
    """What has to be known of the windows, as sums over them, for both scores."""
    groups = chosen_groups(model, kinds)
    maps = wanda.linear_maps(model, groups)

    def step(portion: Batch) -> tuple[dict[str, Tensor], int]:
        with wanda.input_squares(maps) as squares:
            gradients = gate_gradients(model, portion, groups)
        windows = len(next(iter(gradients.values())))
        found = {GRADIENT + name: fisher.of_window(g).sum(0) for name, g in gradients.items()}
        return found | {INPUT + path: values for path, values in squares.items()}, windows

    return totals_over(model, batches, step)


def finish(model: Forecaster, totals: Totals, *, kinds: Sequence[str]) -> dict[str, Tensor]:
    """Scores from the sums; see `scores`."""
    totals = totals.shared()
    by_loss = fisher.finish(model, _those(totals, GRADIENT), kinds=kinds)
    by_statistic = wanda.finish(model, _those(totals, INPUT), kinds=kinds)
    groups = chosen_groups(model, kinds)
    costs = {name: group.costs.clamp(min=1).double() for name, group in groups.items()}
    joined = torch.zeros(sum(group.units for group in groups.values()), dtype=torch.float64)
    for found in (by_loss, by_statistic):
        joined += ranks(torch.cat([found[name].abs() / costs[name] for name in groups])) / 2
    parts = torch.split(joined, [group.units for group in groups.values()])
    return {name: part * costs[name] for name, part in zip(groups, parts, strict=True)}


def _those(totals: Totals, prefix: str) -> Totals:
    """The sums whose names begin with `prefix`, without it."""
    chosen = combined([totals])
    chosen.sums = {name.removeprefix(prefix): values for name, values in totals.sums.items() if name.startswith(prefix)}
    return chosen
