"""The definition of a fev task, as its benchmarks write it in YAML (Shchur et al. 2025, fev 0.10.0 `task.py`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tsprune.data.words import listed
from tsprune.errors import TspruneError

ALL_COLUMNS = "__ALL__"
_OLD_NAMES = {
    "num_rolling_windows": "num_windows",
    "rolling_step_size": "window_step_size",
    "cutoff": "initial_cutoff",
    "target_column": "target",
    "multiple_target_columns": "generate_univariate_targets_from",
}
_LISTS = ("extra_metrics", "quantile_levels", "known_dynamic_columns", "past_dynamic_columns", "static_columns")


@dataclass(frozen=True)
class FevTask:
    """Fields, defaults and checks as fev's `Task` has them, in its order.

    `initial_cutoff` and `window_step_size` are filled in; columns and levels are sorted.

    Raises:
        TspruneError: for values that mean nothing.
    """

    dataset_path: str
    dataset_config: str | None = None
    horizon: int = 1
    num_windows: int = 1
    initial_cutoff: int | str | None = None
    window_step_size: int | str | None = None
    min_context_length: int = 1
    max_context_length: int | None = None
    seasonality: int = 1
    eval_metric: str | dict[str, Any] = "MASE"
    extra_metrics: list[str | dict[str, Any]] = field(default_factory=list)
    quantile_levels: list[float] = field(default_factory=list)
    id_column: str = "id"
    timestamp_column: str = "timestamp"
    target: str | list[str] = "target"
    generate_univariate_targets_from: list[str] | str | None = None
    known_dynamic_columns: list[str] = field(default_factory=list)
    past_dynamic_columns: list[str] = field(default_factory=list)
    static_columns: list[str] = field(default_factory=list)
    task_name: str | None = None

    def __post_init__(self) -> None:
        """Check, sort and fill in."""
        from tsprune.evaluation.entrywise import QUANTILE_LOSSES, metric_name

        for name, least in (("horizon", 1), ("num_windows", 1), ("min_context_length", 1), ("seasonality", 1)):
            _whole(name, getattr(self, name), least)
        if self.max_context_length is not None:
            _whole("max_context_length", self.max_context_length, 1)
        for name in _LISTS:
            if isinstance(getattr(self, name), str) or not isinstance(getattr(self, name), list | tuple):
                raise TspruneError(f"fev task: {name} is {getattr(self, name)!r}, expected a list")
        self._fill_cuts()
        if bad := [level for level in self.quantile_levels if not 0 < level < 1]:
            raise TspruneError(f"fev task: quantile_levels has {bad[0]}, expected levels between 0 and 1")
        names = [metric_name(metric) for metric in (self.eval_metric, *self.extra_metrics)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise TspruneError(f"fev task: the metric {twice[0]} is named twice, expected every metric once")
        if lacking := [name for name in names if name in QUANTILE_LOSSES and not self.quantile_levels]:
            raise TspruneError(f"fev task: the metric {lacking[0]} needs quantile_levels; add them to the task")
        if not isinstance(self.target, str) and (not self.target or self.generate_univariate_targets_from):
            raise TspruneError(
                "fev task: target is a list, expected at least one name and no generate_univariate_targets_from"
            )
        for name in ("quantile_levels", "known_dynamic_columns", "past_dynamic_columns", "static_columns"):
            object.__setattr__(self, name, sorted(getattr(self, name)))
        if not isinstance(self.target, str):
            object.__setattr__(self, "target", sorted(self.target))
        if self.task_name is None:
            short = "/".join(Path(self.dataset_path).parts[-3:-1])
            object.__setattr__(self, "task_name", self.dataset_config or short)

    @property
    def targets(self) -> list[str]:
        """Names of the target columns, sorted."""
        return [self.target] if isinstance(self.target, str) else list(self.target)

    @property
    def metrics(self) -> list[str | dict[str, Any]]:
        """The metric that counts, then the others."""
        return [self.eval_metric, *self.extra_metrics]

    def cutoffs(self, frequency: str) -> list[int | str]:
        """Where each window is cut: numbers of steps (negative from the end), or dates up to which the past reaches.

        Args:
            frequency: pandas alias of the step, needed for dates with a whole number of steps between windows.
        """
        import pandas as pd

        first, step = self.initial_cutoff, self.window_step_size
        if isinstance(first, int) and isinstance(step, int):
            return [first + number * step for number in range(self.num_windows)]
        if isinstance(step, str):
            offset = pd.tseries.frequencies.to_offset(step)
        else:
            offset = pd.tseries.frequencies.to_offset(frequency) * int(step or 1)
        begin = pd.Timestamp(str(first))
        # The first cut stays where it is: adding 0 anchored steps would move it.
        later = [begin + number * offset for number in range(1, self.num_windows)]
        return [stamp.isoformat() for stamp in (begin, *later)]

    def to_json(self) -> dict[str, Any]:
        """The fields in fev's order, as its result rows have them."""
        return asdict(self)

    def _fill_cuts(self) -> None:
        import pandas as pd

        step = self.horizon if self.window_step_size is None else self.window_step_size
        if isinstance(step, str):
            try:
                step = pd.tseries.frequencies.to_offset(step).freqstr
            except ValueError:
                raise TspruneError(f"fev task: window_step_size is {step!r}, expected steps or such as '7D'") from None
        else:
            _whole("window_step_size", step, 1)
        first = self.initial_cutoff
        if not isinstance(step, int) and not isinstance(first, str):
            raise TspruneError(
                f"fev task: window_step_size {step!r} is a time but initial_cutoff {first!r} is no date; give a date, "
                "or the step as a whole number"
            )
        latest = -self.horizon - (self.num_windows - 1) * (step if isinstance(step, int) else 1)
        if first is None:
            first = latest
        if isinstance(first, str):
            try:
                first = pd.Timestamp(first).isoformat()
            except ValueError:
                raise TspruneError(f"fev task: initial_cutoff is {first!r}, expected a date or a number") from None
        elif latest < first < 0:
            raise TspruneError(
                f"fev task: initial_cutoff {first} leaves no room for {self.num_windows} windows of horizon "
                f"{self.horizon}, {step} steps apart; give {latest} or less"
            )
        object.__setattr__(self, "window_step_size", step)
        object.__setattr__(self, "initial_cutoff", first)


