"""Rolling back-test: forecasts from several dates, each by a model that was trained on what lies before."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from tsprune.data.panel import Panel
from tsprune.data.reading import ReadOptions, read
from tsprune.data.split import Split
from tsprune.data.windows import Grouping
from tsprune.data.words import many
from tsprune.errors import TspruneError
from tsprune.evaluation.protocols._protocol import Protocol

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class RollingOrigins(Protocol):
    """Folds with an expanding train part (Tashman 2000).

    Fold k is tested on the `horizon` steps from its origin on. Validation is what lies `validation` steps before the
    origin, train is everything before that.

    Args:
        data: name of the data, for people.
        horizon: steps to forecast.
        folds: how many origins.
        step: steps between origins; 0 takes the horizon, so that targets of folds do not overlap.
        validation: steps of the validation part, at least the horizon; 0 takes the horizon.
        start: date of the first origin, such as "2018-01-01"; "" puts the origins so that the last fold ends with the
            data.
        options: how to read the data.

    Raises:
        TspruneError: for numbers that mean nothing.
    """

    data: str = "your data"
    horizon: int = 24
    folds: int = 5
    step: int = 0
    validation: int = 0
    start: str = ""
    options: ReadOptions = field(default_factory=ReadOptions)

    headline: ClassVar[tuple[str, ...]] = ("mase", "wql", "mae")

    def __post_init__(self) -> None:
        """Fill in what follows from the horizon."""
        for key in ("step", "validation"):
            object.__setattr__(self, key, getattr(self, key) or self.horizon)
        if min(self.horizon, self.folds, self.step) < 1:
            raise TspruneError(
                f"horizon {self.horizon}, folds {self.folds} and step {self.step}, expected at least 1 each"
            )
        if self.validation < self.horizon:
            raise TspruneError(
                f"a validation part of {self.validation} steps holds no window of horizon {self.horizon}; give at "
                "least as many steps"
            )

    def read(self, source: str | PathLike[str] | pd.DataFrame) -> Panel:
        """As `Protocol.read`; `source` is a file or table."""
        return read(source, self.options)

    def splits(self, panel: Panel, context: int, *, grouping: Grouping = "none") -> tuple[Split, ...]:
        """As `Protocol.splits`; one per fold. Series that a fold is too early or too late for are left out, aloud."""
        return tuple(
            Split.make(panel, self.horizon, context, spec, grouping=grouping, pad=True) for spec in self._specs(panel)
        )

    def rules(self) -> dict[str, str]:
        """As `Protocol.rules`."""
        begin = f"from {self.start} on" if self.start else "up to the end of the data"
        return {
            "split": (
                f"{many(self.folds, 'fold')}, their origins {many(self.step, 'step')} apart, {begin}; the "
                f"{many(self.validation, 'step')} before an origin are validation, everything earlier is train, so "
                "that train grows from fold to fold."
            ),
            "windows": f"Each series has one test window per fold: {many(self.horizon, 'step')} from the origin on.",
            "scaling": (
                "Series are z-scored by the train part of the fold; MAE is on that scale, MASE and WQL are in the "
                "units of the data."
            ),
            "measures": "MASE divides by the mean absolute seasonal-naive error of all that lies before the origin.",
        }

    def _specs(self, panel: Panel) -> list[str]:
        """Cut-offs of every fold, as dates."""
        if panel.step is None or any(series.start is None for series in panel.series):
            raise TspruneError(
                f"{panel.source} has no timestamps, which a back-test by date needs; give --timestamp-column, or use "
                "protocol panel"
            )
        ends = [panel.horizon_timestamps(series, len(series), 1)[0] for series in panel.series]
        latest = panel.series[int(np.argmax(np.array(ends, "M8[us]")))]
        length, span = len(latest), (self.folds - 1) * self.step
        first = panel.steps_before(latest, self.start) if self.start else length - self.horizon - span
        if first + span + self.horizon > length:
            room = length - self.horizon - first
            fit = f"{many(room // self.step + 1, 'fold')} would fit" if room >= 0 else "not even one fold fits"
            raise TspruneError(
                f"{many(self.folds, 'fold')} of horizon {self.horizon} from {self.start} on reach beyond the end of "
                f"the data; {fit}, or give an earlier start"
            )
        if first - self.validation < self.horizon:
            raise TspruneError(
                f"the first of {many(self.folds, 'fold')} has {max(first, 0)} steps before its origin, expected at "
                f"least {self.validation} for validation and {self.horizon} for train; give fewer folds, a smaller "
                "step or a later start"
            )
        specs = []
        for origin in range(first, first + span + 1, self.step):
            borders = (origin - self.validation, origin, origin + self.horizon)
            dates = [panel.horizon_timestamps(latest, border, 1)[0].isoformat() for border in borders]
            specs.append(f"date {' '.join(dates)}")
        return specs


PROTOCOL = RollingOrigins
