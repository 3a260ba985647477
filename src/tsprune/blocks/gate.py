"""The point at a unit boundary where units can be switched off or their loss gradient read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Tap:
    """Collects, for each row of a batch, the derivative of the loss with respect to every unit's gate.

    For a gate m multiplied onto activations a, dl/dm at m = 1 is the sum over the unit's activations of
    `a * dl/da` (2505.23195, section on importance), so no gate has to enter the forward pass.

    Attributes:
        gradient: `[B, U]` float32 (float64 for a float64 model), filled by the backward pass; None before it.
    """

    def __init__(self, units: int) -> None:
        self.units = units
        self.gradient: Tensor | None = None

    def collect(self, activation: Tensor, gradient: Tensor) -> None:
        """Add the products of one use of the gate: `activation` and `gradient` are `[B, ..., U * width]`."""
        if activation.dtype in (torch.bfloat16, torch.float16):
            activation, gradient = activation.float(), gradient.float()
        product = activation * gradient
        rows = product.shape[0]
        total = product.reshape(rows, -1, product.shape[-1]).sum(1).reshape(rows, self.units, -1).sum(-1)
        self.gradient = total if self.gradient is None else self.gradient + total


class _Watch(torch.autograd.Function):
    """Identity whose backward pass hands activation and gradient to a tap.

    `anchor` is a scalar that requires grad: with frozen weights it is what makes autograd reach this point,
    and nothing below the first tapped gate is ever differentiated.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, tap: Tap) -> Tensor:
        ctx.save_for_backward(x)
        ctx.tap = tap
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        ctx.tap.collect(x, gradients[0])
        return (gradients[0] if ctx.needs_input_grad[0] else None), None, None


class Gate(nn.Module):
    """A gate over `units` units that lie side by side on the last axis, each `width` entries wide.

    Untouched it returns its input object. With a mask, switched-off units are zero. With a tap, the backward
    pass leaves per-row gate gradients in it. It owns no parameter and never appears in a checkpoint.
    """

    def __init__(self, units: int, width: int = 1) -> None:
        super().__init__()
        self.units = units
        self.width = width
        self.mask: Tensor | None = None
        self.tap: Tap | None = None

    def forward(self, x: Tensor) -> Tensor:
        """`[B, ..., units * width]` in and out."""
        if self.mask is not None:
            x = x * self.mask.to(device=x.device, dtype=x.dtype).repeat_interleave(self.width)
        if self.tap is not None:
            anchor = torch.zeros((), device=x.device, requires_grad=True)
            x = _Watch.apply(x, anchor, self.tap)  # type: ignore[no-untyped-call]
        return x

    def extra_repr(self) -> str:
        """Sizes, and whether the gate is in use."""
        used = [name for name, value in (("masked", self.mask), ("tapped", self.tap)) if value is not None]
        return ", ".join([f"units={self.units}", f"width={self.width}", *used])
