"""The scale on which the losses of rows in other units weigh alike."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, finfo, float32, where


@dataclass(frozen=True)
class RowScale:
    """What turns rows into their instance scale and back.

    Args:
        location: `[B, 1]`.
        scale: `[B, 1]`, positive.
    """

    location: Tensor
    scale: Tensor

    @classmethod
    def of(cls, values: Tensor, observed: Tensor) -> RowScale:
        """Mean and standard deviation of the observed values of `[B, L]`; what is not observed may be anything.

        A constant row is scaled by its own size, and zeros by 1: a scale near 0 would let such rows rule every loss.
        Constant is what float32 cannot tell from it, in whatever type it comes.
        """
        number = observed.sum(-1, keepdim=True)
        location = values.masked_fill(~observed, 0.0).sum(-1, keepdim=True) / number.clamp(min=1)
        squares = (values - location).masked_fill(~observed, 0.0).square().sum(-1, keepdim=True)
        spread = (squares / (number - 1).clamp(min=1)).sqrt()
        size = location.abs()
        constant = spread <= 4 * max(finfo(values.dtype).eps, finfo(float32).eps) * size
        return cls(location, where(constant, where(size > 0, size, 1.0), spread))

    def apply(self, x: Tensor) -> Tensor:
        """Scale `[B, T]`; NaN stays NaN."""
        return (x.to(self.location.dtype) - self.location) / self.scale

    def invert(self, x: Tensor) -> Tensor:
        """Back to original units: `[B, E, T]`."""
        return x * self.scale[:, :, None] + self.location[:, :, None]
