"""Kinds of distributions that a predictive mixture consists of.

Every parameter has a last axis of components: one `StudentT` may stand for all 24 parts of a mixture or for one of
four. The cdf is computed in float64 and carries no gradient; log densities and means are computed in the dtype of the
parameters, but at least in float32, and do.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.special import ndtri

from tsprune.blocks.roughcdf import negative_binomial_cdf, negative_binomial_density, student_t_cdf
from tsprune.blocks.special import betainc, log_beta_front

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class Component(ABC):
    """One kind of distribution. Parameters are `[..., k]`, values `[..., k]` or `[..., 1]`; all of them broadcast.

    Attributes:
        closed: whether the cdf is a closed form, so that nothing is gained by a rougher one.
    """

    closed: ClassVar[bool] = True

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """`[..., k]`."""

    def supports(self, x: Tensor) -> Tensor:
        """Whether values are possible at all, bool; NaN counts as possible, so that it is not lost."""
        return torch.ones_like(x, dtype=torch.bool)

    @abstractmethod
    def bracket(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Two values between which the quantile at a level in (0, 1) lies; float64, as are the parameters."""

    def landmarks(self) -> Sequence[Tensor]:
        """Values `[..., k]` next to which the cdf may rise suddenly: looked at first when a quantile is sought."""
        return ()

    @abstractmethod
    def _log_density(self, x: Tensor) -> Tensor:
        """At supported values."""

    @abstractmethod
    def cumulated(self, x: Tensor) -> Tensor:
        """The cdf; float64, as are the parameters."""

    def roughly(self, x: Tensor) -> Tensor:
        """The cdf to about three digits, in closed form; float64, as are the parameters."""
        return self.cumulated(x)

    def slope(self, x: Tensor) -> Tensor:
        """About the slope of the cdf; float64, as are the parameters."""
        return self._log_density(x).exp_()

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density at x, minus infinity where x is not supported; the gradient is 0 there."""
        x, wide = at_least_single(x), self.map(at_least_single)
        inside = wide.supports(x)
        # An unsupported value is replaced before it does harm: where() alone would let a NaN into the gradient.
        return torch.where(inside, wide._log_density(x.masked_fill(~inside, 1.0)), -torch.inf)

    @torch.no_grad()
    def cdf(self, x: Tensor) -> Tensor:
        """Probability of at most x, in the dtype of x."""
        return self.map(Tensor.double).cumulated(x.double()).to(x.dtype)

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same kind of component with a function applied to every parameter."""
        return replace(self, **{name: function(value) for name, value in self._tensors().items()})

    def prepared(self) -> Self:
        """With what the cdf needs for every value computed once; float64, as are the parameters."""
        return self

    @property
    def shape(self) -> torch.Size:
        """`[..., k]`."""
        return broadcast_shapes(value.shape for value in self._tensors().values())

    def _tensors(self) -> dict[str, Tensor]:
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in values if value is not None}


class BetaComponent(Component):
    """A kind whose cdf is an incomplete beta function: those of several components are computed at once."""

    closed: ClassVar[bool] = False

    @abstractmethod
    def beta_arguments(self, x: Tensor) -> tuple[Tensor, ...]:
        """What `betainc` takes at these values: all five arguments, each `[..., k]`; float64, as are the parameters."""

    @abstractmethod
    def from_beta(self, x: Tensor, value: Tensor) -> Tensor:
        """The cdf, from the values of the incomplete beta function."""

    def cumulated(self, x: Tensor) -> Tensor:
        """The cdf; float64, as are the parameters."""
        return self.from_beta(x, betainc(*self.beta_arguments(x)))


