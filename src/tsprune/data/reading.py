"""From a file or a table to a Panel, saying aloud what was inferred and repaired."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from tsprune.errors import TspruneError

if TYPE_CHECKING:
    import pandas as pd

    from tsprune.data.panel import Panel


def _option(default: Any, text: str, flag: str = "") -> Any:
    return field(default=default, metadata={"help": text, "flag": flag} if flag else {"help": text})


@dataclass(frozen=True)
class ReadOptions:
    """How to read a file; everything left alone is inferred from the data and reported.

    Every field is one command-line flag: its name with dashes, or `metadata["flag"]`; `metadata["help"]`
    explains it.

    Raises:
        TspruneError: for a choice that does not exist or a negative length.
    """

    layout: Literal["auto", "long", "wide", "transposed"] = _option(
        "auto",
        "How series lie in the file: long (a row per series and time), wide (a row per time, a column per "
        "series), transposed (a row per series).",
    )
    id_column: str | None = _option(None, "Column with the name of the series (long and transposed files).")
    timestamp_column: str | None = _option(None, "Column with the timestamps.")
    value_columns: tuple[str, ...] = _option((), "Columns to forecast; other columns are then ignored, aloud.")
    past_covariates: tuple[str, ...] = _option((), "Columns that help the forecast and are known up to now.")
    known_covariates: tuple[str, ...] = _option((), "Columns that help the forecast and are known ahead.")
    frequency: str | None = _option(None, "Step between rows as a pandas alias, e.g. 15min, h, D, B, W-SUN, MS, QS.")
    timestamp_format: str | None = _option(None, "Format of the timestamps, e.g. '%d.%m.%Y %H:%M'.")
    sentinels: tuple[float, ...] = _option((), "Numbers that stand for a missing value, e.g. -9999.", "--sentinel")
    missing_text: tuple[str, ...] = _option((), "Words that stand for a missing value, e.g. '?'.")
    decimal: Literal["auto", ".", ","] = _option("auto", "Decimal mark of the numbers.")
    header: Literal["auto", "yes", "no"] = _option("auto", "Whether the first line holds column names.")
    grid: Literal["regular", "rows"] = _option(
        "regular",
        "regular: repeated stamps are merged and gaps become missing values; rows: every row is one step, as "
        "it stands.",
    )
    season: int = _option(0, "Season in steps, for seasonal naive and MASE; 1 means none. Default: from the frequency.")
    min_length: int = _option(1, "Series with fewer steps are dropped and reported.")

    def __post_init__(self) -> None:
        hints = get_type_hints(ReadOptions)
        for entry in fields(self):
            value = getattr(self, entry.name)
            choices = get_args(hints[entry.name])
            if isinstance(entry.default, str) and value not in choices:
                flag = "--" + entry.name.replace("_", "-")
                raise TspruneError(f"{flag} is {value!r}, expected one of {', '.join(map(repr, choices))}")
            if isinstance(entry.default, tuple):
                alone = isinstance(value, str | int | float)
                object.__setattr__(self, entry.name, (value,) if alone else tuple(value))
        if self.season < 0:
            raise TspruneError(f"--season is {self.season}, expected 1 or more steps")
        if self.min_length < 0:
            raise TspruneError(f"--min-length is {self.min_length}, expected 0 or more")


def read(source: str | PathLike[str] | pd.DataFrame | pd.Series[Any], options: ReadOptions | None = None) -> Panel:
    """Read series from a CSV, CSV.gz or Parquet file, or from a DataFrame.

    Args:
        source: path, or a table whose index may hold timestamps (and ids).
        options: what not to infer.

    Returns:
        A panel on a regular grid; `repairs` and `inferred` tell what was done to get there.

    Raises:
        TspruneError: if the source cannot be read without guessing; the message says which option decides.
    """
    from tsprune.data.assembly import assemble
    from tsprune.data.columns import assign_roles
    from tsprune.data.tables import load

    chosen = options or ReadOptions()
    table = load(source, chosen)
    roles = assign_roles(table, chosen)
    return replace(assemble(table, roles, chosen), period=chosen.season)


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which "T2" comes before "T10"."""
    parts = re.findall(r"\d+|\D+", name)
    return tuple((0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts)
