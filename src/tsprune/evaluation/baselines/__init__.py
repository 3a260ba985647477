"""Forecasts to be beaten. The folder is the registry: one file per baseline, with `BASELINE`, under its name.

A baseline forecasts every series from its own past alone: covariates and the other series of a window play no part.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar, Self

from tsprune import registry
from tsprune.errors import TspruneError

if TYPE_CHECKING:
    from torch import Tensor

    from tsprune.data.batch import Batch
    from tsprune.data.split import Split
    from tsprune.data.windows import WindowSet

DEFAULT = ("seasonal_naive",)
"""What is scored beside the model unless others are named."""


class Baseline(ABC):
    """What every baseline offers; `fitted` makes one that is ready to forecast windows of a split."""

    NEEDS: ClassVar[str] = ""
    """A package of the extra `tsprune[baselines]`, if it takes one."""

    @classmethod
    @abstractmethod
    def fitted(cls, split: Split, season: int, *, steering: int = 512) -> Self:
        """Learn what there is to learn, from train and validation windows; test windows are never cut.

        Args:
            split: gives the windows, and context and horizon of the forecasts to come.
            season: season of the panel in steps.
            steering: validation windows at most that may decide between settings, evenly spread.

        Raises:
            TspruneError: there are no windows to learn from, or a library is missing.
        """

    @abstractmethod
    def forecast(self, batch: Batch, horizon: int, levels: Sequence[float]) -> Tensor:
        """Quantiles `[B, Q, H]` on the scale of the context, never NaN; rows that are no target may hold anything."""

    @classmethod
    def require(cls) -> None:
        """Raise TspruneError where the package is missing, without importing it."""
        if cls.NEEDS and importlib.util.find_spec(cls.NEEDS) is None:
            raise TspruneError(
                f"the baseline {cls.__module__.rpartition('.')[2]} needs the package {cls.NEEDS}, which is not "
                "installed; pip install 'tsprune[baselines]', or name other --baselines"
            )

    def cost(self, windows: WindowSet) -> str:
        """What forecasting these windows will take, to be said before it starts; "" where it is hardly anything."""
        return ""

    def remarks(self) -> list[str]:
        """What to say about the forecasts since the last call, one line each: how they came about, what stands in."""
        return []


def names() -> list[str]:
    """Names of all baselines, sorted."""
    return registry.names(__name__)


def check(chosen: Iterable[str]) -> None:
    """Refuse, before any work, an unknown baseline or one whose library is missing.

    Raises:
        TspruneError: names the flag; the message lists the known ones, or says what to install.
    """
    for name in chosen:
        _class(registry.known(__name__, name, "--baselines")).require()


def fit(
    chosen: Sequence[str],
    split: Split,
    season: int,
    *,
    steering: int = 512,
    report: Callable[[str], None] | None = None,
) -> dict[str, Baseline]:
    """Baselines ready to forecast, by name, in the order given.

    Args:
        chosen: names of files in this folder.
        split: as in `Baseline.fitted`.
        season: as in `Baseline.fitted`.
        steering: as in `Baseline.fitted`.
        report: called with the name of each baseline once it is fitted.

    Raises:
        TspruneError: there is no such baseline, or it cannot be fitted.
    """
    found: dict[str, Baseline] = {}
    for name in chosen:
        found[name] = _class(name).fitted(split, season, steering=steering)
        if report is not None:
            report(name)
    return found


def _class(name: str) -> type[Baseline]:
    made: type[Baseline] = registry.find(__name__, name).BASELINE
    return made
