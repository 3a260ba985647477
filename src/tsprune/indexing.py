"""Whether channels on the residual width are better cut by an index or zeroed in place: measured, not assumed."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsprune.blocks.linear import CHANNELS, ChannelLinear
from tsprune.evaluation.cost import random_batch, threads_set
from tsprune.models._forecaster import Forecaster, Kept
from tsprune.slimming import closed

REPEATS = 31
GAIN = 0.95


def worth_indexing(model: Forecaster, kept: Kept, context: int, horizon: int, rows: int = 1) -> tuple[str, ...]:
    """The groups of channels on the residual width for which an index is faster than zeros on this machine.

    Each map alone is timed on inputs of the size that one forecast gives it, on one thread, in turns: as it is, and
    with an index for what is read or written. An index has to save 5 % of the median.

    Args:
        model: the model before the cut.
        kept: units that stay, by group name.
        context: steps of context of a forecast.
        horizon: steps of the forecast.
        rows: rows of its batch.

    Returns:
        Names of groups, sorted.
    """
    wanted = {name: units for name, units in kept.items() if name.rsplit("/", 1)[-1] in CHANNELS}
    if not wanted:
        return ()
    after = closed(model, kept)
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, ChannelLinear)}
    shapes = _input_shapes(model, {name.rsplit("/", 1)[0] for name in wanted}, context, horizon, rows)
    found = []
    with torch.no_grad(), threads_set(1):
        for name in wanted:
            path, kind = name.rsplit("/", 1)
            left = torch.tensor(after.get(name, wanted[name]), dtype=torch.long)
            size = layers[path].in_features if kind == "in_channel" else layers[path].out_features
            if path in shapes and len(left) < size and _faster(layers[path], kind, left, shapes[path]):
                found.append(name)
    return tuple(sorted(found))


def _input_shapes(model: Forecaster, paths: set[str], context: int, horizon: int, rows: int) -> dict[str, torch.Size]:
    """Shape of what each map is given in one forecast; maps that are not used are left out."""
    shapes: dict[str, torch.Size] = {}

    def watch(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def note(_: nn.Module, given: tuple[Any, ...]) -> None:
            shapes[path] = given[0].shape

        return note

    handles = [model.get_submodule(path).register_forward_pre_hook(watch(path)) for path in paths]
    try:
        model.forecast(random_batch(model, rows, context, horizon), min(horizon, model.native_horizon))
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def _faster(layer: ChannelLinear, kind: str, left: Tensor, shape: torch.Size) -> bool:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=draw).to(layer.weight)
    axis = 1 if kind == "in_channel" else 0
    left = left.to(x.device)
    weight = layer.weight.detach()
    small = weight.index_select(axis, left)

    def whole() -> Tensor:
        return F.linear(x, weight)

    def indexed() -> Tensor:
        if axis == 1:
            return F.linear(x.index_select(-1, left), small)
        out = F.linear(x, small)
        return out.new_zeros(*out.shape[:-1], weight.shape[0]).index_copy(-1, left, out)

    times: dict[Callable[[], Tensor], list[float]] = {whole: [], indexed: []}
    for turn in range(REPEATS + 3):
        for call, taken in times.items():
            started = time.perf_counter()
            call()
            if x.device.type == "cuda":
                torch.cuda.synchronize(x.device)
            if turn >= 3:
                taken.append(time.perf_counter() - started)
    return median(times[indexed]) < GAIN * median(times[whole])
