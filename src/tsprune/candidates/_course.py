"""The training loop of networks with fresh weights: epochs, a checkpoint after each, the best validated weights."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tsprune.candidates._scratch import DECAYS, FACTS, Recipe, portion
from tsprune.data.batch import Batch
from tsprune.data.words import many
from tsprune.errors import TspruneError
from tsprune.finetuning import Trial
from tsprune.models import save
from tsprune.models._forecaster import Forecaster
from tsprune.preparing import STEERING_ROWS, Prepared, capability_notes
from tsprune.progress import Bar, Progress
from tsprune.registry import find
from tsprune.stages import write_json
from tsprune.stagework import with_task
from tsprune.training_state import load_training, save_training


def train_to(ready: Prepared, family: str, recipe: Recipe, out: Path, progress: Progress, label: str) -> Trial:
    """Train a network of a family from fresh weights; writes `model/`, `trials.json`, `facts.json`.

    Loss and validation error are the mean squared error on the scale of the batches, over all steps with a target: the
    MSE of the table, not the loss per window that pretrained models are tuned on. Adam, without weight decay. The
    weights with the lowest error over the validation windows of the run are kept. Killed, it goes on after the last
    finished epoch, kept in `training/`, with the same result.

    Args:
        ready: data, seed and device; its model plays no part.
        family: in `tsprune.models`.
        recipe: see there; its epochs become steps by the number of training windows.
        out: directory.
        progress: told what happens.
        label: of the progress bar.

    Raises:
        TspruneError: no window to train on, or the error was never a finite number.
    """
    course = Course(ready, family, recipe, out / "training")
    with progress.stage(label, course.steps) as bar:
        trial = course.run(bar)
    write_json(out / "trials.json", [trial.facts()])
    write_json(out / FACTS, course.facts())
    save(with_task(course.model, ready), out / "model")
    shutil.rmtree(out / "training", ignore_errors=True)
    return trial


class Course:
    """One training, resumable after every epoch.

    Args:
        ready: as in `train_to`.
        family: as in `train_to`.
        recipe: as in `train_to`.
        directory: for the checkpoint.

    Attributes:
        rows: windows of a step; where series are apart, of single series.
        steps: in all, if nothing stops it.
    """

    def __init__(self, ready: Prepared, family: str, recipe: Recipe, directory: Path) -> None:
        self.ready, self.family, self.recipe = ready, family, recipe
        self.path = directory / "epochs.safetensors"
        self.windows = ready.split.train()
        self.rows, self.per_epoch = portion(ready, recipe)
        self.steps = recipe.epochs * self.per_epoch
        if recipe.steps:
            self.steps = min(self.steps, recipe.steps)
        judged = ready.validation[0]
        size = max(1, STEERING_ROWS // judged.rows_per_window)
        self.validation = [batch for _, batch in judged.batches(size)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(ready.task.seed)
            # What a family's public checkpoints were trained on is not what this one saw.
            source = Path(ready.panel.source).name if ready.panel.source else "table"
            config = {**recipe.config, "pretraining_corpora": [source]}
            made: Forecaster = find("tsprune.models", family).FAMILY.from_config(config)
            as_torch_fills(made)
        self.model = made.to(ready.task.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=recipe.rate)
        self.state: dict[str, Any] = {"epoch": 0, "best": math.inf, "best_epoch": 0, "late": 0, "done": False}
        self.best = self._weights()

    def run(self, bar: Bar) -> Trial:
        """Train, or continue; afterwards `model` has the best validated weights, in eval mode."""
        state = self.state
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.ready.task.seed + 1)
            if self.path.exists():
                found, self.best = load_training(self.path, self.model, [self.optimizer])
                state.update(found)
            while not state["done"]:
                self._epoch()
                self._judge()
                save_training(self.path, self.model, [self.optimizer], state, self.best)
                bar.update(min(self.steps, state["epoch"] * self.per_epoch), f"validation MSE {state['best']:.4f}")
        if not math.isfinite(state["best"]):
            raise TspruneError(
                f"training {self.family} from scratch never gave a finite validation error; look for extreme values in "
                "the data, or leave the candidate out"
            )
        bar.update(self.steps, f"validation MSE {state['best']:.4f} after epoch {state['best_epoch']}")
        self.model.load_state_dict(self.best)
        self.model.eval()
        steps = [min(self.steps, state[key] * self.per_epoch) for key in ("best_epoch", "epoch")]
        return Trial(self.recipe.rate, steps[0], state["best"], steps[1])

    def _epoch(self) -> None:
        """Every training window once, in an order drawn by seed and epoch."""
        epoch, recipe = self.state["epoch"], self.recipe
        draw = np.random.default_rng(np.random.SeedSequence([self.ready.task.seed, epoch, 17]))
        order = draw.permutation(len(self.windows))
        self.model.train()
        for number in range(min(self.per_epoch, self.steps - epoch * self.per_epoch)):
            chosen = np.sort(order[number * self.rows : (number + 1) * self.rows])
            batch = self.windows.batch(chosen).to(self.model.device)
            share = (epoch * self.per_epoch + number) / self.steps
            for group in self.optimizer.param_groups:
                group["lr"] = DECAYS[recipe.decay](recipe.rate, epoch, share)
            self.optimizer.zero_grad(set_to_none=True)
            errors, count = squared_errors(self.model, batch)
            (errors / count.clamp(min=1)).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        self.state["epoch"] = epoch + 1

    @torch.no_grad()
    def _judge(self) -> None:
        """Validate, keep the weights if they are the best so far, and say whether that was the end."""
        self.model.eval()
        total, counted = 0.0, 0.0
        for batch in self.validation:
            errors, count = squared_errors(self.model, batch.to(self.model.device))
            total, counted = total + float(errors), counted + float(count)
        error, state = total / max(counted, 1.0), self.state
        if error < state["best"]:
            state.update(best=error, best_epoch=state["epoch"], late=0)
            self.best = self._weights()
        else:
            state["late"] += 1
        state["done"] = state["epoch"] * self.per_epoch >= self.steps or state["late"] >= self.recipe.patience

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def facts(self) -> dict[str, Any]:
        """How it was trained, for the results."""
        recipe, state = self.recipe, self.state
        apart = "windows of all series" if self.windows.grouping == "all" else "windows of single series"
        budget = "its published budget,"
        if self.steps < recipe.epochs * self.per_epoch:
            budget = f"cut short to {self.steps} steps, at ten times the published rate, and"
        steps = f"{many(self.per_epoch, 'step')} of {self.rows} {apart}"
        return {
            "training": f"trained from scratch with the settings published in {recipe.source}",
            "budget": f"{budget} not that of the tuned candidates: at most {recipe.epochs} epochs of "
            f"{steps} at one learning rate, {recipe.rate:g}, {recipe.decay}; "
            f"{state['epoch']} were run, epoch {state['best_epoch']} validated best",
            "learning_rates": [recipe.rate],
            "family": self.family,
            "config": dict(recipe.config),
            "notes": capability_notes(self.ready.panel, self.model),
        }


def as_torch_fills(model: Forecaster) -> None:
    """Fill every linear map the way torch does, in place; the authors left it at that.

    Maps that are filled for pretraining start larger: PatchTST on ETTh1 then needs twice the epochs for an error.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()


def squared_errors(model: Forecaster, batch: Batch) -> tuple[Tensor, Tensor]:
    """Sum of squared errors of the median over all steps with a target, float64, and how many these are; with graph.

    Args:
        model: any family whose `predict` keeps the graph.
        batch: with a target `[B, H]` on any scale; the errors are on that scale.
    """
    if batch.target is None:
        raise TspruneError("the batch has no target; an error needs one")
    wanted = batch.target
    found = model.predict(batch, wanted.shape[1])[:, len(model.levels) // 2]
    counted = ~torch.isnan(wanted)
    errors = (found - wanted.to(found.dtype)).masked_fill(~counted, 0.0)
    return errors.square().double().sum(), counted.sum()
