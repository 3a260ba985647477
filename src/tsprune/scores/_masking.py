"""The loss with units switched off, and weights as masks at their channels leave them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from tsprune.blocks.gate import Gate
from tsprune.blocks.units import UnitGroup
from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster, Kept
from tsprune.scores._taps import frozen
from tsprune.scores._work import Totals, count_windows, totals_over


def losses_under(model: Forecaster, batches: Iterable[Batch], choices: Mapping[str, Kept]) -> Totals:
    """Loss of the windows under each choice of units that stay, summed, by the name of the choice.

    One forward pass for each choice and batch.
    """

    def step(portion: Batch) -> tuple[dict[str, Tensor], int]:
        found = {}
        with frozen(model), torch.no_grad():
            for name, kept in choices.items():
                with model.masked(kept):
                    found[name] = model.loss(portion).sum(dtype=torch.float64)
        return found, count_windows(portion)

    return totals_over(model, batches, step)


def live_units(group: UnitGroup) -> Tensor:
    """bool `[U]`: which units are not switched off at present."""
    live = torch.ones(group.units, dtype=torch.bool)
    for gate in group.gates:
        if gate.units == group.units:
            live &= open_units(gate)
    return live


def open_units(gate: Gate | None) -> Tensor:
    """bool: which units of a gate are on, `[U]`; one True for no gate at all."""
    if gate is None:
        return torch.ones(1, dtype=torch.bool)
    return torch.ones(gate.units, dtype=torch.bool) if gate.mask is None else gate.mask.cpu() > 0


def weight_in_use(layer: nn.Linear) -> Tensor:
    """The weight `[out, in]` in float64 on the CPU; rows and columns that are masked are 0."""
    weight = layer.weight.detach().to(device="cpu", dtype=torch.float64)
    gates: dict[str, Gate] = getattr(layer, "channel_gates", {})
    if "out_channel" in gates:
        weight = weight * open_units(gates["out_channel"])[:, None]
    if "in_channel" in gates:
        weight = weight * open_units(gates["in_channel"])
    return weight
