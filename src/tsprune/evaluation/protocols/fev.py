"""Tasks of fev (Shchur et al. 2025): their data, evaluation windows and result rows.

Sources: fev 0.10.0 `task.py`, `utils.py`. The package itself is only needed for `summary`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tsprune.data.panel import Panel
from tsprune.data.split import Split
from tsprune.data.windows import Grouping, WindowSet
from tsprune.data.words import many
from tsprune.errors import TspruneError
from tsprune.evaluation.forecasts import Floats, Forecasts, forecasts_of, naive_errors, windows_at
from tsprune.evaluation.protocols._fev_data import cut_points, left_out, read_panel
from tsprune.evaluation.protocols._fev_task import FevTask, as_task, read_task
from tsprune.evaluation.protocols._protocol import Protocol

if TYPE_CHECKING:
    import pandas as pd

    from tsprune.evaluation.evaluate import Predictor


@dataclass(frozen=True)
class FevProtocol(Protocol):
    """One task of a fev benchmark.

    Args:
        data: path of the YAML or JSON file with one task or several; beside a `definition`, the name of the data.
        horizon: steps to forecast, as the task says; not to be given.
        task: which task of the file: its name, or its number from 0.
        definition: the task itself instead of a file, by fev's field names.
        covariates: whether dynamic columns are read; most models cannot use them.

    Raises:
        TspruneError: if there is no such task or it means nothing.
    """

    data: str = ""
    horizon: int = 0
    task: str = ""
    definition: dict[str, Any] = field(default_factory=lambda: {"dataset_path": "data.parquet"})
    covariates: bool = False

    headline: ClassVar[tuple[str, ...]] = ("mase", "wql")
    knows_source: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Read the task and take its horizon."""
        from_file = self.data and Path(self.data).suffix in (".yaml", ".yml", ".json")
        found = read_task(Path(self.data), str(self.task)) if from_file else as_task(self.definition)
        if self.horizon not in (0, found.horizon):
            raise TspruneError(f"the task has horizon {found.horizon}, not {self.horizon}; leave the horizon out")
        object.__setattr__(self, "definition", found.to_json())
        object.__setattr__(self, "horizon", found.horizon)
        object.__setattr__(self, "task", str(found.task_name))
        object.__setattr__(self, "data", self.data or str(found.task_name) or found.dataset_path)

    @property
    def fields(self) -> FevTask:
        """The task."""
        return as_task(self.definition)

    def read(self, source: str | PathLike[str] | pd.DataFrame) -> Panel:
        """As `Protocol.read`; `source` is the data file, a folder that holds it, or a long table.

        "" stands for the `dataset_path` of the task.
        """
        task = self.fields
        return read_panel(
            task, task.dataset_path if isinstance(source, str) and not source else source, self.covariates
        )

    def splits(self, panel: Panel, context: int, *, grouping: Grouping = "none") -> tuple[Split, ...]:
        """As `Protocol.splits`; one per evaluation window.

        The horizon before the cut is validation, all before that train; a series too short for both is train up to the
        cut. Series that fev leaves out are left out, aloud.
        """
        if context < 1:
            raise TspruneError(f"--context {context}, expected at least 1 step")
        cutoffs = self.fields.cutoffs(panel.frequency)
        return tuple(self._split(panel, context, grouping, number, cut) for number, cut in enumerate(cutoffs, 1))

    def naive_errors(self, windows: WindowSet) -> Floats:
        """As `Protocol.naive_errors`: over the past that the task allows before each window."""
        return naive_errors(windows, self.fields.seasonality, history=self.fields.max_context_length)

    def forecasts(self, model: Predictor, split: Split, *, batch_size: int = 256) -> Forecasts:
        """Forecasts of an evaluation window at the median and the task's levels, in the units of the data."""
        windows = windows_at(split, np.arange(len(split.panel.series)), split.validation_end)
        return forecasts_of(
            model,
            windows,
            (0.5, *self.fields.quantile_levels),
            self.fields.seasonality,
            history=self.fields.max_context_length,
            batch_size=batch_size,
        )

    def predictions(self, found: Sequence[Forecasts]) -> list[dict[str, list[dict[str, list[float]]]]]:
        """What `fev.Task.evaluation_summary` takes: per window, target column and item, the median and every level."""
        targets, levels = self.fields.targets, self.fields.quantile_levels
        windows = []
        for forecasts in found:
            columns: dict[str, list[dict[str, list[float]]]] = {name: [] for name in targets}
            for row in range(len(forecasts.ids)):
                entry = {"predictions": forecasts.at(0.5)[row].tolist()}
                entry |= {str(level): forecasts.at(level)[row].tolist() for level in levels}
                columns[targets[row % len(targets)]].append(entry)
            windows.append(columns)
        return windows

    def result_rows(
        self,
        found: Sequence[Forecasts],
        model: str,
        *,
        training_time_s: float | None = None,
        trained_on_this_dataset: bool = False,
    ) -> list[dict[str, Any]]:
        """One row with the columns of `fev.Task.evaluation_summary`, measured here.

        `dataset_fingerprint` and `fev_version` stay empty, since only fev can give them: see `summary`.

        Args:
            found: what `forecasts` gave for every split.
            model: name of the model.
            training_time_s: seconds of training.
            trained_on_this_dataset: whether the model has seen these data.

        Raises:
            TspruneError: if there are not as many forecasts as evaluation windows.
        """
        from tsprune.evaluation.entrywise import fev_measures, metric_name

        task = self.fields
        if len(found) != task.num_windows:
            raise TspruneError(f"forecasts of {len(found)} windows, expected the {task.num_windows} of the task")
        per_window = [fev_measures(each, task.metrics, task.quantile_levels, len(task.targets)) for each in found]
        means = {name: float(np.mean([values[name] for values in per_window])) for name in per_window[0]}
        row = {
            "model_name": model,
            **self.definition,
            "test_error": means[metric_name(task.eval_metric)],
            "training_time_s": training_time_s,
            "inference_time_s": sum(each.seconds for each in found),
            "num_forecasts": sum(len(each.ids) for each in found),
            "dataset_fingerprint": None,
            "trained_on_this_dataset": trained_on_this_dataset,
            "fev_version": None,
        }
        return [row | means]

    def summary(
        self, found: Sequence[Forecasts], model: str, source: str | PathLike[str], **more: Any
    ) -> dict[str, Any]:
        """The result row as fev itself computes it from our forecasts.

        Args:
            found: what `forecasts` gave for every split.
            model: name of the model.
            source: the data as a file that fev reads: Parquet, or a pattern such as `data/*.parquet`.
            more: further arguments of `fev.Task.evaluation_summary`.

        Raises:
            TspruneError: if fev is not installed.
        """
        try:
            package: Any = importlib.import_module("fev")
        except ImportError:
            raise TspruneError(
                "rows computed by fev need the package; pip install 'tsprune[eval]', or take result_rows"
            ) from None
        definition = self.definition | {"dataset_path": str(source), "dataset_config": None}
        more = {"inference_time_s": sum(each.seconds for each in found)} | more
        row: dict[str, Any] = package.Task(**definition).evaluation_summary(self.predictions(found), model, **more)
        names = {name: self.definition[name] for name in ("dataset_path", "dataset_config", "task_name")}
        return row | names

    def rules(self) -> dict[str, str]:
        """As `Protocol.rules`."""
        task = self.fields
        longest = f", of which at most {task.max_context_length} steps count" if task.max_context_length else ""
        return {
            "data": f"fev task {task.task_name}; target {', '.join(task.targets)}; items are sorted by id.",
            "split": (
                f"{many(task.num_windows, 'evaluation window')}, the first cut at {task.initial_cutoff}, each next "
                f"{task.window_step_size} later; the {many(self.horizon, 'step')} before a cut are validation, "
                "everything earlier is train."
            ),
            "windows": (
                f"Each series with at least {many(task.min_context_length, 'step')} before a cut and {self.horizon} "
                f"after it has one test window there; the past is all before the cut{longest}."
            ),
            "scaling": "Models see series z-scored by their train part; result rows are in the units of the data.",
            "measures": (
                f"MASE divides by the mean absolute seasonal-naive error (season {task.seasonality}) of the past. "
                "Result rows average over steps, target columns and windows, as fev does."
            ),
        }

    def _split(self, panel: Panel, context: int, grouping: Grouping, number: int, cutoff: int | str) -> Split:
        task = self.fields
        cuts = cut_points(panel, cutoff)
        usable = (cuts >= task.min_context_length) & (panel.lengths - cuts >= task.horizon)
        if not usable.any():
            raise TspruneError(
                f"fev task {task.task_name}: no series has {many(task.min_context_length, 'step')} before the cut at "
                f"{cutoff} and {task.horizon} after it; give another initial_cutoff or a shorter horizon"
            )
        notes = [] if usable.all() else [left_out(panel, usable, task)]
        length = min(context, task.max_context_length or context)
        if length < context:
            notes.append(f"the context is {length} steps instead of {context}, since max_context_length says so")
        chosen = panel if usable.all() else panel.select(np.flatnonzero(usable).tolist())
        if grouping == "all" and not chosen.aligned:
            raise TspruneError(
                "--together (grouping 'all') needs series over the same steps; these differ in start or length"
            )
        cuts = cuts[usable]
        train = np.where(cuts > task.horizon, cuts - task.horizon, cuts)
        name = f"fev window {number} of {task.num_windows}, cut at {cutoff}"
        return Split(chosen, task.horizon, length, name, train, cuts, cuts + task.horizon, 1, grouping, tuple(notes))


PROTOCOL = FevProtocol
