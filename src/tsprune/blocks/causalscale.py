"""Scaling by statistics that grow with the series: no patch is scaled by what comes after it (Toto)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST = 0.1
"""Added to every variance, and the least scale between bounds; in the units of the series, squared and plain."""


@dataclass(frozen=True)
class Moments:
    """What the observed values of a series have been like so far, float64.

    Args:
        count: number of them, `[..., L]`.
        mean: their mean, 0 before the first.
        squares: sum of their squared distances from the mean.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    @classmethod
    def along(cls, values: Tensor, observed: Tensor, before: Moments | None = None) -> Moments:
        """At every step of a series, by Welford's update: no difference of large sums of squares is taken.

        Args:
            values: `[..., L]`; what is not observed may be anything, NaN included.
            observed: bool, broadcastable to `[..., L]`.
            before: where the series stood earlier, broadcastable to `[..., 1]`; None begins it.
        """
        weight = observed.expand_as(values).double()
        wide = torch.where(observed, values, 0.0).double()
        count, total, squares = weight.cumsum(-1), wide.cumsum(-1), torch.zeros_like(weight[..., :1])
        first = torch.zeros_like(squares)
        if before is not None:
            count, total = count + before.count, total + before.count * before.mean
            first, squares = before.mean.expand_as(first), before.squares.expand_as(squares)
        mean = total / count.clamp(min=1)
        previous = torch.cat([first, mean[..., :-1]], dim=-1)
        return cls(count, mean, squares + (weight * (wide - previous) * (wide - mean)).cumsum(-1))

    def at(self, steps: slice) -> Moments:
        """The same at some of the steps."""
        return Moments(self.count[..., steps], self.mean[..., steps], self.squares[..., steps])

    def as_tokens(self) -> Moments:
        """The steps on an axis of their own, `[..., L, 1]`."""
        return Moments(self.count[..., None], self.mean[..., None], self.squares[..., None])


@dataclass(frozen=True)
class CausalScale:
    """Location and scale of patches, float64.

    Args:
        location: `[B, T, 1]`.
        scale: `[B, T, 1]`.
        ends: moments at the end of the series, `[B, 1, 1]`, or of each of several series that continue it, `[B, S, 1]`.
        whole: scale of the whole context `[B, 1, 1]`, from which bounds are taken.
    """

    location: Tensor
    scale: Tensor
    ends: Moments
    whole: Tensor

    def last(self) -> CausalScale:
        """That of the last patch alone."""
        return CausalScale(self.location[:, -1:], self.scale[:, -1:], self.ends, self.whole)

    def apply(self, values: Tensor) -> Tensor:
        """Scale patches `[B, T, P]`; NaN enters as the location, which is 0."""
        return torch.where(torch.isnan(values), 0.0, (values.double() - self.location) / self.scale)


@dataclass(frozen=True)
class PatchScaling:
    """How patches are scaled: by mean and standard deviation of all observed steps up to the end of each.

    Args:
        patch: steps of a patch P.
        bound: how many times larger or smaller than the scale of the whole context a scale may be; None for no bound.
    """

    patch: int
    bound: float | None = None

    def over(self, context: Tensor, observed: Tensor) -> CausalScale:
        """The scale of every patch of a context.

        Args:
            context: `[B, T * P]`.
            observed: bool of that shape: what enters the statistics.
        """
        moments = Moments.along(context, observed)
        ends = moments.at(slice(-1, None)).as_tokens()
        whole = (ends.squares / ends.count.clamp(min=1) + SMALLEST).sqrt()
        tokens = moments.at(slice(self.patch - 1, None, self.patch)).as_tokens()
        return CausalScale(tokens.mean, self._scale(tokens, whole), ends, whole)

    def behind(self, before: CausalScale, values: Tensor) -> CausalScale:
        """The scale of one more patch of each of S series that continue a context, `[B, S, P]`."""
        observed = torch.ones((), dtype=torch.bool, device=values.device)
        ends = Moments.along(values, observed, before.ends).at(slice(-1, None))
        return CausalScale(ends.mean, self._scale(ends, before.whole), ends, before.whole)

    def _scale(self, moments: Moments, whole: Tensor) -> Tensor:
        scale = (moments.squares / (moments.count - 1).clamp(min=1) + SMALLEST).sqrt()
        if self.bound is None:
            return scale
        return scale.clamp(min=(whole / self.bound).clamp(min=SMALLEST), max=whole * self.bound)
