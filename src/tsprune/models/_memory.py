"""Models of the original packages that are already in memory: taken over by their config and tensors alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tsprune import registry
from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster
from tsprune.models._loading import check_dtype, device_of, fill, without_weights
from tsprune.models._recognising import family_of

INSIDE = ("model", "module", "inner_model")
"""Where pipelines and forecasters of the original packages keep their network."""
DEEPEST = 3


def from_memory(
    upstream: Any,
    *,
    config: Mapping[str, Any] | None = None,
    family: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
) -> Forecaster:
    """Our model with the weights of a model of the original package, which is not imported and not changed.

    Args:
        upstream: a network with `state_dict()` and a config, or a pipeline around one.
        config: its public config; None looks for it at the object.
        family: name of the family; None recognises it from the config.
        dtype: type of the weights in memory.
        device: where our model goes.

    Returns:
        The model in eval mode; it shares no tensor with `upstream`.

    Raises:
        TspruneError: no config, no known family, or tensors that do not fit it.
    """
    check_dtype(dtype)
    where = Path(f"{type(upstream).__name__} in memory")
    network, found = _network(upstream, config)
    if found is None:
        raise TspruneError(
            f"{where}: has no config that a family recognises; give its public config.json as config=..., a dictionary"
        )
    kind = family_of(found, family, where)
    model = without_weights(kind, found, where)
    fill(model, _tensors(network, where), where, dtype)
    return model.to(device_of(device)).eval()


def has_network(upstream: Any) -> bool:
    """Whether an object has tensors, itself or in what it wraps."""
    return next(_parts(upstream), None) is not None


def _network(upstream: Any, given: Mapping[str, Any] | None) -> tuple[Any, dict[str, Any] | None]:
    """The outermost part whose config a family knows, and that config; with a config given, the outermost of all."""
    package = "tsprune.models"
    kinds = [registry.find(package, name).FAMILY for name in registry.names(package)]
    for part in _parts(upstream):
        if given is not None:
            return part, dict(given)
        told = _config_of(part)
        # Classes that were never saved do not write their name into their config.
        named = None if told is None else {"architectures": [type(part).__name__], **told}
        for config in (told, named):
            if config is not None and any(kind.recognises(config) for kind in kinds):
                return part, config
    return upstream, None


def _parts(upstream: Any) -> Iterator[Any]:
    """The object and what it wraps, as far as these have tensors."""
    waiting, depth = [upstream], 0
    while waiting and depth <= DEEPEST:
        for part in waiting:
            if callable(getattr(part, "state_dict", None)):
                yield part
        waiting = [inner for part in waiting for name in INSIDE if (inner := getattr(part, name, None)) is not None]
        depth += 1


def _config_of(part: Any) -> dict[str, Any] | None:
    """The config as plain data, from wherever the packages keep it."""
    for name in ("config", "_hub_mixin_config"):
        config: Any = getattr(part, name, None)
        if callable(getattr(config, "to_dict", None)):
            config = config.to_dict()
        elif is_dataclass(config) and not isinstance(config, type):
            config = asdict(config)
        if isinstance(config, Mapping):
            plain: dict[str, Any] = json.loads(json.dumps(dict(config), default=str))
            return plain
    return None


def _tensors(network: Any, where: Path) -> dict[str, Tensor]:
    state = network.state_dict()
    wrong = next((name for name, value in state.items() if not isinstance(value, Tensor)), None)
    if wrong is not None:
        raise TspruneError(f"{where}: entry {wrong!r} of its state_dict is no tensor; only tensors are taken over")
    return {name: value.detach().cpu() for name, value in state.items()}
