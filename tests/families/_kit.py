"""What every family brings to the contract tests and the reference cases."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tsprune.blocks.units import UnitGroup
from tsprune.models._forecaster import Forecaster

Tensors = dict[str, Tensor]
Config = dict[str, Any]


@dataclass(frozen=True)
class Public:
    """A public checkpoint's sizes.

    Args:
        name: for the test's name.
        config: its public config.
        millions: its parameters in millions, as families of the same name publish or as were counted upstream.
        extra: parameters that we hold beside those, such as copies of a shared table.
        within: accepted difference in millions.
    """

    name: str
    config: Config
    millions: float
    extra: Callable[[Forecaster], int] = lambda model: 0
    within: float = 0.005


@dataclass(frozen=True)
class Family:
    """How the contract tests make small models of a family, and what holds for it.

    Args:
        config: the public config of a tiny model whose context is 64 steps and whose native horizon is 16 (or, where
            the family cannot, near that), without dropout.
        public: sizes of public checkpoints.
        dropout: entries of the config that switch dropout on; empty for a family without dropout.
        variants: further changes of the config worth the tests of missing values and of cuts.
        shifts: whether forecasts follow a shift of the series.
        scales: whether forecasts follow its scale.
        ragged: whether rows of different length give the same alone and side by side. Families that see padding as
            values, or count positions from it, do not promise that.
        idle: which groups of the tiny model cannot matter to a forecast.
        bad: changes of the config that must be refused, and what the message names.
    """

    config: Callable[[], Config]
    public: Sequence[Public] = ()
    dropout: Mapping[str, Any] = field(default_factory=dict)
    variants: Sequence[Mapping[str, Any]] = ()
    shifts: bool = True
    scales: bool = True
    ragged: bool = True
    idle: Callable[[Forecaster, UnitGroup], bool] = lambda model, group: False
    bad: Sequence[tuple[Mapping[str, Any], str]] = ()


class Adapter:
    """How one family's reference cases are run; the base serves tensors that carry their public names.

    Attributes:
        family: our family's name, where the cases call it otherwise.
    """

    family: str | None = None

    def forward(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        """The outputs of the call; `loss` is a scalar with its graph."""
        raise NotImplementedError

    def rollout(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        """Outputs of the long forecast, if the case has one."""
        return {}

    def gradient(self, model: Forecaster, name: str) -> Tensor | None:
        """Gradient of the parameter of that public name, in the public layout; None when there is no such parameter."""
        found = dict(model.named_parameters()).get(model.names.ours(name))
        if found is None:
            return None
        return torch.zeros_like(found) if found.grad is None else found.grad

    @contextmanager
    def masked(self, model: Forecaster, mask: Mapping[str, Any]) -> Iterator[None]:
        """Zero the listed entries of what enters the named module, by our gates where they are whole units.

        Args:
            model: any model.
            mask: `module` (public name), `entries` of the last axis of its input; without entries, its output is 0.
        """
        path = model.names.ours(mask["module"])
        entries = mask["entries"]
        for kind in ("head", "ffn_channel"):
            group = model.unit_groups().get(f"{path.rpartition('.')[0]}/{kind}")
            if entries is None or group is None or not path.endswith((".o", ".wo")):
                continue
            owners = group.gates[0].owners.tolist()
            gone = {owners[entry] for entry in entries}
            if sorted(entries) == [entry for entry, unit in enumerate(owners) if unit in gone]:
                with model.masked({group.name: [unit for unit in range(group.units) if unit not in gone]}):
                    yield
                return
        with _cleared(model.get_submodule(path), entries):
            yield


@contextmanager
def _cleared(module: torch.nn.Module, entries: Sequence[int] | None) -> Iterator[None]:
    def clear(_: torch.nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        keep = torch.ones(given[0].shape[-1], dtype=given[0].dtype)
        keep[list(entries or ())] = 0
        return (given[0] * keep, *given[1:])

    def nothing(_: torch.nn.Module, __: Any, result: Tensor) -> Tensor:
        return torch.zeros_like(result)

    handle = module.register_forward_hook(nothing) if entries is None else module.register_forward_pre_hook(clear)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def seen(model: Forecaster, paths: Mapping[str, str]) -> Iterator[Tensors]:
    """Outputs of modules during a forward pass, by the names given to them.

    Args:
        model: any model.
        paths: path of a module of ours by the name of its output.
    """
    found: Tensors = {}

    def note(name: str) -> Callable[..., None]:
        def keep(_: torch.nn.Module, __: Any, result: Any) -> None:
            found[name] = result[0] if isinstance(result, tuple) else result

        return keep

    with contextlib.ExitStack() as stack:
        for name, path in paths.items():
            handle = model.get_submodule(path).register_forward_hook(note(name))
            stack.callback(handle.remove)
        yield found


def masks_of(case: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The masks of a case in one form: `key`, `module`, and `entries`, which are None for a whole output."""
    stored = case.get("masks") or []
    if isinstance(stored, Mapping):
        return [{"key": key, **mask} for key, mask in stored.items()]
    found = []
    for mask in stored:
        width = int(mask.get("head_dim", 1))
        units = [int(mask["head"])] if mask["kind"] == "head" else [int(channel) for channel in mask["channels"]]
        found.append({**mask, "entries": [unit * width + step for unit in units for step in range(width)]})
    return found


def first_of(tensors: Tensors, *names: str) -> Tensor | None:
    """The first tensor that is there under one of the names."""
    return next((tensors[name] for name in names if name in tensors), None)


def hidden_where(values: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """NaN where a mask is 0."""
    return values if values is None or mask is None else values.masked_fill(mask == 0, torch.nan)
