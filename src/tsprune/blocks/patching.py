"""From series to tokens and back: instance scaling, patches, residual patch embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsprune.blocks.feedforward import activation
from tsprune.blocks.prepacked import Linear
from tsprune.blocks.tracing import (
    all_set,
    arcsinh,
    neighbours,
    newest,
    observed_mean,
    sinh,
    tracing,
    without_nan,
)


class InstanceScale:
    """Location and scale of each row's context, ignoring missing values, in float32 or better.

    Args:
        context: `[B, L]`, NaN = missing. The scale is the population standard deviation; exactly 0 becomes
            1e-5; a row without any value gets location 0 and scale 1.
        arcsinh: whether arcsinh follows the standardisation (Chronos-2).
    """

    def __init__(self, context: Tensor, *, arcsinh: bool = False) -> None:
        wide = context if context.dtype == torch.float64 else context.float()
        self.arcsinh = arcsinh
        missing = torch.isnan(wide)
        self.location = without_nan(observed_mean(wide, missing), 0.0)
        spread = without_nan(observed_mean((wide - self.location).square(), missing).sqrt(), 1.0)
        self.scale = torch.where(spread == 0, 1e-5, spread)

    def apply(self, x: Tensor) -> Tensor:
        """Scale `[B, T]`; NaN stays NaN."""
        scaled = (x.to(self.location.dtype) - self.location) / self.scale
        return arcsinh(scaled) if self.arcsinh else scaled

    def invert(self, x: Tensor) -> Tensor:
        """Back to original units: `[B, Q, T]`."""
        wide = x.to(self.location.dtype)
        wide = sinh(wide) if self.arcsinh else wide
        return wide * self.scale[:, :, None] + self.location[:, :, None]


def newest_observed(context: Tensor, mask: Tensor | None, steps: int) -> tuple[Tensor, Tensor]:
    """The newest steps of a context, and which of them hold a value that may be seen.

    Args:
        context: `[B, L]`, NaN = missing.
        mask: bool `[B, L]`, False hides a value; None: hides none.
        steps: at most so many.

    Returns:
        Both `[B, min(L, steps)]`.
    """
    context = newest(context, steps)
    observed = ~torch.isnan(context)
    return context, observed if mask is None else observed & newest(mask.bool(), steps)


def left_fill(x: Tensor, multiple: int) -> Tensor:
    """Fill `[B, T]` on the left with NaN up to a multiple of the patch size."""
    # Said in this way, a tracer sees that the patches are whole, whatever the length.
    missing = (x.shape[-1] + multiple - 1) // multiple * multiple - x.shape[-1]
    return F.pad(x, (missing, 0), value=float("nan")) if tracing() or missing else x


def fill_gaps(context: Tensor) -> Tensor:
    """Fill missing values in `[..., L]`, for networks that have no way to see them.

    Gaps become straight lines between the values on both sides, what is missing at the end repeats the last value.
    Before the first value nothing is filled: that is padding. Rows without any value stay as they are.

    Args:
        context: NaN = missing, any floating point type.

    Returns:
        The same shape and type; every observed value as it was, to the bit.
    """
    length = context.shape[-1]
    observed = ~torch.isnan(context)
    # Elsewhere the question would wait for the device.
    if context.device.type == "cpu" and all_set(observed):
        return context
    steps = torch.arange(length, device=context.device)
    if tracing():
        left, right = neighbours(observed)
    else:
        left = torch.where(observed, steps, -1).cummax(-1).values
        right = torch.where(observed, steps, length).flip(-1).cummin(-1).values.flip(-1)
    right = torch.where(right < length, right, left)
    # Half precision would round the place inside a long gap.
    wide = context if context.dtype == torch.float64 else context.float()
    share = (steps - left).to(wide.dtype) / (right - left).clamp(min=1)
    line = torch.lerp(wide.gather(-1, left.clamp(min=0)), wide.gather(-1, right.clamp(min=0)), share)
    return torch.where(observed | (left < 0), context, line.to(context.dtype))


def context_patches(values: Tensor, observed: Tensor, size: int, stride: int) -> tuple[Tensor, Tensor]:
    """Cut scaled context into patches, filled on the left; what is not observed becomes 0.

    Args:
        values: `[B, L]`.
        observed: bool `[B, L]`.
        size: steps of a patch.
        stride: steps between the beginnings of patches.

    Returns:
        Values and bool observed, both `[B, N, size]`.
    """
    whole = left_fill(values, size)
    held = F.pad(observed, (whole.shape[-1] - values.shape[-1], 0), value=False)
    whole = torch.where(held, whole, 0.0)
    if tracing() and size == stride:
        # Patches that do not overlap are a matter of shape, which graphs do not see in an unfolding.
        rows = whole.shape[0]
        return whole.view(rows, -1, size), held.view(rows, -1, size)
    return whole.unfold(-1, size, stride), held.unfold(-1, size, stride)


def right_fill(x: Tensor, length: int, value: float) -> Tensor:
    """Fill `[..., T]` on the right up to `length`."""
    return F.pad(x, (0, length - x.shape[-1]), value=value) if x.shape[-1] < length else x


class ResidualPatchEmbedding(nn.Module):
    """One hidden layer beside a linear shortcut: `output(act(hidden(x))) + residual(x)`.

    Args:
        inputs: size of the input.
        hidden: hidden size.
        outputs: size of the output.
        act: name of the activation.
        bias: whether the maps have biases.
        dropout: probability on the hidden path's output, in training.
    """

    def __init__(
        self, inputs: int, hidden: int, outputs: int, *, act: str = "relu", bias: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.hidden_layer = Linear(inputs, hidden, bias=bias)
        self.output_layer = Linear(hidden, outputs, bias=bias)
        self.residual_layer = Linear(inputs, outputs, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., inputs]` to `[..., outputs]`."""
        out: Tensor = self.dropout(self.output_layer(self.act(self.hidden_layer(x)))) + self.residual_layer(x)
        return out


def pinball(prediction: Tensor, target: Tensor, levels: Tensor) -> Tensor:
    """Twice the quantile loss, elementwise.

    Args:
        prediction: `[B, Q, H]`.
        target: `[B, H]`.
        levels: `[Q]`.

    Returns:
        `[B, Q, H]`.
    """
    error = target[:, None, :] - prediction
    below = (error <= 0).to(prediction.dtype)
    return 2 * (error * (below - levels.to(prediction.dtype)[None, :, None])).abs()
