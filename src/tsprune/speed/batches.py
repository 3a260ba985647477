"""The largest batch that still pays: doubled until memory or throughput says stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

MOST = 4096
SHARE = 0.25
"""Part of the free memory that forecasts of one batch may take."""
GAIN = 1.05
"""Throughput must rise by this factor for a larger batch to be worth it."""
PATIENCE = 2
"""So many doublings without a gain end the search: one may have met a neighbour on the machine."""


@dataclass(frozen=True)
class Largest:
    """A batch and why it was not doubled again.

    Attributes:
        windows: rows of the batch.
        why: one sentence without a full stop.
        tried: windows per second, by batch.
    """

    windows: int
    why: str
    tried: dict[int, float]


def largest_batch(
    run: Callable[[int], object],
    taken: Callable[[], float],
    budget: float,
    *,
    start: int = 1,
    most: int = MOST,
    repeats: int = 5,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Largest:
    """Double the batch until its memory would leave the budget, or until no more windows a second come of it.

    Args:
        run: forecasts a batch of so many windows.
        taken: bytes that forecasts have taken at most so far, beyond what was there before.
        budget: bytes that they may take.
        start: first batch, which is run whatever it takes.
        most: largest batch that is tried.
        repeats: forecasts of each batch, of which the fastest counts.
        clock: nanoseconds.
    """
    tried: dict[int, float] = {}
    windows = best = start
    while True:
        run(windows)
        took = []
        for _ in range(repeats):
            before = clock()
            run(windows)
            took.append(clock() - before)
        tried[windows] = windows / max(min(took), 1) * 1e9
        if tried[windows] >= GAIN * tried[best]:
            best = windows
        if windows >= best * 2**PATIENCE:
            gain = f"{GAIN - 1:.0%} more windows a second"
            return Largest(best, f"neither {best * 2} nor {windows} at a time bring {gain}", tried)
        if 2 * taken() > budget:
            allowed = f"{SHARE:.0%} of the free memory ({budget / 2**20:,.0f} MiB)"
            return Largest(windows, f"{2 * windows} at a time may take more than {allowed}", tried)
        if 2 * windows > most:
            return Largest(windows, f"no more than {most} at a time are tried", tried)
        windows *= 2
