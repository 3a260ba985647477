"""Rows of a grid gathered by model, task and candidate: means over seeds, and tables of errors without gaps.

Letters: T tasks, M methods.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsprune.data.words import listed
from tsprune.errors import TspruneError
from tsprune.report.words import human, metric, number

Row = Mapping[str, Any]
Task = tuple[str, int]
"""Data set and horizon."""


@dataclass(frozen=True)
class Value:
    """A mean over seeds.

    Attributes:
        mean: of the seeds that were measured.
        spread: their standard deviation (n - 1); None for one seed.
        seeds: how many; 1 for what has no seed.
    """

    mean: float
    spread: float | None
    seeds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Value | None:
        """Mean and spread of the values that are numbers; None where there is none."""
        known = [value for value in values if not math.isnan(value)]
        if not known:
            return None
        mean = math.fsum(known) / len(known)
        if len(known) == 1:
            return cls(mean, None, 1)
        squares = math.fsum((value - mean) ** 2 for value in known)
        return cls(mean, math.sqrt(squares / (len(known) - 1)), len(known))


@dataclass(frozen=True)
class Matrix:
    """Errors without gaps.

    Attributes:
        tasks: labels of the rows `[T]`.
        methods: candidates, the columns `[M]`.
        errors: `[T, M]`, all above 0.
        notes: which tasks and methods were left out, and why.
    """

    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    errors: NDArray[np.float64]
    notes: tuple[str, ...] = ()


class Grid:
    """Rows of a grid, looked up by model, task, candidate and seed.

    Args:
        rows: one per model, data set, horizon, share, candidate and seed; see `tsprune.bench`.
        summary: of the same grid; gives the order of models, data sets and candidates.

    Raises:
        TspruneError: two rows for the same cell and seed.
    """

    def __init__(self, rows: Sequence[Row], summary: Mapping[str, Any]) -> None:
        self.rows, self.summary = rows, summary
        self._cells: dict[tuple[Any, ...], dict[Any, Row]] = {}
        for row in rows:
            key = (row["share"], row.get("model"), row["data"], row["horizon"], row["candidate"])
            by_seed = self._cells.setdefault(key, {})
            if row.get("seed") in by_seed:
                raise TspruneError(
                    f"two rows of the grid are for model {key[1]}, {key[2]}, horizon {key[3]}, share {key[0]:g}, "
                    f"{key[4]}, seed {row.get('seed')}; expected one, so take one of them out"
                )
            by_seed[row.get("seed")] = row

    @cached_property
    def shares(self) -> list[float]:
        """Shares of the training windows, the largest first."""
        return sorted({key[0] for key in self._cells}, reverse=True)

    @cached_property
    def models(self) -> list[str]:
        """Models that have rows."""
        return _ordered({key[1] for key in self._cells if key[1] is not None}, self.summary.get("models"))

    @cached_property
    def tasks(self) -> list[Task]:
        """Data sets and horizons that have rows."""
        data = _ordered({key[2] for key in self._cells}, self.summary.get("data"))
        found = {(key[2], key[3]) for key in self._cells}
        return sorted(found, key=lambda task: (data.index(task[0]), task[1]))

    def candidates(self, model: str | None = None, *, rivals: bool = True) -> list[str]:
        """Candidates of a model (of all by default), and the rivals that belong to none."""
        found = {
            key[4] for key in self._cells if (rivals if key[1] is None else model is None or key[1] == model)
        }  # fmt: skip
        return _ordered(found, self.summary.get("candidates"))

    def seeds(self, model: str | None, task: Task, candidate: str, share: float | None = None) -> dict[Any, Row]:
        """Rows by seed; those of a rival where the model has no such candidate, and none where nothing is done."""
        at = self.shares[0] if share is None else share
        own = self._cells.get((at, model, *task, candidate))
        return own if own is not None else self._cells.get((at, None, *task, candidate), {})

    def value(
        self, model: str | None, task: Task, candidate: str, measure: str, share: float | None = None
    ) -> Value | None:
        """Mean test error over seeds; None where nothing was measured."""
        rows = self.seeds(model, task, candidate, share)
        return Value.of(metric(row, "test", measure) for row in rows.values())

    def average(
        self, model: str | None, tasks: Sequence[Task], candidate: str, measure: str, share: float | None = None
    ) -> Value | None:
        """Mean over tasks, its spread being that of the seeds; None unless every task was measured.

        Only seeds that have all tasks count, so that no seed's mean is over fewer horizons than another's.
        """
        by_task = [
            {seed: metric(row, "test", measure) for seed, row in self.seeds(model, task, candidate, share).items()}
            for task in tasks
        ]
        common = set(by_task[0]).intersection(*by_task[1:]) if by_task else set()
        means = (math.fsum(values[seed] for values in by_task) / len(by_task) for seed in common)
        return Value.of(sorted(means))

    def parameters(self, model: str | None, task: Task, candidate: str) -> float:
        """Mean number of parameters over seeds; NaN where it was not counted."""
        found = Value.of(number(row.get("parameters")) for row in self.seeds(model, task, candidate).values())
        return math.nan if found is None else found.mean

    def ratio(
        self, model: str | None, task: Task, candidate: str, measure: str, share: float | None = None
    ) -> float | None:
        """Error over that of the model's reference with all training windows; None where one of them is missing."""
        own = self.value(model, task, candidate, measure, share)
        base = self.value(model, task, str(self.summary["reference"]), measure)
        return own.mean / base.mean if own is not None and base is not None and base.mean > 0 else None

    def matrix(self, measure: str, model: str | None = None, *, by_data: bool = False) -> Matrix:
        """Errors of methods on tasks, each a mean over seeds; what has gaps is left out, and said.

        Args:
            measure: of the test part.
            model: one model's candidates and the rivals; by default all models, each task once per model.
            by_data: one row per data set, the geometric mean over its horizons and models, since tasks of one data
                set are not independent of each other.
        """
        whole = without_gaps(*self._entries(measure, model))
        if not by_data or not whole.tasks:
            return whole
        owners = [label.rpartition(" ")[0].rpartition("\x00")[2] for label in whole.tasks]
        names = tuple(dict.fromkeys(owners))
        logs = np.log(whole.errors)
        means = [np.exp(logs[[owner == name for owner in owners]].mean(axis=0)) for name in names]
        return Matrix(names, whole.methods, np.array(means), whole.notes)

    def _entries(self, measure: str, model: str | None) -> tuple[list[str], list[str], NDArray[np.float64]]:
        models: list[Any] = [model] if model is not None else list(self.models) or [None]
        methods = self.candidates(model)
        labels, lines = [], []
        for one in models:
            for data, horizon in self.tasks:
                labels.append(f"{one or ''}\x00{data} {horizon}")
                found = [self.value(one, (data, horizon), name, measure) for name in methods]
                lines.append([math.nan if value is None else value.mean for value in found])
        return labels, methods, np.array(lines, np.float64).reshape(len(labels), len(methods))


