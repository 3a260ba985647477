"""The dropout rates of a model: read, and set everywhere at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from tsprune.errors import TspruneError


def _places(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Every place that holds a rate: its path, the module, and the attribute."""
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            yield path, module, "p"
        # Attention drops weights inside a fused kernel and has a number in place of a module.
        elif isinstance(vars(module).get("dropout"), int | float):
            yield path, module, "dropout"


def dropout_rates(model: nn.Module) -> dict[str, float]:
    """The rate of every dropout, by module path; of modules that drop and of numbers called `dropout`."""
    return {path: float(getattr(module, name)) for path, module, name in _places(model)}


def set_dropout(model: nn.Module, rate: float | Mapping[str, float]) -> None:
    """Set every dropout, in place.

    Args:
        model: changed.
        rate: from 0 to below 1, for all; or by module path, as `dropout_rates` gives them.

    Raises:
        TspruneError: a rate outside [0, 1).
    """
    for path, module, name in _places(model):
        own = float(rate[path] if isinstance(rate, Mapping) else rate)
        if not 0 <= own < 1:
            raise TspruneError(f"--dropout {own:g} must be 0 or more and below 1")
        setattr(module, name, own)