def as_task(definition: Mapping[str, Any]) -> FevTask:
    """A task from the entries of a definition; older names of fields are understood.

    Raises:
        TspruneError: for fields that fev does not have, or values that mean nothing.
    """
    known = [entry.name for entry in fields(FevTask)]
    entries = {_OLD_NAMES.get(name, name): value for name, value in definition.items() if name != "lead_time"}
    if unknown := [name for name in entries if name not in known]:
        raise TspruneError(f"fev task: there is no field {unknown[0]!r}; the fields are {', '.join(known)}")
    if not isinstance(entries.get("dataset_path"), str):
        raise TspruneError("fev task: dataset_path is missing, expected the path of the data")
    return FevTask(**entries)


def read_task(path: Path, chosen: str = "") -> FevTask:
    """One task of a YAML or JSON file: a benchmark with `tasks`, a list of tasks, or a single one.

    Args:
        path: the file.
        chosen: name or number (from 0) of the task; "" where the file has only one.

    Raises:
        TspruneError: if the file cannot be read or does not have the task.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise TspruneError(f"{path}: cannot be read ({error.strerror}); expected a file with fev tasks") from None
    except (ValueError, yaml.YAMLError) as error:
        raise TspruneError(f"{path}: is neither YAML nor JSON ({' '.join(str(error).split())})") from None
    if isinstance(content, Mapping):
        content = content.get("tasks", [content])
    if not isinstance(content, list) or not content or not all(isinstance(entry, Mapping) for entry in content):
        raise TspruneError(f"{path}: holds no tasks, expected a list 'tasks' of mappings with a dataset_path")
    tasks = [as_task(entry) for entry in content]
    if not chosen and len(tasks) == 1:
        return tasks[0]
    names = [str(task.task_name) for task in tasks]
    if names.count(chosen) == 1:
        return tasks[names.index(chosen)]
    if chosen.isdecimal() and int(chosen) < len(tasks):
        return tasks[int(chosen)]
    raise TspruneError(
        f"{path}: task {chosen!r} names no single task; give a number from 0 to {len(tasks) - 1} or a name: "
        f"{listed(names, 12)}"
    )


def _whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise TspruneError(f"fev task: {name} is {value!r}, expected a whole number of at least {least}")
