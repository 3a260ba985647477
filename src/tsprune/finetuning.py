"""Fine-tuning with early stopping that may return the untuned weights; one routine for dense and pruned models."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tsprune.adapters import check_peft
from tsprune.data.batch import Batch
from tsprune.distillation import Distillation
from tsprune.errors import TspruneError
from tsprune.models import fingerprint
from tsprune.models._forecaster import Forecaster
from tsprune.pruning import validation_loss
from tsprune.searching import Choice, Search, search_of
from tsprune.settings import FinetuneSettings
from tsprune.training_state import load_training, read_tensors, save_training
from tsprune.tuning_modes import trainee


class Windows(Protocol):
    """Training windows that can be cut by number."""

    def __len__(self) -> int:
        """Number of windows."""

    def batch(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """The windows of these numbers."""


@dataclass(frozen=True)
class Trial:
    """One run at one learning rate.

    Args:
        learning_rate: the highest of the run.
        best_step: the step that validated best; 0 is the model as it came.
        validation_loss: there.
        steps: how many were made.
        searched: what else was searched, by name; a dropout of None is the model's own.
        pruned: whether the search ended it before its time.
    """

    learning_rate: float
    best_step: int
    validation_loss: float
    steps: int
    searched: Mapping[str, float | None] = field(default_factory=dict)
    pruned: bool = False

    def facts(self) -> dict[str, Any]:
        """JSON-able; what was not searched is left out."""
        found: dict[str, Any] = {"learning_rate": self.learning_rate, "best_step": self.best_step}
        found |= {"validation_loss": self.validation_loss, "steps": self.steps}
        return found | ({**self.searched, "pruned": self.pruned} if self.searched else {})


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned model with its search."""

    model: Forecaster
    trials: tuple[Trial, ...]
    best: Trial


def finetune(
    model: Forecaster,
    train: Windows,
    validation: Sequence[Batch],
    settings: FinetuneSettings | None = None,
    *,
    seed: int = 0,
    directory: Path | None = None,
    report: Callable[[str, int, int, float], None] | None = None,
    teacher: Forecaster | None = None,
) -> Tuned:
    """Search in short runs, then train in full with what was best there; the best validated weights of all win.

    Searched are the learning rates of the settings, or by `trials` also weight decay and dropout.

    Step 0, the model as it came, is always a candidate, so tuning never returns anything that validates worse.
    What trains, in float32, says `settings.tuning`: all parameters, the forecast head, or low-rank adapters; each with
    as many trials and steps. What is validated and kept is a running mean of the trained weights over the steps, which
    follows them closely at first (decay (1 + step) / (10 + step), at most `averaging`).

    Args:
        model: dense or slim; not changed.
        train: training windows, drawn by seed and step.
        validation: windows that stop and choose.
        settings: None means the defaults.
        seed: of the order of windows and of dropout.
        directory: where checkpoints go, so that a killed run continues with the same result; None keeps none.
        report: called with a label, step, steps in all, and the latest validation loss.
        teacher: the dense model whose forecasts are followed where `settings.distill` is above 0; not changed.

    Returns:
        The tuned copy, an ordinary model whatever the mode, every trial, and the trial it came from.

    Raises:
        TspruneError: no window to train or to judge on, a mode that this model does not allow or that needs a package,
            or distillation without a teacher that fits.
    """
    settings = settings or FinetuneSettings()
    if settings.tuning == "lora":
        check_peft()
    if not len(train):
        raise TspruneError("there is no training window; use more data, a shorter --horizon or a shorter --context")
    # Judged in the precision it trains in, so that step 0 is what would come back.
    start = validation_loss(model if model.dtype == torch.float32 else copy.deepcopy(model).float(), validation)
    distillation = _distillation(model, train, settings, teacher)
    origin = "" if directory is None else fingerprint(model) + _teacher_mark(distillation)
    task = _Task(model, train, validation, settings, seed, start, directory, origin, distillation)
    runs = _Runs(report)
    choice = _searched(task, search_of(settings, model, seed), runs)
    runs.add(_Run(task.given(choice), "full", choice.learning_rate, settings.steps, settings.evaluations))
    return Tuned(runs.model, tuple(runs.trials), runs.best)


