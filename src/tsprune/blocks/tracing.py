"""What blocks do differently while a network is traced into a graph: there, no size and no value can choose the code.

Every function gives the same to the bit either way, where the graph's operations do and series are finite.
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


def picked(x: Tensor, steps: int, axis: int = -1) -> Tensor:
    """The last steps of an axis, at most all, in a way that tells the tracer their number, which a slice hides."""
    return x.narrow(axis, x.shape[axis] - steps, steps)


def newest(x: Tensor, steps: int, axis: int = -1) -> Tensor:
    """The last steps of an axis, or all where there are fewer."""
    if tracing():
        return picked(x, at_most(steps, x.shape[axis]), axis)
    length = x.shape[axis]
    return x.narrow(axis, max(0, length - steps), min(steps, length))


def at_most(limit: int, size: int) -> int:
    """The size, but no more than a limit; both may be symbols, of which it is not asked which one is smaller."""
    smaller: int = torch.sym_min(limit, size)  # type: ignore[no-untyped-call]
    return smaller


def fitted(x: Tensor, steps: int) -> Tensor:
    """The last steps of `[..., L]`, with NaN in front where there are fewer: `[..., steps]`."""
    if tracing():
        return picked(F.pad(x, (steps, 0), value=torch.nan), steps)
    x = x[..., -steps:]
    return F.pad(x, (steps - x.shape[-1], 0), value=torch.nan)


def observed_mean(x: Tensor, missing: Tensor) -> Tensor:
    """The mean over the last axis of what is not NaN, kept as 1; NaN where nothing is.

    Args:
        x: `[..., L]`.
        missing: bool `[..., L]`, where it is NaN.
    """
    if not tracing():
        return x.nanmean(-1, keepdim=True)
    # The translation of the operation itself asks three times over what is missing.
    return torch.where(missing, 0.0, x).sum(-1, keepdim=True) / (~missing).to(x.dtype).sum(-1, keepdim=True)


def without_nan(x: Tensor, value: float) -> Tensor:
    """`x` with a number in place of NaN, and the largest numbers in place of infinity, which graphs leave as it is."""
    return torch.where(torch.isnan(x), value, x) if tracing() else torch.nan_to_num(x, nan=value)


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


def arcsinh(x: Tensor) -> Tensor:
    """The inverse of sinh; runtimes of graphs have it in float32 alone, so elsewhere it is made of a logarithm.

    Near 0 that is exact to the last digit of 1, not of the result.
    """
    if tracing() and x.dtype == torch.float64:
        return x.sign() * (x.abs() + (x.square() + 1).sqrt()).log()
    return x.arcsinh()


def sinh(x: Tensor) -> Tensor:
    """The hyperbolic sine; in float64 graphs of exponentials, as `arcsinh`."""
    if tracing() and x.dtype == torch.float64:
        return (x.exp() - (-x).exp()) / 2
    return x.sinh()
