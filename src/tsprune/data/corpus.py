"""Real series for pretraining, read from a folder of CSV files and cut into windows at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tsprune.errors import TspruneError

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float32]
_SHORTEST = 16
_COARSER = (2, 3, 4, 6, 12, 24)
_INDEX_NAMES = {
    "date",
    "ds",
    "time",
    "timestamp",
    "datetime",
    "month",
    "week",
    "day",
    "index",
    "instant",
    "id",
    "",
}


@dataclass(frozen=True)
class CorpusSeries:
    """One real series.

    Args:
        name: file stem and column or id, for example `load/T1`.
        file: name of the file it came from.
        values: values `[T]`, float32, NaN = missing.
        column: whether it is a column of a table, in step with the table's other columns.
    """

    name: str
    file: str
    values: Array
    column: bool = False


class Corpus:
    """Real series with the odds at which windows are cut from them.

    A file's odds grow with the square root of its points, and are lowered where its series are short; within
    a file, a series' odds grow with the square root of its length. So hundreds of short series in one file do
    not crowd out the others.

    Args:
        series: the series; at least one.
        source: name of where they came from, for the model card.

    Raises:
        TspruneError: there is no series.
    """

    def __init__(self, series: Sequence[CorpusSeries], source: str = "") -> None:
        """Work out the odds of every series."""
        if not series:
            raise TspruneError("the corpus has no series: expected at least one of 16 values or more that vary")
        self.series = tuple(series)
        self.source = source
        self._files: dict[str, list[int]] = {}
        for place, one in enumerate(self.series):
            self._files.setdefault(one.file, []).append(place)
        lengths = np.array([len(one.values) for one in self.series], dtype=np.float64)
        weights = np.sqrt(lengths)
        for places in self._files.values():
            share = weights[places] / weights[places].sum()
            odds = np.sqrt(lengths[places].sum()) * np.sqrt(min(1.0, lengths[places].mean() / 128))
            weights[places] = share * odds
        self._edges = np.cumsum(weights / weights.sum())
        self._bundles = [places for places in self._aligned() if len(places) > 1]

    def _aligned(self) -> list[list[int]]:
        """Series that share file and length: columns of one table, in step with one another."""
        groups: dict[tuple[str, int], list[int]] = {}
        for file, places in self._files.items():
            for place in places:
                if self.series[place].column:
                    groups.setdefault((file, len(self.series[place].values)), []).append(place)
        return [places for (_, steps), places in groups.items() if steps >= 256]

    @property
    def has_groups(self) -> bool:
        """Whether any file has several columns in step with one another."""
        return bool(self._bundles)

    @classmethod
    def from_folder(cls, path: str | Path, exclude: Sequence[str] = ()) -> Corpus:
        """Read every CSV and CSV.gz file of a folder.

        Files are wide (a timestamp column or none, and value columns) or long (`unique_id`, `ds`, `y`).
        Rows are put in order of time, and steps absent from a regular grid become NaN.

        Args:
            path: the folder.
            exclude: file names to leave out; `*` and `?` are understood.

        Raises:
            TspruneError: the folder is absent, is or lies in one called `benchmark` (evaluation data must not
                enter a corpus), or holds no usable series; or a file cannot be read as CSV.
        """
        folder = Path(path)
        _refuse_evaluation(folder)
        if not folder.is_dir():
            raise TspruneError(f"{folder}: no such folder; expected one with .csv or .csv.gz files")
        files = sorted(file for file in folder.iterdir() if file.name.lower().endswith((".csv", ".csv.gz")))
        files = [file for file in files if not any(fnmatch(file.name, pattern) for pattern in exclude)]
        for file in files:
            _refuse_evaluation(file)
        series = [one for file in files for one in _read(file)]
        if not series:
            raise TspruneError(f"{folder}: no usable series in {len(files)} CSV files; expected .csv or .csv.gz")
        return cls(series, folder.name)

    def describe(self) -> dict[str, Any]:
        """Files, names and sizes for a model card: `source`, `series`, `points` and `files` by name."""
        files = {
            file: {
                "series": len(places),
                "points": int(sum(np.isfinite(self.series[place].values).sum() for place in places)),
                "names": [self.series[place].name for place in places],
            }
            for file, places in self._files.items()
        }
        points = int(sum(np.isfinite(one.values).sum() for one in self.series))
        return {"source": self.source, "series": len(self.series), "points": points, "files": files}

    def _one(self, rng: np.random.Generator, length: int, horizon: int) -> Array:
        """One window `[length]`, standardised, padded with NaN where the series is too short."""
        place = int(np.searchsorted(self._edges, rng.random(), side="right"))
        values = self.series[min(place, len(self.series) - 1)].values
        return _standardised(_window(rng, values, length, horizon))

    def draw(self, rng: np.random.Generator, n: int, length: int, horizon: int | None = None) -> Array:
        """Random windows with augmentation.

        Args:
            rng: source of randomness; the same state gives the same windows.
            n: number of windows.
            length: steps per window.
            horizon: steps at the end that will be forecast (default a quarter). A series shorter than the
                window is padded with NaN on the left, and on the right as well where it would otherwise
                leave the context without values.

        Returns:
            Windows `[n, length]`, float32, standardised, NaN = missing.
        """
        ahead = length // 4 if horizon is None else horizon
        result = np.empty((n, length), dtype=np.float32)
        for row in range(n):
            values = self._one(rng, length, ahead)
            if rng.random() < 0.12:
                share = rng.uniform(0.2, 0.8)
                values = _standardised(_mixed(values, self._one(rng, length, ahead), share))
            if rng.random() < 0.08:
                values = -values
            if rng.random() < 0.03:
                values = _reversed(values)
            if rng.random() < 0.06:
                noise = rng.standard_normal(length, dtype=np.float32)
                values = values + noise * np.float32(np.exp(rng.uniform(-4.0, -1.2)))
            result[row] = values
        return result

    def draw_groups(self, rng: np.random.Generator, n_groups: int, size: int, length: int) -> Array:
        """Windows of columns that stand side by side in one table.

        Args:
            rng: source of randomness.
            n_groups: number of groups.
            size: series per group; columns repeat where a table has fewer.
            length: steps per window.

        Returns:
            Windows `[n_groups, size, length]`, float32, standardised, NaN = missing.

        Raises:
            TspruneError: no file of the corpus has several columns of at least 256 steps.
        """
        if not self._bundles:
            raise TspruneError("no file of the corpus has several columns in step: groups cannot be drawn from it")
        result = np.full((n_groups, size, length), np.nan, dtype=np.float32)
        for group in range(n_groups):
            places = self._bundles[int(rng.integers(len(self._bundles)))]
            chosen = np.concatenate([rng.permutation(places) for _ in range(-(-size // len(places)))])[:size]
            steps = len(self.series[chosen[0]].values)
            factor = _coarsening(rng, steps, length)
            span = min(steps, length * factor)
            start = int(rng.integers(0, steps - span + 1))
            for row, place in enumerate(chosen):
                piece = _coarser(self.series[place].values[start : start + span], factor)
                result[group, row, length - len(piece) :] = _standardised(piece)
        return result


def _refuse_evaluation(place: Path) -> None:
    """Raise where `place`, links followed or not, is or lies in a folder called `benchmark`."""
    parts = (*place.absolute().parts, *place.resolve().parts)
    if any(part.lower() == "benchmark" for part in parts):
        raise TspruneError(
            f"{place}: lies in a folder called 'benchmark', and evaluation data must not enter a corpus; "
            "remove or exclude it, or give another folder"
        )


def _standardised(values: Array) -> Array:
    """`values` with mean 0 and standard deviation 1 over what is there; zeros where it does not vary."""
    seen = values[~np.isnan(values)].astype(np.float64)
    if not seen.size:
        return values
    spread = float(seen.std())
    varies = spread > 1e-7 * float(np.abs(seen).max())
    centred = values.astype(np.float64) - seen.mean()
    result: Array = (centred / spread if varies else centred * 0).astype(np.float32)
    return result


def _coarsening(rng: np.random.Generator, steps: int, length: int) -> int:
    """How many steps to average into one: mostly 1, more only where enough steps remain."""
    if rng.random() > 0.3:
        return 1
    fitting = [factor for factor in _COARSER if steps // factor >= length]
    return int(fitting[int(rng.integers(len(fitting)))]) if fitting else 1


def _coarser(values: Array, factor: int) -> Array:
    """Means over `factor` steps `[T // factor]`."""
    if factor == 1:
        return values
    usable = len(values) // factor * factor
    means: Array = values[:usable].reshape(-1, factor).mean(axis=1, dtype=np.float32)
    return means


def _finer(values: Array, factor: int) -> Array:
    """`values` on a grid `factor` times as fine, straight lines between, `[(T - 1) * factor + 1]`."""
    grid = np.arange((len(values) - 1) * factor + 1) / factor
    low = np.minimum(grid.astype(np.int64), len(values) - 2)
    share = (grid - low).astype(np.float32)
    # The last point is met with share 1: its left neighbour must not bring a NaN into it alone.
    finer: Array = (values[low] * (1 - share) + values[low + 1] * share).astype(np.float32)
    return finer


def _window(rng: np.random.Generator, values: Array, length: int, horizon: int) -> Array:
    """Cut one window `[length]` at random, coarser or finer at times, NaN where the series does not reach."""
    steps = len(values)
    factor = _coarsening(rng, steps, length)
    finer = int(rng.integers(2, 5)) if factor == 1 and rng.random() < 0.12 else 1
    span = min(steps, length * factor if finer == 1 else length // finer + 2)
    start = int(rng.integers(0, steps - span + 1))
    piece = _coarser(values[start : start + span], factor)
    if finer > 1:
        piece = _finer(piece, finer)
    if len(piece) >= length:
        return piece[:length]
    window = np.full(length, np.nan, dtype=np.float32)
    context = length - horizon
    # A short series must leave the context at least half of itself.
    after = min(horizon, int(len(piece) * rng.uniform(0.15, 0.5)))
    before = len(piece) - after
    if before > context:
        before, after = context, min(horizon, len(piece) - context)
    piece = piece[: before + after]
    window[context - before : context + after] = piece
    return window


def _mixed(first: Array, second: Array, share: float) -> Array:
    """A convex mixture; where the second has no value, the first alone is taken."""
    mixture = share * first + (1 - share) * second
    return np.where(np.isnan(mixture), first, mixture).astype(np.float32)


def _reversed(values: Array) -> Array:
    """The observed stretch of a window in reverse order, padding left where it is."""
    seen = np.flatnonzero(~np.isnan(values))
    if not seen.size:
        return values
    result = values.copy()
    result[seen[0] : seen[-1] + 1] = values[seen[0] : seen[-1] + 1][::-1]
    return result


def _read(file: Path) -> list[CorpusSeries]:
    """The usable series of one file."""
    import pandas as pd

    try:
        table = pd.read_csv(file, skipinitialspace=True, low_memory=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        raise TspruneError(f"{file.name}: cannot be read as CSV ({error}); remove or exclude it") from error
    table.columns = [str(column).strip() for column in table.columns]
    stem = file.name.split(".")[0]
    if {"unique_id", "y"} <= set(table.columns):
        if "ds" in table.columns:
            table = table.sort_values("ds", kind="stable")
        pairs = [(f"{stem}/{key}", part["y"]) for key, part in table.groupby("unique_id", sort=False)]
        columns = {name: _numbers(column) for name, column in pairs}
        wide = False
    else:
        columns = {f"{stem}/{name}": values for name, values in _wide(table).items()}
        wide = True
    return [CorpusSeries(name, file.name, values, wide) for name, values in columns.items() if _usable(values)]


def _numbers(column: pd.Series[Any]) -> Array:
    """A column as float32, what is no number as NaN."""
    import pandas as pd

    numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    return np.where(np.isfinite(numbers), numbers, np.nan).astype(np.float32)


def _usable(values: Array) -> bool:
    """Long enough, mostly present and not constant."""
    seen = values[~np.isnan(values)]
    return bool(seen.size >= _SHORTEST and seen.size >= 0.5 * len(values) and seen.max() > seen.min())


def _wide(table: pd.DataFrame) -> dict[str, Array]:
    """Value columns of a wide table by name, in order of time, on the regular grid where there is one."""
    import pandas as pd

    stamps = None
    for column in table.columns:
        if not pd.api.types.is_numeric_dtype(table[column]):
            parsed = pd.to_datetime(table[column], errors="coerce", format="mixed")
            if parsed.notna().mean() > 0.9:
                stamps = parsed
                break
    values: dict[str, Array] = {
        str(name): _numbers(table[name])
        for name in table.columns
        if pd.api.types.is_numeric_dtype(table[name]) and str(name).lower() not in _INDEX_NAMES
    }
    if stamps is None:
        return values
    known = np.flatnonzero(stamps.notna().to_numpy())
    moments = stamps.to_numpy()[known].astype("datetime64[s]").astype(np.int64)
    order = np.argsort(moments, kind="stable")
    place = _grid(moments[order])
    result: dict[str, Array] = {}
    for name, numbers in values.items():
        ordered = numbers[known[order]]
        if place is not None:
            gridded = np.full(int(place[-1]) + 1, np.nan, dtype=np.float32)
            gridded[place] = ordered
            ordered = gridded
        result[name] = ordered
    return result


def _grid(moments: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Positions on the regular grid of sorted `moments` (seconds), or None if there is no such grid."""
    gaps = np.diff(moments)
    if not gaps.size:
        return None
    steps, counts = np.unique(gaps, return_counts=True)
    step = int(steps[counts.argmax()])
    if step <= 0 or counts.max() < 0.9 * gaps.size or ((moments - moments[0]) % step).any():
        return None
    place = (moments - moments[0]) // step
    return place if place[-1] < 1.5 * len(moments) else None
