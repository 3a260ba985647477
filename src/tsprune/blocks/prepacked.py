"""Weights of linear maps laid out beforehand as the CPU's matrix kernels (oneDNN) read them.

torch multiplies plain weights by MKL, which arranges them anew in every call and on some processors does without their
widest instructions. Laid out once, the same single-precision product takes half of the time there.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

LEAST = 1_000_000
"""Multiplications of a product below which preparing the call takes longer than it saves,"""
LARGE = 200_000
"""but for weights of that many entries, which mostly come from memory: laid out they come faster."""
TOKENS = 64
"""Tokens that the layout is chosen for; it serves any number."""
WORTH = 16
"""Rows of a batch whose forecasts save more time than laying out the weights takes."""


class Linear(nn.Linear):
    """A linear map that can have its weight laid out beforehand.

    Attributes:
        packed: where the laid-out weight lies, while that is in use.
    """

    packed: Packed | None = None

    def reset_parameters(self) -> None:
        """Fresh weights as torch draws them, where there is memory to draw them into."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """`[..., I]` to `[..., O]`."""
        return self.product(x)

    def product(self, x: Tensor) -> Tensor:
        """`[..., I]` to `[..., O]`: weight and bias, nothing else."""
        packed, weight, bias = self.packed, self.weight, self.bias
        if packed is not None and fits(x, weight):
            return packed.product(x, weight, bias)
        return F.linear(x, weight, bias)

    def rectified(self, x: Tensor) -> Tensor:
        """`relu(product(x))`, in one go where the weight is laid out."""
        packed, weight, bias = self.packed, self.weight, self.bias
        if packed is not None and fits(x, weight):
            return packed.product(x, weight, bias, "relu")
        return F.relu(F.linear(x, weight, bias))


class Packed:
    """A laid-out weight, of one map or of several below each other; made anew where one was changed or replaced."""

    def __init__(self) -> None:
        self._of: tuple[Tensor, ...] = ()
        self._versions: tuple[int, ...] = ()
        self._weight = torch.empty(0)
        self._bias: Tensor | None = None

    def __reduce__(self) -> tuple[type[Packed], tuple[()]]:
        # A copy of a map has another weight.
        return Packed, ()

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None, act: str = "none") -> Tensor:
        """`[..., I]` to `[..., O]`, with `relu` behind if that is asked for."""
        if not self._of or self._of[0] is not weight or self._versions[0] != _version(weight):
            self._lay_out(weight, (weight,))
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, bias, act, [], "")
        return out

    def products(self, x: Tensor, maps: Sequence[nn.Linear]) -> Sequence[Tensor]:
        """What several maps make of `[..., I]`, `[..., O]` each; all of them have a bias, or none."""
        weights: list[Tensor] = [one.weight for one in maps]
        biases: list[Tensor] = [one.bias for one in maps if one.bias is not None]
        tensors = (*weights, *biases)
        known = len(tensors) == len(self._of) and all(map(operator.is_, tensors, self._of))
        if not known or self._versions != tuple(map(_version, tensors)):
            self._lay_out(torch.cat(weights), tensors)
            self._bias = torch.cat(biases) if biases else None
        out = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        found: Sequence[Tensor] = torch.split(out, [len(weight) for weight in weights], -1)
        return found

    def _lay_out(self, weight: Tensor, of: tuple[Tensor, ...]) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), TOKENS)
        self._of, self._versions = of, tuple(map(_version, of))


def _version(tensor: Tensor) -> int:
    """Counts changes in place; an inference tensor cannot be changed unnoticed."""
    return 0 if tensor.is_inference() else tensor._version


def fits(x: Tensor, weight: Tensor, outputs: int = 0) -> bool:
    """Whether the kernel does a product: float32 on a CPU, no gradient wanted, and worth the call.

    Where operations are traced, counted or watched they are the usual ones.

    Args:
        x: `[..., I]`.
        weight: `[O, I]`.
        outputs: of all weights that are laid out together; 0 for this one alone.
    """
    outputs, entries = outputs or weight.shape[0], x.numel()
    return (
        x.dtype is torch.float32
        and weight.dtype is torch.float32
        and x.is_cpu
        and weight.is_cpu
        and x.ndim > 1
        and entries > 0
        and (entries * outputs >= LEAST or weight.shape[1] * outputs >= LARGE)
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not is_in_torch_dispatch_mode()
    )


def available() -> bool:
    """Whether this torch has the kernels."""
    there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return there and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


@contextmanager
def prepacked(network: object, rows: int = WORTH) -> Iterator[None]:
    """Lay out the weights of a network's linear maps as they are used, for the duration of the block.

    They take as much memory again as the weights. Nothing changes where torch lacks the kernels, on other devices, in
    other types or where a gradient is wanted. A weight that is changed in place meanwhile is laid out again, unless it
    is changed behind torch's back, through `.data` or NumPy: do not.

    Args:
        network: a module; what is laid out already stays so when an inner block ends. Anything else is left alone.
        rows: of all batches that will be forecast. For a few of them it does not pay, and nothing is done.
    """
    pays = isinstance(network, nn.Module) and rows >= WORTH and available()
    modules = network.modules() if isinstance(network, nn.Module) and pays else ()
    found = [module for module in modules if getattr(module, "packed", 0) is None]
    try:
        for module in found:
            vars(module)["packed"] = Packed()
        yield
    finally:
        for module in found:
            vars(module).pop("packed", None)
