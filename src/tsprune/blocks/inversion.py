"""Quantiles of many mixtures at once: their roots on rough cdfs, put right on the exact ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from tsprune.blocks.components import BetaComponent, Component
from tsprune.blocks.roots import polished_root, rising_root
from tsprune.blocks.special import betainc

_FARTHEST = 1e300
_ROUNDING = 2 * torch.finfo(torch.float64).eps
_POLISHED = 3e-14
_ROUGH = 1e-3
_ROUGH_STEPS = 12
_CHUNK = 1 << 18
_FEW = 1 << 12


@dataclass(frozen=True, eq=False)
class Rows:
    """N mixtures in normalised units, float64: weights `[N, K]`, components `[N, k]`.

    `landmarks` are points `[N, P]` with the cdf there.
    """

    weights: Tensor
    components: Sequence[Component]
    landmarks: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, weights: Tensor, components: Sequence[Component], shape: torch.Size) -> Rows:
        """Every place of a mixture as a row.

        Args:
            weights: `[..., K]`, float64.
            components: their last axes add up to K.
            shape: to which all their other axes are broadcast.
        """

        def flat(value: Tensor, width: int) -> Tensor:
            return value.double().expand(*shape, width).reshape(-1, width)

        parts = [part.map(partial(flat, width=part.shape[-1])).prepared() for part in components]
        rows = cls(flat(weights, weights.shape[-1]), parts)
        points = [point for part in parts for point in part.landmarks()]
        if not points:
            return rows
        joined = torch.cat(points, dim=-1)
        count = joined.shape[-1]
        every = torch.arange(len(joined), device=joined.device).repeat_interleave(count)
        return replace(rows, landmarks=(joined, rows.take(every).cdf(joined.flatten()).view(-1, count)))

    def take(self, index: Tensor) -> Rows:
        """The mixtures of some rows, `[M]` int64, without landmarks."""
        return Rows(self.weights[index], [part.map(lambda value: value[index]) for part in self.components])

    def cdf(self, x: Tensor) -> Tensor:
        """`[N]` in and out."""
        x = x[:, None]
        slow = [part for part in self.components if isinstance(part, BetaComponent) and not part.closed]
        if len(slow) < 2 or len(x) > _FEW:
            return self._weighted([part.cumulated(x) for part in self.components])
        # One call for all of them: with few rows, the time goes into the number of calls.
        arguments = [torch.cat(each, dim=-1) for each in zip(*(part.beta_arguments(x) for part in slow), strict=True)]
        values = torch.split(betainc(*arguments), [part.shape[-1] for part in slow], dim=-1)
        found = {id(part): part.from_beta(x, value) for part, value in zip(slow, values, strict=True)}
        parts = [found[id(part)] if id(part) in found else part.cumulated(x) for part in self.components]
        return self._weighted(parts)

    def roughly(self, x: Tensor) -> Tensor:
        """The cdf to about three digits; `[N]` in and out."""
        x = x[:, None]
        return self._weighted([part.roughly(x) for part in self.components])

    def cdf_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The cdf, and about its slope; `[N]` in and out."""
        return self.cdf(x), self._weighted([part.slope(x[:, None]) for part in self.components])

    def _weighted(self, values: Sequence[Tensor]) -> Tensor:
        return (self.weights * torch.cat(list(values), dim=-1)).sum(-1)

    def quantiles(self, levels: Tensor) -> Tensor:
        """At levels `[S, N]`, float64."""
        row = torch.arange(levels.shape[1], device=levels.device).repeat(len(levels))
        chunks = math.ceil(levels.numel() * self.weights.shape[-1] / _CHUNK) or 1
        some = zip(row.chunk(chunks), levels.flatten().chunk(chunks), strict=True)
        return torch.cat([self._quantile(*each) for each in some]).view_as(levels)

    def _quantile(self, row: Tensor, level: Tensor) -> Tensor:
        """Of some rows `[M]` int64 at levels `[M]`: between the least and the greatest quantile of the components."""
        some = self.take(row)
        ends = self._bracket(some, row, level)

        def exact(x: Tensor, index: Tensor) -> Tensor:
            wanted = level[index]
            value = some.taken(index).cdf(x) - wanted
            # No more than rounding: to look for the other side of the root would cost evaluations and gain nothing.
            return value.masked_fill(value.abs() <= _ROUNDING * wanted, 0.0)

        if all(part.closed for part in self.components):
            return rising_root(exact, *ends)
        enough = _ROUGH * level * (1 - level)

        def rough(x: Tensor, index: Tensor) -> Tensor:
            value = some.taken(index).roughly(x) - level[index]
            return value.masked_fill(value.abs() <= enough[index], 0.0)

        def sloped(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
            value, slope = some.taken(index).cdf_and_slope(x)
            return value - level[index], slope

        tolerance = torch.maximum(_POLISHED * torch.minimum(level, 1 - level), _ROUNDING * level)
        start = rising_root(rough, *ends, steps=_ROUGH_STEPS)
        return polished_root(sloped, start, *ends, tolerance=tolerance)

    def taken(self, index: Tensor) -> Rows:
        """As `take`, without work if these are all rows in their order, as they are as long as none was dropped."""
        return self if len(index) == len(self.weights) else self.take(index)

    def _bracket(self, some: Rows, row: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ends between which the quantiles lie, and how much the cdf is off the level there; all `[M]`."""
        lowers, uppers = zip(*(part.bracket(level[:, None]) for part in some.components), strict=True)
        lower = torch.cat(lowers, dim=-1).amin(-1).clamp(-_FARTHEST, _FARTHEST)
        upper = torch.cat(uppers, dim=-1).amax(-1).clamp(-_FARTHEST, _FARTHEST)
        at_lower, at_upper = -level, 1 - level
        if self.landmarks is None:
            return lower, upper, at_lower, at_upper
        points, cumulated = (part[row] for part in self.landmarks)
        for point, value in zip(points.unbind(-1), (cumulated - level[:, None]).unbind(-1), strict=True):
            rise, fall = (value < 0) & (point > lower), (value >= 0) & (point < upper)
            lower, at_lower = torch.where(rise, point, lower), torch.where(rise, value, at_lower)
            upper, at_upper = torch.where(fall, point, upper), torch.where(fall, value, at_upper)
        return lower, upper, at_lower, at_upper
