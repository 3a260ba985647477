"""Student's t with a cdf in closed form, where very many values are drawn and the last digits do not matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.special import ndtri

from tsprune.blocks.components import StudentT
from tsprune.blocks.roughcdf import student_t_cdf


@dataclass(frozen=True)
class QuickStudentT(StudentT):
    """Student's t of two degrees of freedom or more, whose cdf is Hill's expansion, see `student_t_cdf`.

    More than ten times as fast as the incomplete beta function, error below 2.1e-4. For `cdf`, `quantile` and `sample`;
    the density is the exact one.
    """

    closed: ClassVar[bool] = True

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

    def cumulated(self, x: Tensor) -> Tensor:
        """The cdf; float64, as are the parameters."""
        return student_t_cdf((x - self.loc) / self.scale, self.df)
