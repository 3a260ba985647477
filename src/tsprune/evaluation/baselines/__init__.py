"""Forecasts that need no training. The folder is the registry: one file per baseline, under its name."""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from tsprune.errors import TspruneError

if TYPE_CHECKING:
    from torch import Tensor

    from tsprune.data.batch import Batch


class Baseline(Protocol):
    """What every baseline offers; it is made from the panel's season alone."""

    def forecast(self, batch: Batch, horizon: int, levels: Sequence[float]) -> Tensor:
        """Quantiles `[B, Q, H]` on the scale of the context, never NaN."""


def names() -> list[str]:
    """Names of all baselines, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def baseline(name: str, season: int) -> Baseline:
    """A baseline by name.

    Args:
        name: file name in this folder.
        season: season of the panel in steps.

    Raises:
        TspruneError: if there is no such baseline; the message lists those there are.
    """
    if name not in names():
        raise TspruneError(f"no baseline is called {name!r}; there are: {', '.join(names())}")
    made: Baseline = import_module(f"{__name__}.{name}").BASELINE(season)
    return made
