"""Predictive distributions: a few components, their mixture, and its quantiles by inverting the cdf.

Every parameter carries a last axis of components, so that one `StudentT` may stand for the 24 parts of a mixture or for
one of four. Parameters are float32 or wider; narrower ones are computed with in float32.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from tsprune.blocks.special import betainc, log_beta_front, rising_root
from tsprune.errors import TspruneError

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
_FARTHEST = 1e300
_CHUNK = 1 << 15


@dataclass(frozen=True)
class Component(ABC):
    """One kind of distribution on the real line; all parameters `[..., k]`, or what broadcasts to it.

    Values are given as `[..., k]` or `[..., 1]`.
    """

    jumps: ClassVar[tuple[float, ...]] = ()
    """Points where the cdf is not continuous."""

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """`[..., k]`."""

    @abstractmethod
    def supports(self, x: Tensor) -> Tensor:
        """Whether values are possible at all, bool; false for NaN."""

    @abstractmethod
    def bracket(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Two values between which the quantile at a level in (0, 1) lies, float64."""

    @abstractmethod
    def _log_density(self, x: Tensor) -> Tensor:
        """At supported values."""

    @abstractmethod
    def _cumulated(self, x: Tensor) -> Tensor:
        """The cdf of float64 parameters at float64 values."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density (negative binomial: log probability), minus infinity where a value is not supported."""
        inside = self.supports(x)
        # Unsupported values are replaced before as well as after: the gradient of a discarded NaN would still be NaN.
        wide = self.map(_at_least_single)
        return torch.where(inside, wide._log_density(_at_least_single(x.masked_fill(~inside, 1.0))), -torch.inf)

    @torch.no_grad()
    def cdf(self, x: Tensor) -> Tensor:
        """Probability of at most x, computed in float64, in the dtype of x; it carries no gradient."""
        return self.map(Tensor.double)._cumulated(x.double()).to(x.dtype)

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same kind of component with a function applied to each parameter."""
        changed = {name: function(value) for name, value in self._parameters().items()}
        return replace(self, **changed)

    def prepared(self) -> Self:
        """With what the cdf needs at any value computed once."""
        return self

    @property
    def shape(self) -> torch.Size:
        """`[..., k]`."""
        return torch.broadcast_shapes(*(value.shape for value in self._parameters().values()))

    def _parameters(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class StudentT(Component):
    """Student's t with `df` degrees of freedom, moved and stretched. The mean is NaN where df is at most 1."""

    df: Tensor
    loc: Tensor
    scale: Tensor
    front: Tensor | None = None
    """`log_beta_front(df / 2, 1 / 2)`, filled in by `prepared`."""

    @property
    def mean(self) -> Tensor:
        return torch.where(self.df > 1, self.loc, torch.nan)

    def supports(self, x: Tensor) -> Tensor:
        return ~x.isnan()

    def _log_density(self, x: Tensor) -> Tensor:
        half = self.df / 2
        z = (x - self.loc) / self.scale
        size = torch.lgamma(half + 0.5) - torch.lgamma(half) - 0.5 * (math.pi * self.df).log() - self.scale.log()
        return size - (half + 0.5) * torch.log1p(z.square() / self.df)