def _searched(task: _Task, search: Search, runs: _Runs) -> Choice:
    """Make the trials of a search; returns what validated best, or where there are none, what to take."""
    choices = []
    for number in range(1, search.trials + 1):
        choices.append(search.ask())
        rate, steps = choices[-1].learning_rate, task.settings.search_steps
        judge = search.hopeless if search.judges else None
        run = _Run(task.given(choices[-1]), search.label(number), rate, steps, search.evaluations, judge)
        trial = runs.add(run)
        search.tell(run.facts.get("losses", ()), trial.pruned)
    if not choices:
        return search.ask()

    def order(place: int) -> tuple[float, float]:
        trial = runs.trials[place]
        return math.inf if math.isnan(trial.validation_loss) else trial.validation_loss, trial.learning_rate

    # A trial that diverged has step 0 as its best; among equals the smallest rate is the safest.
    return choices[min(range(len(choices)), key=order)]


def _distillation(
    model: Forecaster, train: Windows, settings: FinetuneSettings, teacher: Forecaster | None
) -> Distillation | None:
    """What the tuned model follows besides the data, or None."""
    if not settings.distill:
        return None
    if teacher is None:
        raise TspruneError(
            f"--distill {settings.distill:g} needs a dense model to follow; give one with --teacher, or leave it out"
        )
    sample = train.batch(np.arange(min(settings.batch, len(train))))
    found = Distillation(teacher, settings.distill, sample)
    found.check(model)
    return found


def _teacher_mark(distillation: Distillation | None) -> str:
    return "" if distillation is None else f" after {fingerprint(distillation.teacher)}"


@dataclass(frozen=True)
class _Task:
    """What every run of one fine-tuning shares; `start` is the validation loss before any step.

    `origin` is the fingerprint of the model, and of its teacher: a checkpoint made from others is not continued.
    """

    model: Forecaster
    train: Windows
    validation: Sequence[Batch]
    settings: FinetuneSettings
    seed: int
    start: float
    directory: Path | None
    origin: str
    distillation: Distillation | None = None
    choice: Choice | None = None

    def given(self, choice: Choice) -> _Task:
        """The task of one run."""
        return replace(self, settings=choice.settings(self.settings), choice=choice)

    def loss(self, model: Forecaster, batch: Batch) -> Tensor:
        """What training makes small: a value per window."""
        return model.loss(batch) if self.distillation is None else self.distillation.loss(model, batch)


class _Runs:
    """The runs of one fine-tuning, one after the other; of their models only the best is held."""

    model: Forecaster
    best: Trial

    def __init__(self, report: Callable[[str, int, int, float], None] | None) -> None:
        self.report = report
        self.trials: list[Trial] = []

    def add(self, run: _Run) -> Trial:
        """Make the run."""
        trial = run.go(self.report)
        # The full run, which is the last, wins ties; a search trial that validated better is not thrown away.
        if not self.trials or not trial.validation_loss > self.best.validation_loss:
            self.model, self.best = run.model, trial
        self.trials.append(trial)
        return trial


