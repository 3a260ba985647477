"""From settings to what every stage needs: panel, split, windows and model, everything inferred said aloud."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tsprune.blocks.units import shell
from tsprune.data.batch import Batch
from tsprune.data.panel import Panel
from tsprune.data.reading import ReadOptions, read
from tsprune.data.split import Split
from tsprune.data.windows import Grouping, WindowSet
from tsprune.errors import TspruneError
from tsprune.evaluation import leakage
from tsprune.evaluation.leakage import Finding
from tsprune.models import fingerprint, load
from tsprune.settings import TaskSettings

if TYPE_CHECKING:
    from tsprune.models._forecaster import Forecaster

SAMPLE = "bike_sharing.csv"
SAMPLE_NAME = "bundled sample: hourly bike rentals"
LONGEST_DEFAULT = 96
SHORTEST_DEFAULT = 8
STEERING_ROWS = 256


@dataclass(frozen=True)
class TrainingWindows:
    """Training windows whose targets are cut to what the model can be trained on in one pass."""

    windows: WindowSet
    steps: int

    def __len__(self) -> int:
        return len(self.windows)

    def batch(self, indices: Sequence[int] | np.ndarray[Any, Any]) -> Batch:
        """The windows of these numbers."""
        return cut_targets(self.windows.batch(indices), self.steps)


def cut_targets(batch: Batch, steps: int) -> Batch:
    """The batch with targets and known futures of at most `steps` steps."""
    if batch.target is None or batch.target.shape[1] <= steps:
        return batch
    future = None if batch.future is None else batch.future[:, :steps]
    return replace(batch, target=batch.target[:, :steps], future=future)


@dataclass(frozen=True)
class Prepared:
    """Data and model of a task, ready for any stage; `about_data` is what the guards say of copies and covariates."""

    task: TaskSettings
    panel: Panel
    split: Split
    model: Forecaster
    notes: tuple[str, ...]
    about_data: tuple[Finding, ...] = ()

    @property
    def horizon(self) -> int:
        """Steps to forecast."""
        return self.split.horizon

    @cached_property
    def train(self) -> TrainingWindows:
        """Every training window, drawn lazily."""
        return TrainingWindows(self.split.train(), self.model.native_horizon)

    @cached_property
    def validation(self) -> tuple[WindowSet, int]:
        """The validation windows that steer and choose, and their stride."""
        return self.split.validation().thin(self.task.validation_windows)

    @cached_property
    def test(self) -> tuple[WindowSet, int]:
        """The test windows and their stride."""
        windows = self.split.test()
        return windows.thin(self.task.test_windows) if self.task.test_windows else (windows, 1)

    @cached_property
    def sizes(self) -> tuple[int, int, int]:
        """Windows for training, validation and test; a part that holds none is refused."""
        return len(self.train), len(self.validation[0]), len(self.test[0])

    @cached_property
    def leakage(self) -> list[Finding]:
        """What every guard says, over the windows of all three parts."""
        return self.guarded("train", "validation", "test")

    def guarded(self, *parts: str) -> list[Finding]:
        """What every guard says, over the windows of these parts.

        Raises:
            TspruneError: the scaler or the windows would leak, or a part holds no window.
        """
        used = {"train": lambda: self.train.windows, "validation": lambda: self.validation[0]}
        used["test"] = lambda: self.test[0]
        own = leakage.check_cutting(self.split, {part: used[part]() for part in parts})
        leakage.refuse_own(own)
        return [*own, *self.about_data, leakage.check_pretraining(self.panel, self.model)]

    @cached_property
    def steering(self) -> list[Batch]:
        """Validation windows as batches with targets of one pass, cut once."""
        windows = self.validation[0]
        # A size of its own: what steers must not depend on the batch size of the evaluation, not even by rounding.
        size = max(1, STEERING_ROWS // windows.rows_per_window)
        return [cut_targets(batch, self.model.native_horizon) for _, batch in windows.batches(size)]

    @cached_property
    def description(self) -> dict[str, Any]:
        """The task as `config.json` of a tuned model records it."""
        return {
            "horizon": self.horizon,
            "context": self.split.context,
            "together": self.task.together,
            "past_covariates": list(self.panel.past_names),
            "known_covariates": list(self.panel.known_names),
            "frequency": self.panel.frequency,
        }

    def window_notes(self, *parts: str) -> list[str]:
        """What to say about the windows of the parts that are judged: series without one, windows left out."""
        windows = {"validation": lambda: self.validation[0], "test": lambda: self.test[0]}
        return [f"{part} windows: {note}" for part in parts for note in windows[part]().notes]

    def macro_windows(self, number: int, count: int) -> np.ndarray[Any, Any]:
        """Numbers of the training windows of one pruning round, drawn by seed and round, in order."""
        generator = np.random.default_rng(np.random.SeedSequence([self.task.seed, number, 13]))
        return np.sort(self.train.windows.sample(min(count, len(self.train)), generator))

    def macro_batch(self, number: int, count: int) -> list[Batch]:
        """Training windows of one pruning round as batches."""
        return self.batches_of(self.macro_windows(number, count))

    def batches_of(self, chosen: np.ndarray[Any, Any]) -> list[Batch]:
        """Training windows of these numbers as batches."""
        size = max(1, 64 // self.train.windows.rows_per_window)
        return [self.train.batch(chosen[first : first + size]) for first in range(0, len(chosen), size)]

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the result of any stage: data, split, model, sizes and seed."""
        return {
            "data": self.panel.fingerprint(),
            "season": self.panel.season(),
            "split": self.split.describe(),
            "horizon": self.split.horizon,
            "context": self.split.context,
            "together": self.task.together,
            "model": fingerprint(self.model),
            "loss": self.model.objective,
            "validation_windows": self.task.validation_windows,
            "seed": self.task.seed,
        }


