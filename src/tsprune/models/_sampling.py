"""Drawing tokens: which may be drawn, and by which random numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from tsprune.errors import TspruneError
from tsprune.models._config import entry

NEARLY_ONE = 1 - 1e-12


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from its logits.

    Args:
        temperature: divides the logits, positive.
        top_k: only tokens at least as likely as the k-th are drawn; 0 is off.
        top_p: only the most likely tokens that together reach this probability are drawn; 1 is off.
    """

    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0

    @classmethod
    def of(cls, section: Mapping[str, Any], family: str) -> Self:
        """From the section of a config; raises TspruneError naming an impossible entry."""
        found = cls(
            entry(section, "temperature", float, family, 1.0),
            entry(section, "top_k", int, family, 50),
            entry(section, "top_p", float, family, 1.0),
        )
        if not found.temperature > 0:
            raise TspruneError(f"config.json: temperature is {found.temperature:g}, expected a positive number")
        if not 0 < found.top_p <= 1:
            raise TspruneError(f"config.json: top_p is {found.top_p:g}, expected a number above 0 and up to 1")
        return found

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities `[..., V]` in float64, 0 for tokens that may not be drawn; they need not add up to 1."""
        wide = logits.double() / self.temperature
        if 0 < self.top_k < wide.shape[-1]:
            least = wide.topk(self.top_k, dim=-1).values[..., -1:]
            wide = wide.masked_fill(wide < least, -torch.inf)
        found = wide.softmax(-1)
        if self.top_p < 1:
            ordered, order = found.sort(dim=-1)
            rest = ordered.cumsum(-1) <= 1 - self.top_p
            rest[..., -1] = False
            found = found.masked_fill(torch.zeros_like(rest).scatter(-1, order, rest), 0.0)
        return found

    def draw(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Tokens by the inverse of their cumulative distribution, in the order of their ids.

        As ids rise with the value they stand for, equal random numbers give neighbouring values from similar
        distributions: a small change of a model changes its samples little.

        Args:
            logits: `[B, S, V]`.
            uniforms: `[S]` in [0, 1), float64, the same for every row.

        Returns:
            `[B, S]` int64.
        """
        reached = self.probabilities(logits).cumsum(-1)
        wanted = uniforms[:, None] * reached[..., -1:]
        return torch.searchsorted(reached, wanted.contiguous(), right=True).squeeze(-1)


def common_uniforms(samples: int, steps: int, seed: int) -> Tensor:
    """Random numbers in [0, 1) that depend on seed, sample and step alone.

    At each step there is one number in every 1 / samples-th part of the interval, in random order (Latin hypercube
    sampling): each path by itself is an ordinary sample, all of them together scatter less.

    Args:
        samples: paths S.
        steps: any number; more steps do not change the first ones.
        seed: of the random numbers.

    Returns:
        `[S, steps]`, float64, on the CPU.
    """
    draw = torch.Generator("cpu").manual_seed(seed)
    parts = torch.rand(steps, 2, samples, generator=draw, dtype=torch.float64, device="cpu")
    ranks = parts[:, 0].argsort(-1)
    return ((ranks + parts[:, 1]) / samples).clamp(max=NEARLY_ONE).T.contiguous()
