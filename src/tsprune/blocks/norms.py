"""Normalisation, on the residual width or inside heads."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsprune.blocks.tracing import tracing

EXACT = (torch.float32, torch.float64)
"""Types in which statistics need no wider one."""


class RMSNorm(nn.Module):
    """Root mean square norm without centring or bias, its statistics in float32 (T5 style).

    Args:
        width: size of the last axis.
        eps: added to the mean square.
    """

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """`[..., width]` in and out."""
        if x.dtype == self.weight.dtype in EXACT and not torch.is_grad_enabled() and not tracing():
            # The same steps in one call; with gradients it is the slower way.
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        wide = x if x.dtype == torch.float64 else x.float()
        square = wide.square().mean(-1, keepdim=True) + self.eps
        # ONNX Runtime makes one operation of this, but only where it is a division.
        normed = wide / square.sqrt() if tracing() else wide * torch.rsqrt(square)
        return self.weight * normed.to(self.weight.dtype)


class ChannelBatchNorm(nn.Module):
    """Batch normalisation of every channel over rows, series and tokens (PatchTST, TTM).

    Args:
        width: number of channels D.
        eps: added to the variance.
    """

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.batchnorm = nn.BatchNorm1d(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D]` in and out; in training by the statistics of the batch."""
        norm, mean, variance = self.batchnorm, self.batchnorm.running_mean, self.batchnorm.running_var
        if norm.training or mean is None or variance is None:
            out: Tensor = norm(x.reshape(-1, x.shape[-1])).view(x.shape)
            return out
        # As one multiplication in the order that x has: the kernel wants channels in the middle.
        factor = norm.weight * torch.rsqrt(variance + norm.eps)
        return torch.addcmul(norm.bias - mean * factor, x, factor)


class QueryScale(nn.Module):
    """A learned positive factor on every entry of a query head, shared by the heads (TimesFM).

    The factor is softplus(weight) / (ln 2 sqrt(head width)): a weight of 0 gives the usual scale.

    Args:
        width: head width before any cut.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.factor = 1.442695041 / math.sqrt(max(1, width))

    def forward(self, x: Tensor, columns: Tensor | None = None) -> Tensor:
        """`[B, H, T, W]` in and out; `columns` `[H, W]` says which entries of an uncut head these are."""
        scale = self.factor * F.softplus(self.weight)
        if columns is not None:
            scale = scale[columns.to(scale.device)][:, None]
        return x * scale.to(x.dtype)
