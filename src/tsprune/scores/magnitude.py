"""Size of a unit's weights: what can be said without data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tsprune.blocks.units import Part, UnitGroup
from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster
from tsprune.scores._taps import chosen_groups

NEEDS = "weights"


def scores(
    model: Forecaster, batches: Iterable[Batch] = (), *, kinds: Sequence[str] = ("head", "ffn_channel"), seed: int = 0
) -> dict[str, Tensor]:
    """Squared L2 norm of all weights and biases that leave the model with the unit.

    Squared, because squares add up: ranked per parameter, which is how units of different cost are compared, it
    becomes the mean square of the unit's weights. Among units of one size the order is that of the norm itself.

    Args:
        model: left as it was found.
        batches: not used.
        kinds: kinds of units to score.
        seed: not used.

    Returns:
        For each group name `[U]`, float64.

    Raises:
        TspruneError: the model has no unit of a wanted kind.
    """
    return {name: _squares(group) for name, group in chosen_groups(model, kinds).items()}


def _squares(group: UnitGroup) -> Tensor:
    total = torch.zeros(group.units, dtype=torch.float64)
    for part in group.parts:
        total += part.sum_by_unit(_by_entry(part), group.units).cpu()
    return total


def _by_entry(part: Part) -> Tensor:
    """Sum of squares of each row or column, `[rows or columns]`, float64."""
    weight = part.weight.detach().double()
    rest = [axis for axis in range(weight.ndim) if axis != part.axis]
    squares = weight.square().sum(rest) if rest else weight.square()
    return squares if part.bias is None else squares + part.bias.detach().double().square()
