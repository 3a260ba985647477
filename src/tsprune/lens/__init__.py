"""Probes that show what a model uses on a user's series, before anything is cut. The folder is the registry.

One file per probe, with `PROBE`, a `Probe` (see `_probe.py`), under its name. Nothing here imports anything heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tsprune import registry

if TYPE_CHECKING:
    from tsprune.lens._probe import Probe


def names() -> list[str]:
    """Names of all probes, sorted."""
    return registry.names(__name__)


def find(name: str) -> Probe:
    """The probe of that name.

    Raises:
        TspruneError: no such file; the message lists the known names.
    """
    found: Probe = registry.find(__name__, name).PROBE
    return found
