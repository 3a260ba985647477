"""How to judge: what is read, where it is cut, which windows count and which measures speak. One file per protocol.

Every file gives its class as `PROTOCOL`; what all of them can do is said at `_protocol.Protocol`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tsprune import registry
from tsprune.errors import TspruneError

if TYPE_CHECKING:
    from tsprune.evaluation.protocols._protocol import Protocol


def names() -> list[str]:
    """Names of all protocols, sorted."""
    return registry.names(__name__)


def make(name: str, **settings: Any) -> Protocol:
    """A protocol by name, with its settings: `make("ltsf", data="ETTh1", horizon=96)`.

    Raises:
        TspruneError: there is no such protocol, it has no such setting, or the settings mean nothing.
    """
    from dataclasses import fields

    found: type[Protocol] = registry.find(__name__, name).PROTOCOL
    there = [entry.name for entry in fields(found)]
    if unknown := [key for key in settings if key not in there]:
        raise TspruneError(f"protocol {name} has no setting {unknown[0]!r}; it has: {', '.join(there)}")
    return found(**settings)
