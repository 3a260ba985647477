"""Which rows of an evaluation depend on each other, and so have to be drawn and counted together.

Letters: R rows, U units, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tsprune.data.panel import Panel
from tsprune.data.windows import WindowSet
from tsprune.errors import TspruneError

_Ints = NDArray[np.int64]
_Floats = NDArray[np.float64]

_FEWEST = 5
"""Blocks longer than the overlap are only taken where at least so many of them fit."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """The units of a set of rows: origins in time order, or series.

    - Origins: the rows of all series with the same origin are one unit, so that what series have in common stays
      together. Units whose targets overlap depend on each other.
    - Series: all windows of a series are one unit, and series count as independent. For panels with one window per
      series, and for series without a common clock.

    Args:
        unit: unit of every row `[R]`, in the order of the rows that were scored.
        count: number of units U.
        overlap: most units that have a step of their targets in common, each counting itself: the horizon in window
            steps, ceil(horizon / stride); 1 where units are series.
        kind: "origins" or "series".
    """

    unit: _Ints
    count: int
    overlap: int
    kind: Literal["origins", "series"]

    @classmethod
    def of(cls, windows: WindowSet | Sequence[WindowSet], by: Literal["auto", "origins", "series"] = "auto") -> Blocks:
        """The units of scored windows.

        Args:
            windows: what was scored; several sets, such as the folds of a back-test, in the order of their rows.
            by: "auto" takes origins, unless every series has one window only or there is no common clock (series that
                start at different, unknown times); then it takes series.

        Raises:
            TspruneError: if there is no window, horizons differ, or origins are wanted without a common clock.
        """
        sets = [windows] if isinstance(windows, WindowSet) else list(windows)
        if not sum(map(len, sets)):
            raise TspruneError("there is no window to compare; give a shorter --horizon or another --split")
        if len({one.horizon for one in sets}) > 1:
            raise TspruneError("windows of several horizons cannot be compared as one; compare each horizon alone")
        series = _numbered([one.panel.ids[index] for one in sets for index in _series_of_rows(one).tolist()])
        clock = _clock(sets)
        many_series, single = bool(series.any()), len(np.unique(series)) == len(series)
        if by == "series" or (by == "auto" and many_series and (clock is None or single)):
            return cls(series, int(series.max()) + 1, 1, "series")
        if clock is None:
            raise TspruneError(
                "the series have no timestamps and differ in length, so it is unknown which origins coincide; give "
                "timestamps, or compare by series"
            )
        moments, unit = np.unique(clock, return_inverse=True)
        ends = np.searchsorted(moments, moments + sets[0].horizon)
        overlap = int((ends - np.arange(len(moments))).max())
        return cls(unit.astype(np.int64).reshape(-1), len(moments), overlap, "origins")

    @property
    def length(self) -> int:
        """Units of one block.

        The overlap L at least (Kuensch 1989). Twice that, or the cube root of U where it is more (Hall, Horowitz and
        Jing 1995), as far as five blocks fit: a block of n units counts the dependence between units k apart only by
        1 - k / n. Series are blocks of their own.
        """
        wanted = max(2 * self.overlap, math.ceil(round(self.count ** (1 / 3), 9))) if self.kind == "origins" else 1
        return max(self.overlap, min(wanted, self.count // _FEWEST))

    @property
    def stretches(self) -> float:
        """How many blocks the units hold: about the number of independent observations, not necessarily whole."""
        return self.count / self.length

    def sums(self, values: ArrayLike) -> _Floats:
        """Sums over the rows of each unit.

        Args:
            values: one column per quantity `[R, C]`.

        Returns:
            `[U, C]`.

        Raises:
            TspruneError: if there are not as many rows as were scored.
        """
        table = np.asarray(values, np.float64)
        if table.ndim != 2 or len(table) != len(self.unit):
            raise TspruneError(
                f"{len(table)} rows of errors for {len(self.unit)} rows of windows; take both from one set"
            )
        columns = [np.bincount(self.unit, weights=column, minlength=self.count) for column in table.T]
        return np.stack(columns, axis=1) if columns else np.zeros((self.count, 0))

    def describe(self) -> dict[str, str | int]:
        """Numbers for a results file."""
        return {"unit": self.kind, "units": self.count, "overlap": self.overlap, "block_length": self.length}

    def notes(self) -> list[str]:
        """What limits intervals and tests, one line each."""
        if self.stretches >= 2 * _FEWEST:
            return []
        what = "series" if self.kind == "series" else f"stretches of {self.length} origins"
        return [
            f"only {self.stretches:.1f} independent {what} were scored: intervals are wide, and by itself the "
            "Diebold-Mariano test finds differences too easily"
        ]


def _series_of_rows(windows: WindowSet) -> _Ints:
    return windows.target_series(np.arange(len(windows)))


def _numbered(names: list[str]) -> _Ints:
    """Numbers of names in the order in which they first occur."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)


def _clock(sets: Sequence[WindowSet]) -> _Ints | None:
    """Origin of every row in steps of one clock `[R]`, None where series have none in common."""
    panels = [one.panel for one in sets]
    first = panels[0].series[0]
    same = all(panel.aligned and panel.series[0].start == first.start for panel in panels)
    offsets: list[_Ints] = [np.zeros(len(panel.series), np.int64) for panel in panels]
    if not same:
        dated = [_offsets(panel, panels[0]) for panel in panels]
        if any(found is None for found in dated):
            return None
        offsets = [found for found in dated if found is not None]
    rows = []
    for one, offset in zip(sets, offsets, strict=True):
        origin = np.repeat(one.origin.astype(np.int64), one.targets_per_window)
        rows.append(origin + offset[_series_of_rows(one)])
    return np.concatenate(rows)


def _offsets(panel: Panel, first: Panel) -> _Ints | None:
    """Steps from the start of the first series of `first` to the start of every series `[S]`; None without dates."""
    begin = first.series[0].start
    starts = [series.start for series in panel.series]
    if panel.step is None or begin is None or any(start is None for start in starts):
        return None
    stamps = np.array([start.to_datetime64() for start in starts if start is not None], "M8[us]").astype(np.int64)
    zero = np.full(len(stamps), begin.to_datetime64().astype("M8[us]").astype(np.int64), np.int64)
    return panel.step.positions(zero, stamps)[0]
