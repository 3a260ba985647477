"""Networks trained from scratch, as the candidates of a run are, against their published errors on ETTh1.

python benchmarks/scratch.py FOLDER [--networks patchtst_scratch] [--seeds 0,1,2]
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from long_horizon import SETS, folder_argument, require

from tsprune import candidates
from tsprune.candidates._course import train_to
from tsprune.evaluation.evaluate import measure
from tsprune.evaluation.machine import machine_line
from tsprune.models import load
from tsprune.preparing import prepare
from tsprune.progress import Progress
from tsprune.settings import TaskSettings
from tsprune.stages import read_json, write_json

HORIZON, WITHIN = 96, 0.03
# Context and MSE on all test windows of ETTh1: arXiv 2211.14730 (PatchTST/42) and arXiv 2310.06625.
PUBLISHED = {"patchtst_scratch": (336, 0.375), "itransformer_scratch": (96, 0.386)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    folder_argument(parser)
    parser.add_argument("--networks", default=",".join(PUBLISHED))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--epochs", type=int, default=0, help="at most so many; 0 trains as published")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/scratch"), help="trainings, which go on where they stand"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scratch.json"))
    given = parser.parse_args()
    require(given.folder, ["ETTh1"])
    rows = [
        trained(given.folder, name, int(seed), given.epochs, given.work / f"{name}-{seed}")
        for name in given.networks.split(",")
        for seed in given.seeds.split(",")
    ]
    machine = machine_line(threads=torch.get_num_threads())
    new = {(row["network"], row["seed"]) for row in rows}
    before = read_json(given.out)["rows"] if given.out.exists() else []
    kept = [row for row in before if (row["network"], row["seed"]) not in new]
    write_json(given.out, {"set": "ETTh1", "horizon": HORIZON, "machine": machine, "rows": [*kept, *rows]})
    if missed := [f"{row['network']} seed {row['seed']}" for row in rows if abs(row["apart"]) > WITHIN]:
        sys.exit(f"error: not within {WITHIN:.0%} of what was published: {', '.join(missed)}")


def trained(folder: Path, name: str, seed: int, epochs: int, work: Path) -> dict[str, Any]:
    """One training and its error over every test window, beside the published one."""
    context, published = PUBLISHED[name]
    every = 1_000_000
    task = TaskSettings(
        data=str(folder / SETS["ETTh1"].file),
        split=SETS["ETTh1"].split,
        horizon=HORIZON,
        context=context,
        together=name == "itransformer_scratch",
        validation_windows=every,
        test_windows=0,
        seed=seed,
    )
    ready = prepare(task)
    own: Any = candidates.find(name).training
    recipe = own.recipe(ready)
    recipe = replace(recipe, epochs=min(epochs or recipe.epochs, recipe.epochs))
    started = time.perf_counter()
    trial = train_to(ready, own.family, recipe, work, Progress(), f"{name}, seed {seed}")
    model = load(work / "model")
    seconds = time.perf_counter() - started
    found = measure(model, ready.test[0], ready.split)
    apart = (found.metrics["mse"] or float("nan")) / published - 1
    print(f"{name}, seed {seed}: MSE {found.metrics['mse']:.4f}, published {published}, {apart:+.1%}", flush=True)
    return {
        "network": name,
        "seed": seed,
        "context": context,
        "epochs": recipe.epochs,
        "published": published,
        **found.metrics,
        "apart": apart,
        "validation_mse": trial.validation_loss,
        "best_step": trial.best_step,
        "steps": trial.steps,
        "parameters": model.parameter_count(),
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
