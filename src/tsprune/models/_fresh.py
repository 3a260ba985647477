"""Fresh weights for the patch transformers, and models without any."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


@torch.no_grad()
def fresh_weights(model: nn.Module, head_width: int, layers: int) -> None:
    """Normal weights with the inverse square root of the fan-in as deviation, biases 0.

    Queries also divide by the root of the head width, as these networks do not scale attention logits; maps
    that write to the residual divide by the root of twice the layers. A model without memory is left as it is.
    """
    if all(parameter.is_meta for parameter in model.parameters()):
        return
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            std = max(1, module.in_features) ** -0.5
            if path.endswith(".q"):
                std *= head_width**-0.5
            if path.endswith((".o", ".wo")):
                std *= (2 * max(1, layers)) ** -0.5
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)


class _NoFilling(TorchFunctionMode):
    """Skips the random filling of tensors, which on the meta device would import a second's worth of code."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        home = getattr(func, "__module__", None)
        if home == nn.init.__name__ or func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return named["tensor"] if "tensor" in named else args[0]
        return func(*args, **named)


@contextmanager
def without_memory() -> Iterator[None]:
    """Models made inside have sizes but no memory, and the random state is left alone."""
    with torch.device("meta"), _NoFilling():
        yield
