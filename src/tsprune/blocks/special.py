"""Two numerical routines that torch lacks: the regularised incomplete beta function, and roots of rising functions.

Both work on all elements at once and drop each element when it has converged, which depends on this element alone: a
value does not change with what else lies in the tensor, and an element that takes long holds up no other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tsprune.errors import TspruneError

_FRACTION_STEPS = 4000
_STEPS_BETWEEN_CHECKS = 8
_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
_STIRLING_FROM = 10.0
_EPSILON = torch.finfo(torch.float64).eps
_PLAIN_STEPS = 16
_INTERPOLATING_STEPS = 100
_ALL_HALVINGS = 66


@torch.no_grad()
def betainc(a: Tensor, b: Tensor, x: Tensor, complement: Tensor | None = None, front: Tensor | None = None) -> Tensor:
    """The regularised incomplete beta function I_x(a, b), the cdf at x of a beta distribution.

    By the continued fraction of DLMF 8.17.22 (its even part, so that one step does the work of two), on the side of
    the mean where it converges fast, in float64. Relative error below 1e-11 for a and b in 1e-2 to 1e4, also where the
    result is tiny. The number of steps grows like the root of the larger of a and b.

    Args:
        a: first parameter, positive.
        b: second parameter, positive.
        x: upper limit in [0, 1].
        complement: 1 - x, where it is known better than this difference gives it.
        front: `log_beta_front(a, b)`, where it is at hand.

    Returns:
        The shape that the arguments broadcast to, in the dtype they promote to; it carries no gradient. NaN where an
        argument is NaN or out of range.

    Raises:
        TspruneError: the fraction did not converge, which takes a and b both far beyond 1e8.
    """
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), x.dtype)
    a, b, x = a.double(), b.double(), x.double()
    y = 1 - x if complement is None else complement.double()
    front = log_beta_front(a, b) if front is None else front.double()
    shape = (a + b + x + y + front).shape
    a, b, x, y, front = (part.expand(shape) for part in (a, b, x, y, front))
    usable = (a > 0) & (b > 0) & (x >= 0) & (y >= 0)
    total = a + b
    excess = b * x - a * y
    # Near the mean x / mean is 1 + u with u tiny, and log1p keeps the digits that a plain quotient would lose.
    power = a * _log_quotient(excess / a, x * total / a) + b * _log_quotient(-excess / b, y * total / b)
    other = x > (a + 1) / (total + 2)
    first, second = torch.where(other, b, a), torch.where(other, a, b)
    limit, rest = torch.where(other, y, x), torch.where(other, x, y)
    value = (front + power).exp() / _fraction(first, second, limit, rest)
    value = torch.where(other, 1 - value, value)
    return torch.where(usable, value, torch.nan).to(dtype)


def log_beta_front(a: Tensor, b: Tensor) -> Tensor:
    """log of m^a (1 - m)^b / B(a, b) at the mean m = a / (a + b): the part of `betainc` that x does not enter.

    Taken at the mean, the large terms of the three log gammas cancel on paper and need not do so in floating point.
    """
    a, b = a.double(), b.double()
    stirling = _stirling_rest(a + b) - _stirling_rest(a) - _stirling_rest(b)
    return 0.5 * (a.log() + b.log() - (a + b).log()) - _HALF_LOG_TWO_PI + stirling


def _stirling_rest(z: Tensor) -> Tensor:
    """lgamma(z) minus Stirling's approximation (z - 1/2) log z - z + log(2 pi) / 2, for z > 0."""
    large = z.clamp(min=_STIRLING_FROM)
    inverse = 1 / large
    square = inverse * inverse
    series = torch.full_like(z, _STIRLING[-1])
    for coefficient in reversed(_STIRLING[:-1]):
        series = series * square + coefficient
    small = z.clamp(max=_STIRLING_FROM)
    direct = torch.lgamma(small) - (small - 0.5) * small.log() + small - _HALF_LOG_TWO_PI
    return torch.where(z < _STIRLING_FROM, direct, series * inverse)


def _log_quotient(excess: Tensor, quotient: Tensor) -> Tensor:
    """log of a quotient that is 1 + excess, from whichever of the two is the more precise."""
    return torch.where(excess.abs() < 0.5, torch.log1p(excess), quotient.log())


