"""A table of what the parts of a network cost on this machine, and the latency it predicts for a cut one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from tsprune.blocks.attention import Attention
from tsprune.blocks.branch import Branch
from tsprune.blocks.keycache import KeyCache
from tsprune.errors import TspruneError
from tsprune.evaluation.cost import latency, random_batch, threads_set
from tsprune.evaluation.metrics import DECILES
from tsprune.models._forecaster import Forecaster
from tsprune.slimming import slim

SHARES = (1.0, 0.75, 0.5, 0.25, 0.125, 0.0)
"""Parts of every branch's units for which it is timed; 0 stands for one unit."""

Operations = Callable[[Forecaster], Mapping[str, float]]
"""Operations of every linear map and attention of a model, by path, see `tsprune.budgets.Flops.of_modules`."""


@dataclass(frozen=True)
class CostTable:
    """Times of the residual branches of one model on one machine, one thread, eager torch.

    A branch is timed with few, some and all of its units on the inputs of a real forecast, norm and addition included.
    Between these sizes the time is interpolated over its operations. What is not in branches is one constant, chosen
    so that the prediction for the uncut model is its measured time.

    Args:
        dense_ms: measured time of one forecast by the uncut model, milliseconds.
        rest_ms: what does not belong to any branch.
        operations: of every branch of the uncut model, by path.
        calls: by path of a branch, the kinds of calls that one forecast makes, each a key of `times`.
        times: by kind of call, shares of the operations that are left, rising, and milliseconds, never falling.
    """

    dense_ms: float
    rest_ms: float
    operations: Mapping[str, float]
    calls: Mapping[str, Sequence[str]]
    times: Mapping[str, Sequence[Sequence[float]]]

    def predict(self, model: Forecaster, operations: Mapping[str, float]) -> float:
        """Predicted time of one forecast, milliseconds.

        Args:
            model: the cut model, which may be on the meta device.
            operations: of its linear maps and attentions, by path.
        """
        total = self.rest_ms
        for path, left in branch_operations(model, operations).items():
            share = left / self.operations[path] if self.operations.get(path) else 1.0
            for call in self.calls.get(path, ()):
                shares, times = self.times[call]
                total += float(np.interp(share, shares, times))
        return total

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        """From what `to_json` gave."""
        return cls(**facts)


def measure_table(
    model: Forecaster,
    operations: Operations,
    context: int,
    horizon: int,
    batch: int = 1,
    *,
    repeats: int = 15,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> CostTable:
    """Measure a model's table; takes some seconds.

    Args:
        model: the uncut model.
        operations: counts those of a cut model.
        context: steps of context L.
        horizon: steps of forecast H.
        batch: rows B of one forecast.
        repeats: timed calls of each size, taken in turns; the median counts.
        clock: nanoseconds of wall time.

    Raises:
        TspruneError: a size or the number of repeats is not positive.
    """
    if repeats < 1:
        raise TspruneError(f"repeats is {repeats}, expected at least 1")
    dense_ms = latency({"model": model}, batch, context, horizon, 1, repeats, clock=clock)["model"].median_ms
    calls, inputs = _record(model, context, horizon, batch)
    dense = branch_operations(model, operations(model))
    sizes = [slim(model, _kept(model, share)).eval() for share in SHARES]
    left = [branch_operations(cut, operations(cut)) for cut in sizes]
    times: dict[str, list[list[float]]] = {}
    with threads_set(1), torch.no_grad():
        for call, (path, given, named) in inputs.items():
            # Once a cut has emptied a branch (of one unit), the branch of the next larger size stands in.
            there = [
                (ops[path] / max(dense[path], 1.0), cut) for cut, ops in zip(sizes, left, strict=True) if path in ops
            ]
            branches = [cut.get_submodule(path) for _, cut in there]
            runs = [partial(_call, branch, given, named) for branch in branches]
            took = _median_ms(runs, repeats, clock, model.device)
            points = sorted(zip((share for share, _ in there), took, strict=True))
            # More units never cost less: what looks so is noise.
            times[call] = [[s for s, _ in points], np.maximum.accumulate([t for _, t in points]).tolist()]
    inside = sum(times[call][1][-1] for own in calls.values() for call in own)
    if inside > dense_ms:
        # Timed alone the branches took longer than the whole forecast: they share it in proportion.
        times = {call: [s, [t * dense_ms / inside for t in ms]] for call, (s, ms) in times.items()}
        inside = dense_ms
    return CostTable(dense_ms, dense_ms - inside, dense, calls, times)


def branch_operations(model: nn.Module, operations: Mapping[str, float]) -> dict[str, float]:
    """Operations of every branch that is still there, by path."""
    return {
        path: sum(count for name, count in operations.items() if name.startswith(f"{path}."))
        for path, module in model.named_modules()
        if isinstance(module, Branch) and module.inner is not None
    }


Inputs = dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]]


