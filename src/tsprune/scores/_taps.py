"""Per-window gate gradients of every unit, from taps at the unit boundaries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from tsprune.blocks.gate import Tap
from tsprune.blocks.units import UnitGroup
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster, window_index


def chosen_groups(model: Forecaster, kinds: Sequence[str]) -> dict[str, UnitGroup]:
    """The model's groups of the wanted kinds; kinds nobody has are an error that lists those that exist."""
    if not kinds:
        raise TspruneError("no kind of unit is named; name at least one, such as head or ffn_channel")
    groups = model.unit_groups()
    present = sorted({group.kind for group in groups.values()})
    if missing := [kind for kind in kinds if kind not in present]:
        raise TspruneError(f"the model has no units of kind {missing[0]!r}; it has {', '.join(present) or 'none left'}")
    return {name: group for name, group in groups.items() if group.kind in kinds}


@contextmanager
def frozen(model: Forecaster) -> Iterator[None]:
    """Evaluation mode without weight gradients, both restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval()
    try:
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)
        for module, training in modes:
            module.training = training


def gate_gradients(model: Forecaster, batch: Batch, groups: dict[str, UnitGroup]) -> dict[str, Tensor]:
    """Derivative of each window's loss with respect to every unit's gate, at 1.

    One forward pass and one backward pass of the activations; weights get no gradient.

    Args:
        model: left as it was found.
        batch: needs a target.
        groups: the groups to read.

    Returns:
        For each group name `[N, U]`: windows by units.
    """
    taps = {gate: Tap(gate.units) for group in groups.values() for gate in group.gates}
    index = window_index(batch)
    windows = int(index.max()) + 1
    before = {gate: gate.tap for gate in taps}
    with frozen(model), torch.enable_grad():
        try:
            for gate, tap in taps.items():
                gate.tap = tap
            model.loss(batch).sum().backward()  # type: ignore[no-untyped-call]
        finally:
            for gate, tap_before in before.items():
                gate.tap = tap_before
    result = {}
    for name, group in groups.items():
        total = torch.zeros(batch.rows, group.units, dtype=torch.float64, device=index.device)
        for gate in group.gates:
            rows = taps[gate].gradient
            if rows is not None:
                rows = rows.double()
                total = total + (rows if gate.units == group.units else rows.sum(1, keepdim=True))
        result[name] = torch.zeros(windows, group.units, dtype=torch.float64, device=index.device).index_add(
            0, index, total
        )
    return result
