"""Columns of numbers in the forms people write them, and the numbers that stand for nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tsprune.data.reading import ReadOptions
from tsprune.data.tables import is_text
from tsprune.data.words import listed, many
from tsprune.errors import TspruneError

Floats = NDArray[np.float64]

_PLAIN = r"^[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?$"
_GROUPED = r"^[+-]?\d{1,3}(?:,\d{3})+(?:\.\d*)?$"
_CLEARLY_GROUPED = r"^[+-]?\d{1,3}(?:(?:,\d{3}){2,}(?:\.\d*)?|(?:,\d{3})+\.\d*)$"
_COMMA = r"^[+-]?(?:\d+|\d{1,3}(?:\.\d{3})+)(?:,\d*)?(?:[eE][+-]?\d+)?$"
_CLEARLY_COMMA = r"^[+-]?(?:\d+,(?:\d{1,2}|\d{4,})|0,\d+|\d{4,},\d+|\d{1,3}(?:\.\d{3})+,\d+)$"
_SUSPECTS = (-999.0, -9999.0, -99999.0, -999999.0, 9999.0, 99999.0, 999999.0)


def to_numbers(column: pd.Series[Any], options: ReadOptions, place: Callable[[int], str], repairs: list[str]) -> Floats:
    """A column as float64 `[R]`, NaN = missing.

    Raises:
        TspruneError: naming the column, the first rows and their values, if a cell is no number.
    """
    name = str(column.name)
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        raise TspruneError(f"column {name!r} holds timestamps, expected numbers; name it with --timestamp-column")
    if not is_text(column):
        if pd.api.types.is_bool_dtype(column.dtype):
            repairs.append(f"column {name!r}: true and false were read as 1 and 0")
        try:
            raw: Any = column.to_numpy(np.float64, na_value=np.nan)
            return np.asarray(raw, np.float64)
        except (TypeError, ValueError):
            raise TspruneError(f"column {name!r} is of type {column.dtype}, expected numbers") from None
    texts = column.astype("str").str.strip()
    absent = (column.isna() | texts.isin(["", *options.missing_text])).to_numpy()
    if options.missing_text and (said := int(texts.isin(options.missing_text).sum())):
        repairs.append(f"column {name!r}: {many(said, 'cell')} with {'/'.join(options.missing_text)} became missing")
    filled = texts[~absent]
    values = np.full(len(column), np.nan)
    values[~absent] = _parse(filled, name, options.decimal, place, repairs)
    return values


def _parse(texts: pd.Series[str], name: str, decimal: str, place: Callable[[int], str], repairs: list[str]) -> Floats:
    numbers = pd.to_numeric(texts, errors="coerce") if decimal != "," else pd.Series(np.nan, texts.index)
    bad = numbers.isna() & ~texts.str.lower().isin(["nan", "+nan", "-nan"])
    if not bad.any():
        return np.asarray(numbers, np.float64)
    odd = texts[bad]
    points = texts.str.contains(r"\.", regex=True).any()
    grouped = odd.str.match(_GROUPED).all()
    commas = texts.str.match(_COMMA).all()
    clear_group = odd.str.match(_CLEARLY_GROUPED).any() or (points and not commas)
    if decimal == "," and commas:
        pass
    elif decimal != "," and grouped and (decimal == "." or clear_group):
        repairs.append(
            f"column {name!r}: commas in {len(odd):,} numbers such as {odd.iloc[0]!r} were read as thousands"
        )
        return pd.to_numeric(texts.str.replace(",", "")).to_numpy(np.float64)
    elif not (decimal == "auto" and commas and odd.str.match(_CLEARLY_COMMA).any()):
        raise TspruneError(_complaint(odd, name, place, bool(grouped)))
    if decimal == "auto":
        repairs.append(f"column {name!r}: the comma in numbers such as {odd.iloc[0]!r} was read as decimal mark")
    plain = texts.str.replace(".", "", regex=False).str.replace(",", ".", regex=False)
    return pd.to_numeric(plain).to_numpy(np.float64)


def _complaint(odd: pd.Series[str], name: str, place: Callable[[int], str], grouped: bool) -> str:
    rows = odd.index[:3].to_numpy(np.int64).tolist()
    first = ", ".join(f"{value!r} in {place(row)}" for row, value in zip(rows, odd.iloc[:3], strict=True))
    if grouped:
        return (
            f"column {name!r}: {first}: the comma may part thousands or decimals and nothing in the column "
            "decides; "
            "give --decimal . or --decimal ,"
        )
    count = many(len(odd), "cell is no number", "cells are no numbers")
    return (
        f"column {name!r}: {count} ({first}), expected numbers; correct them, give --missing-text for words "
        "that mean missing, or leave the column out with --value-columns"
    )


class Narrowing:
    """Columns on their way from float64 to float32, and what becomes missing on it.

    Args:
        sentinels: numbers that stand for a missing value.
        place: words for where row i stands.
    """

    def __init__(self, sentinels: Sequence[float], place: Callable[[int], str]) -> None:
        self.sentinels = dict.fromkeys(sentinels, 0)
        self.place = place
        self.infinite: dict[str, NDArray[np.int64]] = {}
        self.beyond: dict[str, tuple[NDArray[np.int64], float]] = {}

    def store(self, raw: Floats, out: NDArray[np.float32], name: str) -> None:
        """Write column `raw [R]` into `out [R]`; sentinels and what float32 cannot hold become NaN."""
        with np.errstate(over="ignore"):
            narrow = raw.astype(np.float32)
            for sentinel in self.sentinels:
                # As float32, since that is how notes and tables show a value; beyond it, as it is.
                short = np.float32(sentinel)
                found = raw == sentinel if np.isinf(short) else narrow == short
                self.sentinels[sentinel] += int(np.count_nonzero(found))
                narrow[found] = np.nan
        lost = np.flatnonzero(np.isinf(narrow))
        if len(lost):
            finite = np.isfinite(raw[lost])
            if not finite.all():
                self.infinite[name] = lost[~finite]
            if finite.any():
                self.beyond[name] = (lost[finite], float(raw[lost[finite]][0]))
            narrow[lost] = np.nan
        out[:] = narrow

    def notes(self, owners: Callable[[NDArray[np.int64]], Sequence[str]]) -> list[str]:
        """One line for every kind of loss.

        Args:
            owners: series that rows belong to, none where the columns are the series.
        """
        notes = []
        if self.infinite:
            count = many(sum(map(len, self.infinite.values())), "infinite value")
            notes.append(f"{count} became missing, in {self._where(self.infinite, owners)}")
        if self.beyond:
            rows = {name: found for name, (found, _) in self.beyond.items()}
            total = sum(map(len, rows.values()))
            example = next(iter(self.beyond.values()))[1]
            notes.append(
                f"{many(total, 'value overflows', 'values overflow')} float32, whose limit is 3.4e+38, and became "
                f"missing: {example:g} in {self._where(rows, owners)}; divide by a constant first if they are real"
            )
        for sentinel, found in self.sentinels.items():
            notes.append(f"{many(found, 'value')} equal to the sentinel {sentinel:g} became missing")
        return notes

    def _where(self, rows: dict[str, NDArray[np.int64]], owners: Callable[[NDArray[np.int64]], Sequence[str]]) -> str:
        words = []
        for name, found in rows.items():
            series = f" of {listed(owners(found))}" if owners(found[:1]) else ""
            words.append(f"{name!r}{series} (first in {self.place(int(found[0]))})")
        return listed(words)


def suspect_sentinels(values: NDArray[np.float32], names: Sequence[str]) -> dict[float, str]:
    """Values such as -9999 that repeat far away from all others, and a note on each; the values stay.

    Args:
        values: `[R, C]`.
        names: the columns `[C]`.
    """
    notes = {}
    for suspect in _SUSPECTS:
        counts = {}
        for place, name in enumerate(names):
            column = values[:, place]
            count = int(np.count_nonzero(column == np.float32(suspect)))
            if count and _isolated(column, suspect):
                counts[name] = count
        if sum(counts.values()) > 1:
            where = ", ".join(f"{name} ({count})" for name, count in list(counts.items())[:5])
            notes[suspect] = (
                f"{suspect:g} occurs {sum(counts.values())} times far from all other values, in {where}; the "
                f"values were kept; give --sentinel {suspect:g} if they mean missing"
            )
    return notes


def _isolated(column: NDArray[np.float32], suspect: float) -> bool:
    others = column[np.isfinite(column) & (column != np.float32(suspect))]
    others = others[~np.isin(others, np.array(_SUSPECTS, np.float32))]
    if not len(others):
        return False
    low, high = float(others.min()), float(others.max())
    # Half the whole range away, so that ordinary records are no suspects.
    room = 0.5 * max(high - low, abs(low), abs(high), 1e-6)
    return suspect < low - room or suspect > high + room
