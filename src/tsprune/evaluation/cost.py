"""What a model costs: parameters, floating point operations, latency."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.evaluation import machine
from tsprune.evaluation.evaluate import Predictor, device_of
from tsprune.evaluation.metrics import DECILES

_NANO_TO_MILLI = 1e-6
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Latency:
    """Time of one forecast of one batch, over all repeats.

    Attributes:
        median_ms: median wall time, milliseconds.
        q1_ms: first quartile of the wall time.
        q3_ms: third quartile of the wall time.
        minimum_ms: shortest wall time, the one least disturbed by neighbours.
        cpu_ms: median of the processor time of all threads of this process.
        busy: whether other programs kept the machine busy meanwhile; then the times are not reliable.
    """

    median_ms: float
    q1_ms: float
    q3_ms: float
    minimum_ms: float
    cpu_ms: float
    busy: bool


def parameters(model: object) -> int:
    """Number of parameters as tensors really are, shared ones once; 0 for a baseline without a network."""
    if not isinstance(model, nn.Module):
        return 0
    return sum(parameter.numel() for parameter in model.parameters())


def flops(model: object, context: int, horizon: int, batch: int = 1) -> int:
    """Floating point operations of one forecast, counted by running it.

    A multiplication and its addition are 2 operations. Matrix products, convolutions and attention count;
    what works on single values (norms, activations, softmax, biases) does not, as is usual. With a horizon
    within the model's native one this is one pass; a longer one includes every pass of the roll-out.

    Args:
        model: a forecaster; anything that is not a network costs 0.
        context: steps of context L, all observed.
        horizon: steps of forecast H.
        batch: rows B, each a window of its own.

    Raises:
        TspruneError: if one of the sizes is not positive.
    """
    return flops_of(model, random_batch(model, batch, context, horizon), horizon)


def flops_of(model: object, rows: Batch, horizon: int) -> int:
    """The same of one forecast of given rows, such as the series of one window together.

    Args:
        model: as in `flops`.
        rows: what is forecast.
        horizon: steps of forecast H.
    """
    if not isinstance(model, nn.Module):
        return 0
    if not isinstance(model, Predictor):
        raise TspruneError(f"{type(model).__name__} has no forecast method, so it cannot be counted")
    # The counter misses the CPU's fused attention; the plain path is two matrix products, which it counts.
    with _without_gradients(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.forecast(rows, horizon, DECILES)
    return int(counter.get_total_flops())


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """Parameters that want no gradient: the counter stumbles over views of those that do."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


def latency(
    models: Mapping[str, Predictor],
    batch_size: int,
    context: int,
    horizon: int,
    threads: int = 1,
    repeats: int = 20,
    *,
    warmup: int = 3,
    seed: int = 0,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, Latency]:
    """Time forecasts of the same random batch by several models in turn: A, B, A, B, ...

    Taking turns spreads a disturbance over all of them. Each model is warmed up first; garbage collection is
    off while timing; torch's number of threads is set and restored. Eager torch, no compilation: a table of
    these numbers must say so.

    Args:
        models: what to time, by name.
        batch_size: rows B, each a window of its own.
        context: steps of context L.
        horizon: steps of forecast H.
        threads: threads torch may use.
        repeats: timed forecasts of each model.
        warmup: untimed forecasts of each model.
        seed: seed of the random batch.
        clock: nanoseconds of wall time.

    Returns:
        A latency per name, in the order given.

    Raises:
        TspruneError: if a size, the threads or the repeats are not positive.
    """
    if threads < 1 or repeats < 1 or warmup < 0:
        raise TspruneError(f"threads {threads}, repeats {repeats}, warmup {warmup}: expected 1, 1 and 0 or more")
    batches = {name: random_batch(m, batch_size, context, horizon, seed) for name, m in models.items()}

    def forecast(name: str, model: Predictor) -> None:
        finish(model.forecast(batches[name], horizon, DECILES))

    runs = {name: partial(forecast, name, model) for name, model in models.items()}
    with threads_set(threads):
        return taking_turns(runs, repeats, warmup=warmup, clock=clock)


def taking_turns(
    runs: Mapping[Name, Callable[[], object]],
    repeats: int,
    *,
    warmup: int = 3,
    pause: float = 0.0,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[Name, Latency]:
    """Time calls in turn: A, B, A, B, ... with garbage collection off and every one warmed up.

    Args:
        runs: what to time, by name; each returns once its work is done.
        repeats: timed calls of each.
        warmup: untimed calls of each.
        pause: seconds of rest before each timed call, so that the threads of the one before have gone to sleep.
        clock: nanoseconds of wall time.

    Returns:
        A latency per name, in the order given.
    """
    wall: dict[Name, list[int]] = {name: [] for name in runs}
    processor: dict[Name, list[int]] = {name: [] for name in runs}
    for run in runs.values():
        for _ in range(warmup):
            run()
    watch = _Neighbours()
    with _no_collection():
        for _ in range(repeats):
            for name, run in runs.items():
                if pause:
                    time.sleep(pause)
                before_cpu, before = time.process_time_ns(), clock()
                run()
                wall[name].append(clock() - before)
                processor[name].append(time.process_time_ns() - before_cpu)
    busy = watch.busy()
    return {name: _summary(wall[name], processor[name], busy) for name in runs}


def random_batch(model: object, rows: int, context: int, horizon: int, seed: int = 0) -> Batch:
    """Standard normal context of so many windows, `[rows, context]`, on the model's device and in float32.

    A model that takes only windows of several series gets them: `[rows * window_rows, context]`.

    Raises:
        TspruneError: if one of the sizes is not positive.
    """
    if min(rows, context, horizon) < 1:
        raise TspruneError(f"batch {rows}, context {context}, horizon {horizon}: expected positive sizes")
    together = int(getattr(model, "window_rows", 1))
    values = torch.randn(rows * together, context, generator=torch.Generator().manual_seed(seed))
    ids = torch.arange(rows).repeat_interleave(together) if together > 1 else None
    return Batch(values, group_ids=ids).to(device_of(model))


def _summary(wall: list[int], processor: list[int], busy: bool) -> Latency:
    times = np.array(wall, np.float64) * _NANO_TO_MILLI
    q1, median, q3 = (float(q) for q in np.quantile(times, (0.25, 0.5, 0.75)))
    return Latency(median, q1, q3, float(times.min()), float(np.median(processor)) * _NANO_TO_MILLI, busy)


def finish(forecast: torch.Tensor) -> None:
    """Wait for an accelerator that computes behind our back."""
    if forecast.device.type == "cuda":
        torch.cuda.synchronize(forecast.device)


class _Neighbours:
    """Whether other programs use more than half of the cores between its creation and the question."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._others = machine.cpu_seconds_of_others()

    def busy(self) -> bool:
        # Both readings cover the whole machine, not only the cores that this process may use.
        limit = (os.cpu_count() or 1) / 2
        now = machine.cpu_seconds_of_others()
        if self._others is None or now is None:
            return machine.load_average() > limit
        # The system counts in hundredths of a second: a shorter wait would be mostly rounding.
        elapsed = max(time.monotonic() - self._started, 0.2)
        return (now - self._others) / elapsed > limit


@contextmanager
def threads_set(number: int) -> Iterator[None]:
    """So many threads for torch; as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