def _fraction(a: Tensor, b: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """x^a y^b / (B(a, b) I_x(a, b)) for x below about the mean, float64; y = 1 - x. Lentz's method."""
    shape = a.shape
    out = torch.empty_like(a).flatten()
    index = torch.arange(out.numel(), device=out.device)
    drift = a * y - b * x + 1
    inverse = (a + 1).reciprocal()
    ratio = a * inverse
    value = ratio * drift
    parts = [a, b * x, (a + b) * x, x, 2 - x, drift, inverse, ratio, value, value, torch.zeros_like(value)]
    state = torch.stack([part.flatten() for part in parts])
    for step in range(1, _FRACTION_STEPS + 1):
        a, bx, sx, x, y_plus_one, drift, inverse, ratio, value, upper, lower = state
        shared = bx.sub(x, alpha=step).mul_(inverse).mul_(step)
        numerator = sx.add(x, alpha=step - 1).mul_(shared).mul_(ratio)
        torch.add(a, 2 * step + 1, out=inverse).reciprocal_()
        torch.add(a, step, out=ratio).mul_(inverse)
        denominator = shared.addcmul_(drift.add(y_plus_one, alpha=step), ratio).add_(step)
        torch.addcmul(denominator, numerator, lower, out=lower).reciprocal_()
        torch.addcdiv(denominator, numerator, upper, out=upper)
        change = upper * lower
        value.mul_(change)
        if step % _STEPS_BETWEEN_CHECKS:
            continue
        out[index] = value
        going = (change.sub_(1).abs_() > 2 * _EPSILON).nonzero().squeeze(1)
        if not going.numel():
            return out.view(shape)
        if going.numel() < index.numel():
            index, state = index[going], state.index_select(1, going)
    raise TspruneError(
        f"the incomplete beta function did not converge in {_FRACTION_STEPS} steps for a = {state[0, 0].item():g}, "
        f"b = {(state[1, 0] / state[3, 0]).item():g}; at least one of the two is expected to be below 1e8"
    )


@torch.no_grad()
def rising_root(
    function: Callable[[Tensor, Tensor], Tensor], lower: Tensor, upper: Tensor, at_lower: Tensor, at_upper: Tensor
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

    Returns:
        `[N]` float64: the least point found where the function is not negative, to about the last digit. NaN where an
        end or the function is NaN.
    """
    out = torch.where(lower.isnan(), lower, upper)
    index = torch.arange(out.numel(), device=out.device)
    ends = _Ends(lower, upper, lower, at_lower, at_upper, at_lower)
    for step in range(_INTERPOLATING_STEPS + _ALL_HALVINGS):
        tolerance = ends.tolerance()
        # NaN compares false, so what is NaN leaves like what has converged.
        going = (ends.opposite - ends.newest).abs() > 2 * tolerance
        kept = (going & (ends.at_newest != 0) & (ends.at_opposite != 0)).nonzero().squeeze(1)
        if not kept.numel():
            break
        index, tolerance, ends = index[kept], tolerance[kept], _Ends(*(part[kept] for part in ends))
        halfway = (_plain_middle if step < _PLAIN_STEPS else _middle_number)(ends.newest, ends.opposite)
        point = ends.interpolated(tolerance, halfway) if step < _INTERPOLATING_STEPS else halfway
        value = function(point, index)
        best = out[index]
        best = torch.where(value >= 0, torch.minimum(best, point), best)
        out[index] = torch.where(value.isnan(), value, best)
        ends = ends.moved(point, value)
    return out


class _Ends(NamedTuple):
    """The newest point, the one across the root, the one before these, and the function there; all `[M]`."""

    newest: Tensor
    opposite: Tensor
    third: Tensor
    at_newest: Tensor
    at_opposite: Tensor
    at_third: Tensor

    def moved(self, point: Tensor, value: Tensor) -> _Ends:
        """With a newer point."""
        same = (value >= 0) == (self.at_newest >= 0)
        return _Ends(
            newest=point,
            opposite=torch.where(same, self.opposite, self.newest),
            third=torch.where(same, self.newest, self.opposite),
            at_newest=value,
            at_opposite=torch.where(same, self.at_opposite, self.at_newest),
            at_third=torch.where(same, self.at_newest, self.at_opposite),
        )

    def tolerance(self) -> Tensor:
        """How far apart points can usefully be."""
        best = torch.where(self.at_newest.abs() < self.at_opposite.abs(), self.newest, self.opposite)
        return 2 * _EPSILON * best.abs() + torch.finfo(best.dtype).tiny

    def interpolated(self, tolerance: Tensor, otherwise: Tensor) -> Tensor:
        """The next point: by the parabola through all three as far as it can be trusted, else the one given."""
        x = (self.newest - self.opposite) / (self.third - self.opposite)
        y = (self.at_newest - self.at_opposite) / (self.at_third - self.at_opposite)
        trusted = (y.square() < x) & ((1 - y).square() < 1 - x)
        rise, far = self.at_opposite - self.at_newest, self.at_third - self.at_opposite
        width = self.opposite - self.newest
        line = self.at_newest / rise * self.at_third / -far
        bend = (self.third - self.newest) / width * self.at_newest / (self.at_third - self.at_newest)
        least = tolerance / width.abs()
        share = (line + bend * self.at_opposite / far).clamp(least, 1 - least)
        return torch.where(trusted, self.newest + share * width, otherwise)


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
