"""Times of day in a column of their own: joined with the dates beside them, never names of series."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from tsprune.data.reading import ReadOptions
from tsprune.data.stamps import Stamps, is_period, looks_like_dates, parse_stamps
from tsprune.data.steps import DAY, SECOND, Ints
from tsprune.data.tables import ID_NAMES, Table, is_text
from tsprune.data.words import listed, many
from tsprune.errors import TspruneError

_CLOCK = re.compile(
    r"(?P<hour>[01]?\d|2[0-4])(?P<mark>[:.])(?P<minute>[0-5]\d)(?:(?P=mark)(?P<second>[0-5]\d)(?P<part>\.\d{1,6})?)?"
    r"(?P<half> ?[AaPp]\.?[Mm]\.?)?"
)
# Below, nearly every row has a date of its own, and a clock time is a fact of the day such as sunrise.
_REPEATED_DATES = 0.25


def clock_columns(frame: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """Those columns whose every filled cell is a time of day such as 7:30, 07:30:00, 07.30.00 or 7:30 PM."""
    found = []
    for name in names:
        # The first cells rule out nearly every column; only clock times are looked at to the end.
        if is_text(frame[name]) and _all_clocks(frame[name].dropna().iloc[:40]):
            cells = pd.Series(frame[name].dropna().unique())
            found += [name] if _all_clocks(cells) else []
    return found


def join_clock(table: Table, date: str, clocks: Sequence[str], options: ReadOptions) -> str:
    """Join a column of dates with the times of day beside it; the table then has one column in place of two.

    Args:
        table: changed in place where columns are joined or left out.
        date: column with the stamps.
        clocks: columns of times of day that play no other part, at least one.
        options: the format of the stamps, and which columns were named.

    Returns:
        The column with the stamps: the joined one, or `date` where it holds the times already.

    Raises:
        TspruneError: if it cannot be decided which columns belong together, or a time is missing.
    """
    column = table.frame[date]
    days = _days(table, column, options)
    if days is not None and (days.numbered or (days.values % DAY != 0).any()):
        _leave_out(table, date, clocks)
        return date
    clock = _chosen(table, date, clocks)
    if is_period(column):
        raise TspruneError(
            f"{table.name}: column {clock!r} holds times of day, but {date!r} holds no days (such as "
            f"{column.iloc[0]!s}); expected dates, name their column with --timestamp-column"
        )
    if not _belongs(table.frame, date, clock, options):
        if options.value_columns:
            return date
        raise TspruneError(
            f"{table.name}: column {clock!r} holds times of day, but every row has a date of its own in {date!r}, "
            "so whether they belong together cannot be decided; join both into one column, or leave "
            f"{clock!r} out by naming the columns to forecast with --value-columns"
        )
    times = _times(table, clock)
    if days is None:
        together = column.astype("str").str.strip() + " " + _clock_texts(table.frame[clock], times, options)
        stamps = parse_stamps(together.rename(date), options.timestamp_format, table.place)
        if not options.timestamp_format:
            # The texts show whole seconds of the same day; 24:00 is the next one.
            stamps = replace(stamps, values=stamps.values + times - times % DAY // SECOND * SECOND)
    else:
        stamps = replace(days, values=days.values + times)
    name = f"{date} and {clock}"
    table.frame = table.frame.drop(columns=[date, clock])
    table.frame.insert(0, name, pd.Series(stamps.values.astype("M8[us]"), index=table.frame.index))
    table.inferred["timestamp columns"] = f"{name}, joined"
    if stamps.words:
        table.inferred["timestamps"] = stamps.words
    return name


def _days(table: Table, column: pd.Series[Any], options: ReadOptions) -> Stamps | None:
    """The dates alone, or None where only dates and times together can be read."""
    try:
        return parse_stamps(column, options.timestamp_format, table.place)
    except TspruneError:
        # A format of both columns, or days and months that only the spacing of the hours tells apart.
        first = str(column.dropna().iloc[0]).strip() if column.notna().any() else ""
        if options.timestamp_format and re.search(r"%[HIcXT]", options.timestamp_format):
            return None
        if column.isna().any() or not is_text(column) or not looks_like_dates(pd.Series([first])):
            raise
        return None


def _clock_texts(column: pd.Series[Any], times: Ints, options: ReadOptions) -> pd.Series[str]:
    """Times of day as they stand where the user gave a format, else in one form."""
    if options.timestamp_format:
        return column.astype("str").str.strip()
    codes, uniques = pd.factorize(times)
    forms = [str(np.datetime64(int(time), "us"))[11:19] for time in uniques]
    return pd.Series(np.array(forms, object)[codes], index=column.index, dtype="str")


def refuse_clock_alone(table: Table, clocks: Sequence[str]) -> TspruneError:
    """What to say where times of day stand without any dates."""
    example = table.frame[clocks[0]].dropna().iloc[0]
    return TspruneError(
        f"{table.name}: column {clocks[0]!r} holds times of day such as {str(example)!r} and no column holds dates, "
        "expected both; name the dates with --timestamp-column, or take the rows as equal steps by naming only the "
        "columns to forecast with --value-columns"
    )


def _all_clocks(cells: pd.Series[Any]) -> bool:
    return len(cells) > 0 and all(_CLOCK.fullmatch(str(cell).strip()) for cell in cells)


def _leave_out(table: Table, date: str, clocks: Sequence[str]) -> None:
    table.frame = table.frame.drop(columns=list(clocks))
    table.repairs.append(
        f"{many(len(clocks), 'column')} of times of day left out, since {date!r} holds the times already: "
        f"{listed(clocks)}"
    )


def _chosen(table: Table, date: str, clocks: Sequence[str]) -> str:
    named = [name for name in clocks if name.lower() in ("time", "timestamp", "hour", "time of day")]
    if len(clocks) > 1 and len(named) != 1:
        raise TspruneError(
            f"{table.name}: the columns {listed(clocks)} all hold times of day; join one of them with {date!r} into "
            "one column and name it with --timestamp-column"
        )
    return named[0] if len(clocks) > 1 else clocks[0]


def _belongs(frame: pd.DataFrame, date: str, clock: str, options: ReadOptions) -> bool:
    """Whether rows need their time of day to be told apart, or all share one."""
    if frame[clock].nunique() == 1:
        return True
    if frame[date].duplicated().mean() <= _REPEATED_DATES:
        return False
    free = [name for name in frame.columns if name not in (date, clock)]
    ids = [options.id_column] if options.id_column else [name for name in free if name.lower() in ID_NAMES][:1]
    # Without a telling name: whatever text column names one row per date.
    for name in ids or [name for name in free if is_text(frame[name])]:
        if frame.duplicated([name, date]).mean() <= _REPEATED_DATES:
            return False
    return True


def _times(table: Table, clock: str) -> Ints:
    """Microseconds since midnight of every row `[R]`."""
    column = table.frame[clock]
    empty = np.flatnonzero(column.isna().to_numpy())
    if len(empty):
        raise TspruneError(
            f"column {clock!r}: {many(len(empty), 'time')} of day missing (first in {table.place(int(empty[0]))}), "
            "expected one in every row; delete these rows or fill in their time"
        )
    codes, uniques = pd.factorize(column.astype("str").str.strip())
    return np.array([_micros(str(text)) for text in uniques], np.int64)[codes]


def _micros(text: str) -> int:
    found = _CLOCK.fullmatch(text)
    if not found:
        raise TspruneError(f"{text!r} is no time of day, expected the form 07:30 or 07:30:00")
    hour, half = int(found["hour"]), (found["half"] or "").strip().lower()
    if half:
        hour = hour % 12 + 12 * half.startswith("p")
    seconds = hour * 3600 + int(found["minute"]) * 60 + int(found["second"] or 0)
    return seconds * SECOND + round(float(found["part"] or 0) * SECOND)
