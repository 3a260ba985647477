"""From the rows of a batch to packed windows, and from tokens back to rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tsprune.blocks.patching import left_fill, right_fill
from tsprune.blocks.tracing import neighbours, newest, tracing
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._forecaster import window_index
from tsprune.models._packing import Packed, Variates, pack

PATHS = tuple((2 * number + 1) / 20 for number in range(10))
"""Levels of the paths that are fed back."""
Block = Callable[[Batch, int, Sequence[float]], Tensor]
"""Quantiles of a batch, for so many steps, at these levels."""
Fill = Callable[[Tensor], Tensor]
"""Puts values where `[B, L]` has NaN."""


@dataclass(frozen=True)
class PackedWindows:
    """The windows of a batch as packed rows, in the order in which the windows first appear.

    Tokens of the targets come first: the pasts of all series, then their futures.

    Args:
        packed: the tokens.
        rows: `[n]` which rows of the batch are targets.
        place: `[n]` window times V plus place in the window, of each of them.
        series: places V for targets in a window.
        past: context tokens N of a series.
        ahead: horizon tokens M of a series.
    """

    packed: Packed
    rows: Tensor
    place: Tensor
    series: int
    past: int
    ahead: int

    def recent(self, tokens: Tensor, count: int) -> Tensor:
        """The last context tokens of each target, `[n, at most count, ...]`, of `[W, T, ...]`."""
        return self._of_targets(tokens[:, : self.series * self.past], self.past)[:, -count:]

    def last(self, tokens: Tensor) -> Tensor:
        """Last context token of each target, `[n, ...]`, of `[W, T, ...]`."""
        return self.recent(tokens, 1)[:, 0]

    def horizon(self, tokens: Tensor) -> Tensor:
        """Horizon tokens of each target, `[n, M, ...]`, of `[W, T, ...]`."""
        start = self.series * self.past
        return self._of_targets(tokens[:, start : start + self.series * self.ahead], self.ahead)

    def _of_targets(self, tokens: Tensor, length: int) -> Tensor:
        return tokens.reshape(-1, length, *tokens.shape[2:])[self.place]


def pack_windows(
    batch: Batch, size: int, width: int, *, limit: int, fill: Fill, ahead: int = 0, teach: bool = False
) -> PackedWindows:
    """Pack the windows of a batch.

    A row is a target, a covariate with a known future, or a covariate without. Steps of a window before any of its
    rows has a value are padding.

    Args:
        batch: rows and groups.
        size: steps of a patch.
        width: entries of a token.
        limit: steps of context that are used.
        fill: gives missing values their number; they stay marked as not observed.
        ahead: horizon tokens; 0 for none, also of covariates.
        teach: whether the horizon tokens of targets hold the batch's target values, else 0.

    Raises:
        TspruneError: a target has known future values.
    """
    context = left_fill(newest(batch.context, limit), size)
    future = _future(batch, ahead * size, teach)
    whole = torch.cat([context, future], dim=-1)
    seen = ~torch.isnan(whole)
    values = fill(whole)
    split = context.shape[-1]
    if _plain(batch):
        return _alone(values, seen, split, size, width, ahead)
    targets, known = _kinds(batch)
    window = window_index(batch)
    count = int(window.max()) + 1
    parts: list[Variates] = []
    tables: list[tuple[Tensor, Tensor, int]] = []
    for chosen, has_future in ((targets, ahead > 0), (known & ~targets, ahead > 0), (~known & ~targets, False)):
        rows = chosen.nonzero().flatten()
        if len(rows) == 0 and parts:
            continue
        members, present, place = _table(rows, window[rows], count)
        past_seen, ahead_seen = (side[members] & present[..., None] for side in (seen[:, :split], seen[:, split:]))
        own = values[members]
        part = Variates(own[..., :split], past_seen, predicted=not parts, present=present)
        parts.append(replace(part, future=own[..., split:], future_seen=ahead_seen) if has_future else part)
        tables.append((rows, place, members.shape[1]))
    nothing = torch.zeros(count, split, dtype=torch.long, device=window.device)
    padding = nothing.index_add(0, window, seen[:, :split].long()).cumsum(-1) == 0
    packed = pack(parts, padding, size, width)
    rows, place, series = tables[0]
    return PackedWindows(packed, rows, place, series, split // size, ahead)


def _plain(batch: Batch) -> bool:
    """Whether every row is a target and a window of its own."""
    return batch.group_ids is None and batch.is_target is None and batch.future is None


def _alone(values: Tensor, seen: Tensor, split: int, size: int, width: int, ahead: int) -> PackedWindows:
    """Windows of one target each, `[B, L]` with the horizon behind step `split`."""
    shown, held = values[:, None], seen[:, None]
    part = Variates(shown[..., :split], held[..., :split], predicted=True)
    if ahead:
        part = replace(part, future=shown[..., split:], future_seen=held[..., split:])
    packed = pack([part], seen[:, :split].long().cumsum(-1) == 0, size, width)
    rows = torch.arange(values.shape[0], device=values.device)
    return PackedWindows(packed, rows, rows, 1, split // size, ahead)


def _kinds(batch: Batch) -> tuple[Tensor, Tensor]:
    """Which rows are targets, and which have known future values, bool `[B]` each."""
    rows = batch.context.shape[0]
    targets = torch.ones(rows, dtype=torch.bool, device=batch.context.device)
    if batch.is_target is not None:
        targets = batch.is_target
    known = torch.zeros_like(targets) if batch.future is None else ~torch.isnan(batch.future).all(-1)
    if bool((known & targets).any()):
        row = int((known & targets).nonzero()[0])
        raise TspruneError(
            f"row {row} of the batch is a target and has known future values; this family uses known values of "
            "covariates alone: leave them out, or mark the row as a covariate"
        )
    return targets, known


def _future(batch: Batch, steps: int, teach: bool) -> Tensor:
    """What is known of the horizon `[B, steps]`, NaN elsewhere."""
    ahead = batch.context.new_full((batch.context.shape[0], steps), torch.nan)
    given = batch.target if teach else None
    for values in (batch.future, given):
        if values is not None and steps:
            values = right_fill(values[:, :steps].to(ahead.dtype), steps, float("nan"))
            ahead = torch.where(torch.isnan(ahead), values, ahead)
    return ahead


def _table(rows: Tensor, window: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of one kind by window.

    Returns:
        `[W, V]` row numbers, padded with 0; bool `[W, V]` which are no padding; `[n]` flat place of each row.
    """
    order = torch.argsort(window, stable=True)
    counts = torch.bincount(window, minlength=count)
    starts = counts.cumsum(0) - counts
    size = int(counts.max())
    rank = torch.empty_like(window)
    rank[order] = torch.arange(len(window), device=window.device) - starts[window[order]]
    members = torch.zeros(count, size, dtype=torch.long, device=window.device)
    members[window, rank] = rows
    present = torch.arange(size, device=window.device) < counts[:, None]
    return members, present, window * size + rank


