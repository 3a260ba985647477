"""From a plan to a physically smaller network."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from tsprune.blocks.attention import Attention
from tsprune.blocks.branch import Branch
from tsprune.blocks.experts import MixtureOfExperts
from tsprune.blocks.gate import Gate
from tsprune.blocks.linear import CHANNELS, ChannelLinear
from tsprune.blocks.units import (
    Block,
    Settled,
    check_floor,
    check_kept,
    group_name,
    named_blocks,
    own_name,
    shell,
    without_groups,
)
from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster, Kept, unknown_group, window_index
from tsprune.plan import Plan, PlanGroup

Model = TypeVar("Model", bound=Forecaster)


def slim(model: Model, kept: Kept | Plan, indexed: Collection[str] = (), *, spare: bool = False) -> Model:
    """A physically smaller copy that computes what the masked model computes.

    Only what stays is copied; the model passed in is not changed and shares no tensor with the copy. Branches
    in which nothing is left disappear together with their norm. Works on the meta device as well.

    Args:
        model: any model, also one that is slim already.
        kept: units that stay, by group name, or a plan; a group that is not named stays whole.
        indexed: groups of channels on the residual width that are cut by an index rather than zeroed in place; those
            of a plan and those that were cut so before are added.
        spare: whether the model is no longer needed: what stays whole is then taken from it instead of copied.

    Raises:
        TspruneError: a group or a unit does not exist, or a plan does not fit.
    """
    if isinstance(kept, Plan):
        kept.check(model)
        indexed = {*indexed, *kept.indexed}
        kept = kept.kept
    indexed = {*indexed, *model.indexed}
    blocks = _settled(model, kept)
    cuts, before = _lost(model, blocks), model.kept
    owned = set() if spare else _tensors(model)
    smaller: Model = _Rebuild(blocks, owned, indexed=indexed, spare=spare).of(model, "")
    smaller.config = copy.deepcopy(model.config)
    smaller.indexed = tuple(sorted(indexed))
    smaller.kept = {name: units for name, units in compose(before, cuts).items() if not _channel(name)}
    smaller.kept |= _channels_left(smaller, {*indexed, *before, *kept})
    return smaller


def closed(model: Forecaster, kept: Kept) -> dict[str, list[int]]:
    """What stays in every group that loses something, units that go along with others included.

    Raises:
        TspruneError: a group or a unit does not exist, or too few units would stay.
    """
    return _lost(model, _settled(model, kept))


def _settled(model: Forecaster, kept: Kept) -> dict[str, Settled]:
    """What stays of every block that loses something, by its path in network order."""
    groups = model.unit_groups()
    for name, units in kept.items():
        if name not in groups:
            raise unknown_group(name, groups)
        check_floor(groups[name], check_kept(units, groups[name].units, name))
    found = {}
    for path, block in named_blocks(model):
        local = {own_name(group.name, path): group for group in block.groups(path)}
        chosen = {kind: kept[group.name] for kind, group in local.items() if group.name in kept}
        if any(len(units) < local[kind].units for kind, units in chosen.items()):
            found[path] = Settled(block.settled(chosen))
    return found


def _lost(model: Forecaster, blocks: Mapping[str, Settled]) -> dict[str, list[int]]:
    """The same by group name, of groups that lose something."""
    return {
        group.name: units
        for path, chosen in blocks.items()
        for group in model.get_submodule(path).groups(path)  # type: ignore[operator]
        if len(units := chosen[own_name(group.name, path)]) < group.units
    }


def minimal(model: Forecaster, kept: Kept, named: Collection[str] = ()) -> dict[str, tuple[int, ...]]:
    """A closed choice without the groups that follow from others of their block.

    Args:
        model: the model that the choice is about.
        kept: a closed choice.
        named: groups that stay in it in any case.
    """
    left = {name: tuple(units) for name, units in kept.items()}
    order = (*CHANNELS, "value_dim", "qk_pair", "kv_group", "head", "ffn_channel")
    for path, block in named_blocks(model):
        names = {own_name(group.name, path): group.name for group in block.groups(path)}
        chosen = {kind: left[name] for kind, name in names.items() if name in left}
        for wanted in order:
            for kind in [k for k in chosen if k.rsplit("/", 1)[-1] == wanted and names[k] not in named]:
                rest = {k: units for k, units in chosen.items() if k != kind}
                if block.settled(rest)[kind] == list(chosen[kind]):
                    chosen = rest
                    del left[names[kind]]
    return left


def compose(first: Kept, second: Kept) -> dict[str, tuple[int, ...]]:
    """What stays after `first` and then `second`, whose indices count the units that `first` left."""
    both = {name: tuple(units) for name, units in first.items()}
    for name, units in second.items():
        # Channels are counted by the maps themselves: some of them are zeroed in place.
        if not _channel(name):
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
    largest, relative = difference(model, slimmed, kept, batch, horizon, torch.float32)
    _, exact = difference(model, slimmed, kept, batch, horizon, torch.float64)
    return {
        "max_abs_difference": largest,
        "relative": relative,
        "relative_float64": exact,
        "windows": int(window_index(batch).max()) + 1,
    }


def difference(
    model: Forecaster, slimmed: Forecaster, kept: Kept, batch: Batch, horizon: int, dtype: torch.dtype
) -> tuple[float, float]:
    """Largest difference of the forecasts, and its share of their standard deviation, in one precision.

    Arguments as in `equivalence`; copies of the models are made where they are of another type than `dtype`.
    """
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
    largest = float((narrow.forecast(batch, horizon) - expected).abs().max())
    spread = float(expected.double().std(correction=0))
    return largest, largest / spread if spread > 0 else largest


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
    indexed: Collection[str] = (),
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
        indexed: see `slim`.
    """
    groups = model.unit_groups()
    before = meta_twin(model)
    after = slim(before, kept, indexed)
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
        indexed=tuple(sorted(indexed)),
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


