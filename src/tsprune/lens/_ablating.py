"""What windows say of a model with units off: losses, median forecasts, and what stands in for what is off.

Letters: N windows, R target rows, H steps, E entries of a gate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from tsprune.blocks.gate import Gate, gates_set
from tsprune.blocks.units import UnitGroup
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster, Kept
from tsprune.scores._probes import Reading, Visit, branch_of, gate_sums, token_mean, token_sum
from tsprune.scores._taps import frozen
from tsprune.scores._work import count_windows, over_windows

Fills = Mapping[Gate, Tensor]
"""What the entries of a gate are, `[E]`, where their unit is off; gates that are not named give 0."""
NOTHING: Kept = {}


@contextmanager
def ablated(model: Forecaster, kept: Kept, fills: Fills | None = None) -> Iterator[None]:
    """All units off that are not kept, their activation replaced by 0 or by what `fills` says."""
    with gates_set("fill", fills or {}), model.masked(kept):
        yield


@contextmanager
def switched_off(model: Forecaster, units: Mapping[str, Sequence[int]]) -> Iterator[None]:
    """These units, by group name, are off as well; what was off before stays off, and comes back as it was."""
    groups = model.unit_groups()
    kept: dict[str, list[int]] = {}
    for name, gone in units.items():
        kept |= without(groups[name], gone)
    masks: dict[Gate, Tensor | None] = {}
    for gate, mask in model.gate_masks(kept).items():
        masks[gate] = mask if gate.mask is None else gate.mask * mask.to(gate.mask)
    with gates_set("mask", masks):
        yield


def losses(model: Forecaster, batches: Iterable[Batch], kept: Kept = NOTHING, fills: Fills | None = None) -> Tensor:
    """Loss of every window with units off: `[N]`, float64. One forward pass."""

    def step(portion: Batch) -> Tensor:
        with frozen(model), torch.no_grad(), ablated(model, kept, fills):
            return model.loss(portion).double().cpu()

    return joined(model, batches, step)


def medians(
    model: Forecaster,
    batches: Iterable[Batch],
    kept: Kept = NOTHING,
    fills: Fills | None = None,
    *,
    steps: int | None = None,
) -> Tensor:
    """Median forecasts of the target rows: `[R, H]`, float64. One forecast, of `steps` or as far as the targets go."""

    def step(portion: Batch) -> Tensor:
        with ablated(model, kept, fills):
            return middle(model, portion, steps)

    return joined(model, batches, step)


def middle(model: Forecaster, portion: Batch, steps: int | None = None) -> Tensor:
    """The same of one portion, with whatever is off at present."""
    far = target_of(portion).shape[1] if steps is None else steps
    found = model.forecast(replace(portion, target=None), far, [0.5])[:, 0]
    return scored(found, portion).double().cpu()


def truth(batches: Iterable[Batch]) -> Tensor:
    """What came, of the target rows: `[R, H]`, float64, NaN where it is missing."""
    return torch.cat([scored(target_of(batch), batch).double().cpu() for batch in batches])


def contexts(batches: Iterable[Batch]) -> Tensor:
    """What went before, of the target rows: `[R, L]`, float64, NaN where it is missing."""
    return torch.cat([scored(batch.context, batch).double().cpu() for batch in batches])


def windows(batches: Iterable[Batch]) -> int:
    """Number of windows N."""
    return sum(map(count_windows, batches))


def dataset_means(model: Forecaster, batches: Iterable[Batch], groups: Iterable[UnitGroup]) -> dict[Gate, Tensor]:
    """Mean over the windows' tokens of every entry that passes the gates of the groups: `[E]`, float64, by gate.

    One forward pass, of the loss. Tokens that the model itself hides from all others, such as patches without any
    observed value, do not count. What stands in for a unit is thus the same vector at every token: it keeps what the
    unit always says and takes away what it says about this window.
    """
    gates = {f"{group.name}#{place}": (gate, group) for group in groups for place, gate in enumerate(group.gates)}

    def read(visit: Visit) -> Tensor:
        return token_sum(visit.activation, visit.live)

    readings = {name: Reading(gate, branch_of(model, group.path), read) for name, (gate, group) in gates.items()}
    sums, _ = gate_sums(model, batches, readings).result()
    return {gate: token_mean(sums.get(name), len(gate.owners)) for name, (gate, _) in gates.items()}


def without(group: UnitGroup, gone: Iterable[int]) -> dict[str, list[int]]:
    """What stays of a group, by its name, once some units are gone."""
    off = set(gone)
    return {group.name: [unit for unit in range(group.units) if unit not in off]}


def groups_of(model: Forecaster, *kinds: str) -> dict[str, UnitGroup]:
    """The model's groups of these kinds by name; empty where it has none."""
    return {name: group for name, group in model.unit_groups().items() if group.kind in kinds}


def growth(model: Forecaster, off: float, intact: float) -> float:
    """How many times as large the loss is: the ratio of the mean losses.

    Where the loss is a negative log density or probability, a ratio says nothing, as the loss may be 0 or less. Then it
    is exp(difference), by how much less likely the model thinks what came, so that 1.01 is 1 % in both.

    Args:
        model: says which it is.
        off: mean loss with units off.
        intact: mean loss of the intact model.

    Returns:
        1 for no change; infinite where the loss is no number, or only the intact one is 0.
    """
    if not math.isfinite(off):
        return math.inf
    if model.log_loss:
        return math.exp(min(700.0, off - intact))
    if intact == 0:
        return 1.0 if off == 0 else math.inf
    return off / intact


def growth_words(model: Forecaster) -> str:
    """What `growth` is, for people."""
    if model.log_loss:
        return "exp(mean loss without them - mean loss of the intact model): the loss is a negative log likelihood"
    return "mean loss without them over that of the intact model"


def number(value: float | Tensor | None) -> float | None:
    """The number, or None where it is none or not finite, as JSON has it."""
    return None if value is None or not math.isfinite(float(value)) else float(value)


def joined(model: Forecaster, batches: Iterable[Batch], step: Callable[[Batch], Tensor], axis: int = 0) -> Tensor:
    """What `step` finds of all portions, behind each other along an axis.

    Raises:
        TspruneError: no batch.
    """
    found: Sequence[Tensor] = list(over_windows(model, batches, step))
    if not found:
        raise TspruneError("a probe needs at least one batch of windows, got none; give a shorter --horizon")
    return torch.cat(list(found), axis)


def target_of(batch: Batch) -> Tensor:
    """What came, `[B, H]`; raises TspruneError where the windows have no targets."""
    if batch.target is None:
        raise TspruneError("the windows come without targets, so nothing can be compared; give windows with targets")
    return batch.target


def scored(values: Tensor, batch: Batch) -> Tensor:
    """The rows that are forecast, of values `[B, H]`."""
    return values if batch.is_target is None else values[batch.is_target]
