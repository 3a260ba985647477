"""What Toto expects of a patch: a mixture of Student's t for each of its steps, and what is done with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tsprune.blocks.causalscale import CausalScale
from tsprune.blocks.distributions import Mixture, StudentT
from tsprune.blocks.quickt import QuickStudentT

LIKELIHOOD_SHARE = 0.575
ROBUST_WIDTH = 0.1


@dataclass(frozen=True)
class Outlook:
    """Mixtures of K components for the patches behind T tokens.

    Args:
        logits: `[B, T, P, K]`, weights before their softmax.
        parts: the components, normalised by the scale.
        scale: of the patches of these tokens, which is what they know.
    """

    logits: Tensor
    parts: StudentT
    scale: CausalScale

    @property
    def normal(self) -> Mixture:
        """`[B, T, P]` in normalised units, in the dtype of the parameters."""
        return Mixture(self.logits, (self.parts,))

    @property
    def own(self) -> Mixture:
        """`[B, T, P]` in own units, float64: single precision may not tell a value from a location that is far off."""
        return Mixture(self.logits.double(), (self.parts,), self.scale.location, self.scale.scale)

    def log_density(self, normal: Tensor) -> Tensor:
        """Of normalised values `[B, T, P]`; no weight is less than the smallest step of its dtype, as upstream."""
        weights = self.logits.softmax(-1)
        least = torch.finfo(weights.dtype).eps
        return Mixture(weights.clamp(least, 1 - least).log(), (self.parts,)).log_prob(normal)

    def normalised(self, values: Tensor) -> Tensor:
        """Values of own units `[B, T, P]` on the scale that was known; the tiny summand is upstream's."""
        tiny = torch.finfo(torch.float32).eps
        return ((values.double() - self.scale.location) / (self.scale.scale + tiny)).to(self.logits.dtype)

    def losses(self, values: Tensor, counted: Tensor) -> Tensor:
        """Negative log likelihood, and a robust loss of the mean, of normalised values.

        Args:
            values: what came, `[B, T, P]`, own units; anything where it does not count.
            counted: bool of that shape.

        Returns:
            `[B, T, P]`, 0 where nothing counts.
        """
        normal = torch.where(counted, self.normalised(values), 0.0)
        robust = torch.log1p(0.5 * ((self.normal.mean - normal) / ROBUST_WIDTH).square())
        losses = (1 - LIKELIHOOD_SHARE) * robust - LIKELIHOOD_SHARE * self.log_density(normal)
        return torch.where(counted, losses, 0.0)

    @torch.no_grad()
    def draw(self, uniforms: Tensor) -> Tensor:
        """One value of every step for each path, `[B, S, P]` in own units, float64.

        By inverting the cdf of the whole mixture rather than by drawing a component first: so values move smoothly with
        the weights of the network, and no rounding makes them jump.

        Args:
            uniforms: `[S, P]`, the same for all rows; T is S, or 1 where the paths begin.
        """
        parts = QuickStudentT(self.parts.df, self.parts.loc, self.parts.scale)
        mixture = Mixture(self.logits.double(), (parts,), self.scale.location, self.scale.scale)
        if self.logits.shape[1] == 1:
            return mixture.sample(uniforms[:, None, None]).squeeze(2).transpose(0, 1)
        return mixture.sample(uniforms[None, None]).squeeze(0)
