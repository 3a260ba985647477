"""From a plan to a physically smaller network."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from tsprune.blocks.branch import Branch, Layer
from tsprune.blocks.gate import Gate
from tsprune.blocks.units import Block, check_kept, shell
from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster, Kept, unknown_group, window_index
from tsprune.plan import Plan, PlanGroup

INNER = ("head", "ffn_channel")
Model = TypeVar("Model", bound=Forecaster)


def slim(model: Model, kept: Kept | Plan) -> Model:
    """A physically smaller copy that computes what the masked model computes.

    Only what stays is copied; the model passed in is not changed and shares no tensor with the copy. Branches
    in which nothing is left disappear together with their norm. Works on the meta device as well.

    Args:
        model: any model, also one that is slim already.
        kept: units that stay, by group name, or a plan; a group that is not named stays whole.

    Raises:
        TspruneError: a group or a unit does not exist, or a plan does not fit.
    """
    if isinstance(kept, Plan):
        kept.check(model)
        kept = kept.kept
    cuts = _cuts(model, kept)
    smaller: Model = _Rebuild(cuts, _tensors(model)).of(model, "")
    smaller.config = copy.deepcopy(model.config)
    smaller.kept = compose(model.kept, cuts)
    return smaller


def compose(first: Kept, second: Kept) -> dict[str, tuple[int, ...]]:
    """What stays after `first` and then `second`, whose indices count the units that `first` left."""
    both = {name: tuple(units) for name, units in first.items()}
    for name, units in second.items():
        both[name] = tuple(both[name][unit] for unit in units) if name in both else tuple(units)
    return both


def equivalence(
    model: Forecaster, slimmed: Forecaster, kept: Kept | Plan, batch: Batch, horizon: int
) -> dict[str, Any]:
    """How far the slim model is from the masked one.

    In float32, and once more in float64, where rounding cannot hide a mistake or look like one: forecasts that undo an
    arcsinh or roll out far amplify float32 rounding beyond any fixed bound.

    Args:
        model: the model before slimming.
        slimmed: the model after it.
        kept: what was kept, in units of `model`.
        batch: windows to compare on.
        horizon: steps H.

    Returns:
        `max_abs_difference` in original units, `relative` (divided by the standard deviation of the masked
        model's forecasts), `relative_float64`, `windows`.
    """
    if isinstance(kept, Plan):
        kept = kept.kept
    difference, relative = _difference(model, slimmed, kept, batch, horizon, torch.float32)
    _, exact = _difference(model, slimmed, kept, batch, horizon, torch.float64)
    return {
        "max_abs_difference": difference,
        "relative": relative,
        "relative_float64": exact,
        "windows": int(window_index(batch).max()) + 1,
    }


def _difference(
    model: Forecaster, slimmed: Forecaster, kept: Kept, batch: Batch, horizon: int, dtype: torch.dtype
) -> tuple[float, float]:
    """Largest difference of the forecasts, and its share of their standard deviation, in one precision."""
    wide, narrow = (m if m.dtype == dtype else copy.deepcopy(m).to(dtype) for m in (model, slimmed))
    batch = batch.to(wide.device)
    batch = replace(
        batch,
        context=batch.context.to(dtype),
        future=None if batch.future is None else batch.future.to(dtype),
        target=None,
    )
    with wide.masked(kept):
        expected = wide.forecast(batch, horizon)
    difference = float((narrow.forecast(batch, horizon) - expected).abs().max())
    spread = float(expected.double().std(correction=0))
    return difference, difference / spread if spread > 0 else difference


def make_plan(
    model: Forecaster,
    kept: Kept,
    *,
    base_model: str,
    base_fingerprint: str = "",
    score: str = "",
    schedule: str = "",
    data_fingerprint: str = "",
    seed: int = 0,
    flops: Mapping[str, int] | None = None,
) -> Plan:
    """A plan for `kept` with the predicted sizes; nothing is copied.

    Args:
        model: the model to be pruned.
        kept: units that stay, by group name.
        base_model: its id or directory.
        base_fingerprint: fingerprint of its tensors.
        score: name of the score.
        schedule: name of the schedule.
        data_fingerprint: fingerprint of the panel.
        seed: seed of the pruning.
        flops: `before` and `after`; None counts two operations per weight of every linear map, once.
    """
    groups = model.unit_groups()
    before = meta_twin(model)
    after = slim(before, kept)
    cuts = {name: check_kept(units, groups[name].units, name) for name, units in kept.items()}
    return Plan(
        base_model=base_model,
        base_fingerprint=base_fingerprint,
        family=model.family,
        score=score,
        schedule=schedule,
        data_fingerprint=data_fingerprint,
        seed=seed,
        parameters={"before": before.parameter_count(), "after": after.parameter_count()},
        flops=dict(flops) if flops else {"before": linear_flops(before), "after": linear_flops(after)},
        groups={name: PlanGroup(groups[name].kind, groups[name].units, tuple(units)) for name, units in cuts.items()},
    )


def meta_twin(model: Model) -> Model:
    """A model of the same sizes without memory."""
    twin: Model = _Rebuild({}, _tensors(model), "meta").of(model, "")
    return twin


def slimmed_parameters(model: Forecaster, kept: Kept) -> int:
    """Parameters of `slim(model, kept)`, without building it."""
    return slim(meta_twin(model), kept).parameter_count()


def linear_flops(model: nn.Module) -> int:
    """Two operations per weight of every linear map."""
    return 2 * sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))


def _cuts(model: Forecaster, kept: Kept) -> dict[str, list[int]]:
    """What stays in the groups that lose something, checked."""
    groups = model.unit_groups()
    cuts = {}
    for name, units in kept.items():
        if name not in groups:
            raise unknown_group(name, groups)
        stays = check_kept(units, groups[name].units, name)
        if len(stays) < groups[name].units:
            cuts[name] = stays
    return cuts


def _tensors(model: nn.Module) -> set[int]:
    return {id(tensor) for tensor in [*model.parameters(), *model.buffers()]}


class _Rebuild:
    """Copies a network part by part, cutting on the way."""

    def __init__(self, cuts: Mapping[str, Sequence[int]], owned: set[int], device: str | None = None) -> None:
        self.cuts = cuts
        self.owned = owned
        self.device = device
        self.copies: dict[int, Any] = {}

    def of(self, module: Any, path: str) -> Any:
        if isinstance(module, Gate):
            return Gate(module.units, module.width)
        if isinstance(module, Block):
            module = self._cut(module, path)
        twin = shell(module)
        for store in (twin._parameters, twin._buffers):
            for name, tensor in store.items():
                store[name] = self._copy(tensor)
        for name, child in twin._modules.items():
            twin._modules[name] = None if child is None else self.of(child, f"{path}.{name}" if path else name)
        return twin.tidy() if isinstance(twin, Branch) else twin

    def _cut(self, block: Block, path: str) -> Block:
        whole = ("layer",) if isinstance(block, Layer) else (block.kind,) if isinstance(block, Branch) else INNER
        for kind in whole:
            if (stays := self.cuts.get(f"{path}/{kind}")) is not None:
                block = block.keep(kind, stays)
        return block

    def _copy(self, tensor: Any) -> Any:
        """A copy of a tensor of the original; tensors that a cut has just made are taken as they are."""
        if tensor is None or id(tensor) not in self.owned:
            return tensor
        if id(tensor) not in self.copies:
            whole = tensor.detach()
            twin = whole.clone() if self.device is None else torch.empty_like(whole, device=self.device)
            self.copies[id(tensor)] = (
                nn.Parameter(twin, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else twin
            )
        return self.copies[id(tensor)]
