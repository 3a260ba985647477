"""Which column plays which part."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pandas as pd

from tsprune.data.clocks import clock_columns, join_clock, refuse_clock_alone
from tsprune.data.reading import ReadOptions
from tsprune.data.stamps import looks_like_dates, parse_stamps
from tsprune.data.tables import ID_NAMES, Table, is_text
from tsprune.data.words import listed, many
from tsprune.errors import TspruneError

TIME_NAMES = (
    "timestamp", "datetime", "date_time", "date", "ds", "time", "dt", "dteday", "day", "week", "month",
    "quarter", "year", "period",
)  # fmt: skip
_COUNTER_NAMES = ("timestamp", "ds", "time", "t", "step", "time_idx")
_VALUE_NAMES = ("y", "target", "value", "values")
# Share of rows that repeat a stamp above which they must belong to several series, and below which to one.
_REPEATED, _SPARSE = 0.2, 0.01
_ROW_NAMES = ("", "index", "level_0", "rownames", "row")


@dataclass(frozen=True)
class Roles:
    """The part every column plays.

    Args:
        layout: "long", "wide" or "transposed".
        id: column with the series names, or None.
        timestamp: column with the stamps, or None when steps are counted.
        targets: columns to forecast; in a transposed table the columns are the steps.
        past: covariates known up to now.
        known: covariates known ahead.
    """

    layout: str
    id: str | None
    timestamp: str | None
    targets: tuple[str, ...]
    past: tuple[str, ...]
    known: tuple[str, ...]


def assign_roles(table: Table, options: ReadOptions) -> Roles:
    """Decide on the part of every column and note in the table what was inferred or left out.

    Raises:
        TspruneError: if a named column is absent, or the columns allow no single reading.
    """
    _check_names(table, options)
    _drop_counters(table, options)
    timestamp, joined = _stamp_column(table, options)
    id_column = options.id_column or _find_id(table, timestamp, options)
    if options.layout != "wide":
        _check_id(table, timestamp, id_column, options)
    layout: str = options.layout
    if layout == "auto":
        layout = _find_layout(table, timestamp, id_column)
        table.inferred["layout"] = {
            "long": "long (one row per series and time)",
            "wide": "wide (one row per time, one column per series)",
            "transposed": "transposed (one row per series; empty cells at the end of a row are padding)",
        }[layout]
    if layout == "long" and id_column is None:
        raise TspruneError(f"{table.name}: a long table needs a column with series names; give --id-column")
    if layout == "transposed":
        id_column = id_column or _first_text(table)
    elif timestamp is None:
        table.inferred["timestamps"] = "none found: the rows are taken as equal steps in their order"
    if layout == "wide":
        id_column = None
    for topic, chosen, given in (
        ("id column", id_column, options.id_column),
        ("timestamp column", timestamp, options.timestamp_column or joined),
    ):
        if chosen and not given:
            table.inferred[topic] = chosen
    targets = options.value_columns or _find_targets(table, layout, id_column, timestamp, options)
    used = {id_column, timestamp, *targets, *options.past_covariates, *options.known_covariates}
    ignored = [name for name in table.frame.columns if name not in used]
    if ignored:
        table.repairs.append(
            f"{many(len(ignored), 'column was', 'columns were')} ignored: {listed(ignored)} "
            "(--value-columns, --past-covariates or "
            "--known-covariates would use them)"
        )
    return Roles(layout, id_column, timestamp, tuple(targets), options.past_covariates, options.known_covariates)


def _check_names(table: Table, options: ReadOptions) -> None:
    taken: dict[str, str] = {}
    for flag, names in (
        ("--id-column", [options.id_column]),
        ("--timestamp-column", [options.timestamp_column]),
        ("--value-columns", options.value_columns),
        ("--past-covariates", options.past_covariates),
        ("--known-covariates", options.known_covariates),
    ):
        for name in names:
            if name is None:
                continue
            if name not in table.frame.columns:
                raise TspruneError(
                    f"{table.name}: {flag} names {name!r}, but the columns are {listed(list(table.frame), 12)}"
                )
            if taken.get(name) == flag:
                raise TspruneError(f"{flag} names {name!r} twice, expected every column once; name it once")
            if name in taken:
                raise TspruneError(
                    f"column {name!r} is given by both {taken[name]} and {flag}, expected one part per column"
                )
            taken[name] = flag


def _drop_counters(table: Table, options: ReadOptions) -> None:
    """Leave out what exports add on their own: row numbers and the column behind a trailing separator."""
    for name in list(table.frame.columns):
        column = table.frame[name]
        unnamed = name.startswith("Unnamed: ") or name == "index 0"
        if name in _declared(options) or not (unnamed or name.lower() in _ROW_NAMES):
            continue
        if unnamed and column.isna().all():
            table.repairs.append("an empty column without a name was left out")
        elif (
            pd.api.types.is_integer_dtype(column.dtype)
            and column.iloc[0] in (0, 1)
            and (column.diff().iloc[1:] == 1).all()
            and table.frame.shape[1] > 1
        ):
            table.repairs.append(f"column {name!r} only numbers the rows and was left out")
        else:
            continue
        table.frame = table.frame.drop(columns=name)


def _declared(options: ReadOptions) -> set[str | None]:
    named = (*options.value_columns, *options.past_covariates, *options.known_covariates)
    return {options.id_column, options.timestamp_column, *named}


def _stamp_column(table: Table, options: ReadOptions) -> tuple[str | None, bool]:
    """The column with the stamps, and whether it was joined from a column of dates and one of times of day."""
    if options.layout == "transposed":
        return options.timestamp_column, False
    free = [name for name in table.frame.columns if name not in _declared(options)]
    clocks = clock_columns(table.frame, free)
    given = options.timestamp_column
    if given and clock_columns(table.frame, [given]):
        # The user named the times; the dates are what is left to find.
        clocks, given = [given], None
    timestamp = given or _find_timestamp(table, [name for name in free if name not in clocks])
    if clocks and timestamp is None and not (options.value_columns and options.timestamp_column is None):
        raise refuse_clock_alone(table, clocks)
    if timestamp is None:
        return None, False
    if not clocks:
        _check_stamps(table, timestamp, options)
    found = join_clock(table, timestamp, clocks, options) if clocks else timestamp
    return found, found != timestamp


def _check_stamps(table: Table, timestamp: str, options: ReadOptions) -> None:
    """Refuse a column that holds no dates before the other columns are judged by it."""
    column = table.frame[timestamp]
    try:
        parse_stamps(column.iloc[:40], options.timestamp_format, table.place)
    except TspruneError:
        # A few rows may not decide on the order of day and month, where all do.
        parse_stamps(column, options.timestamp_format, table.place)


def _find_timestamp(table: Table, free: list[str]) -> str | None:
    frame = table.frame
    moments = [name for name in free if pd.api.types.is_datetime64_any_dtype(frame[name].dtype)]
    dates = moments or [name for name in free if is_text(frame[name]) and looks_like_dates(frame[name])]
    if len(dates) > 1:
        named = [name for name in dates if name.lower() in TIME_NAMES]
        if len(named) != 1:
            raise TspruneError(
                f"{table.name}: the columns {listed(dates)} all hold dates; choose one with --timestamp-column"
            )
        dates = named
    if dates:
        return dates[0]
    by_name = sorted((n for n in free if n.lower() in TIME_NAMES), key=lambda n: TIME_NAMES.index(n.lower()))
    texts = [name for name in by_name if is_text(frame[name])]
    if texts:
        return texts[0]
    for name in [*by_name, *(name for name in free if name.lower() in _COUNTER_NAMES)]:
        if pd.api.types.is_integer_dtype(frame[name].dtype) and _plausible(frame[name], name):
            return name
    return None


def _plausible(column: pd.Series[Any], name: str) -> bool:
    low, high = column.min(), column.max()
    calendar = (low >= 1500 and high < 2200) or low >= 190001
    return bool(calendar or name.lower() in _COUNTER_NAMES)


def _find_id(table: Table, timestamp: str | None, options: ReadOptions) -> str | None:
    if options.layout == "wide":
        return None
    frame = table.frame
    free = [name for name in frame.columns if name not in _declared(options) and name != timestamp]
    by_name = sorted((n for n in free if n.lower() in ID_NAMES), key=lambda n: ID_NAMES.index(n.lower()))
    if by_name:
        return by_name[0]
    if timestamp is None or not frame[timestamp].duplicated().any():
        return None
    texts = [name for name in free if is_text(frame[name])]
    telling = [name for name in texts if not frame.duplicated([name, timestamp]).any()]
    found = telling or (texts if len(texts) == 1 else [])
    if len(found) > 1:
        raise TspruneError(
            f"{table.name}: the columns {listed(found)} could all name the series; choose one with --id-column"
        )
    repeated = frame[timestamp].duplicated().mean()
    if not found and repeated > _REPEATED:
        parse_stamps(frame[timestamp], options.timestamp_format, table.place)
        for pair in combinations(texts, 2):
            _refuse_pair(table, timestamp, pair)
        distinct = frame[timestamp].nunique()
        raise TspruneError(
            f"{table.name}: {len(frame):,} rows share {many(distinct, 'stamp', 'different stamps')} in column "
            f"{timestamp!r}; if rows belong to different series name them with --id-column, if the time of "
            "day stands in another column join both into one"
        )
    return found[0] if found else None


def _check_id(table: Table, timestamp: str | None, id_column: str | None, options: ReadOptions) -> None:
    """Refuse an id column that names a series only together with another one."""
    if id_column is None or timestamp is None:
        return
    frame = table.frame
    others = [
        name
        for name in frame.columns
        if name not in (_declared(options) | {id_column, timestamp})
        and (is_text(frame[name]) or name.lower() in ID_NAMES)
    ]
    if others and frame.duplicated([id_column, timestamp]).mean() > _REPEATED:
        for other in others:
            _refuse_pair(table, timestamp, (id_column, other))


def _refuse_pair(table: Table, timestamp: str, pair: tuple[str, str]) -> None:
    """Say so where two columns name one row per stamp, but neither does alone."""
    frame = table.frame
    if frame.duplicated([*pair, timestamp]).mean() < _SPARSE:
        one, two = pair
        example = f"{frame[one].iloc[0]}/{frame[two].iloc[0]}"
        raise TspruneError(
            f"{table.name}: several rows share a stamp, and only {one!r} and {two!r} together name the series; join "
            f"both into one column (such as {example!r}) and name it with --id-column"
        )


def _find_layout(table: Table, timestamp: str | None, id_column: str | None) -> str:
    if timestamp is not None:
        return "long" if id_column else "wide"
    frame = table.frame
    first = id_column or (str(frame.columns[0]) if is_text(frame.iloc[:, 0]) else None)
    if first is None:
        return "wide"
    rest = frame.shape[1] - 1
    numbers = sum(not is_text(frame[name]) for name in frame.columns) >= rest
    unique = frame[first].is_unique
    if id_column and not (unique and rest > 1):
        return "long"
    if unique and numbers and rest > 1 and not (rest < 10 and len(frame) > 5 * rest):
        return "transposed"
    example = str(frame[first].iloc[0])
    raise TspruneError(
        f"{table.name}: no timestamps found and column {first!r} holds text such as {example!r}; name the "
        "times with "
        "--timestamp-column (and --timestamp-format), the series with --id-column, or say --layout "
        "transposed if every "
        "row is a series"
    )


def _first_text(table: Table) -> str | None:
    name = str(table.frame.columns[0])
    return name if is_text(table.frame[name]) else None


def _find_targets(
    table: Table, layout: str, id_column: str | None, timestamp: str | None, options: ReadOptions
) -> tuple[str, ...]:
    frame = table.frame
    taken = {id_column, timestamp, *options.past_covariates, *options.known_covariates}
    free = [name for name in frame.columns if name not in taken]
    if not free:
        raise TspruneError(f"{table.name}: no column is left to forecast; the columns are {listed(list(frame), 12)}")
    by_name = [name for value in _VALUE_NAMES for name in free if name.lower() == value]
    if layout == "long" and by_name:
        chosen = [by_name[0]]
    else:
        chosen = free
        for name in chosen:
            _check_numeric(table, name, options)
    table.inferred["value columns"] = (
        f"{many(len(chosen), 'column')}: {listed(chosen)}"
        if layout != "transposed"
        else (f"{many(len(chosen), 'column')}, one per step")
    )
    return tuple(chosen)


def _check_numeric(table: Table, name: str, options: ReadOptions) -> None:
    """Mostly words: another kind of column, which the user has to rule out."""
    column = table.frame[name]
    if not is_text(column):
        return
    texts = column.dropna().astype(str).iloc[:1000]
    digits = texts.str.contains(r"^[^A-Za-z]*\d[^A-Za-z]*(?:[eE][+-]?\d+)?$", regex=True)
    if len(texts) and digits.mean() < 0.2 and not set(texts) <= {*options.missing_text}:
        example = ", ".join(repr(value) for value in texts.unique()[:3])
        raise TspruneError(
            f"{table.name}: column {name!r} holds text ({example}), expected numbers; name the columns to "
            "forecast "
            "with --value-columns, or the series names with --id-column"
        )
