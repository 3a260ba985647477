"""Shared by the benchmarks on pruning: a data set and a model as a task, cutting, tuning and measuring in one way."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from long_horizon import SETS, folder_argument, require
from torch import Tensor

from tsprune.data.batch import Batch
from tsprune.data.reading import ReadOptions
from tsprune.evaluation.evaluate import measure
from tsprune.evaluation.machine import machine_line, versions
from tsprune.finetuning import finetune
from tsprune.models import load, save
from tsprune.models._forecaster import Forecaster
from tsprune.preparing import Prepared, TrainingWindows, prepare
from tsprune.pruning import parameters_to_reach, validation_loss
from tsprune.registry import find
from tsprune.repair import repair
from tsprune.settings import FinetuneSettings, TaskSettings
from tsprune.slimming import slim
from tsprune.stages import digest

SAMPLE = "sample"
KINDS = ("head", "ffn_channel")
Kept = dict[str, list[int]]


@dataclass(frozen=True)
class Setup:
    """What all cells of a run share. Everything but the places decides about results."""

    folder: str
    work: str
    model: str = "mini"
    horizon: int = 96
    context: int = 512
    score_windows: int = 128
    validation_windows: int = 128
    test_windows: int = 256
    adapt_steps: int = 60
    steps: int = 100
    rates: tuple[float, ...] = (3e-4,)
    batch: int = 32
    options: tuple[Any, ...] = ()

    def identity(self) -> dict[str, Any]:
        """What decides about results, JSON-able; with the versions of the packages."""
        return {k: v for k, v in asdict(self).items() if k not in ("folder", "work")} | {"versions": versions()}


def arguments(parser: argparse.ArgumentParser, script: str) -> None:
    """Flags of a `Setup`, and where work and results go."""
    folder_argument(parser)
    for name, value in asdict(Setup("", "")).items():
        if isinstance(value, str | int) and name not in ("folder", "work"):
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--rates", nargs="+", type=float, default=list(Setup.rates))
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/benchmarks"), help="cells that are done, and tuned models"
    )
    out = Path(__file__).resolve().parent / "results" / f"{script}.json"
    parser.add_argument("--out", type=Path, default=out)


def setup_of(given: argparse.Namespace, sets: Sequence[str], *options: Any) -> Setup:
    """The `Setup` of the flags; refuses a folder that lacks a set."""
    require(given.folder, [name for name in sets if name != SAMPLE])
    values = {name: getattr(given, name) for name in asdict(Setup("", "")) if hasattr(given, name)}
    places = {"folder": str(given.folder), "work": str(given.work), "rates": tuple(given.rates)}
    return Setup(**(values | places), options=options)


def provenance(setup: Setup) -> dict[str, Any]:
    """Settings, machine and versions, for the JSON."""
    return {
        "settings": setup.identity() | {"versions": None},
        "machine": machine_line(threads=1),
        "versions": versions(),
    }


@lru_cache(maxsize=3)
def task(setup: Setup, name: str, seed: int = 0, horizon: int = 0) -> Prepared:
    """The data set with the model as it comes."""
    data = None if name == SAMPLE else SETS[name]
    settings = TaskSettings(
        data="" if data is None else str(Path(setup.folder) / data.file), model=setup.model, seed=seed, threads=1,
        horizon=horizon or setup.horizon, context=setup.context, split="auto" if data is None else data.split,
        validation_windows=setup.validation_windows, test_windows=setup.test_windows,
    )  # fmt: skip
    options = None if data is None else ReadOptions(season=data.season, grid=data.grid)  # type: ignore[arg-type]
    return prepare(settings, options)


def kept_model(setup: Setup, name: str, make: Callable[[], Forecaster]) -> Forecaster:
    """A model made once and kept in the work folder, by the settings and the name."""
    folder = Path(setup.work) / "models" / f"{name}-{digest(setup.identity() | {'options': None})}"
    if not (folder / "config.json").exists():
        partial = folder.with_name(f".{folder.name}.{os.getpid()}")
        save(make(), partial)
        try:
            os.replace(partial, folder)
        except OSError:
            shutil.rmtree(partial)  # Another process was first.
    return load(folder)


def base(setup: Setup, name: str, seed: int = 0) -> Forecaster:
    """The model after the brief tuning that every candidate goes on from."""
    ready = task(setup, name, seed)
    if not setup.adapt_steps:
        return ready.model

    def make() -> Forecaster:
        return tuned(setup, ready, ready.model, seed, steps=setup.adapt_steps)[0]

    return kept_model(setup, f"base-{name}-{seed}", make)


def dense(setup: Setup, name: str, seed: int = 0) -> Forecaster:
    """The uncut model fine-tuned in full."""
    ready = task(setup, name, seed)
    return kept_model(setup, f"dense-{name}-{seed}", lambda: tuned(setup, ready, base(setup, name, seed), seed)[0])


def tuned(
    setup: Setup,
    ready: Prepared,
    model: Forecaster,
    seed: int,
    *,
    steps: int = 0,
    windows: TrainingWindows | None = None,
    **more: Any,
) -> tuple[Forecaster, dict[str, Any]]:
    """Fine-tuned with the budget that all candidates get; with several rates a short search chooses."""
    steps = steps or setup.steps
    rates = tuple(more.pop("rates", setup.rates))
    settings = FinetuneSettings(
        steps=steps, search_steps=steps // 4 if len(rates) > 1 else 0, learning_rates=rates, batch=setup.batch,
        evaluations=max(2, steps // 20), patience=10**6, **more,
    )  # fmt: skip
    found = finetune(model, windows or ready.train, ready.steering, settings, seed=seed)
    return found.model, {"learning_rate": found.best.learning_rate, "best_step": found.best.best_step}


def scoring_windows(setup: Setup, ready: Prepared, seed: int, windows: TrainingWindows | None = None) -> list[Batch]:
    """Training windows for scores, repair and masks, drawn by seed."""
    windows = windows or ready.train
    draw = np.random.default_rng(np.random.SeedSequence([seed, 29]))
    chosen = np.sort(windows.windows.sample(min(setup.score_windows, len(windows)), draw))
    return [windows.batch(chosen[first : first + 64]) for first in range(0, len(chosen), 64)]


def scored(model: Forecaster, batches: Sequence[Batch], score: str, seed: int, kinds: Sequence[str] = KINDS) -> dict:
    """Scores of a module of `tsprune.scores`."""
    found: dict[str, Tensor] = find("tsprune.scores", score).scores(model, batches, kinds=kinds, seed=seed)
    return found


def chosen_units(
    setup: Setup, ready: Prepared, model: Forecaster, keep: float, *, score: str = "fisher", seed: int = 0,
    of_prunable: bool = False, windows: TrainingWindows | None = None,
) -> Kept:  # fmt: skip
    """One shot to a share of the parameters, or of those that can be pruned."""
    batches = scoring_windows(setup, ready, seed, windows)
    values = scored(model, batches, score, seed)
    return parameters_to_reach(model, values, goal(model, keep, of_prunable))


def goal(model: Forecaster, keep: float, of_prunable: bool = False) -> int:
    """Parameters of the whole model at a share kept of all, or of the prunable ones."""
    total = model.parameter_count()
    if not of_prunable:
        return int(keep * total)
    prunable = sum(int(g.costs.sum()) for g in model.unit_groups().values() if g.kind in KINDS)
    return int(total - (1 - keep) * prunable)


def cut(
    model: Forecaster, kept: Mapping[str, Sequence[int]], batches: Sequence[Batch], repaired: bool = True
) -> Forecaster:
    """The slim model, refitted by least squares if wanted."""
    return slim(repair(model, kept, batches) if repaired else model, kept)


def errors(ready: Prepared, model: Forecaster, test: bool = True) -> dict[str, float]:
    """Training loss on the validation windows, and MSE and MAE on the test windows; test steers nothing."""
    found: dict[str, float] = {"parameters": model.parameter_count()}
    found["validation_loss"] = validation_loss(model, ready.steering)
    if test:
        metrics = measure(model, ready.test[0], ready.split).metrics
        found |= {"test_mse": metrics["mse"], "test_mae": metrics["mae"]}
    return found


def tuned_errors(setup: Setup, ready: Prepared, model: Forecaster, seed: int, **more: Any) -> dict[str, Any]:
    """Errors before and after the tuning that all candidates get."""
    before = errors(ready, model, test=False)
    after, said = tuned(setup, ready, model, seed, **more)
    return {"before": before, **errors(ready, after), **said}


def latest(windows: TrainingWindows, share: float) -> TrainingWindows:
    """The most recent share of the training windows of every series: what a user with a short history has."""
    whole = windows.windows
    counts = np.bincount(whole.series_index)
    ends = np.cumsum(counts)[whole.series_index]
    kept = np.flatnonzero(ends - np.arange(len(whole)) <= share * counts[whole.series_index])
    return replace(windows, windows=whole.subset(kept))


def idle(found: Mapping[Any, Mapping[str, Any]]) -> str:
    """In how many tuned cells validation handed the model back untuned; many make an `after tuning` table empty."""
    steps = [entry["best_step"] for entry in found.values() if "best_step" in entry]
    return f"{sum(step == 0 for step in steps)} of {len(steps)}"


def mean(values: Sequence[float]) -> float:
    """Plain mean, rounded for the JSON."""
    return round(float(np.mean(values)), 5)
