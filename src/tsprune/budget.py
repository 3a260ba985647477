"""A time budget becomes a number of tuning steps: measured once per run directory, then fixed."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch

from tsprune.distillation import Distillation
from tsprune.preparing import Prepared
from tsprune.progress import Progress
from tsprune.settings import FinetuneSettings, PruneSettings
from tsprune.stages import Run, read_json, write_json
from tsprune.tuning_modes import trainee

USUAL_CANDIDATES = 3
SHARE = 0.6
LEAST, MOST = 40, 4000


def fit_minutes(
    minutes: float,
    ready: Prepared,
    pruning: PruneSettings,
    tuning: FinetuneSettings,
    run: Run,
    progress: Progress,
    candidates: int = USUAL_CANDIDATES,
) -> FinetuneSettings:
    """Settings whose equal tunings take about six tenths of the budget; the rest goes to pruning and testing.

    The speed is measured once and stored in the run directory, so that a resumed run takes the same number of
    steps. Results then depend on the machine's speed, unlike those of a run without a budget.

    Args:
        minutes: budget of the whole run.
        ready: data and model.
        pruning: how pruning goes on; part of what the measurement is stored under.
        tuning: settings to be changed in their steps.
        run: the run directory.
        progress: told what was decided.
        candidates: how many are tuned.
    """
    inputs = {**ready.identity, "minutes": minutes, "batch": tuning.batch, "rounds": pruning.rounds}
    inputs |= {"candidates": candidates} if candidates != USUAL_CANDIDATES else {}

    def measure(work: Path) -> None:
        seconds = _seconds_per_step(ready, tuning)
        trials = tuning.searched_rates
        share = tuning.search_steps / tuning.steps
        # Bounded before it is rounded: a budget beyond all measure is no whole number.
        steps = int(min(MOST, max(LEAST, SHARE * minutes * 60 / (candidates * seconds * (1 + trials * share)))))
        write_json(work / "steps.json", {"steps": steps, "seconds_per_step": seconds, "share": share})

    found = read_json(run.stage("budget", inputs | tuning.inputs(), measure) / "steps.json")
    steps = int(found["steps"])
    progress.say(
        f"budget of {minutes:g} minutes: {steps} tuning steps per candidate ({found['seconds_per_step']:.2f} s each)"
    )
    return replace(
        tuning, steps=steps, search_steps=max(1, round(steps * found["share"])) if tuning.search_steps else 0
    )


def _seconds_per_step(ready: Prepared, tuning: FinetuneSettings) -> float:
    """Median time of a training step of the dense model, in the mode that is set, on a throw-away copy."""
    model = trainee(ready.model, tuning, ready.task.seed).network.train()
    batch = ready.train.batch(list(range(min(tuning.batch, len(ready.train))))).to(model.device)
    teacher = Distillation(ready.model, tuning.distill, batch) if tuning.distill else None
    times = []
    for _ in range(4):
        started = time.perf_counter()
        with torch.enable_grad():
            loss = model.loss(batch) if teacher is None else teacher.loss(model, batch)
            loss.mean().backward()  # type: ignore[no-untyped-call]
        times.append(time.perf_counter() - started)
    # Optimiser and validation come on top of forward and backward.
    return 1.3 * sorted(times[1:])[1]
