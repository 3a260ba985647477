"""Whole attentions dropped by SEND (SPAT, 2505.08768), against random, leave-one-out and head by head.

    OMP_NUM_THREADS=1 python benchmarks/spat.py FOLDER [--networks patchtst itransformer] [--jobs 1]

PatchTST and iTransformer are trained on each set, with the published sizes (PatchTST with those for small sets
everywhere) and, where that would take hours, fewer steps. They have two or three attentions, so every set of attentions
that can go is dropped and tuned on, with the same steps; so is the whole network. What a rule would have chosen is then
looked up, and random choice is the exact mean over all sets of that size. How many go is chosen by validation. Test
windows are opened once for each network and decide nothing. Resumable: the same command goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import Cell, Store, run
from long_horizon import SETS, folder_argument, require
from spat_page import write
from spat_table import summary

from tsprune import candidates
from tsprune.candidates._course import Course, squared_errors, train_to
from tsprune.candidates._scratch import Recipe
from tsprune.data.batch import Batch
from tsprune.data.reading import ReadOptions
from tsprune.evaluation.cost import flops_of
from tsprune.evaluation.evaluate import measure
from tsprune.evaluation.machine import machine_line, versions
from tsprune.models import load
from tsprune.models._forecaster import Forecaster
from tsprune.preparing import Prepared, prepare
from tsprune.progress import Progress
from tsprune.registry import find
from tsprune.scores._ranks import spearman
from tsprune.settings import TaskSettings
from tsprune.slimming import slim
from tsprune.stages import digest, write_json

HORIZON = 96
CONTEXT = {"patchtst": 336, "itransformer": 96}
WITNESSES = ("ETTh1", "ETTm1", "weather")
ELSEWHERE = {"ETTh1": "ETTh2", "ETTm1": "ETTm2", "weather": "ETTm2"}
"""Where a network cut for a set is also measured, without further training."""
PUBLISHED = {"mse": -2.842, "mae": -1.996, "flops": -35.274, "parameters": -28.191}
"""Percent, mean over its networks and sets: abstract of 2505.08768, parameters by a review of it."""


@dataclass(frozen=True)
class Setup:
    """What all cells share. Everything but the places decides about results."""

    folder: str
    work: str
    steps: int = 400
    tuning_steps: int = 100
    calibration: int = 256
    validation_windows: int = 256
    test_windows: int = 512

    def identity(self) -> dict[str, Any]:
        """What decides about results."""
        places = ("folder", "work")
        return {name: value for name, value in asdict(self).items() if name not in places} | {"versions": versions()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder_argument(parser)
    parser.add_argument("--networks", nargs="+", default=list(CONTEXT))
    parser.add_argument("--sets", nargs="+", default=list(WITNESSES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/spat"))
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results" / "spat.json")
    parser.add_argument("--page", action="store_true", help="also fill the tables and the figure of docs/spat.md")
    for name in ("steps", "tuning_steps", "calibration", "validation_windows", "test_windows"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Setup, name))
    given = parser.parse_args()
    require(given.folder, sorted({*given.sets, *(ELSEWHERE[name] for name in given.sets if name in ELSEWHERE)}))
    numbers = {name: getattr(given, name) for name in Setup.__dataclass_fields__ if name not in ("folder", "work")}
    setup = Setup(str(given.folder), str(given.work), **numbers)
    cells: list[Cell] = [(n, s, seed) for seed in given.seeds for n in given.networks for s in given.sets]
    found = run(cell, setup, cells, Store(given.work / "cells.jsonl", setup.identity()), given.jobs)
    rows = [{"network": n, "set": s, "seed": seed, **found[n, s, seed]} for n, s, seed in cells]
    content = {
        "settings": setup.identity() | {"versions": None},
        "machine": machine_line(threads=1),
        "versions": versions(),
        "published": PUBLISHED,
        "summary": summary(rows),
        "cells": rows,
    }
    write_json(given.out, content)
    if given.page:
        write(content)


def cell(setup: Setup, key: Cell) -> dict[str, Any]:
    """One network trained on one set: scores of its attentions, and what every drop comes to."""
    network, name, seed = key
    ready, recipe = task(setup, network, name, seed), recipe_for(setup, network, name, seed)
    model = trained(setup, network, name, seed)
    modules = [group.name for group in model.unit_groups().values() if group.kind == "attention"]
    windows = calibration(setup, ready, seed)
    found: dict[str, Any] = {"training": asdict(recipe) | {"config": None}, "modules": modules}
    found |= scores_of(model, modules, windows, ready)
    found["whole"] = errors(ready, model)
    models: dict[str, Forecaster] = {}
    found["sets"] = {}
    for count in range(len(modules) + 1):
        for gone in combinations(range(len(modules)), count):
            key = " ".join(map(str, gone))
            smaller = slim(model, {modules[place]: [] for place in gone})
            found["sets"][key], models[key] = tuned(setup, ready, recipe, smaller)
    lowest = str(int(np.argmin(found["send"])))
    goal = found["sets"][lowest]["before"]["flops"]
    smaller, left = fewer_heads(model, windows, ready, goal)
    found["heads"] = {"heads_left": left, **tuned(setup, ready, recipe, smaller)[0]}
    if name in ELSEWHERE:
        other = task(setup, network, ELSEWHERE[name], seed)
        pair = {"whole": models[""], "without": models[lowest]}
        found["elsewhere"] = {"set": ELSEWHERE[name]} | {k: errors(other, one) for k, one in pair.items()}
    return found


@lru_cache(maxsize=4)
def task(setup: Setup, network: str, name: str, seed: int) -> Prepared:
    """The set, for a network that sees series one by one or together."""
    together, data = network == "itransformer", SETS[name]
    # As many values are judged either way.
    series = 21 if name == "weather" else 7
    factor = 1 if together else series
    settings = TaskSettings(
        data=str(Path(setup.folder) / data.file), split=data.split, horizon=HORIZON, context=CONTEXT[network],
        together=together, seed=seed, threads=1, validation_windows=setup.validation_windows * factor // (series // 7),
        test_windows=setup.test_windows * factor // (series // 7),
    )  # fmt: skip
    return prepare(settings, ReadOptions(season=data.season, grid=data.grid))


def recipe_for(setup: Setup, network: str, name: str, seed: int) -> Recipe:
    """Published settings; PatchTST small and short everywhere, iTransformer short where series are many."""
    ready = task(setup, network, name, seed)
    own: Any = candidates.find(f"{network}_scratch").training
    recipe: Recipe = own.recipe(ready, network == "patchtst")
    if network == "itransformer" and name != "weather":
        return recipe
    batch = recipe.batch // 4 if name == "weather" and network == "patchtst" else recipe.batch
    return replace(recipe, batch=batch, steps=setup.steps, rate=recipe.rate * 10, decay="one cycle")


def trained(setup: Setup, network: str, name: str, seed: int) -> Forecaster:
    """The network with its training, kept in the work folder."""
    ready, recipe = task(setup, network, name, seed), recipe_for(setup, network, name, seed)
    folder = Path(setup.work) / f"{network}-{name}-{seed}-{digest([setup.identity(), recipe.inputs()])}"
    if not (folder / "model" / "config.json").exists():
        train_to(ready, network, recipe, folder, Progress(quiet=True), "train")
    return load(folder / "model")


def calibration(setup: Setup, ready: Prepared, seed: int) -> list[Batch]:
    """Training windows for scores, in batches of 64."""
    windows = ready.train.windows
    draw = np.random.default_rng(np.random.SeedSequence([seed, 31]))
    chosen = np.sort(windows.sample(min(setup.calibration, len(windows)), draw))
    return [windows.batch(chosen[first : first + 64]) for first in range(0, len(chosen), 64)]


def scores_of(model: Forecaster, modules: Sequence[str], windows: Sequence[Batch], ready: Prepared) -> dict[str, Any]:
    """SEND and the loss without each attention alone on validation windows, and how well they agree."""
    send = find("tsprune.scores", "send")
    half = len(windows) // 2
    parts = [send.scores(model, part, kinds=("attention",)) for part in (windows, windows[:half], windows[half:])]
    values = [[float(part[name][0]) for name in modules] for part in parts]
    whole = mse(model, judged(ready))
    alone = []
    for name in modules:
        with model.masked({name: []}):
            alone.append(mse(model, judged(ready)) - whole)
    agree = spearman(torch.tensor(values[0]), torch.tensor(alone)) if len(modules) > 2 else None
    return {"send": values[0], "send_by_half": values[1:], "leave_one_out": alone, "rank_correlation": agree}


def judged(ready: Prepared) -> list[Batch]:
    """The validation windows."""
    return [batch for _, batch in ready.validation[0].batches(256)]


def mse(model: Forecaster, batches: Sequence[Batch]) -> float:
    """Mean squared error over all steps with a target, on the scale of the batches."""
    with torch.no_grad():
        pairs = [squared_errors(model, batch) for batch in batches]
    return float(sum(float(total) for total, _ in pairs) / sum(float(count) for _, count in pairs))


def errors(ready: Prepared, model: Forecaster) -> dict[str, float]:
    """Errors and sizes of a network."""
    metrics = measure(model, ready.test[0], ready.split).metrics
    one = ready.test[0].batch([0])
    return {
        "validation": mse(model, judged(ready)),
        "mse": metrics["mse"] or 0.0,
        "mae": metrics["mae"] or 0.0,
        "parameters": model.parameter_count(),
        "flops": flops_of(model, one, HORIZON),
    }


def tuned(
    setup: Setup, ready: Prepared, recipe: Recipe, model: Forecaster
) -> tuple[dict[str, dict[str, float]], Forecaster]:
    """Errors before and after the tuning that all get, and the tuned network."""
    before = errors(ready, model)
    found = tune(setup, ready, recipe, model)
    return {"before": before, "tuned": errors(ready, found)}, found


def tune(setup: Setup, ready: Prepared, recipe: Recipe, model: Forecaster) -> Forecaster:
    """A copy tuned on: one cycle up to a third of the rate that a short training has."""
    short = replace(recipe, steps=setup.tuning_steps, rate=3e-4, decay="one cycle", patience=10**6)
    course = Continued(ready, model, short, Path(setup.work) / "unused")
    torch.manual_seed(ready.task.seed)
    while not course.state["done"]:
        course._epoch()
        course._judge()
    course.model.load_state_dict(course.best)
    course.model.eval()
    return course.model


class Continued(Course):
    """A training that goes on from given weights rather than fresh ones."""

    def __init__(self, ready: Prepared, model: Forecaster, recipe: Recipe, directory: Path) -> None:
        super().__init__(ready, model.family, recipe, directory)
        self.model = slim(model, {})
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=recipe.rate)
        self.best = self._weights()


def fewer_heads(
    model: Forecaster, windows: Sequence[Batch], ready: Prepared, goal: int
) -> tuple[Forecaster, dict[str, int]]:
    """Single heads gone, lowest fisher score first, until the operations are at most the goal; and heads left."""
    values = find("tsprune.scores", "fisher").scores(model, windows, kinds=("head",))
    order = sorted((float(v), name, unit) for name, own in values.items() for unit, v in enumerate(own))
    kept = {name: set(range(len(own))) for name, own in values.items()}
    one, smaller = ready.test[0].batch([0]), model
    for _, name, unit in order:
        kept[name].discard(unit)
        smaller = slim(model, {name: sorted(units) for name, units in kept.items()})
        if flops_of(smaller, one, HORIZON) <= goal:
            break
    return smaller, {name: len(units) for name, units in kept.items()}


if __name__ == "__main__":
    main()
