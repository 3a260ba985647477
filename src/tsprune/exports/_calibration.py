"""Which tensors of a checkpoint are weights of maps, and what comes into these maps on a user's windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tsprune.blocks.experts import MixtureOfExperts
from tsprune.blocks.linear import ChannelLinear
from tsprune.blocks.patchsizes import PatchSizeLinear
from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster
from tsprune.slimming import meta_twin

NARROW, SMALL = 16, 256
"""Maps with fewer inputs, and embeddings with fewer entries, are not worth a scale for each row."""


def mean_inputs(model: Forecaster, batches: Sequence[Batch], horizon: int) -> dict[str, Tensor]:
    """What a mean token brings to each weight, in the public layout, for the tensors that are weights of maps.

    Weights are those of linear maps with enough inputs, routers excepted (there a rounding error sends a token
    elsewhere), and of large embeddings.

    Args:
        model: left as it is.
        batches: calibration windows.
        horizon: steps to forecast.

    Returns:
        By public name, of the tensor's shape: the mean over all tokens, 0 for maps that no token reached and those of
        which it is not known.
    """
    maps = _maps(model)
    with _watched({name: part for name, part in maps.items() if isinstance(part, nn.Linear)}) as seen:
        for batch in batches:
            model.forecast(batch, horizon)
    # Sent through the same way as the weights, numbers end up beside the weights that they belong to.
    carried = {}
    for name, tensor in model.state_dict().items():
        carried[name] = torch.full(tensor.shape, torch.nan, dtype=torch.float64)
        if name in maps:
            carried[name] = seen[name].expand(tensor.shape).clone() if name in seen else torch.zeros_like(carried[name])
    twin = meta_twin(model)
    twin.load_state_dict(carried, assign=True)
    found = twin.tensors_to_public()
    return {name: t for name, t in found.items() if t.ndim in (2, 3) and t.numel() and bool(t.isfinite().all())}


def as_rows(tensor: Tensor) -> Tensor:
    """A weight of the public layout as `[output channels, inputs]`; convolutions of width 1 and stacks of maps too."""
    if tensor.ndim == 3 and tensor.shape[-1] > 1:
        return tensor.reshape(-1, tensor.shape[-1])
    return tensor.reshape(len(tensor), -1)


def _maps(model: Forecaster) -> dict[str, nn.Module]:
    """The modules whose weights are worth rounding, by the name of the weight."""
    routers = {
        id(part)
        for mixture in model.modules()
        if isinstance(mixture, MixtureOfExperts)
        for part in (mixture.gate, mixture.shared_expert_gate)
    }
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        if id(module) in routers:
            continue
        wide = isinstance(module, nn.Linear | PatchSizeLinear) and module.weight.shape[-1] >= NARROW
        if wide or (isinstance(module, nn.Embedding) and module.num_embeddings >= SMALL):
            found[f"{path}.weight"] = module
    return found


@contextmanager
def _watched(maps: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Mean inputs `[I]`, float64, of the maps that run inside; filled when it ends."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    means: dict[str, Tensor] = {}

    def watcher(name: str) -> Any:
        def note(module: nn.Module, given: tuple[Any, ...]) -> None:
            x = given[0].detach()
            if isinstance(module, ChannelLinear) and module.reads is not None:
                x = x.index_select(-1, module.reads.to(x.device))
            x = x.reshape(-1, x.shape[-1]).double()
            sums[name] = sums.get(name, 0) + x.sum(0).cpu()
            counts[name] = counts.get(name, 0) + len(x)

        return note

    handles = [module.register_forward_pre_hook(watcher(name)) for name, module in maps.items()]
    try:
        yield means
    finally:
        for handle in handles:
            handle.remove()
    means |= {name: total / max(1, counts[name]) for name, total in sums.items()}
