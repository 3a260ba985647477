"""How windows are worked through: in portions that fit, shared among processes, summed so that neither shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster, window_index
from tsprune.processes import started

R = TypeVar("R")
TOKENS = 1024


class Dealt(list[Batch]):
    """Batches of which the first goes to process number `first`, so that many short lists keep all processes busy."""

    def __init__(self, batches: Iterable[Batch], first: int) -> None:
        super().__init__(batches)
        self.first = first


def over_windows(model: Forecaster, batches: Iterable[Batch], step: Callable[[Batch], R]) -> Iterator[R]:
    """What `step` makes of every window that this process is responsible for, portion by portion.

    Several processes take the batches in turn. Whole batches, not single windows: a matrix product of other size rounds
    differently, and this way every window is computed exactly as by one process alone.

    Where a portion does not fit into memory it is halved and tried again, and so are all that follow. `step` must
    therefore return what it finds, as numbers of single windows or sums over them, and add it up nowhere itself.

    Args:
        model: portions come on its device.
        batches: the same in every process.
        step: called with portions of whole windows, without repetition.

    Raises:
        TspruneError: one window alone does not fit into memory.
    """
    rank, processes = process()
    most: int | None = None
    first = batches.first if isinstance(batches, Dealt) else 0
    for number, batch in enumerate(batches, start=first):
        if number % processes != rank:
            continue
        waiting = [batch] if most is None else split_windows(batch, most)
        while waiting:
            portion = waiting.pop(0)
            found, fits = _attempt(model, portion, step)
            if fits:
                yield from found
                continue
            windows = count_windows(portion)
            if windows == 1:
                raise TspruneError(
                    "one window alone does not fit into memory; use a shorter --context, a smaller model or another "
                    "--device (--max-memory sets how many windows are scored at once, and here that is 1 already)"
                )
            most = -(-windows // 2)
            waiting = [part for whole in (portion, *waiting) for part in split_windows(whole, most)]


def _attempt(model: Forecaster, portion: Batch, step: Callable[[Batch], R]) -> tuple[list[R], bool]:
    """What `step` returns, or that memory ran out; on return nothing of a failed attempt is held any more."""
    try:
        return [step(portion.to(model.device))], True
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    return [], False


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch says that memory ran out; on CPUs only its text tells."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error)
    return "DefaultCPUAllocator" in text or "not enough memory" in text or "CUDA out of memory" in text


def count_windows(batch: Batch) -> int:
    """Windows of a batch; 0 for a batch without rows."""
    if batch.group_ids is None or not batch.rows:
        return batch.rows
    return len(torch.unique(batch.group_ids))


def split_windows(batch: Batch, size: int) -> list[Batch]:
    """The batch in portions of at most `size` windows, in order; rows of one window stay together.

    Raises:
        TspruneError: `size` is below 1.
    """
    if size < 1:
        raise TspruneError(f"portions of {size} windows were asked for, expected at least 1")
    windows = count_windows(batch)
    if windows <= size:
        return [batch]
    index = window_index(batch)
    return [
        rows_of(batch, ((index >= first) & (index < first + size)).nonzero()[:, 0]) for first in range(0, windows, size)
    ]


def rows_of(batch: Batch, rows: Tensor) -> Batch:
    """The given rows `[n]`, int64, of a batch, in that order."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    chosen = {name: value[rows.to(value.device)] for name, value in values.items() if value is not None}
    return replace(batch, **chosen)


def process() -> tuple[int, int]:
    """Number of this process and how many there are: (0, 1) unless a launcher started several.

    With several, the group through which they exchange sums is set up by accelerate, the first time.
    """
    if started() < 2:
        return 0, 1
    from accelerate.state import PartialState

    state: Any = PartialState()
    return state.process_index, state.num_processes


def column_sums(values: Tensor) -> Tensor:
    """Sums over the tokens of `[n, E]`: `[E]`, float64.

    Single precision is added up in runs of 1,024 tokens, and these in float64: as exact as its numbers deserve, at a
    fraction of the time. Truth values are counted.
    """
    if values.dtype == torch.float64:
        return values.sum(0)
    total = torch.zeros(values.shape[1], dtype=torch.float64, device=values.device)
    for part in torch.split(values, TOKENS):
        total += part.float().sum(0)
    return total


class Totals:
    """Sums over windows, in float64 on the CPU, and over all processes."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.windows = 0
        # Whether the sums are those of all processes already.
        self.whole = False

    def add(self, name: str, values: Tensor) -> None:
        """Add `values`, of any shape but always the same for one name."""
        values = values.detach().to(device="cpu", dtype=torch.float64)
        self.sums[name] = self.sums[name] + values if name in self.sums else values

    def count(self, n: int) -> None:
        """So many windows more were added."""
        self.windows += n

    def shared(self) -> Totals:
        """The totals of all processes together, the same bits in each; every process has to ask."""
        parts = [self]
        if not self.whole and process()[1] > 1:
            from torch import distributed

            # Gathered and summed in the order of the processes: an all-reduce may differ between them.
            everyone: list[Totals | None] = [None] * process()[1]
            distributed.all_gather_object(everyone, self)
            parts = [part for part in everyone if part is not None]
        together = combined(parts)
        together.whole = True
        return together

    def result(self) -> tuple[dict[str, Tensor], int]:
        """The sums by name and the number of windows, of all processes together; every process has to ask.

        Raises:
            TspruneError: no process had any window.
        """
        together = self.shared()
        if not together.windows:
            raise TspruneError("scoring needs at least one batch of windows, got none")
        return together.sums, together.windows

    def means(self) -> dict[str, Tensor]:
        """The sums divided by the number of windows; as `result`."""
        sums, windows = self.result()
        return {name: values / windows for name, values in sums.items()}


def totals_over(
    model: Forecaster, batches: Iterable[Batch], step: Callable[[Batch], tuple[dict[str, Tensor], int]]
) -> Totals:
    """Sums over all windows of what `step` finds; arguments and errors as in `over_windows`.

    Args:
        model: portions come on its device.
        batches: the same in every process.
        step: gives sums over the windows of a portion by name, and how many windows these are.
    """
    totals = Totals()
    for found, windows in over_windows(model, batches, step):
        for name, values in found.items():
            totals.add(name, values)
        totals.count(windows)
    return totals


def combined(parts: Iterable[Totals]) -> Totals:
    """The sums of several totals together."""
    together, whole = Totals(), []
    for part in parts:
        for name, values in part.sums.items():
            together.add(name, values)
        together.count(part.windows)
        whole.append(part.whole)
    together.whole = all(whole)
    return together
