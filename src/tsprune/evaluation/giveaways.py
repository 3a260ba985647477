"""Covariates that give the answer away: the target itself, or a copy of it moved in time, among the covariates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tsprune.data.panel import FloatArray, Panel
from tsprune.evaluation.copies import agreeing

Ints = NDArray[np.int64]

_PROBES = 48
_FEWEST = 12
_CHANGES = 8
_NEARLY = 1e-6


@dataclass(frozen=True)
class Giveaway:
    """A covariate from which a target is read off.

    Args:
        column: name of the covariate.
        known: whether it is one that is known ahead.
        lead: the covariate holds the target of so many steps later; negative: earlier.
        series: ids of the series where that is so.
    """

    column: str
    known: bool
    lead: int
    series: tuple[str, ...]


def find_giveaways(panel: Panel, horizon: int, starts: NDArray[np.int64]) -> list[Giveaway]:
    """Covariates equal to the target up to an affine map, moved by fewer steps than may be seen at an origin.

    A covariate known ahead gives the target away when it holds it at the same step, up to `horizon` steps later, or
    fewer than `horizon` steps earlier; an earlier one is known at the origin anyway. A covariate of the past gives it
    away only when it holds later steps. Whole series are looked at, and the part from `starts` on, so that forecasts
    which were overwritten by what came are found. What agrees nearly, such as a calendar, is not meant: agreement is
    exact to the precision of float32 wherever both are observed, at least 12 steps of which 8 change the target.

    Args:
        panel: the series.
        horizon: steps H to forecast.
        starts: first step of the judged part of every series `[S]`.
    """
    leads = {True: _by_size(1 - horizon, horizon), False: _by_size(1, horizon)}
    found: dict[tuple[str, bool, int], list[str]] = {}
    for series, start in zip(panel.series, starts.tolist(), strict=True):
        sections: tuple[tuple[Mapping[str, FloatArray], bool], ...] = ((series.known, True), (series.past, False))
        for columns, known in sections:
            for name, column in columns.items():
                lead = _lead(series.values, column, leads[known], start)
                if lead is not None:
                    found.setdefault((name, known, lead), []).append(series.id)
    return [Giveaway(name, known, lead, tuple(ids)) for (name, known, lead), ids in found.items()]


def _by_size(low: int, high: int) -> Ints:
    """Whole numbers between both, both included, the smallest shifts first."""
    leads = np.arange(low, high + 1)
    return np.asarray(leads[np.argsort(np.abs(leads), kind="stable")], np.int64)


def _lead(target: FloatArray, column: FloatArray, leads: Ints, start: int) -> int | None:
    """The first of the leads at which the column holds the target, in the whole series or from `start` on."""
    for first in (0, start):
        own = target[first:]
        for lead in _suspected(own, column[first:], leads):
            if _holds(own, column[first:], lead):
                return lead
    return None


def _suspected(target: FloatArray, column: FloatArray, leads: Ints) -> list[int]:
    """Leads at which a few steps where the target changes correlate perfectly with the column.

    A necessary condition, and cheap: `[leads, probes]` values however long the series is.
    """
    if np.nanmax(column, initial=-np.inf) == np.nanmin(column, initial=np.inf):
        return []
    moved = np.flatnonzero(np.diff(target) != 0)
    moved = moved[~np.isnan(target[moved]) & ~np.isnan(target[moved + 1])]
    if len(moved) < _CHANGES:
        return []
    picked = moved[np.unique(np.linspace(0, len(moved) - 1, _PROBES // 2).astype(int))]
    probes = np.unique(np.concatenate([picked, picked + 1]))
    where = probes[None, :] - leads[:, None]
    inside = (where >= 0) & (where < len(column))
    y = np.broadcast_to(target[probes].astype(np.float64), where.shape)
    x = np.where(inside, column[np.clip(where, 0, len(column) - 1)], np.nan).astype(np.float64)
    seen = ~np.isnan(x)
    count = np.maximum(seen.sum(1, keepdims=True), 1)
    x = np.where(seen, x, 0)
    dx = np.where(seen, x - x.sum(1, keepdims=True) / count, 0)
    dy = np.where(seen, y - np.where(seen, y, 0).sum(1, keepdims=True) / count, 0)
    cross, norm = (dx * dy).sum(1), (dx * dx).sum(1) * (dy * dy).sum(1)
    return [int(lead) for lead in leads[(norm > 0) & (cross * cross >= (1 - _NEARLY) * norm)]]


def _holds(target: FloatArray, column: FloatArray, lead: int) -> bool:
    """Whether step t of the column is an affine map of step `t + lead` of the target, wherever both are observed."""
    first = max(0, -lead)
    x = column[first : max(first, min(len(column), len(target) - lead))].astype(np.float64)
    y = target[first + lead : first + lead + len(x)].astype(np.float64)
    seen = ~(np.isnan(x) | np.isnan(y))
    x, y = x[seen], y[seen]
    changes = np.diff(y)
    # A straight line is a copy of any other, at any lead: time itself is no leak.
    if len(y) < _FEWEST or int((changes != 0).sum()) < _CHANGES or len(np.unique(changes)) < 3:
        return False
    bends = np.abs(np.diff(changes))
    if bends.max() <= 1e-5 * np.abs(y).max():
        return False
    return bool(agreeing(y, x, slice(None)).all())
