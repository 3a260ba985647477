"""Keys and values of tokens that were worked on already, for forecasts step by step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class KeyCache:
    """What one attention keeps between steps.

    Attributes:
        key: `[B, G, S, W]` as they enter the dot product, or None before the first step.
        value: `[B, G, S, V]`.
    """

    key: Tensor | None = None
    value: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens kept S."""
        return 0 if self.key is None else self.key.shape[2]

    def extended(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put the keys and values of new tokens behind those kept, and give all of them."""
        if self.key is not None and self.value is not None:
            key, value = torch.cat([self.key, key], dim=2), torch.cat([self.value, value], dim=2)
        self.key, self.value = key, value
        return key, value