@dataclass(frozen=True, eq=False)
class StudentT(BetaComponent):
    """Student's t with `df` degrees of freedom around `loc`; its mean is NaN where `df` is at most 1.

    `front` belongs to the cdf and is filled in by `prepared`.
    """

    df: Tensor
    loc: Tensor
    scale: Tensor
    front: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        """`[..., k]`."""
        return torch.where(self.df > 1, self.loc, torch.nan)

    def prepared(self) -> StudentT:
        """With the part of the incomplete beta function that values do not enter."""
        return replace(self, front=log_beta_front(self.df / 2, torch.full_like(self.df, 0.5)))

    def bracket(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """From the normal quantile to that of two degrees of freedom, or to a bound on the power tail below two."""
        tail = torch.minimum(level, 1 - level)
        near = ndtri(level).abs()
        two = (1 - 2 * tail) / (2 * level * (1 - level)).sqrt()
        # The density is below its own power tail, whose integral gives the level at which the tail holds less.
        half = self.df / 2
        size = torch.lgamma(half + 0.5) - torch.lgamma(half) - 0.5 * math.log(math.pi) + (half - 1) * self.df.log()
        power = ((size - tail.log()) / self.df).exp()
        far = torch.maximum(near, torch.where(self.df >= 2, two, power))
        side = torch.sign(level - 0.5) * self.scale
        ends = (self.loc + side * near, self.loc + side * far)
        return torch.minimum(*ends), torch.maximum(*ends)

    def roughly(self, x: Tensor) -> Tensor:
        """Hill's expansion."""
        return student_t_cdf((x - self.loc) / self.scale, self.df.clamp(min=1))

    def slope(self, x: Tensor) -> Tensor:
        """The density, by the front of the cdf where it is at hand: it holds the two log gammas, which are slow."""
        if self.front is None:
            return self._log_density(x).exp_()
        half = self.df / 2
        size = self.front + half * torch.log1p(1 / self.df) + 0.5 * torch.log1p(1 / self.df)
        ratio = ((x - self.loc) / self.scale).square_().div_(self.df)
        return torch.log1p_(ratio).mul_(-half - 0.5).add_(size).exp_().div_(self.scale)

    def _log_density(self, x: Tensor) -> Tensor:
        half = self.df / 2
        size = torch.lgamma(half + 0.5) - torch.lgamma(half) - 0.5 * (math.pi * self.df).log() - self.scale.log()
        return size - (half + 0.5) * torch.log1p(((x - self.loc) / self.scale).square() / self.df)

    def beta_arguments(self, x: Tensor) -> tuple[Tensor, ...]:
        """Half the degrees of freedom, a half, and shares of both in the squared deviate."""
        ratio = ((x - self.loc) / self.scale).square() / self.df
        inner, outer = 1 / (1 + ratio), 1 / (1 + 1 / ratio)
        half = torch.full_like(ratio, 0.5)
        front = log_beta_front(self.df / 2, half) if self.front is None else self.front
        return self.df.expand_as(ratio) / 2, half, inner, outer, front.expand_as(ratio)

    def from_beta(self, x: Tensor, value: Tensor) -> Tensor:
        """It is twice the smaller tail."""
        tail = 0.5 * value
        return torch.where(x > self.loc, 1 - tail, tail)


@dataclass(frozen=True, eq=False)
class Normal(Component):
    """Normal distribution with standard deviation `scale`."""

    loc: Tensor
    scale: Tensor

    @property
    def mean(self) -> Tensor:
        """`[..., k]`."""
        return self.loc.expand(self.shape)

    def bracket(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """The quantile itself."""
        quantile = self.loc + self.scale * ndtri(level)
        return quantile, quantile

    def landmarks(self) -> Sequence[Tensor]:
        """Both ends of the bulk: the scale may be tiny."""
        return self.loc - 6 * self.scale, self.loc + 6 * self.scale

    def _log_density(self, x: Tensor) -> Tensor:
        return -0.5 * ((x - self.loc) / self.scale).square() - self.scale.log() - _HALF_LOG_TWO_PI

    def cumulated(self, x: Tensor) -> Tensor:
        """The cdf; float64, as are the parameters."""
        # torch.special.ndtr is 1 + erf and has lost all digits of the lower tail at -8.
        return 0.5 * torch.erfc((self.loc - x) / (self.scale * math.sqrt(2)))


@dataclass(frozen=True, eq=False)
class NegativeBinomial(BetaComponent):
    """Negative binomial with mean `total_count` exp(`logits`), its formulas read at every real value from 0 on.

    The distribution is discrete: log probabilities sum to 1 over the whole numbers, and are no density in between. The
    cdf is that of the discrete distribution at whole numbers, and between them rises along the same formula, which is
    the incomplete beta function at x + 1; below 0 it is 0, so it jumps to the probability of 0 there. Quantiles thus
    are smooth in the level, and lie below the discrete quantile by less than 1: rounding up gives it.
    """

    total_count: Tensor
    logits: Tensor

    @property
    def mean(self) -> Tensor:
        """`[..., k]`."""
        return self.total_count * self.logits.exp()

    def supports(self, x: Tensor) -> Tensor:
        """Everything from 0 on."""
        return ~(x < 0)

    def bracket(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """From 0 to Cantelli's bound from mean and variance."""
        deviation = (self.mean * (1 + self.logits.exp())).sqrt()
        upper = self.mean + deviation * (level / (1 - level)).sqrt()
        return torch.zeros_like(upper), upper

    def landmarks(self) -> Sequence[Tensor]:
        """The jump: 0 and the greatest number below it."""
        zero = torch.zeros_like(self.logits)
        return zero.nextafter(torch.full_like(zero, -math.inf)), zero

    def roughly(self, x: Tensor) -> Tensor:
        """The approximation of Peizer and Pratt."""
        inside = x >= 0
        return negative_binomial_cdf(x * inside, self.total_count, self.logits) * inside

    def slope(self, x: Tensor) -> Tensor:
        """From one number to the next the cdf rises by the probability of the next: its slope is near that halfway."""
        inside = x >= 0
        return negative_binomial_density(x * inside + 0.5, self.total_count, self.logits).mul_(inside)

    def _log_density(self, x: Tensor) -> Tensor:
        count = self.total_count.clamp(min=torch.finfo(self.total_count.dtype).tiny)
        choices = torch.lgamma(1 + count + x) - torch.lgamma(1 + count) - torch.lgamma(1 + x)
        choices = choices + count.log() - (count + x).log()
        return choices + count * functional.logsigmoid(-self.logits) + x * functional.logsigmoid(self.logits)

    def beta_arguments(self, x: Tensor) -> tuple[Tensor, ...]:
        """The number of successes and one more than that of failures."""
        above = x.masked_fill(x < 0, 0.0) + 1
        shape = broadcast_shapes(part.shape for part in (self.total_count, above, self.logits))
        count, above, logits = (part.expand(shape) for part in (self.total_count, above, self.logits))
        return count, above, torch.sigmoid(-logits), torch.sigmoid(logits), log_beta_front(count, above)

    def from_beta(self, x: Tensor, value: Tensor) -> Tensor:
        """Below 0 it is 0; NaN stays NaN."""
        return value * ~(x < 0)


@dataclass(frozen=True, eq=False)
class LogNormal(Component):
    """A positive value whose logarithm is normal with mean `loc` and standard deviation `scale`."""

    loc: Tensor
    scale: Tensor

    @property
    def mean(self) -> Tensor:
        """`[..., k]`."""
        return (self.loc + self.scale.square() / 2).exp()

    def supports(self, x: Tensor) -> Tensor:
        """Everything above 0."""
        return ~(x <= 0)

    def bracket(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """The quantile itself."""
        lower, upper = self._logarithm.bracket(level)
        return lower.exp(), upper.exp()

    def slope(self, x: Tensor) -> Tensor:
        """The density, 0 up to 0."""
        inside = x > 0
        return self._log_density(torch.where(inside, x, 1.0)).exp_().mul_(inside)

    @property
    def _logarithm(self) -> Normal:
        return Normal(self.loc, self.scale)

    def _log_density(self, x: Tensor) -> Tensor:
        return self._logarithm._log_density(x.log()) - x.log()

    def cumulated(self, x: Tensor) -> Tensor:
        """The cdf; float64, as are the parameters."""
        # The logarithm of 0 is minus infinity, where the normal cdf is 0.
        return self._logarithm.cumulated(x.clamp(min=0).log())


def at_least_single(value: Tensor) -> Tensor:
    """In float32, or in its own dtype if that is wider."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def broadcast_shapes(shapes: Iterable[torch.Size]) -> torch.Size:
    """The shape to which all of them broadcast."""
    return torch.Size(np.broadcast_shapes(*shapes))