def _channel(name: str) -> bool:
    return name.rsplit("/", 1)[-1] in CHANNELS


def _channels_left(model: Forecaster, named: Collection[str]) -> dict[str, tuple[int, ...]]:
    """Live channels, in their first numbers, of maps that lost some: those named, and those zeroed in place."""
    found = {}
    for path, layer in model.named_modules():
        if isinstance(layer, ChannelLinear):
            for kind in CHANNELS:
                lost = layer.numbers[kind] is not None or layer.dead[kind]
                if lost and (layer.dead[kind] or f"{path}/{kind}" in named):
                    found[f"{path}/{kind}"] = layer.live_numbers(kind)
    return found


def _tensors(model: nn.Module) -> set[int]:
    return {id(tensor) for part in model.modules() for tensor in (*part._parameters.values(), *part._buffers.values())}


class _Rebuild:
    """Copies a network part by part, cutting on the way."""

    def __init__(
        self,
        blocks: Mapping[str, Settled],
        owned: set[int],
        device: str | None = None,
        indexed: Collection[str] = (),
        spare: bool = False,
    ) -> None:
        self.spare = spare
        self.blocks = blocks
        self.indexed = indexed
        self.owned = owned
        self.device = device
        self.copies: dict[int, Any] = {}

    def of(self, module: Any, path: str) -> Any:
        if isinstance(module, Gate):
            return module if self.spare else module.twin()
        if isinstance(module, Block):
            module = self._cut(module, path)
        twin = without_groups(module) if self.spare else shell(module)
        if isinstance(twin, ChannelLinear):
            twin.channel_gates = {}
        if isinstance(twin, Attention | MixtureOfExperts):
            twin.watch = None
        for store in (twin._parameters, twin._buffers):
            for name, tensor in store.items():
                store[name] = self._copy(tensor)
        for name, child in twin._modules.items():
            twin._modules[name] = None if child is None else self.of(child, f"{path}.{name}" if path else name)
        return twin.tidy() if isinstance(twin, Branch) else twin

    def _cut(self, block: Block, path: str) -> Block:
        chosen = self.blocks.get(path)
        if chosen is None:
            return block
        return block.cut(chosen, [kind for kind in chosen if group_name(path, kind) in self.indexed])

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
