"""Rows in any order become regular grids; every change is reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tsprune.data.frequency import check_one_frequency, infer_step
from tsprune.data.steps import DAY, Ints, Step, month_numbers, parse_frequency, show, weekdays
from tsprune.data.words import many
from tsprune.errors import TspruneError

_TOLERANCE = 0.25


@dataclass(frozen=True)
class Rows:
    """Observations with their series and stamps.

    Args:
        ids: series names.
        codes: index into `ids` of every row `[R]`.
        stamps: int64 `[R]`, microseconds or step numbers.
        values: float32 `[R, C]`.
        numbered: stamps are step numbers.
        source: where the rows come from, for messages.
    """

    ids: Sequence[str]
    codes: Ints
    stamps: Ints
    values: NDArray[np.float32]
    numbered: bool
    source: str

    def take(self, chosen: Ints | NDArray[np.bool_]) -> Rows:
        """Some of the rows."""
        return replace(self, codes=self.codes[chosen], stamps=self.stamps[chosen], values=self.values[chosen])

    def label(self, row: int) -> str:
        """The stamp of a row for people, with its series where there are several."""
        stamp = str(self.stamps[row]) if self.numbered else show(int(self.stamps[row]))
        return f"{stamp} ({self.ids[self.codes[row]]})" if len(self.ids) > 1 else stamp

    @property
    def borders(self) -> Ints:
        """First row of every series, and the number of rows: `[S + 1]`; rows must be sorted."""
        return np.searchsorted(self.codes, np.arange(len(self.ids) + 1))


@dataclass(frozen=True)
class Grid:
    """Series end to end on regular steps.

    Args:
        values: float32 `[sum of T, C]`.
        borders: first step of every series and the end `[S + 1]`.
        starts: stamp of the first step `[S]`.
        step: the step.
        stamps: stamp of every row `[sum of T]` where rows were kept as they stand.
    """

    values: NDArray[np.float32]
    borders: Ints
    starts: Ints
    step: Step
    stamps: Ints | None = None


def to_grid(rows: Rows, frequency: str | None, keep_rows: bool, repairs: list[str]) -> Grid:
    """Sort, merge repeated stamps, find the step, snap and fill gaps with missing values.

    Args:
        rows: the observations.
        frequency: the user's alias, or None.
        keep_rows: every row is one step; only sorting remains.
        repairs: gets one line per kind of change.

    Raises:
        TspruneError: if stamps are no regular grid, or most repeat.
    """
    rows = _in_order(rows, repairs)
    given = parse_frequency(frequency) if frequency and not rows.numbered else None
    if keep_rows:
        return _as_they_stand(rows, given, repairs)
    rows = _merged(rows, repairs, ("repeated stamp", "repeated stamps"))
    step = given or infer_step(rows.stamps, rows.codes, rows.numbered, rows.source)
    check_one_frequency(rows.stamps, rows.codes, step, rows.ids, rows.source)
    if step.unit == "month" and given:
        step = _label_like(rows, step)
    starts, places, shifts = _best_places(rows, step)
    if shifts.any():
        _check_shifts(rows, step, shifts, repairs)
        rows = replace(rows, stamps=rows.stamps - shifts)
        rows = _merged(rows, repairs, ("stamp on a step already taken", "stamps on steps already taken"))
        starts, places, _ = _places(rows, step, starts)
    return _filled(rows, step, starts, places, repairs)


def _in_order(rows: Rows, repairs: list[str]) -> Rows:
    same = rows.codes[1:] == rows.codes[:-1]
    later = rows.stamps[1:] >= rows.stamps[:-1]
    if bool(((rows.codes[1:] > rows.codes[:-1]) | (same & later)).all()):
        return rows
    grouped = np.argsort(rows.codes, kind="stable")
    codes, stamps = rows.codes[grouped], rows.stamps[grouped]
    early = (codes[1:] == codes[:-1]) & (stamps[1:] < stamps[:-1])
    if early.any():
        first = int(grouped[1:][early][0])
        backwards = " (newest first)" if early.all() else ""
        repairs.append(
            f"rows were not in order of time{backwards}: {int(early.sum()):,} stood after a later one, e.g. "
            f"{rows.label(first)}; sorted"
        )
    return rows.take(np.lexsort((rows.stamps, rows.codes)))


def _merged(rows: Rows, repairs: list[str], what: tuple[str, str]) -> Rows:
    """One row per series and stamp: equal rows once, different ones averaged."""
    again = np.r_[False, (rows.codes[1:] == rows.codes[:-1]) & (rows.stamps[1:] == rows.stamps[:-1])]
    if not again.any():
        return rows
    merged = rows.take(~again)
    part = again | np.r_[again[1:], False]
    values = rows.values[part].astype(np.float64)
    firsts = np.flatnonzero(~again[part])
    seen = ~np.isnan(values)
    counts = np.add.reduceat(seen, firsts, dtype=np.int64)
    sums = np.add.reduceat(np.where(seen, values, 0.0), firsts)
    group = np.cumsum(~again[part]) - 1
    equal = ((values == values[firsts][group]) | (~seen & ~seen[firsts][group])).all(axis=1)
    differing = ~np.logical_and.reduceat(equal, firsts)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    where = np.flatnonzero(part & ~again)
    targets = np.cumsum(~again)[where] - 1
    merged.values[targets[differing]] = means[differing].astype(np.float32)
    extra = np.diff(np.r_[firsts, len(values)]) - 1
    if int(extra[differing].sum()) > 0.2 * len(rows.stamps):
        raise TspruneError(
            f"{rows.source}: {int(extra.sum()):,} of {len(rows.stamps):,} rows repeat a stamp with other "
            "values, e.g. "
            f"{rows.label(int(where[differing][0]))}; expected one row per series and time, name the series "
            "with --id-column"
        )
    for chosen, done in ((~differing, "equal rows dropped"), (differing, "different values averaged")):
        if chosen.any():
            examples = ", ".join(rows.label(int(row)) for row in where[chosen][:5])
            clock = _clock_change(rows, where[chosen])
            repairs.append(f"{many(int(extra[chosen].sum()), *what)}, {done}: {examples}{clock}")
    return merged


def _clock_change(rows: Rows, where: Ints) -> str:
    stamps = rows.stamps[where]
    months = month_numbers(stamps) % 12 if not rows.numbered else stamps
    early = stamps % DAY < 4 * 3600 * 1_000_000
    if rows.numbered or not (early & (weekdays(stamps) == 6) & np.isin(months, (2, 8, 9, 10))).all():
        return ""
    return " (looks like the change of clocks: consider stamps in UTC)"


def _label_like(rows: Rows, step: Step) -> Step:
    """A calendar step given by the user labels periods the way the data do."""
    from tsprune.data.steps import is_month_end, month_step

    end = bool(is_month_end(rows.stamps).all())
    return step if end == step.end else month_step(step.count, end, int(rows.stamps[0]))


def _places(rows: Rows, step: Step, starts: Ints) -> tuple[Ints, Ints, Ints]:
    places, shifts = step.positions(starts[rows.codes], rows.stamps)
    first = places[rows.borders[:-1]]
    return step.shift(starts, first), places - first[rows.codes], shifts


def _best_places(rows: Rows, step: Step) -> tuple[Ints, Ints, Ints]:
    """Starts, steps and shifts under the phase that moves stamps least."""
    starts = rows.stamps[rows.borders[:-1]]
    if step.unit == "month":
        starts = step.shift(starts, np.zeros_like(starts))
    best = _places(rows, step, starts)
    if step.unit != "time" or not best[2].any():
        return best
    usual = starts.copy()
    for code, (low, high) in enumerate(zip(rows.borders[:-1], rows.borders[1:], strict=True)):
        shifts, counts = np.unique(best[2][low:high], return_counts=True)
        usual[code] += shifts[np.argmax(counts)]
    rounded = (starts + step.count // 2) // step.count * step.count
    by_usual, by_round = _places(rows, step, usual), _places(rows, step, rounded)
    # Most stamps exactly on one phase: that is the grid. Jitter all over: the grid is the round one.
    if (by_usual[2] == 0).mean() > 0.5:
        return by_usual
    fits = np.abs(by_round[2]).max() <= _TOLERANCE * step.count
    return by_round if fits else min(best, by_usual, key=lambda option: int(np.abs(option[2]).max()))


def _check_shifts(rows: Rows, step: Step, shifts: Ints, repairs: list[str]) -> None:
    moved = shifts != 0
    if step.unit == "month":
        off = month_numbers(rows.stamps) != month_numbers(rows.stamps - shifts)
    elif step.unit == "business":
        off = moved
    else:
        off = np.abs(shifts) > _TOLERANCE * step.count
    name = step.alias or str(step.count)
    if off.any():
        examples = ", ".join(rows.label(int(row)) for row in np.flatnonzero(off)[:3])
        raise TspruneError(
            f"{rows.source}: {int(off.sum()):,} of {len(off):,} stamps are not on a regular grid of step "
            f"{name}, e.g. "
            f"{examples}; resample them, give the right --frequency, or keep every row as one step with "
            "--grid rows"
        )
    example = rows.label(int(np.flatnonzero(moved)[0]))
    if step.unit == "month":
        place = "last" if step.end else "first"
        repairs.append(
            f"{many(int(moved.sum()), 'stamp was', 'stamps were')} moved to the {place} day of their month, "
            f"e.g. {example}"
        )
        return
    most = int(np.abs(shifts).max())
    far = f"{most / 1e6:g} s" if not rows.numbered else str(most)
    repairs.append(
        f"{many(int(moved.sum()), 'stamp was', 'stamps were')} snapped to the grid of step {name}, by {far} "
        f"at most, e.g. {example}"
    )


def _filled(rows: Rows, step: Step, starts: Ints, places: Ints, repairs: list[str]) -> Grid:
    borders = rows.borders
    lengths = places[borders[1:] - 1] + 1
    total, present = int(lengths.sum()), len(places)
    if total > max(20 * present, 1_000_000):
        raise TspruneError(
            f"{rows.source}: a regular grid of step {step.alias or step.count} would have {total:,} steps "
            f"for {present:,} "
            "rows; check the stamps for outliers, give a longer --frequency, or keep the rows with --grid "
            "rows"
        )
    ends = np.r_[0, np.cumsum(lengths)]
    if total == present:
        return Grid(rows.values, ends, starts, step)
    values = np.full((total, rows.values.shape[1]), np.nan, np.float32)
    values[ends[rows.codes] + places] = rows.values
    jumps = np.where(rows.codes[1:] == rows.codes[:-1], np.diff(places) - 1, 0)
    longest = int(np.argmax(jumps))
    several = f" in {len(np.unique(rows.codes[1:][jumps > 0])):,} series" if len(rows.ids) > 1 else ""
    repairs.append(
        f"{many(total - present, 'absent step')} became missing values: "
        f"{many(int((jumps > 0).sum()), 'gap')}{several}, the "
        f"longest of {many(int(jumps[longest]), 'step')} after {rows.label(longest)}"
    )
    return Grid(values, ends, starts, step)


def _as_they_stand(rows: Rows, given: Step | None, repairs: list[str]) -> Grid:
    new = np.r_[True, (rows.codes[1:] != rows.codes[:-1]) | (rows.stamps[1:] != rows.stamps[:-1])]
    step = given or infer_step(rows.stamps[new], rows.codes[new], rows.numbered, rows.source)
    _, places, shifts = _places(rows, step, rows.stamps[rows.borders[:-1]])
    jumps = np.where(rows.codes[1:] == rows.codes[:-1], np.diff(places), 1)
    gaps, off = int((jumps > 1).sum()), int((shifts != 0).sum())
    repairs.append(
        f"rows were kept as they stand, every row is one step: {many(int((~new).sum()), 'repeated stamp')}, "
        f"{many(gaps, 'gap')} and "
        f"{many(off, 'stamp')} off the grid were left alone"
    )
    return Grid(rows.values, rows.borders, rows.stamps[rows.borders[:-1]], step, rows.stamps)
