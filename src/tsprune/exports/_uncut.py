"""A slim model at the sizes its config describes: what stays in its place, zeros where units were removed.

Where every number of the slim model belongs is not worked out a second time: a model of uncut sizes whose tensors hold
their own places is cut as the slim one was, and shows it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tsprune.blocks.experts import MixtureOfExperts
from tsprune.blocks.norms import RMSNorm
from tsprune.errors import TspruneError
from tsprune.exports._onetable import with_one_table
from tsprune.models._forecaster import Forecaster
from tsprune.models._fresh import without_memory
from tsprune.slimming import slim

Model = TypeVar("Model", bound=Forecaster)
NORMS = (RMSNorm, nn.LayerNorm, nn.modules.batchnorm._BatchNorm)
EXPERT_COUNTS = {"time_moe": "num_experts"}
"""Entry of the public config that says how many experts the layers have, where the original reads one."""


@dataclass(frozen=True)
class _Sizes:
    """What the uncut model is built from.

    Args:
        config: the public config.
        experts: for each mixture that is left, the new name of each of its experts, where there are fewer than before.
        gone: paths of mixtures that are gone with their branch.
    """

    config: dict[str, Any]
    experts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    gone: Sequence[str] = ()

    def renamed(self, name: str) -> str:
        """The name of a tensor or a group of the slim model in the uncut one."""
        for path, experts in self.experts.items():
            if found := re.fullmatch(rf"({re.escape(path)}\.experts)\.(\w+)(.*)", name):
                return f"{found[1]}.{experts[found[2]]}{found[3]}"
        return name

    def kept(self, model: Forecaster) -> dict[str, Sequence[int]]:
        """What stays of the uncut model, by group name."""
        found: dict[str, Sequence[int]] = {}
        for name, units in model.kept.items():
            if name.removesuffix("/expert") in {*self.experts, *(self.gone if self.experts else ())}:
                continue
            if self.experts and any(name.startswith(f"{path}.") for path in self.gone):
                continue
            found[self.renamed(name)] = units
        if self.experts:
            found |= {f"{path.rpartition('.')[0]}/ffn": [] for path in self.gone}
        return found


def uncut(model: Model) -> Model:
    """A model of the sizes of the public config that forecasts what `model` forecasts.

    Removed heads, pairs, value entries, hidden channels, branches and layers are zeros in every map that they have;
    norms that went with a branch are neutral. Removed experts have no such form, as a router sends tokens to an
    expert of zeros as well: where all layers have equally many left, the config says so many. Tables that the original
    holds once for all layers and that were tuned apart need more heads, see `tsprune.exports._onetable`.

    Args:
        model: any model, left as it is.

    Raises:
        TspruneError: the sizes of the original have no room for what the slim model computes.
    """
    if reason := why_not(model):
        raise TspruneError(reason)
    sizes = _sizes(model)
    with without_memory():
        whole: Model = type(model).from_config(sizes.config)
    places = _places(model, whole, sizes)
    tensors = {}
    own = {sizes.renamed(name): tensor for name, tensor in model.state_dict().items()}
    neutral = _neutral(whole)
    for name, sized in whole.state_dict().items():
        tensor = torch.full(sized.shape, 1.0 if name in neutral else 0.0).to(own.get(name, sized).dtype)
        if name in places:
            where = places[name] - 1
            there = where >= 0
            tensor.view(-1)[where[there].long()] = own[name].detach().cpu()[there]
        elif name in own:
            tensor = own[name].detach().cpu().clone()
        tensors[name] = tensor
    whole.load_state_dict(tensors, assign=True)
    whole.objective = model.objective
    return with_one_table(whole, places).eval()


def why_not(model: Forecaster) -> str:
    """Why the sizes of the original have no room for a slim model, one sentence without a full stop; "" if they do."""
    try:
        sizes = _sizes(model)
        with without_memory():
            whole = type(model).from_config(sizes.config)
        _cut_alike(model, whole, sizes)
    except TspruneError as error:
        return str(error)
    return ""


def _sizes(model: Forecaster) -> _Sizes:
    """The config of the uncut model; its experts are fewer where all layers lost equally many."""
    with without_memory():
        before = type(model).from_config(model.config)
    mixtures = {path: list(part.experts) for path, part in _mixtures(before).items()}
    left = {path: list(part.experts) for path, part in _mixtures(model).items()}
    gone = tuple(path for path in mixtures if path not in left)
    if all(names == mixtures[path] for path, names in left.items()):
        return _Sizes(dict(model.config), gone=gone)
    counts = sorted({len(names) for names in left.values()})
    entry = EXPERT_COUNTS.get(model.family)
    if entry is None:
        raise TspruneError(
            f"experts were removed, and the original of family {model.family} always has "
            f"{len(next(iter(mixtures.values())))}; its router would send tokens to an expert of zeros as well"
        )
    if len(counts) > 1:
        raise TspruneError(
            f"layers have {' and '.join(map(str, counts))} experts left, and the original has one number for all of "
            "them; its router would send tokens to an expert of zeros as well"
        )
    experts = {path: {old: str(new) for new, old in enumerate(names)} for path, names in left.items()}
    return _Sizes({**model.config, entry: counts[0]}, experts, gone)


def _mixtures(model: nn.Module) -> dict[str, MixtureOfExperts]:
    return {path: module for path, module in model.named_modules() if isinstance(module, MixtureOfExperts)}


def _places(model: Forecaster, whole: Forecaster, sizes: _Sizes) -> dict[str, Tensor]:
    """Where in the uncut tensor each number of a slim tensor belongs, counted from 1; 0 where it is a zero put in.

    Args:
        model: the slim model.
        whole: the uncut one, without memory.
        sizes: see `_Sizes`.
    """
    with without_memory():
        traced = type(model).from_config(sizes.config)
    numbered = {}
    for name, sized in whole.state_dict().items():
        if sized.is_floating_point():
            numbered[name] = torch.arange(1, sized.numel() + 1, dtype=torch.float64).view(sized.shape)
    traced.load_state_dict(numbered, assign=True, strict=False)
    cut = _cut_alike(model, traced, sizes)
    return {name: cut[name] for name in numbered if name in cut}


def _cut_alike(model: Forecaster, whole: Forecaster, sizes: _Sizes) -> dict[str, Tensor]:
    """The tensors of an uncut model that was cut as the slim one was.

    Raises:
        TspruneError: the slim model has others, so it was not made by a cut alone.
    """
    cut = slim(whole, sizes.kept(model), {sizes.renamed(name) for name in model.indexed}).state_dict()
    own = {sizes.renamed(name): tensor.shape for name, tensor in model.state_dict().items()}
    wrong = [name for name, shape in own.items() if name not in cut or cut[name].shape != shape]
    wrong += sorted(set(cut) - set(own))
    if wrong:
        raise TspruneError(
            f"{wrong[0]} does not have the size that config.json and the plan give it; only models that were cut by a "
            "plan can be written at their uncut sizes"
        )
    return cut


def _neutral(whole: nn.Module) -> set[str]:
    """Names of the tensors that are 1 in a norm that does nothing."""
    paths = [path for path, module in whole.named_modules() if isinstance(module, NORMS)]
    return {f"{path}.{leaf}" for path in paths for leaf in ("weight", "running_var")}
