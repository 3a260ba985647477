"""What stands where in a table: data sets and horizons down, candidates with their measures across."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tsprune.bench.pages.tasking import Grid, Task, Value
from tsprune.data.words import many
from tsprune.report.words import error_text, human, number

BEST, SECOND = "best", "second"
DASH = "–"


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a table.

    Attributes:
        text: a number, or a dash.
        spread: what follows it, such as its standard deviation or interval.
        mark: "best", "second" or "".
        few: whether it is a mean over fewer seeds than others.
    """

    text: str = DASH
    spread: str = ""
    mark: str = ""
    few: bool = False


@dataclass(frozen=True)
class Line:
    """A line of a table: its labels, its cells, and whether a rule stands above it."""

    labels: tuple[str, ...]
    cells: tuple[Cell, ...]
    kind: str = "task"
    starts: bool = False


@dataclass(frozen=True)
class Table:
    """A table for any of the three ways to write it.

    Attributes:
        title: caption.
        stubs: headings of the label columns.
        groups: headings that span the measures.
        measures: headings below each group.
        lines: from the top.
        notes: below the table.
    """

    title: str
    stubs: tuple[str, ...]
    groups: tuple[str, ...]
    measures: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]


def all_tables(grid: Grid) -> list[Table]:
    """Tables of every share, the largest first, one per model, and before them the one over all models."""
    tables = [found] if (found := overall_table(grid)) else []
    return tables + [table for share in grid.shares for table in share_tables(grid, share)]


def share_tables(grid: Grid, share: float) -> list[Table]:
    """One table per model, with the rivals that belong to no model in each."""
    models: list[Any] = list(grid.models) or [None]
    return [table for model in models if (table := _model_table(grid, model, share)).lines]


def measure_name(measure: str) -> str:
    """A measure as papers write it."""
    return {"smape": "sMAPE"}.get(measure, measure.upper())


def overall_table(grid: Grid) -> Table | None:
    """Candidates down, models across: geometric mean ratios to the reference; None where none was summarised."""
    summary = grid.summary
    found = summary.get("overall") or {}
    measures = [name for name in summary["measures"] if found.get(name)]
    scopes = [one for one in (*grid.models, "all") if any(found[name].get(one) for name in measures)]
    if len(grid.models) < 2:
        scopes = [one for one in scopes if one != "all"] or scopes
    if not scopes:
        return None
    by_name = {
        (scope, name): {one["name"]: one for one in (found[name].get(scope) or {}).get("models", [])}
        for scope in scopes
        for name in measures
    }
    there = {one for entries in by_name.values() for one in entries}
    candidates = [name for name in grid.candidates() if name in there]
    lines = [
        [_overall_cell(by_name[scope, name].get(one)) for scope in scopes for name in measures] for one in candidates
    ]
    ratios = [[_ratio(by_name[scope, name].get(one)) for scope in scopes for name in measures] for one in candidates]
    for place in range(len(scopes) * len(measures)):
        marks = _marks([line[place] for line in ratios])
        for line, mark in zip(lines, marks, strict=True):
            line[place] = Cell(line[place].text, line[place].spread, mark)
    return Table(
        f"Error relative to {human(summary['reference'])}, all tasks",
        ("candidate",),
        tuple("all models" if scope == "all" else scope for scope in scopes),
        tuple(measure_name(name) for name in measures),
        tuple(Line((human(name),), tuple(cells)) for name, cells in zip(candidates, lines, strict=True)),
        (
            "Geometric means over tasks, each data set counting alike; below 1 is better than the reference. In "
            f"brackets {_level(found):.0%} intervals over data sets, where there are two or more.",
        ),
    )


def _overall_cell(entry: Mapping[str, Any] | None) -> Cell:
    ratio = _ratio(entry)
    if entry is None or math.isnan(ratio):
        return Cell()
    low, high = number(entry.get("low")), number(entry.get("high"))
    # The reference is compared with itself, which leaves no interval.
    spread = "" if math.isnan(low + high) or low == high else f" [{low:.3f}, {high:.3f}]"
    return Cell(f"{ratio:.3f}", spread)


def _level(found: Mapping[str, Any]) -> float:
    return next((float(one["level"]) for scopes in found.values() for one in scopes.values() if one), 0.95)


def _ratio(entry: Mapping[str, Any] | None) -> float:
    return math.nan if entry is None else number(entry.get("ratio"))


def _model_table(grid: Grid, model: str | None, share: float) -> Table:
    summary = grid.summary
    columns = _Columns(grid, model, share)
    tasks = [task for task in grid.tasks if any(value is not None for value in columns.values(task))]
    lines = [line for data in dict.fromkeys(name for name, _ in tasks) for line in columns.block(data, tasks)]
    if lines:
        lines += columns.counts(tasks)
    few = any(cell.few for line in lines for cell in line.cells)
    name = f"{model}: test errors" if model else "Test errors"
    part = "" if share == 1 else f", {100 * share:g} % of the training windows"
    most = columns.most
    notes = (
        "Lower is better; best in bold, second underlined, both decided before rounding.",
        *((f"Means over {many(most, 'seed')} and their standard deviations.",) if most > 1 else ()),
        *(("† fewer seeds than the others.",) if few else ()),
        f"First places are counted over tasks, ties for each; wins are tasks with less error than "
        f"{human(summary['reference'])}, ties counting half. {DASH} is not measured.",
    )
    groups = tuple(human(one) for one in columns.candidates)
    measures = tuple(measure_name(one) for one in columns.measures)
    return Table(name + part, ("data", "horizon"), groups, measures, tuple(lines), notes)


