"""What removal really does: the loss without the unit, one unit at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from tsprune.blocks.gate import Gate, gates_set
from tsprune.blocks.units import UnitGroup
from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster
from tsprune.scores._taps import chosen_groups, frozen
from tsprune.scores._work import Totals, totals_over

NEEDS = "forward"


def scores(
    model: Forecaster, batches: Iterable[Batch], *, kinds: Sequence[str] = ("head", "ffn_channel"), seed: int = 0
) -> dict[str, Tensor]:
    """Exact change of the mean loss when the unit alone is switched off.

    The truth that the other scores estimate, at one forward pass for each unit. It holds for one unit: what
    several do together need not be the sum. Units that are masked already, or that a floor protects (the last k
    experts of top-k), give 0.

    Args:
        model: left as it was found; units that are masked stay so.
        batches: windows with targets.
        kinds: kinds of units to score.
        seed: not used; part of every score's signature.

    Returns:
        For each group name `[U]`, float64. Positive: removal raises the loss.

    Raises:
        TspruneError: no batch, or the model has no unit of a wanted kind.
    """
    return finish(model, collect(model, batches, kinds=kinds), kinds=kinds)


def collect(model: Forecaster, batches: Iterable[Batch], *, kinds: Sequence[str]) -> Totals:
    """What has to be known of the windows, as sums over them."""
    groups = chosen_groups(model, kinds)
    return _changes(model, batches, {group: list(range(group.units)) for group in groups.values()})


def finish(model: Forecaster, totals: Totals, *, kinds: Sequence[str]) -> dict[str, Tensor]:
    """Scores from the sums; see `scores`."""
    return totals.means()


def loss_changes(model: Forecaster, batches: Iterable[Batch], units: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """The same for some units only, where there are too many for one pass each.

    Args:
        model: left as it was found.
        batches: windows with targets.
        units: which units to try, by group name.

    Returns:
        For each group name a value for each unit that was named, in that order, float64.
    """
    groups = model.unit_groups()
    return _changes(model, batches, {groups[name]: list(numbers) for name, numbers in units.items()}).means()


def _changes(model: Forecaster, batches: Iterable[Batch], units: Mapping[UnitGroup, Sequence[int]]) -> Totals:

    def step(portion: Batch) -> tuple[dict[str, Tensor], int]:
        with frozen(model), torch.no_grad():
            whole = model.loss(portion).double()
            found = {}
            for group, numbers in units.items():
                changes = torch.zeros(len(numbers), dtype=torch.float64)
                there = _there(group)
                for place, unit in enumerate(numbers):
                    if there[unit] and int(there.sum()) > group.floor:
                        with gates_set("mask", _without(group, unit)):
                            changes[place] = (model.loss(portion).double() - whole).sum()
                found[group.name] = changes
        return found, len(whole)

    return totals_over(model, batches, step)


def _there(group: UnitGroup) -> Tensor:
    """bool `[U]`: units that no mask has switched off."""
    there = torch.zeros(group.units, dtype=torch.bool)
    for gate in group.gates:
        mask = torch.ones(gate.units) if gate.mask is None else gate.mask.cpu()
        there |= (mask != 0) if gate.units == group.units else bool((mask != 0).any())
    return there


def _without(group: UnitGroup, unit: int) -> dict[Gate, Tensor | None]:
    """Masks under which one unit more is off; what was off before stays off."""
    found: dict[Gate, Tensor | None] = {}
    for gate in group.gates:
        off = torch.ones(gate.units)
        off[unit if gate.units == group.units else slice(None)] = 0.0
        found[gate] = off if gate.mask is None else gate.mask * off.to(gate.mask)
    return found
