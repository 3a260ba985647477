"""Timestamps in the forms people write them; the data decide on the order of day and month, or nobody."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tsprune.data.steps import DAY, Ints, is_month_end, month_numbers, show
from tsprune.data.words import many
from tsprune.errors import TspruneError

NAT = np.iinfo(np.int64).min

_ZONE = re.compile(r" ?(Z|UTC|GMT|[+-]\d{2}:?\d{2})$")
_TIME = re.compile(
    r"(?P<lead>[T ]|, )(?P<hour>\d{1,2})(?P<minute>:\d{2})?(?P<second>:\d{2})?(?P<part>\.\d+)?"
    r"(?P<half> ?[AaPp][Mm])?"
)
_YEAR_FIRST = re.compile(r"\d{4}([-/. ])\d{1,2}\1\d{1,2}")
_YEAR_LAST = re.compile(r"\d{1,2}([-/. ])\d{1,2}\1(\d{4}|\d{2})(?!\d)")
_COMPACT = re.compile(r"(19|20|21)\d{6}(?!\d)")
_NAMED = {
    r"\d{1,2}([- ])[A-Za-z]{3}\1\d{4}": "%d{0}%b{0}%Y",
    r"\d{1,2}([- ])[A-Za-z]{3}\1\d{2}(?!\d)": "%d{0}%b{0}%y",
    r"[A-Za-z]{3} \d{1,2}, \d{4}": "%b %d, %Y",
    r"[A-Za-z]{4,9} \d{1,2}, \d{4}": "%B %d, %Y",
    r"[A-Za-z]{3}([- ])\d{4}": "%b{0}%Y",
    r"[A-Za-z]{4,9}([- ])\d{4}": "%B{0}%Y",
}
_MONTH = re.compile(r"(?P<y>\d{4})[-/M.]?m?(?P<m>0[1-9]|1[0-2]|[1-9](?!\d))")
_MONTH_FIRST = re.compile(r"(?P<m>0?[1-9]|1[0-2])[-/](?P<y>\d{4})")
_QUARTER = re.compile(r"(?P<y>\d{4})[- ]?[Qq](?P<q>[1-4])")
_QUARTER_FIRST = re.compile(r"[Qq](?P<q>[1-4])[-/ ]?(?P<y>\d{4})")
_YEAR = re.compile(r"(?P<y>1[5-9]\d\d|2[01]\d\d)")
_WEEK = re.compile(r"(?P<y>\d{4})-?W(?P<w>\d{2})(-?(?P<d>[1-7]))?")
_CHOOSE = "expected dates or whole numbers; --timestamp-column must name such a column"
_PERIODS = (_MONTH, _MONTH_FIRST, _QUARTER, _QUARTER_FIRST, _YEAR, _WEEK)


@dataclass(frozen=True)
class Stamps:
    """A parsed column.

    Args:
        values: int64 `[R]`, microseconds since 1970, or plain numbers when `numbered`.
        numbered: whether the column counts steps instead of naming times.
        words: how the column was read, "" where there was nothing to decide.
    """

    values: Ints
    numbered: bool = False
    words: str = ""


def looks_like_dates(column: pd.Series[Any]) -> bool:
    """Whether the first values of a text column have the form of a timestamp."""
    sample = [str(value).strip() for value in column.dropna().iloc[:40]]
    return bool(sample) and all(_formats(text) or _period(text) for text in sample)


def is_period(column: pd.Series[Any]) -> bool:
    """Whether a column names months, quarters, weeks or years rather than days."""
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        return False
    text = str(column.dropna().iloc[0]).strip()
    return _period(text) is not None and not _COMPACT.fullmatch(text)


def parse_stamps(column: pd.Series[Any], fmt: str | None, place: Callable[[int], str]) -> Stamps:
    """Read a timestamp column.

    Args:
        column: texts, numbers or datetimes `[R]`.
        fmt: the user's format, or None.
        place: words for where row i stands.

    Raises:
        TspruneError: naming the column, rows and an example, if a stamp is missing or cannot be read, or if
            day and month cannot be told apart.
    """
    name = str(column.name)
    empty = np.flatnonzero(column.isna().to_numpy())
    if len(empty):
        raise TspruneError(
            f"column {name!r}: {many(len(empty), 'empty timestamp')} ({_places(empty, place)}), expected one "
            "in every row; delete these rows or fill in their time"
        )
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        return _from_datetimes(column)
    if pd.api.types.is_bool_dtype(column.dtype):
        raise TspruneError(f"column {name!r} holds true/false, which cannot be dates; {_CHOOSE}")
    if pd.api.types.is_numeric_dtype(column.dtype) and not fmt:
        return _from_numbers(column, place)
    codes, uniques = pd.factorize(column.astype(str).str.strip())
    texts: pd.Series[str] = pd.Series(uniques, dtype="str")
    if fmt:
        values, words = _moments(texts, fmt), f"format {fmt}"
    else:
        values, words = _from_texts(texts, name)
    bad = np.flatnonzero((values == NAT)[codes])
    if len(bad):
        raise TspruneError(_complaint(name, str(texts[codes[bad[0]]]), bad, len(codes), fmt, place))
    return Stamps(values[codes], words=words)


def _complaint(name: str, first: str, bad: Ints, rows: int, fmt: str | None, place: Callable[[int], str]) -> str:
    """What to say about stamps that cannot be read."""
    if fmt:
        fitting = _formats(first)
        instead = f"give {' or '.join(map(repr, fitting))}" if fitting else "correct the format"
        return (
            f"column {name!r}: {many(len(bad), 'timestamp')} do not fit --timestamp-format {fmt!r} "
            f"({_places(bad, place)}; the first is {first!r}), expected one format for all; {instead}, or leave the "
            "option out"
        )
    cure = "give --timestamp-format, e.g. '%d.%m.%Y %H:%M', or name another column with --timestamp-column"
    if len(bad) == rows:
        return (
            f"column {name!r} cannot be read as dates: it holds text such as {first!r} ({place(int(bad[0]))}), "
            f"expected a form such as 2016-07-01 00:00:00; {cure}"
        )
    return (
        f"column {name!r}: {many(len(bad), 'timestamp')} cannot be read ({_places(bad, place)}; the "
        f"first is {first!r}), expected a form such as 2016-07-01 00:00:00; {cure}"
    )


def _places(rows: NDArray[np.int64], place: Callable[[int], str]) -> str:
    return ", ".join(place(int(row)) for row in rows[:3]) + (", ..." if len(rows) > 3 else "")


def _micros(moments: Any) -> Ints:
    """int64 microseconds of anything pandas parsed; NaT becomes NAT."""
    return np.asarray(pd.DatetimeIndex(moments)).astype("M8[us]").astype(np.int64)


def _from_datetimes(column: pd.Series[Any]) -> Stamps:
    zone = getattr(column.dtype, "tz", None)
    if zone is None:
        return Stamps(_micros(column))
    local = _micros(pd.DatetimeIndex(column).tz_localize(None))
    return _zoned(local, _micros(pd.DatetimeIndex(column).tz_convert("UTC").tz_localize(None)), str(zone))


def _zoned(local: Ints, universal: Ints, zone: str) -> Stamps:
    """Dates keep their local calendar; times go to UTC, where clock changes leave no gap."""
    if np.array_equal(local, universal):
        return Stamps(universal, words=f"time zone {zone} dropped, the stamps are UTC")
    if not (local % DAY).any():
        return Stamps(local, words=f"time zone {zone} dropped, the stamps are local dates")
    return Stamps(universal, words=f"time zone {zone} converted to UTC, so that clock changes leave no gap")


def _from_numbers(column: pd.Series[Any], place: Callable[[int], str]) -> Stamps:
    raw = column.to_numpy(np.float64)
    odd = np.flatnonzero(~np.isfinite(raw) | (raw != np.round(raw)))
    if len(odd):
        raise TspruneError(
            f"column {column.name!r} holds numbers such as {raw[odd[0]]:g} ({place(int(odd[0]))}), which cannot be "
            f"dates; {_CHOOSE}"
        )
    values = column.to_numpy(np.int64)
    low, high = int(values.min()), int(values.max())
    texts: pd.Series[str] = pd.Series(values).astype("str")
    if low >= 19000101 and high <= 21991231:
        days = _moments(texts, "%Y%m%d")
        if (days != NAT).all():
            return Stamps(days, words="whole numbers read as year, month and day (20160701)")
    if low >= 190001 and high <= 219912 and ((values % 100 >= 1) & (values % 100 <= 12)).all():
        return Stamps(_from_months(values // 100, values % 100), words="whole numbers read as year and month (201607)")
    if low >= 1500 and high < 2200:
        return Stamps(_from_months(values, np.ones_like(values)), words="whole numbers read as years")
    for unit, factor, limit in (
        ("seconds", 1e6, 1e11),
        ("milliseconds", 1e3, 1e14),
        ("microseconds", 1, 1e17),
    ):
        if limit / 1e3 <= low and high < limit:
            return Stamps(values * int(factor), words=f"whole numbers read as {unit} since 1970, UTC")
    if low >= 1e17:
        return Stamps(values // 1000, words="whole numbers read as nanoseconds since 1970, UTC")
    return Stamps(values, numbered=True, words="whole numbers read as step numbers, without calendar")


def _from_months(years: Ints, months: Ints) -> Ints:
    numbers = (years - 1970) * 12 + months - 1
    return numbers.astype("M8[M]").astype("M8[D]").astype(np.int64) * DAY


def _from_texts(texts: pd.Series[str], name: str) -> tuple[Ints, str]:
    """Read distinct texts; forms may differ between rows, the order of day and month may not."""
    values = np.full(len(texts), NAT, np.int64)
    words: list[str] = []
    day_first: bool | None = None
    zoned: Stamps | None = None
    for _ in range(6):
        left = np.flatnonzero(values == NAT)
        if not len(left):
            break
        example, part = str(texts.iloc[left[0]]), texts.iloc[left]
        formats = _formats(example)
        if not formats and (pattern := _period(example)):
            values[left] = _from_period(part, pattern)
        elif not formats:
            break
        elif "%z" in formats[0]:
            zoned = _read_zoned(part, formats, name, day_first)
            values[left] = zoned.values
            words.append(zoned.words)
        elif len(formats) == 1:
            values[left] = _moments(part, formats[0])
        else:
            if day_first is None:
                day_first, reason = _decide_order(part, formats, name)
                words.append(reason)
            values[left] = _moments(part, formats[0 if day_first else 1])
        if values[left[0]] == NAT:
            break
    return values, "; ".join(words)


def _read_zoned(part: pd.Series[str], formats: list[str], name: str, day_first: bool | None) -> Stamps:
    plain = part.str.replace(_ZONE, "", regex=True)
    if len(formats) > 1 and day_first is None:
        day_first, _ = _decide_order(plain, [form.removesuffix("%z") for form in formats], name)
    form = formats[1 if day_first is False else 0]
    zones = part.str.extract(_ZONE, expand=False)
    local = _moments(plain, form.removesuffix("%z"))
    local = np.where(zones.isna().to_numpy(), NAT, local)
    universal = _moments(plain.str.cat(zones.replace({"UTC": "Z", "GMT": "Z"}), na_rep="?"), form, zoned=True)
    known = (local != NAT) & (universal != NAT)
    names = sorted({str(zone) for zone in zones.dropna().unique()})
    good = _zoned(local[known], universal[known], "/".join(names[:3]))
    values = np.full(len(part), NAT, np.int64)
    values[known] = good.values
    return Stamps(values, words=good.words)


def _formats(text: str) -> list[str]:
    """Formats a text may have: none, one, or day-first and month-first in this order."""
    for pattern, found in _date_formats():
        match = pattern.match(text)
        if match:
            rest = _time_format(text[match.end() :])
            separator = match[1] if match.re.groups else ""
            formats = [form.format(separator) for form in found]
            if pattern is _YEAR_LAST and len(match[2]) == 2:
                formats = [form.replace("%Y", "%y") for form in formats]
            return [form + rest for form in formats] if rest is not None else []
    return []


def _date_formats() -> list[tuple[re.Pattern[str], list[str]]]:
    return [
        (_YEAR_FIRST, ["%Y{0}%m{0}%d"]),
        (_YEAR_LAST, ["%d{0}%m{0}%Y", "%m{0}%d{0}%Y"]),
        (_COMPACT, ["%Y%m%d"]),
        *((re.compile(pattern), [form]) for pattern, form in _NAMED.items()),
    ]


def _time_format(rest: str) -> str | None:
    zone = _ZONE.search(rest)
    if zone:
        rest = rest[: zone.start()]
    found = _TIME.fullmatch(rest) if rest else None
    if rest and not found:
        return None
    form = ""
    if found:
        hour = "%I" if found["half"] else "%H"
        form = found["lead"] + hour + (":%M" if found["minute"] else "") + (":%S" if found["second"] else "")
        form += (".%f" if found["part"] else "") + (found["half"][:-2] + "%p" if found["half"] else "")
    return form + ("%z" if zone else "")


def _moments(texts: pd.Series[str], fmt: str, zoned: bool = False) -> Ints:
    """Texts read by one format `[N]`, NAT where it does not fit."""
    try:
        parsed = pd.to_datetime(texts, format=fmt, errors="coerce", utc=zoned or "%z" in fmt)
    except (ValueError, TypeError) as error:
        raise TspruneError(f"--timestamp-format {fmt!r} cannot be used ({error})") from error
    if getattr(parsed.dtype, "tz", None) is not None:
        parsed = parsed.dt.tz_localize(None)
    return _micros(parsed)


def _period(text: str) -> re.Pattern[str] | None:
    return next((pattern for pattern in _PERIODS if pattern.fullmatch(text)), None)


def _from_period(texts: pd.Series[str], pattern: re.Pattern[str]) -> Ints:
    parts = texts.str.extract(f"^(?:{pattern.pattern})$")
    numbers = {part: pd.to_numeric(parts[part]).fillna(1).to_numpy(np.int64) for part in pattern.groupindex}
    if "w" in numbers:
        # ISO week 1 is the week of January the 4th.
        fourth = _from_months(numbers["y"], np.ones_like(numbers["y"])) // DAY + 3
        monday = fourth - (fourth + 3) % 7
        values = (monday + 7 * (numbers["w"] - 1) + numbers["d"] - 1) * DAY
    else:
        months = (
            numbers["m"] if "m" in numbers else 3 * numbers["q"] - 2 if "q" in numbers else np.ones_like(numbers["y"])
        )
        values = _from_months(numbers["y"], months)
    return np.where(parts["y"].isna().to_numpy(), NAT, values)


def _decide_order(texts: pd.Series[str], formats: list[str], name: str) -> tuple[bool, str]:
    """Whether the day comes first, and why."""
    readings = [_moments(texts, form) for form in formats]
    failing = [int((reading == NAT).sum()) for reading in readings]
    labels = ("day first", "month first")
    if (failing[0] == 0) != (failing[1] == 0):
        chosen = 0 if failing[0] == 0 else 1
        where = "first" if chosen == 0 else "second"
        return chosen == 0, f"{labels[chosen]} ({formats[chosen]}): the {where} number exceeds 12 in places"
    if all(failing) or np.array_equal(readings[0], readings[1]):
        return failing[0] <= failing[1], labels[0 if failing[0] <= failing[1] else 1]
    orderly = [(_evenly_spaced(reading), _sorted(reading)) for reading in readings]
    for chosen in (0, 1):
        best, other = orderly[chosen], orderly[1 - chosen]
        if best[0] and best != other and best[0] >= other[0] and best[1] >= other[1]:
            return (
                chosen == 0,
                f"{labels[chosen]} ({formats[chosen]}): only so are the stamps sorted and evenly spaced",
            )
    example = str(texts.iloc[int(np.argmax(readings[0] != readings[1]))])
    meant = [show(int(reading[np.argmax(readings[0] != readings[1])])) for reading in readings]
    raise TspruneError(
        f"column {name!r}: {example!r} may mean {meant[0]} or {meant[1]} and nothing in the data decides; "
        f"give --timestamp-format {formats[0]!r} or {formats[1]!r}"
    )


def _sorted(values: Ints) -> bool:
    steps = np.diff(values)
    return bool((steps > 0).all() or (steps < 0).all())


def _evenly_spaced(values: Ints) -> bool:
    ordered = np.sort(values)
    if len(np.unique(np.diff(ordered))) <= 1:
        return True
    same_day = len(np.unique(ordered.astype("M8[us]").astype("M8[D]") - ordered.astype("M8[us]").astype("M8[M]"))) == 1
    months = np.unique(np.diff(month_numbers(ordered)))
    return (same_day or bool(is_month_end(ordered).all())) and len(months) == 1
