"""Many short series (the M competitions): the last horizon of each is the test part."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from os import PathLike
from typing import TYPE_CHECKING, ClassVar

from tsprune.data.panel import Panel
from tsprune.data.panel_files import append_steps
from tsprune.data.reading import ReadOptions, read
from tsprune.data.split import Split
from tsprune.data.windows import Grouping
from tsprune.errors import TspruneError
from tsprune.evaluation.protocols._protocol import Protocol, published_file, refuse_unknown

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class DataSet:
    """A published data set.

    Args:
        horizon: steps to forecast.
        season: season in steps for MASE and seasonal naive, as published.
        train: names that the file goes by, without ending.
        test: names of the file with the last horizon, where it is apart.
        frequency: step between rows where the file has no dates.
    """

    horizon: int
    season: int
    train: tuple[str, ...]
    test: tuple[str, ...] = ()
    frequency: str | None = None


def _m4(group: str, horizon: int, season: int, frequency: str) -> DataSet:
    train, test = ((f"m4_{group}_{part}", f"{group.capitalize()}-{part}") for part in ("train", "test"))
    return DataSet(horizon, season, train, test, frequency)


SETS = {
    "m4_yearly": _m4("yearly", 6, 1, "YS"),
    "m4_quarterly": _m4("quarterly", 8, 4, "QS"),
    "m4_monthly": _m4("monthly", 18, 12, "MS"),
    "m4_weekly": _m4("weekly", 13, 1, "W"),
    "m4_daily": _m4("daily", 14, 1, "D"),
    "m4_hourly": _m4("hourly", 48, 24, "h"),
    "monash_hospital": DataSet(12, 12, ("monash_hospital",)),
}


@dataclass(frozen=True)
class ManySeries(Protocol):
    """One panel of short series.

    Args:
        data: a name in `SETS`, or any name for data of one's own.
        horizon: steps to forecast; only to be given for data of one's own.
        options: how to read data of one's own, season included.

    Raises:
        TspruneError: for data of one's own without a horizon, or settings that contradict a published data set.
    """

    data: str = "m4_hourly"
    horizon: int = 0
    options: ReadOptions = field(default_factory=ReadOptions)

    headline: ClassVar[tuple[str, ...]] = ("mase", "smape", "wql")
    against: ClassVar[str] = "seasonal_naive"
    """The baseline whose errors are the reference of geometric means."""

    def __post_init__(self) -> None:
        """Take the published horizon, or insist on one."""
        if self.data in SETS:
            horizon = SETS[self.data].horizon
            if self.horizon not in (0, horizon) or self.options != ReadOptions():
                raise TspruneError(
                    f"{self.data} is published with horizon {horizon} and read as it stands; leave out horizon and "
                    "reading options, or give the data another name to judge them in your own way"
                )
            object.__setattr__(self, "horizon", horizon)
        elif not self.horizon:
            refuse_unknown(SETS, self.data, self.name, "for data of your own, give a horizon")
        if self.horizon < 1:
            raise TspruneError(f"the horizon is {self.horizon}, expected at least 1 step")

    def read(self, source: str | PathLike[str] | pd.DataFrame) -> Panel:
        """As `Protocol.read`; of a published data set with a test file apart, the two are joined."""
        if self.data not in SETS:
            return read(source, self.options)
        entry = SETS[self.data]
        rows = ReadOptions(season=entry.season, frequency=entry.frequency)
        if not entry.test:
            return read(published_file(source, entry.train, self.data), rows)
        wide = replace(rows, layout="transposed")
        files = [published_file(source, stems, self.data) for stems in (entry.train, entry.test)]
        train, test = (read(file, wide) for file in files)
        odd = [series.id for series in test.series if len(series) != self.horizon]
        if odd:
            raise TspruneError(
                f"{files[1]}: series {odd[0]!r} has {len(test.series[test.ids.index(odd[0])])} steps, expected "
                f"the {self.horizon} of the horizon in every row"
            )
        return append_steps(train, test)

    def splits(self, panel: Panel, context: int, *, grouping: Grouping = "none") -> tuple[Split, ...]:
        """As `Protocol.splits`; always one. A context longer than any series is padded with missing values."""
        return (Split.make(panel, self.horizon, context, "holdout", grouping=grouping, pad=True),)

    def rules(self) -> dict[str, str]:
        """As `Protocol.rules`."""
        season = f" with season {SETS[self.data].season}" if self.data in SETS else ""
        steps = self.horizon
        return {
            "split": f"The last {steps} steps of each series are the test part, the {steps} before them validation.",
            "windows": "Each series has one test window; no series is left out unless the notes say so.",
            "scaling": (
                "Models see series z-scored by their train part; MASE, sMAPE and WQL are in the units of the data."
            ),
            "measures": (
                "MASE divides by the mean absolute seasonal-naive error of all that lies before the test "
                f"part{season} and is averaged over series, as is sMAPE; WQL is twice the pinball loss of nine deciles "
                "over the sum of absolute values. Relative errors are geometric means of ratios to seasonal naive."
            ),
        }


PROTOCOL = ManySeries
