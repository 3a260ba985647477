"""Predictive distributions: a mixture of a few kinds of components, and its quantiles by inverting the cdf.

Quantiles, cdfs and samples are computed in float64 and carry no gradient; log densities and means are computed in the
dtype of the parameters, but at least in float32, and do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tsprune.blocks.components import (
    Component,
    LogNormal,
    NegativeBinomial,
    Normal,
    StudentT,
    at_least_single,
    broadcast_shapes,
)
from tsprune.blocks.inversion import Rows
from tsprune.errors import TspruneError

__all__ = ["Component", "LogNormal", "Mixture", "NegativeBinomial", "Normal", "StudentT"]


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
        return broadcast_shapes([self.weights_logits.shape[:-1], *shapes, *affine])

    @property
    def base(self) -> Mixture:
        """The distribution of x, in normalised units."""
        return replace(self, loc=None, scale=None)

    @property
    def mean(self) -> Tensor:
        """`[...]`, in the units of y."""
        weights = at_least_single(self.weights_logits).softmax(-1)
        parts = [component.map(at_least_single).mean for component in self.components]
        return self._to_own((weights * self._joined(parts)).sum(-1))

    def log_prob(self, y: Tensor) -> Tensor:
        """Log density `[...]` per unit of y (`base.log_prob(x)`: per normalised unit).

        A component that does not support the value drops out together with its weight; the others' weights stay as
        they are. Minus infinity, with a gradient of 0, where none supports it; NaN where y is NaN.
        """
        x = self._to_base(at_least_single(y))[..., None]
        terms = self._joined([component.log_prob(x) for component in self.components])
        joint = terms + at_least_single(self.weights_logits).log_softmax(-1)
        impossible = (joint == -torch.inf).all(-1)
        density = joint.masked_fill(impossible[..., None], 0.0).logsumexp(-1).masked_fill(impossible, -torch.inf)
        return density if self.scale is None else density - at_least_single(self.scale).log()

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
        shape = (len(levels), *self.shape)
        rows = Rows.of(self.weights_logits.double().softmax(-1), self.components, self.shape)
        x = rows.quantiles(levels.expand(shape).reshape(len(levels), -1))
        return self._to_own(x.view(shape)).to(self.weights_logits.dtype)

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        """Values of the components side by side, `[..., K]`."""
        shape = broadcast_shapes(part.shape[:-1] for part in parts)
        widths = [component.shape[-1] for component in self.components]
        return torch.cat([part.expand(*shape, width) for part, width in zip(parts, widths, strict=True)], dim=-1)

    def _to_base(self, y: Tensor) -> Tensor:
        y = y if self.loc is None else y - self.loc
        return y if self.scale is None else y / self.scale

    def _to_own(self, x: Tensor) -> Tensor:
        x = x if self.scale is None else x * self.scale
        return x if self.loc is None else x + self.loc
