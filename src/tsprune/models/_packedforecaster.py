"""What the Moirai generations have in common beyond their encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from tsprune.blocks.attention import Attention
from tsprune.blocks.distributions import Mixture
from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster, each_window
from tsprune.models._packedencoder import NAMES
from tsprune.models._packing import Packed, packed_scale
from tsprune.models._rollout import widest

LICENCE = "CC-BY-NC-4.0 (non-commercial)"
NOTE = "licence not verified here"


class PackedForecaster(Forecaster):
    """A forecaster that lays all series of a window behind each other in one sequence of tokens.

    Attributes:
        scaling: whether series are standardised by the statistics of their context.
    """

    names = NAMES
    scaling: bool

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A model with fresh weights."""
        return cls(config)  # type: ignore[call-arg]

    def network_windows(self, batch: Batch) -> Tensor:
        """The network's rows are the windows themselves."""
        return each_window(batch)

    def essential(self) -> list[list[str]]:
        """The attentions: without any, a token sees no patch but its own."""
        return [[path for path, module in self.named_modules() if isinstance(module, Attention)]]

    @property
    def mixes_series(self) -> bool:
        """Whether any attention has heads left."""
        return any(isinstance(module, Attention) and module.heads for module in self.modules())

    def scales(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """Location and scale of every token `[B, T, 1]`, float32 or better; without scaling 0 and 1 `[B, T, P]`."""
        wide = widest(self.dtype, packed.values.dtype)
        if not self.scaling:
            nothing = torch.zeros_like(packed.values, dtype=wide)
            return nothing, torch.ones_like(nothing)
        location, scale = packed_scale(packed)
        return location.to(wide), scale.to(wide)


def mixture_losses(base: Mixture, target: Tensor, objective: str) -> tuple[Tensor, Tensor]:
    """Losses of a mixture on the scale of its series, elementwise, and which of them count: not those of NaN.

    Args:
        base: the mixture in normalised units, `[...]`.
        target: `[...]`, NaN = missing.
        objective: `mse` for the squared error of the predictive mean, else the negative log density.
    """
    counted = ~torch.isnan(target)
    wanted = torch.where(counted, target, torch.zeros_like(target))
    return ((base.mean - wanted).square() if objective == "mse" else -base.log_prob(wanted)), counted


def row_means(losses: Tensor, counted: Tensor, rows: Tensor, count: int) -> Tensor:
    """Mean loss of each row over its counted entries, 0 for rows without any.

    Args:
        losses: `[n, ...]`, finite.
        counted: bool, the same shape.
        rows: `[n]` which rows of the batch these are.
        count: rows B of the batch.

    Returns:
        `[B]`.
    """
    weights = counted.flatten(1).to(losses.dtype)
    means = (losses.flatten(1) * weights).sum(-1) / weights.sum(-1).clamp(min=1)
    return torch.zeros(count, dtype=losses.dtype, device=losses.device).index_add(0, rows, means)
