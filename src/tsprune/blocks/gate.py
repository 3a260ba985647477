"""The point at a unit boundary where units can be switched off, watched, or have their loss gradient read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Rows:
    """Which row of the batch each token belongs to, where a block works on tokens picked from all rows.

    Args:
        index: `[n]` int64.
        count: rows of the batch B.
    """

    index: Tensor
    count: int


Probe = Callable[[Tensor, Rows | None], None]
"""Sees the activations of a gate, `[B, ..., E]`, or `[n, E]` with the rows of the tokens."""


class Tap:
    """Collects, for each row of a batch, the derivative of the loss with respect to every unit's gate.

    For a gate m multiplied onto activations a, dl/dm at m = 1 is the sum over the unit's activations of
    `a * dl/da` (2505.23195, section on importance), so no gate has to enter the forward pass.

    Attributes:
        gradient: `[B, U]` float32 (float64 for a float64 model), filled by the backward pass; None before it.
    """

    def __init__(self, units: int, owner: Tensor | None = None) -> None:
        self.units = units
        self.owner = owner
        self.gradient: Tensor | None = None

    def collect(self, activation: Tensor, gradient: Tensor, rows: Rows | None = None) -> None:
        """Add the products of one use of the gate: `activation` and `gradient` are `[B, ..., E]`, or `[n, E]`."""
        if activation.dtype in (torch.bfloat16, torch.float16):
            activation, gradient = activation.float(), gradient.float()
        product = activation * gradient
        if rows is None:
            total = product.reshape(product.shape[0], -1, product.shape[-1]).sum(1)
        else:
            total = product.new_zeros(rows.count, product.shape[-1]).index_add(0, rows.index, product)
        if self.owner is None:
            total = total.reshape(total.shape[0], self.units, -1).sum(-1)
        else:
            owner = self.owner.to(total.device)
            total = total.new_zeros(total.shape[0], self.units).index_add(1, owner, total)
        self.gradient = total if self.gradient is None else self.gradient + total


class _Watch(torch.autograd.Function):
    """Identity whose backward pass hands activation and gradient to a tap.

    `anchor` is a scalar that requires grad: with frozen weights it is what makes autograd reach this point,
    and nothing below the first tapped gate is ever differentiated.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, tap: Tap, rows: Rows | None) -> Tensor:
        ctx.save_for_backward(x)
        ctx.tap, ctx.rows = tap, rows
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        ctx.tap.collect(x, gradients[0], ctx.rows)
        return (gradients[0] if ctx.needs_input_grad[0] else None), None, None, None


class Gate(nn.Module):
    """A gate over the entries of the last axis, which belong to units.

    Untouched it returns its input object. With a mask, switched-off units are zero, or what `fill` says. With a probe,
    it shows its input to it. With a tap, the backward pass leaves per-row gate gradients in it. It owns no parameter
    and never appears in a checkpoint.

    Args:
        units: number of units U.
        width: entries of each unit, side by side. Ignored with `owner`.
        owner: `[E]` int64, the unit of each entry, where units are not equally wide or not side by side.

    Attributes:
        mask: `[U]`, 1 for units that are on, 0 for those that are off; None for all on.
        fill: `[E]`, what the entries of units that are off are instead of zero; nothing without a mask. Blocks that
            apply the mask elsewhere, as mixtures of experts do, do not look at it.
    """

    def __init__(self, units: int, width: int = 1, owner: Tensor | None = None) -> None:
        super().__init__()
        self.units = units
        self.width = width
        self.owner = owner
        self.mask: Tensor | None = None
        self.fill: Tensor | None = None
        self.tap: Tap | None = None
        self.probe: Probe | None = None

    @property
    def used(self) -> bool:
        """Whether the gate does anything at present."""
        return self.mask is not None or self.tap is not None or self.probe is not None

    @property
    def owners(self) -> Tensor:
        """The unit of each entry, `[E]`."""
        return (
            torch.arange(self.units, device="cpu").repeat_interleave(self.width) if self.owner is None else self.owner
        )

    def new_tap(self) -> Tap:
        """A tap that fits the gate."""
        return Tap(self.units, self.owner)

    def twin(self) -> Gate:
        """A gate of the same sizes, not in use."""
        return Gate(self.units, self.width, self.owner)

    def forward(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        """`[B, ..., E]` in and out; `[n, E]` with `rows` where tokens of all rows come together."""
        if self.mask is not None:
            mask = self.mask.to(device=x.device, dtype=x.dtype)
            on = mask.repeat_interleave(self.width) if self.owner is None else mask[self.owner.to(x.device)]
            x = x * on
            if self.fill is not None:
                x = x + (1 - on) * self.fill.to(device=x.device, dtype=x.dtype)
        return self.watched(x, rows)

    def watched(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        """As `forward`, for blocks that apply the mask elsewhere."""
        if self.probe is not None:
            self.probe(x, rows)
        if self.tap is not None:
            anchor = torch.zeros((), device=x.device, requires_grad=True)
            x = _Watch.apply(x, anchor, self.tap, rows)  # type: ignore[no-untyped-call]
        return x

    def extra_repr(self) -> str:
        """Sizes, and whether the gate is in use."""
        named = (("masked", self.mask), ("filled", self.fill), ("tapped", self.tap), ("probed", self.probe))
        return ", ".join([f"units={self.units}", f"width={self.width}", *(n for n, v in named if v is not None)])