class _Columns:
    """The columns of one model's table: candidates times measures."""

    def __init__(self, grid: Grid, model: str | None, share: float) -> None:
        self.grid, self.model, self.share = grid, model, share
        self.measures: list[str] = list(grid.summary["measures"])
        self.candidates = [
            name
            for name in grid.candidates(model, rivals=True)
            if any(grid.seeds(model, task, name, share) for task in grid.tasks)
        ]
        # What has no seed cannot have too few.
        self._seeded = {
            name
            for name in self.candidates
            if any(seed is not None for task in grid.tasks for seed in grid.seeds(model, task, name, share))
        }
        seeds = [value.seeds for task in grid.tasks for value in self.values(task) if value is not None]
        self.most = max(seeds, default=1)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return ((name, measure) for name in self.candidates for measure in self.measures)

    def values(self, task: Task) -> list[Value | None]:
        return [self.grid.value(self.model, task, name, measure, self.share) for name, measure in self]

    def block(self, data: str, tasks: Sequence[Task]) -> list[Line]:
        """The lines of a data set: its horizons, and their average where there are several."""
        own = [task for task in tasks if task[0] == data]
        lines = [
            Line((data if place == 0 else "", str(task[1])), self._cells(self.values(task)), starts=place == 0)
            for place, task in enumerate(own)
        ]
        if len(own) > 1:
            means = [self.grid.average(self.model, own, name, measure, self.share) for name, measure in self]
            lines.append(Line(("", "average"), self._cells(means), "average"))
        return lines

    def counts(self, tasks: Sequence[Task]) -> list[Line]:
        """First places over tasks, and the share of tasks won against the reference."""
        table = [self.values(task) for task in tasks]
        means = [[math.nan if value is None else value.mean for value in line] for line in table]
        by_measure = len(self.measures)
        firsts = [0] * len(means[0])
        for line in means:
            for offset in range(by_measure):
                for place, mark in enumerate(_marks(line[offset::by_measure])):
                    firsts[offset + place * by_measure] += mark == BEST
        first = Line(("first places", ""), tuple(Cell(str(count)) for count in firsts), "count", True)
        reference = str(self.grid.summary["reference"])
        if reference not in self.candidates:
            return [first]
        at = self.candidates.index(reference) * by_measure
        wins = tuple(
            Cell() if place // by_measure == at // by_measure else _win(means, place, at + place % by_measure)
            for place in range(len(firsts))
        )
        return [first, Line(("win rate", ""), wins, "count")]

    def _cells(self, values: Sequence[Value | None]) -> tuple[Cell, ...]:
        by_measure = len(self.measures)
        marks = [""] * len(values)
        for offset in range(by_measure):
            column = [math.nan if value is None else value.mean for value in values[offset::by_measure]]
            marks[offset::by_measure] = _marks(column)
        return tuple(
            self._cell(value, mark, place) for place, (value, mark) in enumerate(zip(values, marks, strict=True))
        )

    def _cell(self, value: Value | None, mark: str, place: int) -> Cell:
        if value is None:
            return Cell()
        few = self.candidates[place // len(self.measures)] in self._seeded and value.seeds < self.most
        spread = "" if value.spread is None else f" ± {_like(value.mean, value.spread)}"
        return Cell(_text(value.mean), spread, mark, few)


def _marks(means: Sequence[float]) -> list[str]:
    """Best and second-best of the distinct values, all that have them; nothing to mark where there is one column."""
    known = sorted({value for value in means if not math.isnan(value)})
    if sum(not math.isnan(value) for value in means) < 2:
        return [""] * len(means)
    named = dict(zip(known, (BEST, SECOND), strict=False))
    return [named.get(value, "") for value in means]


def _win(means: Sequence[Sequence[float]], own: int, base: int) -> Cell:
    pairs = [(line[own], line[base]) for line in means if not math.isnan(line[own] + line[base])]
    if not pairs:
        return Cell()
    return Cell(f"{100 * sum((a < b) + 0.5 * (a == b) for a, b in pairs) / len(pairs):.0f} %")


def _text(mean: float) -> str:
    return f"{mean:.{_digits(mean)}f}" if _digits(mean) >= 0 else error_text(mean)


def _like(mean: float, spread: float) -> str:
    """A spread with the digits of its mean, or one figure where these would show none."""
    if spread <= 1e-9 * abs(mean):
        return "0"  # What does not depend on the seed differs by rounding of the mean alone.
    digits = _digits(mean)
    shown = f"{spread:.{max(digits, 0)}f}"
    return shown if digits >= 0 and float(shown) > 0 else f"{spread:.1g}"


def _digits(mean: float) -> int:
    """Decimals of an error, three as in the papers; -1 where only powers of ten will do."""
    size = abs(mean)
    if size >= 1e6 or 0 < size < 0.001:
        return -1
    return 3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0
