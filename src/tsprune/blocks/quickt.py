"""Student's t with a cdf in closed form, where very many values are drawn and the last digits do not matter."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.special import ndtri

from tsprune.blocks.distributions import StudentT


@dataclass(frozen=True)
class QuickStudentT(StudentT):
    """Student's t of two degrees of freedom or more, whose cdf is Hill's expansion (Algorithm 395, CACM 13, 1970).

    That is the normal cdf of a deviate in closed form, more than ten times as fast as the incomplete beta function. The
    error is below 2.1e-4, from 3.5 degrees of freedom on below 4e-6; it is smooth, and rises wherever the exact cdf
    does. For `cdf`, `quantile` and `sample`; the density is the exact one.
    """

    def prepared(self) -> QuickStudentT:
        """As it is: nothing needs computing beforehand."""
        return self

    def bracket(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """From the normal quantile to that of two degrees of freedom."""
        near = ndtri(level).abs()
        far = (1 - 2 * torch.minimum(level, 1 - level)) / (2 * level * (1 - level)).sqrt()
        side = torch.sign(level - 0.5)
        ends = (self.loc + self.scale * (side * near), self.loc + self.scale * (side * far))
        return torch.minimum(*ends), torch.maximum(*ends)

    def _cumulated(self, x: Tensor) -> Tensor:
        # In place, as the time goes into moving numbers to and from memory.
        z = (x - self.loc) / self.scale
        a = self.df - 0.5
        y = (z.square() / self.df).log1p_().mul_(a)
        b = a.square_().mul_(48)
        bottom = y.square().mul_(0.8).add_(b).add_(100)
        curve = y.mul(-0.4).sub_(3.3).mul_(y).sub_(24).mul_(y).sub_(85.5).div_(bottom)
        deviate = curve.add_(y).add_(3).div_(b).add_(1).mul_(y.sqrt_()).copysign_(z)
        return deviate.mul_(math.sqrt(0.5)).erf_().add_(1).mul_(0.5)