def _record(model: Forecaster, context: int, horizon: int, batch: int) -> tuple[dict[str, list[str]], Inputs]:
    """The calls that one forecast makes, by branch, and for each kind of call one branch and its inputs."""
    calls: dict[str, list[str]] = {}
    inputs: Inputs = {}

    def note(path: str, branch: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        # A cache goes on growing: what counts is how much it holds at this call.
        named = {name: v.length if isinstance(v, KeyCache) else v for name, v in named.items()}
        shapes = [tuple(v.shape) for v in (*given, *named.values()) if isinstance(v, Tensor)]
        shapes += [(named["cache"],)] if isinstance(named.get("cache"), int) else []
        weights = [tuple(p.shape) for p in branch.parameters()]
        inner = branch.inner if isinstance(branch, Branch) else branch
        call = f"{type(inner).__name__} {weights} {shapes}"
        calls.setdefault(path, []).append(call)
        inputs.setdefault(call, (path, given, named))

    handles = [
        module.register_forward_pre_hook(partial(note, path), with_kwargs=True)
        for path, module in model.named_modules()
        if isinstance(module, Branch) and module.inner is not None
    ]
    try:
        model.forecast(random_batch(model, batch, context, horizon), horizon, DECILES)
    finally:
        for handle in handles:
            handle.remove()
    return calls, inputs


def _call(branch: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
    """One call as recorded; a cache is made anew, as long as it was and as wide as the branch at hand needs it."""
    if isinstance(held := named.get("cache"), int):
        cache = KeyCache()
        inner = branch.inner if isinstance(branch, Branch) else None
        if held and isinstance(inner, Attention) and inner.heads:
            rows, shape = given[0].shape[0], inner.shape
            cache.key = given[0].new_zeros(rows, shape.kv_heads, held, shape.pair_width)
            cache.value = given[0].new_zeros(rows, shape.kv_heads, held, shape.value_width)
        named = named | {"cache": cache}
    branch(*given, **named)


def _kept(model: Forecaster, share: float) -> dict[str, list[int]]:
    """The first units of every head, key/value and channel group, at least one of each."""
    groups = model.unit_groups()
    shared = {group.path for group in groups.values() if group.kind == "kv_group"}
    return {
        name: list(range(max(1, group.floor, round(share * group.units))))
        for name, group in groups.items()
        if group.kind in ("kv_group", "ffn_channel") or (group.kind == "head" and group.path not in shared)
    }


def _median_ms(
    runs: Sequence[Callable[[], Any]], repeats: int, clock: Callable[[], int], device: torch.device
) -> list[float]:
    """Median time of each call, taken in turns, milliseconds."""

    def finished(run: Callable[[], Any]) -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    found: list[list[int]] = [[] for _ in runs]
    for turn in range(repeats + 2):
        for place, run in enumerate(runs):
            before = clock()
            finished(run)
            if turn >= 2:
                found[place].append(clock() - before)
    return [float(np.median(times)) * 1e-6 for times in found]
