"""Several series of a window behind each other in one sequence: where their tokens stand and what they see."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tsprune.blocks.positions import causal_mask
from tsprune.blocks.tracing import all_set


@dataclass(frozen=True)
class OneSequence:
    """The order of M series of T tokens each, series by series, S = M T.

    Args:
        mask: bool `[W or 1, 1, S, S]`, True where attention is allowed, or None where `causal` says it all.
        causal: whether no token sees one that comes after it in the sequence; only for single series.
        positions: `[S]` or `[W, S]`, int64: a window alone counts its own tokens, however long others are.
        same: `[S, S]` int64, 1 where two tokens belong to one series, else 0; None for single series, where a bias by
            series is the same everywhere and a softmax does not see it.
    """

    mask: Tensor | None
    causal: bool
    positions: Tensor
    same: Tensor | None


def one_sequence(live: Tensor, readers: Tensor | None = None) -> OneSequence:
    """Lay out the series of every window.

    Args:
        live: bool `[W, M, T]`, False for tokens that hold nothing: before a series begins, or of a series that the
            window does not have. Nobody attends to them but they themselves.
        readers: bool `[W, M]`, series that see all tokens of those that are none, whatever their time, while every
            series sees itself up to the present. None: every token sees all series up to its time.
    """
    _, series, length = live.shape
    if series == 1:
        seen = live[:, 0]
        whole = all_set(seen)
        positions = torch.arange(length, device=live.device)
        return OneSequence(None if whole else causal_mask(seen), whole, positions, None)
    number = torch.arange(series, device=live.device).repeat_interleave(length)
    time = torch.arange(length, device=live.device).repeat(series)
    before, same = time[None, :] <= time[:, None], number[None, :] == number[:, None]
    allowed = before[None]
    if readers is not None:
        reads = readers.repeat_interleave(length, 1)
        allowed = (before & same) | (reads[:, :, None] & ~reads[:, None, :])
    seen = live.flatten(1)
    if not all_set(seen):
        itself = torch.eye(series * length, dtype=torch.bool, device=live.device)
        allowed = (allowed & seen[:, None, :]) | itself
    return OneSequence(allowed[:, None], False, _positions(live), same.long())


def _positions(live: Tensor) -> Tensor:
    """Place of each token in its window's sequence, as if the window were alone and began with its first live token."""
    _, series, length = live.shape
    lengths = live.any(1).sum(-1)
    if all_set(lengths == length):
        return torch.arange(series * length, device=live.device)
    time = torch.arange(length, device=live.device) - (length - lengths)[:, None]
    starts = torch.arange(series, device=live.device) * lengths[:, None]
    return (starts[:, :, None] + time[:, None, :]).clamp(min=0).flatten(1)
