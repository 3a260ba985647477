"""Predictive distributions: a few kinds of components, their mixture, and its quantiles by inverting the cdf.

Every parameter has a last axis of components: one `StudentT` may stand for all 24 parts of a mixture or for one of
four. Quantiles, cdfs and samples are computed in float64 and carry no gradient; log densities and means are computed in
the dtype of the parameters, but at least in float32, and do.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.special import ndtri

from tsprune.blocks.special import betainc, log_beta_front, rising_root
from tsprune.errors import TspruneError

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
_FARTHEST = 1e300
_ROUNDING = 2 * torch.finfo(torch.float64).eps
_CHUNK = 1 << 18


@dataclass(frozen=True, eq=False)
class Component(ABC):
    """One kind of distribution. Parameters are `[..., k]`, values `[..., k]` or `[..., 1]`; all of them broadcast."""

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
    def _cumulated(self, x: Tensor) -> Tensor:
        """The cdf; float64, as are the parameters."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density at x, minus infinity where x is not supported; the gradient is 0 there."""
        x, wide = _at_least_single(x), self.map(_at_least_single)
        inside = wide.supports(x)
        # An unsupported value is replaced before it does harm: where() alone would let a NaN into the gradient.
        return torch.where(inside, wide._log_density(x.masked_fill(~inside, 1.0)), -torch.inf)

    @torch.no_grad()
    def cdf(self, x: Tensor) -> Tensor:
        """Probability of at most x, in the dtype of x."""
        return self.map(Tensor.double)._cumulated(x.double()).to(x.dtype)

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same kind of component with a function applied to every parameter."""
        return replace(self, **{name: function(value) for name, value in self._tensors().items()})

    def prepared(self) -> Self:
        """With what the cdf needs for every value computed once; float64, as are the parameters."""
        return self

    @property
    def shape(self) -> torch.Size:
        """`[..., k]`."""
        return _broadcast(value.shape for value in self._tensors().values())

    def _tensors(self) -> dict[str, Tensor]:
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in values if value is not None}


@dataclass(frozen=True, eq=False)
class StudentT(Component):
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

    def _log_density(self, x: Tensor) -> Tensor:
        half = self.df / 2
        size = torch.lgamma(half + 0.5) - torch.lgamma(half) - 0.5 * (math.pi * self.df).log() - self.scale.log()
        return size - (half + 0.5) * torch.log1p(((x - self.loc) / self.scale).square() / self.df)

    def _cumulated(self, x: Tensor) -> Tensor:
        z = (x - self.loc) / self.scale
        ratio = z.square() / self.df
        inner, outer = 1 / (1 + ratio), 1 / (1 + 1 / ratio)
        tail = 0.5 * betainc(self.df / 2, torch.full_like(self.df, 0.5), inner, outer, self.front)
        return torch.where(z > 0, 1 - tail, tail)


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

    def _cumulated(self, x: Tensor) -> Tensor:
        # torch.special.ndtr is 1 + erf and has lost all digits of the lower tail at -8.
        return 0.5 * torch.erfc((self.loc - x) / (self.scale * math.sqrt(2)))


@dataclass(frozen=True, eq=False)
class NegativeBinomial(Component):
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

    def _log_density(self, x: Tensor) -> Tensor:
        count = self.total_count.clamp(min=torch.finfo(self.total_count.dtype).tiny)
        choices = torch.lgamma(1 + count + x) - torch.lgamma(1 + count) - torch.lgamma(1 + x)
        choices = choices + count.log() - (count + x).log()
        return choices + count * functional.logsigmoid(-self.logits) + x * functional.logsigmoid(self.logits)

    def _cumulated(self, x: Tensor) -> Tensor:
        inside = ~(x < 0)
        above = x.masked_fill(~inside, 0.0) + 1
        return betainc(self.total_count, above, torch.sigmoid(-self.logits), torch.sigmoid(self.logits)) * inside


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

    @property
    def _logarithm(self) -> Normal:
        return Normal(self.loc, self.scale)

    def _log_density(self, x: Tensor) -> Tensor:
        return self._logarithm._log_density(x.log()) - x.log()

    def _cumulated(self, x: Tensor) -> Tensor:
        # The logarithm of 0 is minus infinity, where the normal cdf is 0.
        return self._logarithm._cumulated(x.clamp(min=0).log())


@dataclass(frozen=True, eq=False)
class Mixture:
    """y = `loc` + `scale` * x, x being drawn from one of K components by weight.

    Args:
        weights_logits: `[..., K]`, weights before their softmax, in the order of the components and their last axes.
        components: their last axes add up to K, their other axes broadcast.
        loc: `[...]`, in the units of y; None for 0.
        scale: `[...]`, positive, in the units of y; None for 1.

    Raises:
        TspruneError: the last axes do not add up to the number of weights.
    """

    weights_logits: Tensor
    components: Sequence[Component]
    loc: Tensor | None = None
    scale: Tensor | None = None

    def __post_init__(self) -> None:
        widths = [component.shape[-1] for component in self.components]
        if sum(widths) != self.weights_logits.shape[-1]:
            raise TspruneError(
                f"components of widths {widths} do not match {self.weights_logits.shape[-1]} mixture weights; "
                "every parameter needs a last axis of components"
            )

    @property
    def shape(self) -> torch.Size:
        """`[...]`, without the axis of components."""
        shapes = [component.shape[:-1] for component in self.components]
        affine = [part.shape for part in (self.loc, self.scale) if part is not None]
        return _broadcast([self.weights_logits.shape[:-1], *shapes, *affine])

    @property
    def base(self) -> Mixture:
        """The distribution of x, in normalised units."""
        return replace(self, loc=None, scale=None)

    @property
    def mean(self) -> Tensor:
        """`[...]`, in the units of y."""
        weights = _at_least_single(self.weights_logits).softmax(-1)
        parts = [component.map(_at_least_single).mean for component in self.components]
        return self._to_own((weights * self._joined(parts)).sum(-1))

    def log_prob(self, y: Tensor) -> Tensor:
        """Log density `[...]` per unit of y (`base.log_prob(x)`: per normalised unit).

        A component that does not support the value drops out together with its weight; the others' weights stay as
        they are. Minus infinity, with a gradient of 0, where none supports it; NaN where y is NaN.
        """
        x = self._to_base(_at_least_single(y))[..., None]
        terms = self._joined([component.log_prob(x) for component in self.components])
        joint = terms + _at_least_single(self.weights_logits).log_softmax(-1)
        impossible = (joint == -torch.inf).all(-1)
        density = joint.masked_fill(impossible[..., None], 0.0).logsumexp(-1).masked_fill(impossible, -torch.inf)
        return density if self.scale is None else density - _at_least_single(self.scale).log()

    @torch.no_grad()
    def cdf(self, y: Tensor) -> Tensor:
        """Probability `[...]` of at most y, in the dtype of y."""
        x = self._to_base(y.double())[..., None]
        parts = [component.cdf(x) for component in self.components]
        return (self.weights_logits.double().softmax(-1) * self._joined(parts)).sum(-1).to(y.dtype)

    @torch.no_grad()
    def quantile(self, levels: Sequence[float]) -> Tensor:
        """Where the cdf reaches a level, or jumps over it; somewhere in between where it stays at exactly that level.

        But for the last digits of float64 it depends on nothing else in the batch and does not fall when the level
        rises. Of a `NegativeBinomial` part the cdf between whole numbers is used: such a quantile is smooth in the
        level, and by less than one normalised unit below that of the mixture in which the part is discrete.

        Args:
            levels: Q levels in (0, 1).

        Returns:
            `[Q, ...]` in the units of y and the dtype of the weights.

        Raises:
            TspruneError: a level is not in (0, 1).
        """
        wrong = [level for level in levels if not 0 < level < 1]
        if wrong:
            raise TspruneError(f"quantile level {wrong[0]} is not between 0 and 1; give levels such as 0.1, 0.5, 0.9")
        wanted = torch.tensor(list(levels), dtype=torch.float64, device=self.weights_logits.device)
        return self._inverse(wanted.view(-1, *[1] * len(self.shape)))

    @torch.no_grad()
    def sample(self, uniforms: Tensor) -> Tensor:
        """Samples by inverting the cdf: the same uniform numbers give the same samples, in any batch.

        Args:
            uniforms: `[S]`, one number per sample, or `[S, ...]`, one per sample and value; in [0, 1], of which 0 and 1
                are moved inwards by half the step of their dtype, since random numbers include them.

        Returns:
            `[S, ...]`, as `quantile` gives them.

        Raises:
            TspruneError: the numbers are not in [0, 1], or are not of such a shape.
        """
        if uniforms.dim() == 1:
            uniforms = uniforms.view(-1, *[1] * len(self.shape))
        fits = all(own in (1, size) for own, size in zip(uniforms.shape[1:], self.shape, strict=False))
        if uniforms.dim() != 1 + len(self.shape) or not fits:
            raise TspruneError(
                f"uniform numbers of shape {list(uniforms.shape)} do not fit a distribution of shape "
                f"{list(self.shape)}; give [S] or [S, ...]"
            )
        if not bool(((uniforms >= 0) & (uniforms <= 1)).all()):
            raise TspruneError("uniform numbers are outside [0, 1] or NaN; draw them with torch.rand")
        inwards = torch.finfo(uniforms.dtype).eps / 4
        return self._inverse(uniforms.double().clamp(inwards, 1 - inwards))

    def _inverse(self, levels: Tensor) -> Tensor:
        """Quantiles at levels that broadcast to `[S, ...]`, float64."""
        rows = _Rows.of(self)
        shape = (len(levels), *self.shape)
        levels = levels.expand(shape).flatten()
        row = torch.arange(levels.numel(), device=levels.device) % max(len(rows.weights), 1)
        chunks = math.ceil(levels.numel() * rows.weights.shape[-1] / _CHUNK) or 1
        x = torch.cat([rows.quantile(*some) for some in zip(row.chunk(chunks), levels.chunk(chunks), strict=True)])
        return self._to_own(x.view(shape)).to(self.weights_logits.dtype)

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        """Values of the components side by side, `[..., K]`."""
        shape = _broadcast(part.shape[:-1] for part in parts)
        widths = [component.shape[-1] for component in self.components]
        return torch.cat([part.expand(*shape, width) for part, width in zip(parts, widths, strict=True)], dim=-1)

    def _to_base(self, y: Tensor) -> Tensor:
        y = y if self.loc is None else y - self.loc
        return y if self.scale is None else y / self.scale

    def _to_own(self, x: Tensor) -> Tensor:
        x = x if self.scale is None else x * self.scale
        return x if self.loc is None else x + self.loc


@dataclass(frozen=True, eq=False)
class _Rows:
    """N mixtures in normalised units, float64: weights `[N, K]`, components `[N, k]`, landmarks and the cdf there."""

    weights: Tensor
    components: Sequence[Component]
    landmarks: Sequence[tuple[Tensor, Tensor]] = ()

    @classmethod
    def of(cls, mixture: Mixture) -> _Rows:
        """Every place of a mixture as a row."""

        def flat(value: Tensor, width: int) -> Tensor:
            return value.double().expand(*mixture.shape, width).reshape(-1, width)

        weights = flat(mixture.weights_logits.double().softmax(-1), mixture.weights_logits.shape[-1])
        parts = [part.map(partial(flat, width=part.shape[-1])).prepared() for part in mixture.components]
        rows = cls(weights, parts)
        points = [point for part in parts for many in part.landmarks() for point in many.unbind(-1)]
        return replace(rows, landmarks=[(point, rows.cdf(point)) for point in points])

    def take(self, index: Tensor) -> _Rows:
        """The mixtures of some rows, `[M]` int64, without landmarks."""
        return _Rows(self.weights[index], [part.map(lambda value: value[index]) for part in self.components])

    def cdf(self, x: Tensor) -> Tensor:
        """`[N]` in and out."""
        values = torch.cat([part.cdf(x[:, None]) for part in self.components], dim=-1)
        return (self.weights * values).sum(-1)

    def quantile(self, row: Tensor, level: Tensor) -> Tensor:
        """Of some rows `[M]` int64 at levels `[M]`: between the least and the greatest quantile of the components."""
        some = self.take(row)
        lowers, uppers = zip(*(part.bracket(level[:, None]) for part in some.components), strict=True)
        lower = torch.cat(lowers, dim=-1).amin(-1).clamp(-_FARTHEST, _FARTHEST)
        upper = torch.cat(uppers, dim=-1).amax(-1).clamp(-_FARTHEST, _FARTHEST)
        at_lower, at_upper = -level, 1 - level
        for point, cumulated in self.landmarks:
            point, value = point[row], cumulated[row] - level
            rise, fall = (value < 0) & (point > lower), (value >= 0) & (point < upper)
            lower, at_lower = torch.where(rise, point, lower), torch.where(rise, value, at_lower)
            upper, at_upper = torch.where(fall, point, upper), torch.where(fall, value, at_upper)

        def gap(x: Tensor, index: Tensor) -> Tensor:
            wanted = level[index]
            value = some.take(index).cdf(x) - wanted
            # No more than rounding: to look for the other side of the root would cost evaluations and gain nothing.
            return value.masked_fill(value.abs() <= _ROUNDING * wanted, 0.0)

        return rising_root(gap, lower, upper, at_lower, at_upper)


def _at_least_single(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _broadcast(shapes: Iterable[torch.Size]) -> torch.Size:
    return torch.Size(np.broadcast_shapes(*shapes))
