"""A function that torch lacks: the regularised incomplete beta function.

It works on all elements at once and drops each element when it has converged, which depends on this element alone: a
value does not change with what else lies in the tensor, and an element that takes long holds up no other.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tsprune.errors import TspruneError

_FIRST_STEPS = 16
_MORE_STEPS = 2
_MOST_STEPS = 4000
_CUT_TOLERANCE = 1e-14
_BLOCK = 1 << 17
_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
_STIRLING_FROM = 10.0


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
    total = a + b
    whole, first, second = _stirling_rest(torch.stack([part.expand_as(total) for part in (total, a, b)]))
    return (a * (b / total)).log_().mul_(0.5).sub_(_HALF_LOG_TWO_PI).add_(whole).sub_(first).sub_(second)


def _stirling_rest(z: Tensor) -> Tensor:
    """lgamma(z) minus Stirling's approximation (z - 1/2) log z - z + log(2 pi) / 2, for z > 0."""
    large = z.clamp(min=_STIRLING_FROM)
    inverse = large.reciprocal()
    square = inverse * inverse
    series = square * _STIRLING[-1] + _STIRLING[-2]
    for coefficient in reversed(_STIRLING[:-2]):
        series.mul_(square).add_(coefficient)
    small = z.clamp(max=_STIRLING_FROM)
    direct = torch.lgamma(small) - (small - 0.5) * small.log() + small - _HALF_LOG_TWO_PI
    return torch.where(z < _STIRLING_FROM, direct, series * inverse)


def _log_quotient(excess: Tensor, quotient: Tensor) -> Tensor:
    """log of a quotient that is 1 + excess, from whichever of the two is the more precise."""
    return torch.where(excess.abs() < 0.5, torch.log1p(excess), quotient.log())


def _fraction(a: Tensor, b: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """x^a y^b / (B(a, b) I_x(a, b)) for x below about the mean, float64; y = 1 - x.

    Evaluated from the far end inwards, which takes one operation per step, with two guesses at what lies beyond the
    end: where they lead to the same value, the steps were enough. Elsewhere more steps are taken.
    """
    shape = a.shape
    parts = torch.stack([part.flatten() for part in (a, b, x, y)])
    out = torch.full_like(parts[0], torch.nan)
    index: Tensor | None = None
    steps = _FIRST_STEPS
    while True:
        lead, value, other = _cut_fraction(parts, steps)
        going = ((value - other).abs() > _CUT_TOLERANCE * (lead + value).abs()).nonzero().squeeze(1)
        value += lead
        if index is None:
            out = value
        else:
            out[index] = value
        if not going.numel():
            return out.view(shape)
        if steps > _MOST_STEPS:
            break
        index = going if index is None else index[going]
        parts = parts[:, going]
        steps *= _MORE_STEPS
    raise TspruneError(
        f"the incomplete beta function did not converge in {steps} steps for a = {parts[0, going[0]].item():g}, "
        f"b = {parts[1, going[0]].item():g}; at least one of the two is expected to be below 1e8"
    )


def _cut_fraction(parts: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """The fraction cut after some steps: its first term, and two guesses at the rest of it.

    Args:
        parts: a, b, x and y, `[4, N]`.
        steps: how many.
    """
    a, b, x, y = parts
    drift = a * y - b * x + 1
    total, beyond = a + b, 2 - x
    # What lies beyond the end takes at least nothing and at most about half of the last term away.
    guesses = torch.tensor([[1.0], [0.5]], dtype=a.dtype, device=a.device)
    first, rest = a, guesses
    size = max(1, _BLOCK // max(a.numel(), 1))
    for start in range(steps, 0, -size):
        step = torch.arange(max(start - size, 0), start + 1, dtype=a.dtype, device=a.device)[:, None]
        before = a + step
        inverse = (before + (step + 1)).reciprocal_()
        ratio = before * inverse
        step = step[1:]
        shared = (b - step).mul_(x).mul_(inverse[:-1]).mul_(step)
        numerator = (total + (step - 1)).mul_(x).mul_(shared).mul_(ratio[:-1])
        denominator = torch.addcmul(drift, step, beyond).mul_(ratio[1:]).add_(shared).add_(step)
        rest = denominator[-1] * guesses if start == steps else denominator[-1] + rest
        for above, below in zip(denominator[:-1].flip(0).unbind(), numerator[1:].flip(0).unbind(), strict=True):
            torch.addcdiv(above, below, rest, out=rest)
        first, rest = ratio[0] * drift, numerator[0] / rest
    return first, rest[0], rest[1]