def zero_fill(x: Tensor) -> Tensor:
    """0 in own units where a value is missing, as Moirai 1 was trained and is run by its authors."""
    return torch.nan_to_num(x, nan=0.0)


def causal_mean_fill(x: Tensor) -> Tensor:
    """Mean of all earlier values where one is missing, gaps among these counting as their last value.

    Before the first value stands that value. Rows without any value become 0.

    Args:
        x: `[B, L]`, NaN = missing.
    """
    observed = ~torch.isnan(x)
    steps = torch.arange(x.shape[-1], device=x.device)
    last = neighbours(observed)[0] if tracing() else torch.where(observed, steps, -1).cummax(-1).values
    begin = (last < 0).sum(-1, keepdim=True)
    held = torch.nan_to_num(x, nan=0.0).double()
    held = held.gather(-1, torch.where(last < 0, begin.clamp(max=x.shape[-1] - 1), last))
    earlier = (held * (last >= 0)).cumsum(-1) - held
    mean = earlier / (steps - begin).clamp(min=1)
    return torch.where(observed, x, torch.where(last < 0, held, mean).to(x.dtype))


def all_rows(batch: Batch, rows: Tensor, quantiles: Tensor) -> Tensor:
    """Quantiles of every row of a batch.

    Covariates are not forecast: they get their known future and, where that is unknown, the mean of their context.

    Args:
        batch: rows B.
        rows: `[n]` the targets.
        quantiles: `[n, Q, H]` of the targets.

    Returns:
        `[B, Q, H]`.
    """
    if _plain(batch):
        return quantiles
    steps = quantiles.shape[-1]
    mean = torch.nan_to_num(batch.context.nanmean(-1, keepdim=True), nan=0.0)
    known = _future(batch, steps, teach=False)
    given = torch.where(torch.isnan(known), mean, known).to(quantiles.dtype)
    return given[:, None].repeat(1, quantiles.shape[1], 1).index_copy(0, rows, quantiles)