def prepare(
    task: TaskSettings,
    options: ReadOptions | None = None,
    *,
    panel: Panel | None = None,
    model: Forecaster | None = None,
    bits: int = 0,
    cut: Callable[[Panel, int, Grouping], Split] | None = None,
) -> Prepared:
    """Read, check and split the data and load the model; refuses what the family cannot honour.

    Args:
        task: data, model, horizon and how to judge.
        options: how to read the file.
        panel: data already read, instead of `task.data`.
        model: a model already loaded, instead of `task.model`.
        bits: width at which a quantised `task.model` is read; 0 means its widest.
        cut: from panel, context and grouping to the split, instead of `task.split`, such as a protocol's.

    Raises:
        TspruneError: anything about the input that cannot be met.
    """
    set_threads(task.threads)
    if panel is None:
        panel = read(Path(task.data), options) if task.data else sample_panel(options)
    if model is None:
        model = load(task.model, device=task.device, bits=bits or None)
    refuse_unsupported(panel, model, task.together)
    model = with_objective(model, task.loss)
    notes = [*getattr(model, "notes", ()), *capability_notes(panel, model)]
    horizon = task.horizon or default_horizon(panel)
    if not task.horizon:
        notes.append(
            f"horizon {horizon}: one season of {panel.season()} steps, within {SHORTEST_DEFAULT} to {LONGEST_DEFAULT}"
        )
    if task.context > model.context_length:
        raise TspruneError(
            f"--context {task.context} is more than the {model.context_length} steps that {task.model} can use; give "
            f"--context {model.context_length} or less"
        )
    context = task.context or default_context(panel, model, horizon)
    grouping: Grouping = "all" if task.together else "none"
    if cut is None:
        split = Split.make(panel, horizon, context, task.split, grouping=grouping, pad=not task.context)
    else:
        split = cut(panel, context, grouping)
    if task.train_share != 1:
        split = replace(split, train_share=task.train_share)
        notes.append(
            f"only the latest {task.train_share:g} of the training windows of every series are used; scales are still "
            "those of the whole train part"
        )
    if horizon > model.native_horizon:
        notes.append(
            f"horizon {horizon} is longer than the {model.native_horizon} steps {model.family} gives at once: "
            f"forecasts are rolled out, training targets are the first {model.native_horizon} steps"
        )
    found = tuple(leakage.check_data(split))
    leaks = tuple(leakage.data_notes(found, task.allow_leakage))
    return Prepared(task, panel, split, model, (*leaks, *notes, *split.notes, *split.scaler.notes), found)


def with_objective(model: Forecaster, loss: str) -> Forecaster:
    """The model with another loss to be scored and tuned on; the one passed in is not changed.

    Raises:
        TspruneError: the family has no such loss.
    """
    if loss in ("", model.objective):
        return model
    if loss not in model.objectives:
        raise TspruneError(
            f"--loss {loss!r} is not among the losses of family {model.family}: {', '.join(model.objectives)}"
        )
    other = shell(model)
    other.objective = loss
    return other


