"""Per-window gate gradients of every unit, from taps at the unit boundaries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from tsprune.blocks.units import UnitGroup
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster
from tsprune.scores._work import Totals, totals_over


def chosen_groups(
    model: Forecaster, kinds: Sequence[str], able: Sequence[str] | None = None, score: str = ""
) -> dict[str, UnitGroup]:
    """The model's groups of the wanted kinds.

    Args:
        model: whose groups.
        kinds: wanted kinds.
        able: kinds that the score has a value for; None means all.
        score: its name, for the message.

    Raises:
        TspruneError: no kind, a kind that nobody has (the message lists those that exist), or one the score cannot do.
    """
    if not kinds:
        raise TspruneError("no kind of unit is named; name at least one, such as head or ffn_channel")
    if able is not None and (beyond := [kind for kind in kinds if kind not in able]):
        raise TspruneError(
            f"--score {score} has no value for units of kind {beyond[0]!r}, it can score {', '.join(able)}; name only "
            "these with --units, or choose another --score"
        )
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


def gate_gradients(model: Forecaster, batch: Batch, groups: Mapping[str, UnitGroup]) -> dict[str, Tensor]:
    """Derivative of each window's loss with respect to every unit's gate, at 1.

    One forward pass and one backward pass of the activations; weights get no gradient.

    Args:
        model: left as it was found.
        batch: needs a target; on the model's device.
        groups: the groups to read.

    Returns:
        For each group name `[N, U]`, float64: windows by units.
    """
    taps = {gate: gate.new_tap() for group in groups.values() for gate in group.gates}
    index = model.network_windows(batch)
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
        total = torch.zeros(len(index), group.units, dtype=torch.float64, device=index.device)
        for gate in group.gates:
            rows = taps[gate].gradient
            if rows is not None:
                rows = rows.double()
                total = total + (rows if gate.units == group.units else rows.sum(1, keepdim=True))
        result[name] = torch.zeros(windows, group.units, dtype=torch.float64, device=index.device).index_add(
            0, index, total
        )
    return result


def gradient_totals(
    model: Forecaster, batches: Iterable[Batch], kinds: Sequence[str], of_window: Callable[[Tensor], Tensor]
) -> Totals:
    """Sums over windows, by group name, of a function of each window's gate gradients.

    Args:
        model: left as it was found.
        batches: windows with targets.
        kinds: kinds of units to score.
        of_window: from gradients `[N, U]` to values `[N, U]`, window by window and unit by unit.
    """
    groups = chosen_groups(model, kinds)

    def step(portion: Batch) -> tuple[dict[str, Tensor], int]:
        gradients = gate_gradients(model, portion, groups)
        windows = len(next(iter(gradients.values())))
        return {name: of_window(g).sum(0) for name, g in gradients.items()}, windows

    return totals_over(model, batches, step)