def task_label(label: str) -> str:
    """A task of a matrix for people: `ETTh1 96 (ttm)`."""
    model, _, rest = label.rpartition("\x00")
    return f"{rest} ({model})" if model else rest


def without_gaps(labels: Sequence[str], methods: Sequence[str], table: NDArray[np.float64]) -> Matrix:
    """A matrix of the tasks and methods that leave no gap, whichever lacks the larger share of its values going first.

    Args:
        labels: of the tasks `[T]`.
        methods: candidates `[M]`.
        table: numbers of 0 or more `[T, M]`; NaN = not measured.

    Raises:
        TspruneError: a negative number.
    """
    if (table < 0).any():
        raise TspruneError("some errors of the grid are negative, expected 0 or more; measure those cells again")
    # An error of 0 has no logarithm; the smallest number keeps its rank.
    table = np.maximum(table, np.finfo(np.float64).tiny)
    missing = ~np.isfinite(table)
    tasks, columns = np.ones(len(labels), bool), np.ones(len(methods), bool)
    while (gaps := missing & tasks[:, None] & columns).any():
        by_task, by_method = gaps.sum(axis=1) / columns.sum(), gaps.sum(axis=0) / tasks.sum()
        if by_task.max() >= by_method.max():
            tasks[int(by_task.argmax())] = False
        else:
            columns[int(by_method.argmax())] = False
    names = tuple(methods[i] for i in np.flatnonzero(columns).tolist())
    rows = tuple(labels[i] for i in np.flatnonzero(tasks).tolist())
    lost = [task_label(labels[i]) for i in np.flatnonzero(~tasks).tolist()]
    gone = [human(methods[i]) for i in np.flatnonzero(~columns).tolist()]
    notes = []
    if lost:
        notes.append(f"Without {listed(lost)}, where not every method was measured.")
    if gone:
        notes.append(f"Without {listed(gone, len(gone))}, measured on too few of the tasks.")
    return Matrix(rows if names else (), names, table[np.ix_(tasks, columns)], tuple(notes))


def _ordered(found: set[Any], wanted: Iterable[Any] | None) -> list[Any]:
    """Those that are there, first in the order that was asked for, then the others by name."""
    first = [name for name in dict.fromkeys(wanted or ()) if name in found]
    return first + sorted(found.difference(first), key=str)
