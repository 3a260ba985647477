"""Long-horizon forecasting (Zhou et al. 2021, Wu et al. 2021): few long series, every window of the last part."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tsprune.data.panel import Panel
from tsprune.data.reading import ReadOptions, read
from tsprune.data.split import Split
from tsprune.data.windows import Grouping, WindowSet
from tsprune.errors import TspruneError
from tsprune.evaluation.protocols._protocol import Part, Protocol, published_file, refuse_unknown

if TYPE_CHECKING:
    import pandas as pd

HORIZONS = (96, 192, 336, 720)
"""The published horizons."""


@dataclass(frozen=True)
class DataSet:
    """A published data set.

    Args:
        split: cut-offs, as `Split.make` takes them.
        season: season in steps; 0 takes it from the frequency.
        grid: whether rows are put on a regular grid or kept as they stand.
        remark: what is unusual about it, a sentence or "".
    """

    split: str
    season: int = 0
    grid: Literal["regular", "rows"] = "regular"
    remark: str = ""


SETS = {
    "ETTh1": DataSet("etth"),
    "ETTh2": DataSet("etth"),
    "ETTm1": DataSet("ettm"),
    "ETTm2": DataSet("ettm"),
    "weather": DataSet(
        "ratio 70/10/20",
        grid="rows",
        remark="Rows count as steps, since the published borders do, although a stamp is repeated and some are absent.",
    ),
    "exchange_rate": DataSet(
        "ratio 70/10/20", season=1, remark="There is no season, since the dates are not those of the rates."
    ),
    "electricity_7clients": DataSet(
        "ratio 70/10/20", remark="These are 7 of the 321 clients, so published results are of other series."
    ),
}


@dataclass(frozen=True)
class LongHorizon(Protocol):
    """One data set and horizon of the long-horizon protocol.

    Args:
        data: a name in `SETS`.
        horizon: steps to forecast; `HORIZONS` are those of the papers.
        stride: steps between the origins that are scored; the papers take every one.

    Raises:
        TspruneError: for an unknown data set, or a horizon or stride below 1.
    """

    data: str = "ETTh1"
    horizon: int = 96
    stride: int = 1

    headline: ClassVar[tuple[str, ...]] = ("mse", "mae")

    def __post_init__(self) -> None:
        """Refuse what the protocol does not have."""
        refuse_unknown(SETS, self.data, self.name, "data of your own fit protocol backtest or panel")
        if self.horizon < 1 or self.stride < 1:
            raise TspruneError(f"horizon {self.horizon} and stride {self.stride}, expected at least 1 step each")

    def read(self, source: str | PathLike[str] | pd.DataFrame) -> Panel:
        """As `Protocol.read`; `source` is the folder that holds the file."""
        entry = SETS[self.data]
        return read(published_file(source, [self.data], self.data), ReadOptions(grid=entry.grid, season=entry.season))

    def splits(self, panel: Panel, context: int, *, grouping: Grouping = "none") -> tuple[Split, ...]:
        """As `Protocol.splits`; always one."""
        return (Split.make(panel, self.horizon, context, SETS[self.data].split, grouping=grouping),)

    def windows(self, split: Split, part: Part = "test") -> WindowSet:
        """As `Protocol.windows`, with the protocol's stride."""
        return self.every(split, part, self.stride)

    def scale_ends(self, split: Split, part: Part = "test") -> NDArray[np.int64]:
        """The end of the train part `[S]`, from which everything that scales is taken here."""
        return split.train_end

    def rules(self) -> dict[str, str]:
        """As `Protocol.rules`."""
        entry = SETS[self.data]
        usual = "" if self.horizon in HORIZONS else f" The published horizons are {', '.join(map(str, HORIZONS))}."
        every = (
            "Every window counts (stride 1), and no last batch is dropped."
            if self.stride == 1
            else f"One window in {self.stride} counts (stride {self.stride}); the published protocol takes all."
        )
        months = "12/4/4 months of 30 days" if entry.split.startswith("ett") else entry.split.removeprefix("ratio ")
        return {
            "split": f"Train, validation and test follow each other in time, {months}.{usual}",
            "windows": f"{every} Contexts reach back before a border, targets do not.",
            "scaling": "Each series is z-scored with mean and standard deviation of its train part.",
            "measures": "MSE and MAE are taken on that scale, over all steps of all windows and series alike.",
        } | ({"data": entry.remark} if entry.remark else {})


PROTOCOL = LongHorizon
