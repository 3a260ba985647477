"""Baselines that fit a model of the library statsforecast to the context of every window."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsprune.blocks.patching import fill_gaps
from tsprune.data.batch import Batch
from tsprune.evaluation.baselines import Baseline
from tsprune.evaluation.baselines._rowfits import Reasons, Request, forecast_rows
from tsprune.evaluation.baselines._workers import Workers
from tsprune.evaluation.baselines.seasonal_naive import SeasonalNaive

if TYPE_CHECKING:
    from tsprune.data.split import Split
    from tsprune.data.windows import WindowSet

FEW = 32
"""Fewer rows than this are not worth starting processes for."""
_TIMED = 3


class Statistical(Baseline):
    """A model of its own for every row, chosen and fitted by the library on the row's context alone.

    Multiplicative forms need positive values, so a row is brought back to the units of the data first and its
    forecast to the scale of the context in the end; without `scale` in the batch the row is taken as it is. Values
    before the first observed one are left out, later gaps are filled as by `fill_gaps`. The point forecast of the
    library stands at the level 0.5, the ends of its prediction intervals at the others.

    A row to which no model can be fitted, such as one of very few values, is forecast by seasonal naive, and counted
    in the remarks.

    Args:
        season: season in steps.

    Raises:
        TspruneError: the library is not installed.
    """

    NEEDS = "statsforecast"
    name: ClassVar[str]
    """Class in `statsforecast.models`."""

    def __init__(self, season: int) -> None:
        self.require()
        self.season = season
        self._naive = SeasonalNaive(season)
        self._workers: Workers | None = None
        self._reasons: Counter[str] = Counter()

    @classmethod
    def fitted(cls, split: Split, season: int, *, steering: int = 512) -> Self:
        """Nothing is learnt before a window comes; arguments and errors as in `Baseline.fitted`."""
        return cls(season)

    def forecast(self, batch: Batch, horizon: int, levels: Sequence[float]) -> Tensor:
        """Quantiles `[B, Q, H]` on the scale of the context; those of seasonal naive in rows that are no target.

        From `FEW` rows on, as many processes as torch has threads share the rows; the result is the same.

        Raises:
            TspruneError: the horizon is not positive, a level is not strictly between 0 and 1, or a process that
                fits models has ended early.
        """
        quantiles = self._naive.forecast(batch, horizon, levels)
        wanted = _wanted(batch)
        request = Request(self.name, self.season, horizon, tuple(levels))
        found, reasons = self._found(request, _rows(batch)[wanted].numpy())
        self._reasons.update(reasons)
        location, scale = (values[wanted, None] for values in _units(batch))
        own = ((torch.from_numpy(found) - location) / scale).to(quantiles.dtype)
        # Rows that could not be fitted are NaN: seasonal naive stays there.
        quantiles[wanted] = torch.where(torch.isnan(own), quantiles[wanted], own)
        return quantiles

    def _found(self, request: Request, rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], Reasons]:
        processes = torch.get_num_threads()
        if len(rows) < FEW or processes < 2:
            return forecast_rows(request, rows)
        if self._workers is None or len(self._workers) != processes:
            self._workers = Workers(processes)
        return self._workers.forecast_rows(request, rows)

    def cost(self, windows: WindowSet) -> str:
        """How many models there are to fit and about how long that will take, from fitting a few of them."""
        total = len(windows) * windows.targets_per_window
        places = np.unique(np.linspace(0, len(windows) - 1, _TIMED).astype(int))
        batch = windows.batch(places)
        rows = _rows(batch)[_wanted(batch)][:_TIMED].numpy()
        if not len(rows):
            return ""
        request = Request(self.name, self.season, windows.horizon, (0.1, 0.5))
        # The first fit is slower: it loads the library.
        forecast_rows(request, rows[:1])
        started = time.perf_counter()
        forecast_rows(request, rows)
        each, processes = (time.perf_counter() - started) / len(rows), max(1, torch.get_num_threads())
        seconds = each * total / (processes if total >= FEW else 1)
        told = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
        return (
            f"fits a model to each of {total:,} windows, {each:.3f} s each: about {told} on {processes} "
            f"{'process' if processes == 1 else 'processes'}"
        )

    def remarks(self) -> list[str]:
        """The library and its version, and how many rows seasonal naive stood in for since the last call."""
        counted, self._reasons = self._reasons, Counter()
        said = [f"a model per window by {self.NEEDS} {metadata.version(self.NEEDS)}"]
        if counted:
            why = "; ".join(f"{reason}: {count:,}" for reason, count in counted.most_common(3))
            said.append(
                f"{counted.total():,} windows could not be fitted and are forecast by seasonal naive instead ({why})"
            )
        return said


def _wanted(batch: Batch) -> Tensor:
    """Rows that are forecast and have a value to go by `[B]`, bool."""
    seen = ~torch.isnan(batch.context).all(dim=1)
    return seen if batch.is_target is None else seen & batch.is_target


def _units(batch: Batch) -> tuple[Tensor, Tensor]:
    """Location and scale of every row `[B, 1]` in float64."""
    empty = torch.zeros(batch.rows, 1, dtype=torch.float64)
    location = empty if batch.location is None else batch.location[:, None].double()
    return location, empty + 1 if batch.scale is None else batch.scale[:, None].double()


def _rows(batch: Batch) -> Tensor:
    """Contexts in the units of the data `[B, L]`, float64, NaN only before the first value of a row."""
    location, scale = _units(batch)
    values = batch.context.double() * scale + location
    # The data came in single precision: rounding to it gives nearly all values back as they were.
    return fill_gaps(values if batch.scale is None else values.float().double())
