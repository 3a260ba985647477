"""Series of a window behind each other as one sequence of patch tokens, and their statistics (Moirai, 2402.02592)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from tsprune.blocks.tracing import tracing

LEAST_VARIANCE = 1e-5


@dataclass(frozen=True)
class Packed:
    """Rows of patch tokens.

    Args:
        values: `[B, T, P]` in own units, without NaN; entries beyond a token's patch size mean nothing.
        observed: bool `[B, T, P]`.
        sample_id: `[B, T]` int64; tokens see only those of the same sample. 0 is padding.
        time_id: `[B, T]` int64, the patch's place in time.
        variate_id: `[B, T]` int64, the series of the sample.
        predicted: bool `[B, T]`, tokens of the horizon that are to be forecast.
        patch_size: `[B, T]` int64.
    """

    values: Tensor
    observed: Tensor
    sample_id: Tensor
    time_id: Tensor
    variate_id: Tensor
    predicted: Tensor
    patch_size: Tensor

    @property
    def series(self) -> Tensor:
        """A number for each pair of sample and variate, `[B, T]`."""
        return self.sample_id * (self.variate_id.max() + 1) + self.variate_id

    def repeated(self, times: int) -> Packed:
        """Every row `times` times, the copies of a row behind each other."""
        return Packed(*(getattr(self, field.name).repeat_interleave(times, 0) for field in fields(self)))


@dataclass(frozen=True)
class Variates:
    """Series of one kind, for all windows.

    Args:
        past: `[W, V, L]`, without NaN.
        past_seen: bool `[W, V, L]`.
        future: `[W, V, H]`, or None for series that end with the context.
        future_seen: bool `[W, V, H]`.
        predicted: whether the future is to be forecast.
        present: bool `[W, V]`, False for series that a window does not have; None means all.
    """

    past: Tensor
    past_seen: Tensor
    future: Tensor | None = None
    future_seen: Tensor | None = None
    predicted: bool = False
    present: Tensor | None = None


def pack(parts: Sequence[Variates], padding: Tensor, size: int, width: int) -> Packed:
    """Lay the series of each window behind each other: of every kind first all pasts, then all futures.

    Times count from the first patch in which one of the first kind (the targets) has an observed value; patches before
    it share its number. Context is filled on the left to whole patches, the future on the right.

    Args:
        parts: kinds of series, targets first; all have the same context and the same horizon.
        padding: bool `[W, L]`, steps before a window's context begins. Patches of padding alone get sample 0. In other
            kinds than the first, steps that fill the first patch do not count as padding, as in the public code.
        size: steps of a patch.
        width: entries P of a token, the largest patch size.
    """
    past_time, future_time = _times(parts, size)
    begun = [_patches(padding, size, left=True, value=value).logical_not().any(-1) for value in (True, False)]
    runs: list[dict[str, Tensor]] = []
    first = 0
    for number, part in enumerate(parts):
        sides = [(part.past, part.past_seen, past_time, begun[number > 0], False)]
        if part.future is not None and part.future_seen is not None:
            sides.append((part.future, part.future_seen, future_time, torch.ones_like(future_time) > 0, part.predicted))
        for values, seen, time, live, predicted in sides:
            left = time is past_time
            tokens = _patches(values, size, left=left)
            windows, count, length = tokens.shape[:3]
            sample = live.long()[:, None].expand(windows, count, length)
            if part.present is not None:
                sample = sample * part.present[..., None]
            variate = torch.arange(first, first + count, device=values.device)[None, :, None].expand_as(sample)
            run = {
                "values": F.pad(tokens, (0, width - size)),
                "observed": F.pad(_patches(seen, size, left=left), (0, width - size)),
                "sample_id": sample,
                "time_id": time[:, None].expand_as(sample),
                "variate_id": variate,
                "predicted": torch.full_like(sample, predicted, dtype=torch.bool),
                "patch_size": torch.full_like(sample, size),
            }
            runs.append({name: tensor.flatten(1, 2) for name, tensor in run.items()})
        first += part.past.shape[1]
    return Packed(**{name: torch.cat([run[name] for run in runs], dim=1) for name in runs[0]})


def _times(parts: Sequence[Variates], size: int) -> tuple[Tensor, Tensor]:
    """Times of context patches `[W, N]` and of those of the horizon `[W, M]`."""
    seen = _patches(parts[0].past_seen, size, left=True).any(-1).any(1)
    past = ((seen.long().cumsum(-1) > 0).long().cumsum(-1) - 1).clamp(min=0)
    steps = max((part.future.shape[-1] for part in parts if part.future is not None), default=0)
    return past, past[:, -1:] + 1 + torch.arange(-(-steps // size), device=past.device)


def _patches(x: Tensor, size: int, *, left: bool, value: float = 0) -> Tensor:
    """`[..., L]` to `[..., N, size]`, filled on one side."""
    missing = -x.shape[-1] % size
    if missing:
        x = F.pad(x, (missing, 0) if left else (0, missing), value=value)
    return x.reshape(*x.shape[:-1], x.shape[-1] // size, size)


def packed_scale(packed: Packed) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each series over what is observed and not to be forecast, computed in float64.

    The variance divides by n - 1, and gets 1e-5 added: series whose values differ by much less than 0.003 in their own
    units look constant to the network. Padding has mean 0 and deviation 1.

    Returns:
        Two tensors `[B, T, 1]`, float64.
    """
    counted = packed.observed & ~packed.predicted[..., None]
    series = packed.series
    # Only windows of a single series are traced: their tokens have number 1, padding has 0.
    numbers = 2 if tracing() else int(series.max()) + 1
    empty = torch.zeros(series.shape[0], numbers, dtype=torch.float64, device=series.device)

    def total(x: Tensor) -> Tensor:
        return empty.scatter_add(1, series, x.sum(-1, dtype=torch.float64)).gather(1, series)[..., None]

    values = packed.values.double()
    number = total(counted)
    location = total(values * counted) / number.clamp(min=1)
    variance = total((values - location).square() * counted) / (number - 1).clamp(min=1)
    padding = (packed.sample_id == 0)[..., None]
    return location.masked_fill(padding, 0.0), (variance + LEAST_VARIANCE).sqrt().masked_fill(padding, 1.0)