class _Run:
    """One training run at one learning rate, resumable at its last validation.

    `judge` is told all validation losses so far and says whether to end the run.
    """

    def __init__(
        self,
        task: _Task,
        label: str,
        rate: float,
        steps: int,
        evaluations: int,
        judge: Callable[[Sequence[float]], bool] | None = None,
    ) -> None:
        self.task, self.judge = task, judge
        self.trainee = trainee(task.model, task.settings, task.seed)
        self.model = self.trainee.network
        self.rate, self.steps = rate, steps
        self.every = max(1, steps // evaluations)
        self.label = f"{label} {rate:g}"
        self.path = (
            None if task.directory is None else task.directory / f"{label.replace(' ', '-')}-{rate:g}.safetensors"
        )
        self.optimizer = torch.optim.AdamW(self._groups(), lr=rate)
        self.facts: dict[str, Any] = {"step": 0, "best": task.start, "best_step": 0, "late": 0, "done": False}
        self.facts |= {} if judge is None else {"losses": [], "pruned": False}
        self.facts["settings"] = task.settings.inputs() | {"rate": rate, "steps": steps, "seed": task.seed}
        self.facts["settings"] |= {"model": task.origin, "windows": len(task.train)}
        self.best = self.trainee.values()
        self.mean = self.trainee.values()

    def _groups(self) -> list[dict[str, Any]]:
        matrices = [p for p in self.trainee.parameters() if p.ndim > 1]
        vectors = [p for p in self.trainee.parameters() if p.ndim <= 1]
        decay = self.task.settings.weight_decay
        groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]

    def go(self, report: Callable[[str, int, int, float], None] | None) -> Trial:
        """Train, or continue; afterwards `model` has the best validated weights. Returns the trial."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.task.seed)
            self._resume()
            self.model.train()
            while not self.facts["done"]:
                self._one_step()
                step = self.facts["step"]
                if step % self.every == 0 or step == self.steps:
                    loss = self._validate()
                    if report:
                        report(self.label, step, self.steps, loss)
        self._finish()
        facts, searched = self.facts, {} if self.task.choice is None else self.task.choice.facts()
        pruned = facts.get("pruned", False)
        return Trial(self.rate, facts["best_step"], facts["best"], facts["step"], searched, pruned)

    def _one_step(self) -> None:
        step = self.facts["step"]
        seed = np.random.SeedSequence([self.task.seed, step, 11])
        count = min(self.task.settings.batch, len(self.task.train))
        indices = np.sort(np.random.default_rng(seed).choice(len(self.task.train), size=count, replace=False))
        batch = self.task.train.batch(indices).to(self.model.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(step)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.task.loss(self.model, batch).mean()
        if bool(torch.isfinite(loss)):
            loss.backward()  # type: ignore[no-untyped-call]
            norm = torch.nn.utils.clip_grad_norm_(self.trainee.parameters(), self.task.settings.clip)
            # A gradient can overflow under a finite loss; one such step would spoil every weight for good.
            if bool(torch.isfinite(norm)):
                self.optimizer.step()
                self.trainee.settle()
        self.facts["step"] = step + 1
        self._average(step + 1)

    @torch.no_grad()
    def _average(self, step: int) -> None:
        decay = min(self.task.settings.averaging, (1 + step) / (10 + step))
        for name, value in self.trainee.tensors().items():
            if value.is_floating_point():
                self.mean[name].lerp_(value, 1 - decay)
            else:
                self.mean[name].copy_(value)

    def _rate(self, step: int) -> float:
        """Linear warm-up over a tenth of the run, then linear to a tenth of the rate."""
        up = (step + 1) / max(1, self.steps // 10)
        down = 1 - 0.9 * step / self.steps
        return self.rate * min(1.0, up, down)

    def _validate(self) -> float:
        with self.trainee.holding(self.mean) as model:
            loss = validation_loss(model, self.task.validation)
        facts = self.facts
        if loss < facts["best"]:
            facts.update(best=loss, best_step=facts["step"], late=0)
            self.best = {name: value.clone() for name, value in self.mean.items()}
        else:
            facts["late"] += 1
        facts["done"] = facts["step"] >= self.steps or facts["late"] >= self.task.settings.patience
        if self.judge is not None:
            # Stored with the rest, so that a search can be told of it without training again.
            facts["losses"] = [*facts["losses"], loss]
            facts["pruned"] = not facts["done"] and self.judge(facts["losses"])
            facts["done"] = facts["done"] or facts["pruned"]
        if self.path is not None:
            kept = {f"best.{name}": value for name, value in self.best.items()}
            kept |= {f"mean.{name}": value for name, value in self.mean.items()}
            save_training(self.path, self.trainee.stored, [self.optimizer], facts, kept)
        return loss

    def _resume(self) -> None:
        if self.path is None or not self.path.exists():
            return
        stored = json.loads(read_tensors(self.path)[1].get("facts", "{}"))
        # Settings as they look after a round trip through JSON: tuples become lists.
        if stored.get("settings") == json.loads(json.dumps(self.facts["settings"])):
            self.facts, kept = load_training(self.path, self.trainee.stored, [self.optimizer])
            self.best, self.mean = (
                {name: kept[f"{part}.{name}"].to(value.device) for name, value in self.best.items()}
                for part in ("best", "mean")
            )

    def _finish(self) -> None:
        """The weights with the lowest validation loss; all else goes, as several finished runs are held at once."""
        self.optimizer.zero_grad(set_to_none=True)
        self.model = self.trainee.ordinary(self.best)
        self.optimizer.state.clear()
        self.best, self.mean = {}, {}
