"""Tiny configs of the Chronos families."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LEVELS = [0.1, 0.25, 0.5, 0.75, 0.9]

BAD: list[tuple[Mapping[str, Any], str]] = [
    ({"d_model": None}, "d_model"),
    ({"d_kv": "six"}, "d_kv"),
    ({"quantiles": [0.5, 0.1]}, "quantiles"),
    ({"feed_forward_proj": "snake"}, "snake"),
    ({"feed_forward_proj": "half-gelu"}, "feed_forward_proj"),
    ({"input_patch_size": 0}, "input_patch_size"),
    ({"chronos_config": None}, "chronos_config"),
]


def tiny() -> dict[str, Any]:
    """What both have in common."""
    return {
        "d_model": 24,
        "d_kv": 6,
        "d_ff": 20,
        "num_layers": 2,
        "num_heads": 3,
        "feed_forward_proj": "relu",
        "dropout_rate": 0.0,
        "chronos_config": {
            "context_length": 64,
            "input_patch_size": 8,
            "input_patch_stride": 8,
            "quantiles": LEVELS,
            "use_reg_token": True,
        },
    }


def sized(config: dict[str, Any], levels: list[float], **sizes: int) -> dict[str, Any]:
    """The config at public sizes."""
    section = config["chronos_config"] | {"input_patch_size": 16, "input_patch_stride": 16, "quantiles": levels}
    return config | sizes | {"d_kv": 64, "chronos_config": section}
