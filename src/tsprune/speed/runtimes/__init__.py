"""What forecasts are run by. The folder is the registry: one file per runtime, with `RUNTIME`, under its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tsprune import registry

if TYPE_CHECKING:
    from tsprune.speed.runtimes._runtime import Runtime

REFERENCE = "eager"
"""The runtime whose forecasts the others must reproduce and whose times they are compared with."""
ORDER = (REFERENCE, "prepacked", "compile", "onnx", "onnx_int8")


def names() -> list[str]:
    """Names of all runtimes, plain torch first."""
    found = registry.names(__name__)
    return sorted(found, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def find(name: str) -> Runtime:
    """The runtime of that name.

    Raises:
        TspruneError: no such file; the message lists the known names.
    """
    found: Runtime = registry.find(__name__, name).RUNTIME
    return found
