"""Regular steps in time: what a frequency alias means, in plain integer arithmetic.

Stamps are int64 microseconds since 1970-01-01 (no zone). A `Step` needs no anchor: the phase comes from the
start of each series, so quarterly series that begin in different months live in one panel.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tsprune.errors import TspruneError

Ints = NDArray[np.int64]

SECOND = 1_000_000
DAY = 86_400 * SECOND
_WEEKDAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_TIME_UNITS = {
    "us": 1,
    "ms": 1000,
    "s": SECOND,
    "min": 60 * SECOND,
    "h": 3600 * SECOND,
    "D": DAY,
    "W": 7 * DAY,
}
_MONTH_UNITS = {"MS": 1, "ME": 1, "QS": 3, "QE": 3, "YS": 12, "YE": 12}
_OLD_NAMES = {
    "T": "min",
    "H": "h",
    "S": "s",
    "L": "ms",
    "M": "ME",
    "Q": "QE",
    "A": "YE",
    "Y": "YE",
    "AS": "YS",
    "d": "D",
}


@dataclass(frozen=True)
class Step:
    """The distance between neighbouring stamps.

    Args:
        unit: "time" (fixed microseconds), "month" (calendar months) or "business" (Monday to Friday).
        count: how many microseconds, months or business days one step is.
        end: month steps only: stamps name the last day of the period instead of the first.
        alias: the pandas offset alias.
    """

    unit: Literal["time", "month", "business"]
    count: int
    end: bool = False
    alias: str = ""

    @property
    def season(self) -> int:
        """Length of the natural season in steps: a day, a week for days, a year above; 1 = none."""
        if self.unit == "business":
            return 5 if self.count == 1 else 1
        if self.unit == "month":
            return 12 // self.count if 12 % self.count == 0 else 1
        if self.count < DAY:
            return round(DAY / self.count)
        if self.count % (7 * DAY) == 0:
            weeks = self.count // (7 * DAY)
            return 52 // weeks if 52 % weeks == 0 else 1
        return 7 * DAY // self.count if (7 * DAY) % self.count == 0 else 1

    def stamps(self, start: int, first: int, count: int) -> Ints:
        """Stamps of the steps `first .. first + count - 1` of a series that begins at `start`, `[count]`."""
        return self.shift(np.full(count, start, np.int64), np.arange(first, first + count, dtype=np.int64))

    def shift(self, stamps: Ints, steps: Ints) -> Ints:
        """`stamps [N]` moved by `steps [N]`; month steps land on the first or last day of their month."""
        if self.unit == "time":
            return stamps + steps * self.count
        within_day = stamps % DAY
        if self.unit == "business":
            moved = np.busday_offset(_days(stamps), steps * self.count, roll="forward")
            return moved.astype(np.int64) * DAY + within_day
        months = month_numbers(stamps) + steps * self.count + self.end
        return months.astype("M8[M]").astype("M8[D]").astype(np.int64) * DAY + within_day - self.end * DAY

    def positions(self, starts: Ints, stamps: Ints) -> tuple[Ints, Ints]:
        """Nearest step of every stamp from its start on, and its distance in microseconds, both `[N]`."""
        if self.unit == "time":
            distance = stamps - starts
            places = (distance + self.count // 2) // self.count
            return places, distance - places * self.count
        if self.unit == "business":
            places = np.busday_count(_days(starts), _days(stamps)).astype(np.int64) // self.count
        else:
            places = (month_numbers(stamps) - month_numbers(starts)) // self.count
        return places, stamps - self.shift(starts, places)


def month_numbers(stamps: Ints) -> Ints:
    """Months since 1970-01 of every stamp `[N]`."""
    return _days(stamps).astype("M8[M]").astype(np.int64)


def weekdays(stamps: Ints) -> Ints:
    """Day of the week of every stamp `[N]`, Monday = 0."""
    return (stamps // DAY + 3) % 7


def is_month_end(stamps: Ints) -> NDArray[np.bool_]:
    """Which stamps fall on the last day of a month `[N]`."""
    return np.not_equal(month_numbers(stamps), month_numbers(stamps + DAY))


def is_month_start(stamps: Ints) -> NDArray[np.bool_]:
    """Which stamps fall on the first day of a month `[N]`."""
    return np.not_equal(month_numbers(stamps), month_numbers(stamps - DAY))


def time_step(count: int, example: int) -> Step:
    """A step of fixed length; `example` is a stamp that names the weekday of weekly data."""
    for name in ("W", "D", "h", "min", "s", "ms", "us"):
        length = _TIME_UNITS[name]
        if count % length == 0:
            many = "" if count == length else str(count // length)
            anchor = f"-{_WEEKDAYS[int(weekdays(np.array([example]))[0])]}" if name == "W" else ""
            return Step("time", count, alias=f"{many}{name}{anchor}")
    raise TspruneError(f"a step of {count} microseconds cannot be expressed: expected a positive length")


def month_step(count: int, end: bool, example: int) -> Step:
    """A step of `count` calendar months; `example` is a stamp that names the anchor month."""
    month = int(month_numbers(np.array([example]))[0]) % 12
    many, anchor = count, ""
    name = "M"
    if count % 12 == 0:
        name, many = "Y", count // 12
        anchor = "" if month == (11 if end else 0) else f"-{_MONTHS[month]}"
    elif count % 3 == 0:
        name, many = "Q", count // 3
        phase = month % 3
        plain = 2 if end else 0
        anchor = "" if phase == plain else f"-{_MONTHS[phase]}"
    return Step("month", count, end, f"{'' if many == 1 else many}{name}{'E' if end else 'S'}{anchor}")


def parse_frequency(alias: str) -> Step:
    """The step an alias such as "h", "15min", "W-FRI", "B", "MS" or "QS" stands for.

    Raises:
        TspruneError: if the alias is not one of the supported ones.
    """
    found = re.fullmatch(r"(\d*)([A-Za-z]+)(?:-([A-Za-z]{3}))?", alias.strip())
    if found:
        many = int(found[1] or 1)
        name = _OLD_NAMES.get(found[2], found[2])
        anchor = f"-{found[3].upper()}" if found[3] else ""
        plain = f"{found[1] if many != 1 else ''}{name}{anchor}"
        known_anchor = not anchor or anchor[1:] in (_WEEKDAYS if name == "W" else _MONTHS)
        if many > 0 and known_anchor:
            if name == "B" and not anchor:
                return Step("business", many, alias=plain)
            if name in _TIME_UNITS and (name == "W" or not anchor):
                return Step("time", many * _TIME_UNITS[name], alias=plain)
            if name in _MONTH_UNITS:
                return Step("month", many * _MONTH_UNITS[name], name[1] == "E", plain)
    raise TspruneError(
        f"--frequency {alias!r} is not known: expected a count and a unit such as 's', '15min', 'h', 'D', "
        "'B', "
        "'W-SUN', 'MS', 'ME', 'QS', 'YS'"
    )


def show(stamp: int) -> str:
    """A stamp for people: no seconds and no time of day where they are zero."""
    text = str(np.datetime64(int(stamp), "us")).replace("T", " ")
    for zero in (".000000", ":00", " 00:00"):
        text = text.removesuffix(zero)
    return text


def _days(stamps: Ints) -> NDArray[np.datetime64]:
    return (stamps // DAY).astype("M8[D]")
