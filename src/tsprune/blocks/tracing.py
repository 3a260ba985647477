"""What blocks do differently while a network is traced into a graph: there, no size and no value can choose the code.

Every function gives the same to the bit either way, where the graph's operations do.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def tracing() -> bool:
    """Whether the network is being traced for an export: sizes and values are symbols, so shortcuts are left out."""
    return torch.compiler.is_exporting()


def all_set(flags: Tensor) -> bool:
    """Whether every flag is set, so that a mask may be left out; False while tracing, which keeps the mask."""
    return not tracing() and bool(flags.all())


def picked(x: Tensor, steps: int) -> Tensor:
    """The last steps of `[..., L]`, at most L, by an index: so the tracer knows their number, which a slice hides."""
    places = torch.arange(steps, device=x.device) + (x.shape[-1] - steps)
    return x.index_select(-1, places)


def newest(x: Tensor, steps: int) -> Tensor:
    """The last steps of `[..., L]`, or all where there are fewer."""
    if tracing():
        return picked(x, torch.sym_min(steps, x.shape[-1]))  # type: ignore[no-untyped-call]
    return x[..., -steps:]


def fitted(x: Tensor, steps: int) -> Tensor:
    """The last steps of `[..., L]`, with NaN in front where there are fewer: `[..., steps]`."""
    if tracing():
        return picked(F.pad(x, (steps, 0), value=torch.nan), steps)
    x = x[..., -steps:]
    return F.pad(x, (steps - x.shape[-1], 0), value=torch.nan)


def neighbours(observed: Tensor) -> tuple[Tensor, Tensor]:
    """For each step the last observed one up to it, -1 where there is none, and the next from it on, else the length.

    By sums and one scatter, as graphs have no running maximum: the k-th observed step is put at place k of a list.

    Args:
        observed: bool `[..., L]`.

    Returns:
        Two int64 tensors `[..., L]`.
    """
    length = observed.shape[-1]
    steps = torch.arange(length, device=observed.device).expand(observed.shape)
    count = observed.long().cumsum(-1)
    # One place more than there are steps: there goes what was not observed, and nobody reads it.
    places = torch.full_like(F.pad(steps, (0, 1)), 0) + length
    places = places.scatter(-1, torch.where(observed, count - 1, length), steps)
    last = torch.where(count > 0, places.gather(-1, (count - 1).clamp(min=0)), -1)
    return last, places.gather(-1, count - observed.long())
