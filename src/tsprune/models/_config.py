"""Reading public configs: every missing or impossible entry is an error that names it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tsprune.errors import TspruneError


def entry(config: Mapping[str, Any], name: str, kind: type, family: str, default: Any = ...) -> Any:
    """The entry of that name, checked for its type.

    Args:
        config: the config or a section of it.
        name: key.
        kind: expected type; an int is accepted where a float is expected.
        family: named in the error.
        default: returned when the key is absent or null; without one, absence is an error.
    """
    if config.get(name) is None:
        if default is ...:
            raise TspruneError(f"config.json: entry {name!r} is missing; family {family} needs it")
        return default
    value: Any = config[name]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        found = type(value).__name__
        raise TspruneError(f"config.json: entry {name!r} is {found} {value!r}, family {family} expects {kind.__name__}")
    if isinstance(value, int) and value < 0:
        raise TspruneError(f"config.json: entry {name!r} is {value}, expected 0 or more")
    return value


def positive(config: Mapping[str, Any], name: str, family: str, default: Any = ...) -> int:
    """The whole number of that name, which must be at least 1; see `entry`."""
    found: int = entry(config, name, int, family, default)
    if found < 1:
        raise TspruneError(f"config.json: entry {name!r} is {found}, expected 1 or more")
    return found


def patch_setup(config: Mapping[str, Any], family: str) -> Mapping[str, Any]:
    """The `chronos_config` section, its patches and quantile levels checked."""
    section: Mapping[str, Any] = entry(config, "chronos_config", dict, family)
    size = entry(section, "input_patch_size", int, family)
    stride = entry(section, "input_patch_stride", int, family, size)
    if size < 1 or stride < 1:
        raise TspruneError(f"config.json: input_patch_size {size} and input_patch_stride {stride} must be positive")
    levels = entry(section, "quantiles", list, family)
    if not levels or sorted(set(levels)) != levels or not all(0 < level < 1 for level in levels):
        raise TspruneError(f"config.json: quantiles {levels[:5]} must be increasing levels between 0 and 1")
    return section


def feed_forward_kind(config: Mapping[str, Any], family: str) -> tuple[str, bool]:
    """Activation and whether it is gated, from `feed_forward_proj` and the two entries that follow from it.

    `gated-gelu` stands for the tanh approximation, as in T5 v1.1.
    """
    written = entry(config, "feed_forward_proj", str, family, "relu")
    parts = written.split("-")
    if len(parts) > 2 or (len(parts) == 2 and parts[0] != "gated"):
        raise TspruneError(
            f"config.json: feed_forward_proj is {written!r}, expected an activation or gated-<activation>"
        )
    act = "gelu_new" if written == "gated-gelu" else parts[-1]
    name = entry(config, "dense_act_fn", str, family, act)
    return name, entry(config, "is_gated_act", bool, family, len(parts) == 2)
