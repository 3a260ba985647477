"""Roots of rising functions, for many elements at once.

Each element is dropped when it has converged, which depends on this element alone: a root does not change with what
else lies in the tensor, and an element that takes long holds up no other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_EPSILON = torch.finfo(torch.float64).eps
_TINY = torch.finfo(torch.float64).tiny
_PLAIN_STEPS = 16
_INTERPOLATING_STEPS = 100
_ALL_HALVINGS = 66
_POLISHING_STEPS = 8
_LAST_DIGIT = 1e-7


@torch.no_grad()
def rising_root(
    function: Callable[[Tensor, Tensor], Tensor],
    lower: Tensor,
    upper: Tensor,
    at_lower: Tensor,
    at_upper: Tensor,
    steps: int = _INTERPOLATING_STEPS + _ALL_HALVINGS,
) -> Tensor:
    """Where rising functions, one per element, first reach 0 in their brackets: bisection that interpolates if it may.

    Chandrupatla's method (Advances in Engineering Software 28, 1997): inverse quadratic interpolation through the last
    three points where these allow a monotone parabola, a halving otherwise. A smooth function takes about eight
    evaluations, one that jumps about sixty.

    Args:
        function: value at points `[M]` float64 of the elements `[M]` int64 that are still open. It may jump.
        lower: `[N]` float64.
        upper: `[N]` float64.
        at_lower: what the function is near the lower end `[N]`, negative. Only its sign need be right.
        at_upper: what it is near the upper end, positive.
        steps: after so many it ends, with what was found by then; by default every bracket has closed before.

    Returns:
        `[N]` float64: the least point found where the function is not negative, to about the last digit. NaN where an
        end or the function is NaN.
    """
    out = torch.where(lower.isnan(), lower, upper)
    index = torch.arange(out.numel(), device=out.device)
    lowest, highest = torch.stack([lower, at_lower]), torch.stack([upper, at_upper])
    ends = _Ends(lowest, highest, lowest)
    for step in range(steps):
        tolerance = ends.tolerance()
        # NaN compares false, so what is NaN leaves like what has converged.
        going = (ends.opposite[0] - ends.newest[0]).abs() > 2 * tolerance
        kept = (going & (ends.newest[1] != 0) & (ends.opposite[1] != 0)).nonzero().squeeze(1)
        if not kept.numel():
            break
        if len(kept) < len(index):
            index, tolerance, ends = index[kept], tolerance[kept], _Ends(*(part[:, kept] for part in ends))
        middle = _plain_middle if step < _PLAIN_STEPS else _middle_number
        point = middle(ends.newest[0], ends.opposite[0])
        if step < _INTERPOLATING_STEPS:
            point = ends.interpolated(tolerance, point)
        value = function(point, index)
        best = out[index]
        best = torch.where(value >= 0, torch.minimum(best, point), best)
        out[index] = torch.where(value.isnan(), value, best)
        ends = ends.moved(point, value)
    return out


@torch.no_grad()
def polished_root(
    function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    lower: Tensor,
    upper: Tensor,
    at_lower: Tensor,
    at_upper: Tensor,
    tolerance: Tensor,
) -> Tensor:
    """Like `rising_root`, for functions whose slope is known and whose root is known roughly.

    Newton's method. From the second step on the slopes are scaled by what the secant shows of their error, so that they
    may be off by a constant factor. What has not converged after a few steps is left to `rising_root`.

    Args:
        function: value and slope at points `[M]` float64 of the elements `[M]` int64 that are still open. It may jump.
        start: where to begin `[N]` float64; NaN or points outside the bracket for its middle.
        lower: `[N]` float64.
        upper: `[N]` float64.
        at_lower: what the function is near the lower end `[N]`, negative. Only its sign need be right.
        at_upper: what it is near the upper end, positive.
        tolerance: values up to this pass as 0, `[N]` positive.

    Returns:
        `[N]` float64. NaN where an end or the function is NaN.
    """
    out = torch.where(lower.isnan(), lower, upper)
    width = 2 * _EPSILON * torch.maximum(lower.abs(), upper.abs()) + _TINY
    index = (upper - lower > 2 * width).nonzero().squeeze(1)
    if not index.numel():
        return out
    enough = tolerance
    x, lower, upper, at_lower, at_upper, tolerance = (
        part[index] for part in (start, lower, upper, at_lower, at_upper, tolerance)
    )
    before: tuple[Tensor, Tensor, Tensor] | None = None
    for _ in range(_POLISHING_STEPS):
        x = torch.where((x > lower) & (x < upper), x, lower + 0.5 * (upper - lower))
        value, slope = function(x, index)
        above = value >= 0
        upper, at_upper = torch.where(above, x, upper), torch.where(above, value, at_upper)
        lower, at_lower = torch.where(above, lower, x), torch.where(above, at_lower, value)
        size = value.abs()
        if before is None:
            step, left = value / slope, size
        else:
            old, old_value, old_slope = before
            seen = (value - old_value) / (x - old)
            step = value / (slope * (seen / (0.5 * (slope + old_slope))).nan_to_num(1.0).clamp(0.2, 5.0))
            # A step gains at least the factor that the one before it gained.
            left = size * (size / old_value.abs()).clamp(max=1.0)
        found = x - step
        inside = (found > lower) & (found < upper)
        out[index] = torch.where(inside, found, torch.where(value.isnan(), value, x))
        # A steep function need not come closer to 0 than the next number does; but slopes may be wrong.
        last = (step.abs() <= 4 * _EPSILON * x.abs()) & (size < _LAST_DIGIT)
        # A value of NaN compares false, so it leaves like what has converged.
        going = (size > tolerance) & ~last & ~(inside & (left <= tolerance))
        kept = going.nonzero().squeeze(1)
        if not kept.numel():
            return out
        before = (x, value, slope)
        x = found
        if len(kept) < len(index):
            index, x, lower, upper, at_lower, at_upper, tolerance = (
                part[kept] for part in (index, x, lower, upper, at_lower, at_upper, tolerance)
            )
            before = (before[0][kept], before[1][kept], before[2][kept])

    def rest(point: Tensor, some: Tensor) -> Tensor:
        which = index[some]
        value = function(point, which)[0]
        return value.masked_fill(value.abs() <= enough[which], 0.0)

    out[index] = rising_root(rest, lower, upper, at_lower, at_upper)
    return out


class _Ends(NamedTuple):
    """The newest point, the one across the root, and the one before these; each with the function there, `[2, M]`."""

    newest: Tensor
    opposite: Tensor
    third: Tensor

    def moved(self, point: Tensor, value: Tensor) -> _Ends:
        """With a newer point."""
        same = (value >= 0) == (self.newest[1] >= 0)
        return _Ends(
            newest=torch.stack([point, value]),
            opposite=torch.where(same, self.opposite, self.newest),
            third=torch.where(same, self.newest, self.opposite),
        )

    def tolerance(self) -> Tensor:
        """How far apart points can usefully be."""
        best = torch.where(self.newest[1].abs() < self.opposite[1].abs(), self.newest[0], self.opposite[0])
        return (2 * _EPSILON) * best.abs() + _TINY

    def interpolated(self, tolerance: Tensor, otherwise: Tensor) -> Tensor:
        """The next point: by the parabola through all three as far as it can be trusted, else the one given."""
        (newest, at_newest), at_opposite, at_third = self.newest, self.opposite[1], self.third[1]
        back = self.opposite - self.newest
        width, rise = back
        x, y = back / (self.opposite - self.third)
        trusted = (y.square() < x) & ((1 - y).square() < 1 - x)
        far = at_third - at_opposite
        line = at_newest / rise * at_third / -far
        bend = (self.third[0] - newest) / width * at_newest / (at_third - at_newest)
        least = tolerance / width.abs()
        share = (line + bend * at_opposite / far).clamp(least, 1 - least)
        return torch.where(trusted, newest + share * width, otherwise)


def _plain_middle(one: Tensor, other: Tensor) -> Tensor:
    return one + 0.5 * (other - one)


def _middle_number(one: Tensor, other: Tensor) -> Tensor:
    """The number with as many numbers of float64 between it and one as between it and other.

    Halving like this closes any bracket in 64 steps, be its ends 1e-300 and 1e300.
    """
    first, second = _in_order(one.view(torch.int64)), _in_order(other.view(torch.int64))
    middle = (first >> 1) + (second >> 1) + (first & second & 1)
    return _in_order(middle).view(torch.float64)


def _in_order(bits: Tensor) -> Tensor:
    """Bits of float64 as whole numbers in the same order, and back again."""
    return bits ^ ((bits >> 63) & torch.iinfo(torch.int64).max)
