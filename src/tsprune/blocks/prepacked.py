"""Weights of linear maps laid out beforehand as the CPU's matrix kernels (oneDNN) read them.

torch multiplies plain weights by MKL, which arranges them anew in every call and on some processors does without their
widest instructions. Laid out once, the same single-precision product takes half of the time there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

LEAST = 80_000
"""Multiplications of a product below which preparing the call takes longer than it saves."""
ROWS = 64
"""Tokens that the layout is chosen for; it serves any number."""
FEW = 256
"""Tokens up to which one product for several maps is faster than one for each."""
WORTH = 16
"""Rows of a batch whose forecasts save more time than laying out the weights takes."""


class Linear(nn.Linear):
    """A linear map that can have its weight laid out beforehand.

    Attributes:
        packed: where the laid-out weight lies, while that is in use.
    """

    packed: Packed | None = None

    def forward(self, x: Tensor) -> Tensor:
        """`[..., I]` to `[..., O]`."""
        return self.product(x)

    def product(self, x: Tensor) -> Tensor:
        """`[..., I]` to `[..., O]`: weight and bias, nothing else."""
        packed = self.packed
        if packed is not None and fits(x, self.weight):
            return packed.product(x, (self,))
        return F.linear(x, self.weight, self.bias)

    def rectified(self, x: Tensor) -> Tensor:
        """`relu(product(x))`, in one go where the weight is laid out."""
        packed = self.packed
        if packed is not None and fits(x, self.weight):
            return packed.product(x, (self,), "relu")
        return F.relu(F.linear(x, self.weight, self.bias))


class Packed:
    """Laid-out weights of one map, or of several below each other; made anew where a weight was changed or replaced."""

    def __init__(self) -> None:
        self._of: tuple[tuple[Tensor, int], ...] = ()
        self._weight = self._bias = torch.empty(0)

    def __reduce__(self) -> tuple[type[Packed], tuple[()]]:
        # A copy of a map has another weight.
        return Packed, ()

    def product(self, x: Tensor, maps: Sequence[nn.Linear], act: str = "none") -> Tensor:
        """What the maps make of `[..., I]`, side by side: `[..., sum of O]`, with `relu` behind if that is asked for.

        All of the maps have a bias, or none.
        """
        if not self._current(maps):
            self._lay_out(maps)
        first = maps[0].bias
        bias = first if first is None or len(maps) == 1 else self._bias
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, bias, act, [], "")
        return out

    def _current(self, maps: Sequence[nn.Linear]) -> bool:
        tensors = _tensors(maps)
        return len(tensors) == len(self._of) and all(
            tensor is known and _version(tensor) == version
            for tensor, (known, version) in zip(tensors, self._of, strict=True)
        )

    def _lay_out(self, maps: Sequence[nn.Linear]) -> None:
        self._of = tuple((tensor, _version(tensor)) for tensor in _tensors(maps))
        weight = maps[0].weight if len(maps) == 1 else torch.cat([one.weight for one in maps])
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
        if len(maps) > 1 and maps[0].bias is not None:
            self._bias = torch.cat([one.bias for one in maps])


def _tensors(maps: Sequence[nn.Linear]) -> list[Tensor]:
    """What was copied when the maps were laid out; a single map's bias is used as it is."""
    weights: list[Tensor] = [one.weight for one in maps]
    return weights if len(maps) == 1 else weights + [one.bias for one in maps if one.bias is not None]


def _version(tensor: Tensor) -> int:
    """Counts changes in place; an inference tensor cannot be changed unnoticed."""
    return 0 if tensor.is_inference() else tensor._version


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernel does a product: float32 on a CPU, no gradient wanted, and worth the call.

    Where operations are traced, counted or watched they are the usual ones.
    """
    return (
        x.dtype is torch.float32
        and weight.dtype is torch.float32
        and x.is_cpu
        and weight.is_cpu
        and x.ndim > 1
        and x.numel() * weight.shape[0] >= LEAST
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not is_in_torch_dispatch_mode()
    )


def together(packed: Packed | None, maps: Sequence[Linear], x: Tensor) -> Sequence[Tensor | None]:
    """What several maps make of the same tokens, `[..., O]` each, in one product where that is faster; else Nones.

    Args:
        packed: of these maps together; None where nothing is laid out.
        maps: with bias or without, all of them.
        x: `[..., I]`.
    """
    if packed is None or x.numel() > FEW * x.shape[-1] or not all(fits(x, one.weight) for one in maps):
        return (None,) * len(maps)
    return torch.split(packed.product(x, maps), [one.out_features for one in maps], -1)


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