def capability_notes(panel: Panel, model: Forecaster) -> list[str]:
    """What the family does with data it cannot take as they are, and what its forecasts lack."""
    notes = []
    gaps = sum(int(np.isnan(series.values).sum()) for series in panel.series)
    if gaps and not model.capabilities.missing_values:
        notes.append(
            f"family {model.family} cannot see missing values: {gaps:,} of them are filled by straight lines between "
            "their neighbours when they stand in a context; targets that are missing are never scored"
        )
    if not model.capabilities.quantiles:
        notes.append(
            f"family {model.family} forecasts single values: every quantile equals them, and the weighted quantile "
            "loss is that of a point forecast"
        )
    if model.objective != "own":
        notes.append(f"scoring, steering and tuning use the loss {model.objective}")
    return notes


def sample_panel(options: ReadOptions | None = None) -> Panel:
    """The sample inside the package."""
    with resources.as_file(resources.files("tsprune") / "bundled" / SAMPLE) as path:
        return replace(read(path, options), source=SAMPLE_NAME)


def default_horizon(panel: Panel) -> int:
    """One season, within bounds."""
    return min(LONGEST_DEFAULT, max(SHORTEST_DEFAULT, panel.season()))


def default_context(panel: Panel, model: Forecaster, horizon: int) -> int:
    """All the model can use, unless the longest series is shorter than that."""
    longest = int(panel.lengths.max())
    return max(1, min(model.context_length, longest - horizon))


def refuse_unsupported(panel: Panel, model: Forecaster, together: bool) -> None:
    """Stop rather than drop covariates or groups that the family would ignore."""
    able = model.capabilities
    wanted = (
        (
            bool(panel.past_names),
            able.past_covariates,
            f"past covariates ({', '.join(panel.past_names[:5])})",
            "--past-covariates",
        ),
        (
            bool(panel.known_names),
            able.known_covariates,
            f"known covariates ({', '.join(panel.known_names[:5])})",
            "--known-covariates",
        ),
        (together, able.multivariate, "several series jointly", "--together"),
    )
    for asked, can, what, flag in wanted:
        if asked and not can:
            raise TspruneError(
                f"family {model.family} cannot use {what}; leave out {flag}, or choose a family that can (chronos2)"
            )
    rows = len(panel.series) * (1 + len(panel.past_names) + len(panel.known_names))
    if model.window_rows > 1 and (not together or rows != model.window_rows):
        raise TspruneError(
            f"this {model.family} model takes windows of exactly {model.window_rows} series, all of them together; the "
            f"data have {rows} in columns and covariates; give --together and a file of that many series"
        )
    # A model cut on groups of series lost what they did not need either, and was judged so.
    on_groups = [model.task.get(key) for key in ("together", "past_covariates", "known_covariates")]
    grouped = together or panel.past_names or panel.known_names
    if grouped and any(attention.across for attention in model.folded.values()):
        raise TspruneError(
            "this model was folded for single series: its attention across series is a linear map, which cannot mix "
            "the series of a group; leave out --together, --past-covariates and --known-covariates, or start from the "
            "model before --fold"
        )
    if grouped and not model.mixes_series and not any(on_groups):
        raise TspruneError(
            "this model was pruned for single series and has no queries and keys left to tell the series of a group "
            "apart; leave out --together, --past-covariates and --known-covariates, or start from the unpruned model"
        )


def other_task(tuned_for: Mapping[str, Any], panel: Panel, together: bool) -> list[str]:
    """Where a forecast departs from what the model was tuned and judged for; nothing for models that do not say."""
    notes = []
    if tuned_for.get("together", together) != together:
        notes.append(f"the model was tuned {'without' if together else 'with'} --together")
    for key, names in (("past_covariates", panel.past_names), ("known_covariates", panel.known_names)):
        if list(tuned_for.get(key, names)) != list(names):
            said = ",".join(tuned_for[key]) or "none"
            notes.append(f"the model was tuned with other {key.replace('_', ' ')}: {said} (--{key.replace('_', '-')})")
    if tuned_for.get("frequency", panel.frequency) != panel.frequency:
        notes.append(f"the model was tuned on steps of {tuned_for['frequency']}, these are {panel.frequency}")
    return notes


def set_threads(threads: int) -> None:
    """Use so many CPU threads; 0 leaves the choice to torch."""
    if threads > 1024:
        raise TspruneError(f"--threads {threads} is more than 1,024; leave it out to use all cores")
    if threads:
        import torch

        torch.set_num_threads(threads)
