"""The point at a unit boundary where units can be switched off, watched, or have their loss gradient read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn


class OtherRows(RuntimeError):
    """A gate has a mask for each row of a batch, and what passes it has other rows."""


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
        owner: `[E]` int64, the unit of each entry, where units are not equally wide or not side by side; or what makes
            it, asked when it is first needed: most gates of most networks are never used.

    Attributes:
        mask: `[U]`, 1 for units that are on, 0 for those that are off; `[B, U]` where that differs from row to row of
            what passes the gate, as when several ablations share a pass; None for all on.
        fill: `[E]`, what the entries of units that are off are instead of zero; nothing without a mask. Blocks that
            apply the mask elsewhere, as mixtures of experts do, do not look at it.
    """

    # Of the class until they are set: a network has hundreds of gates, and a module sets attributes slowly.
    mask: Tensor | None = None
    fill: Tensor | None = None
    tap: Tap | None = None
    probe: Probe | None = None

    units: int
    width: int
    _owner: Tensor | Callable[[], Tensor] | None

    def __init__(self, units: int, width: int = 1, owner: Tensor | Callable[[], Tensor] | None = None) -> None:
        super().__init__()
        vars(self).update(units=units, width=width, _owner=owner)

    @property
    def owner(self) -> Tensor | None:
        """The unit of each entry, `[E]` int64; None where units are equally wide and side by side."""
        owner = self._owner
        if owner is None or isinstance(owner, Tensor):
            return owner
        vars(self)["_owner"] = made = owner()
        return made

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
        return Gate(self.units, self.width, self._owner)

    def forward(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        """`[B, ..., E]` in and out; `[n, E]` with `rows` where tokens of all rows come together."""
        if self.mask is not None:
            mask = mask_for(self.mask, x, rows).to(x.dtype)
            on = mask.repeat_interleave(self.width, -1) if self.owner is None else mask[..., self.owner.to(x.device)]
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


def mask_for(mask: Tensor, x: Tensor, rows: Rows | None = None) -> Tensor:
    """A gate's mask on the device of `x`, in a shape that goes with `x` but for the last axis.

    Args:
        mask: `[U]`, or `[B, U]` for the rows of the batch.
        x: `[B, ..., E]`, or `[n, E]` with `rows`.
        rows: which rows of the batch the tokens belong to, where they come together.

    Returns:
        `[U]` for one mask of all rows; else `[B, 1, ..., U]`, or `[n, U]`.

    Raises:
        OtherRows: the mask is for another number of rows than there are here.
    """
    mask = mask.to(x.device)
    if mask.ndim == 1:
        return mask
    count = x.shape[0] if rows is None else rows.count
    if count != len(mask):
        raise OtherRows(f"a gate has masks for {len(mask)} rows and sees {count}")
    if rows is not None:
        return mask.index_select(0, rows.index.to(mask.device))
    return mask.view(count, *[1] * (x.ndim - 2), mask.shape[1])


@contextmanager
def gates_set(what: Literal["mask", "fill", "probe"], wanted: Mapping[Gate, Any]) -> Iterator[None]:
    """These masks, fills or probes in place of those that the gates have, for the duration of the block."""
    before = {gate: getattr(gate, what) for gate in wanted}
    try:
        for gate, value in wanted.items():
            setattr(gate, what, value)
        yield
    finally:
        for gate, value in before.items():
            setattr(gate, what, value)