def by_paths(batch: Batch, steps: int, native: int, levels: Sequence[float], block: Block) -> Tensor:
    """Forecasts of any length: ten quantile paths are fed back, and the forecasts of all paths are pooled.

    Each path stands for a tenth of the probability, by the level in its middle, so that pooling them is as good as
    having drawn them. The paths of all targets of a window go together, level by level; covariates are missing where
    their future is unknown.

    Args:
        batch: rows B.
        steps: wanted steps.
        native: steps of one block.
        levels: quantile levels Q.
        block: quantiles `[B, levels, H]` at any levels, of at most `native` steps.

    Returns:
        `[B, Q, steps]`.
    """
    if steps <= native:
        return block(batch, steps, levels)
    wanted, rows, paths = (*levels, *PATHS), batch.rows, len(PATHS)
    blocks = [block(batch, native, wanted)]
    targets = _kinds(batch)[0]
    context, future = batch.context[:, None].expand(-1, paths, -1), batch.future
    path = torch.arange(paths, device=context.device)
    ids = None if batch.group_ids is None else (batch.group_ids[:, None] * paths + path).flatten()
    while (done := len(blocks) * native) < steps:
        known = _future(replace(batch, future=future), native, teach=False)
        fed = torch.where(targets[:, None, None], blocks[-1][:, len(levels) :].to(context.dtype), known[:, None])
        context = torch.cat([context, fed], dim=-1)
        future = None if future is None or future.shape[1] <= native else future[:, native:]
        longer = Batch(
            context.flatten(0, 1),
            group_ids=ids,
            future=None if future is None else future.repeat_interleave(paths, 0),
            is_target=targets.repeat_interleave(paths),
        )
        samples = block(longer, min(steps - done, native), PATHS).view(rows, paths * paths, -1)
        blocks.append(pooled_quantiles(samples, wanted))
    return torch.cat(blocks, dim=-1)[:, : len(levels)]


def pooled_quantiles(samples: Tensor, levels: Sequence[float]) -> Tensor:
    """Quantiles of equally weighted samples, of which each stands in the middle of its share of the probability.

    Args:
        samples: `[B, S, H]`.
        levels: wanted levels Q.

    Returns:
        `[B, Q, H]`, linear between samples and constant beyond the outermost.
    """
    ordered, count = samples.sort(dim=1).values, samples.shape[1]
    place = (torch.tensor(list(levels), dtype=ordered.dtype, device=ordered.device) * count - 0.5).clamp(0, count - 1)
    below = place.floor().long()
    above = place.ceil().long()
    return torch.lerp(ordered[:, below], ordered[:, above], (place - below)[None, :, None])
