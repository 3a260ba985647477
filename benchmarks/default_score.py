"""Which of the best scores serves the default schedule best?

    OMP_NUM_THREADS=1 python benchmarks/default_score.py FOLDER [--sets ETTh1 ETTm2 weather] [--keeps 0.5]

scores_table.py ranks scores where all is cut in one shot. A run prunes in rounds, scores again after each and repairs.
Here its first finishers, and the default score with more kinds of units, go through these rounds to the same size, from
the same briefly tuned weights. Nothing is tuned afterwards. Decided beforehand: the default is the one with the lowest
mean log ratio of validation loss to the uncut model; test errors decide nothing. Resumable.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from statistics import mean
from typing import Any

from long_horizon import SETS, folder_argument, require

from tsprune.budgets import keep_budget
from tsprune.data.reading import ReadOptions
from tsprune.evaluation.evaluate import measure
from tsprune.evaluation.machine import machine_line, versions
from tsprune.preparing import Prepared, prepare
from tsprune.progress import Progress
from tsprune.pruning import prune, validation_loss
from tsprune.settings import PruneSettings, TaskSettings
from tsprune.slimming import slim
from tsprune.stages import read_json, write_json
from tsprune.stagework import adapted, schedule_of

USUAL = ("head", "ffn_channel")
VARIANTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "fisher": ("fisher", "magnitude", USUAL),
    "fisher, signed": ("fisher", "signed", USUAL),
    "hybrid": ("hybrid", "magnitude", USUAL),
    "taylor_abs": ("taylor_abs", "magnitude", USUAL),
    "fisher, with qk_pair": ("fisher", "magnitude", (*USUAL, "qk_pair")),
    "fisher, with qk_pair and value_dim": ("fisher", "magnitude", (*USUAL, "qk_pair", "value_dim")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder_argument(parser)
    parser.add_argument("--sets", nargs="+", default=["ETTh1", "ETTm2", "weather"], choices=list(SETS))
    parser.add_argument("--keeps", nargs="+", type=float, default=[0.5])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--windows", type=int, default=192, help="training windows scored in each round")
    parser.add_argument("--test-windows", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "default_score.json")
    given = parser.parse_args()
    require(given.folder, given.sets)
    asked = {name: getattr(given, name) for name in ("rounds", "windows", "test_windows")}
    found = read_json(given.out) if given.out.exists() else {}
    cells: dict[str, Any] = found.get("cells", {}) if found.get("settings") == asked else {}
    for name in given.sets:
        wanted = [f"{name} {keep:g} {variant}" for keep in given.keeps for variant in VARIANTS]
        if all(cell in cells for cell in wanted):
            continue
        ready = setting(given, name)
        base = adapted(ready, PruneSettings(), Progress(quiet=True))
        cells[name] = {"validation_loss": validation_loss(base, ready.steering), **errors(ready, base)}
        for cell in (c for c in wanted if c not in cells):
            keep, _, variant = cell.removeprefix(f"{name} ").partition(" ")
            cells[cell] = pruned(given, ready, base, float(keep), variant)
            print(cell, cells[cell], flush=True)
            write_json(given.out, {"settings": asked, "cells": cells})
    write_json(given.out, report(given, asked, cells))


def setting(given: argparse.Namespace, name: str) -> Prepared:
    data = SETS[name]
    task = TaskSettings(
        data=str(given.folder / data.file), horizon=96, split=data.split, test_windows=given.test_windows,
        validation_windows=256, threads=1,
    )  # fmt: skip
    return prepare(task, ReadOptions(season=data.season, grid=data.grid))  # type: ignore[arg-type]


def errors(ready: Prepared, model: Any) -> dict[str, float]:
    return {"test_mse": measure(model, ready.test[0], ready.split).metrics["mse"]}


def pruned(given: argparse.Namespace, ready: Prepared, base: Any, keep: float, variant: str) -> dict[str, Any]:
    score, rank, kinds = VARIANTS[variant]
    outcome = prune(
        base, lambda number: ready.macro_batch(number, given.windows), ready.steering,
        score=score, rank=rank, kinds=kinds, schedule=schedule_of(PruneSettings(rounds=given.rounds)),
        refit=True, budget=keep_budget(base, keep),
    )  # fmt: skip
    smaller = slim(outcome.model, outcome.best.kept)
    share = smaller.parameter_count() / base.parameter_count()
    return {"parameters": share, "validation_loss": outcome.best.validation_loss, **errors(ready, smaller)}


def report(given: argparse.Namespace, asked: dict[str, Any], cells: dict[str, Any]) -> dict[str, Any]:
    rows = {}
    for variant in VARIANTS:
        ratios = {
            part: [
                math.log(cells[f"{name} {keep:g} {variant}"][part] / cells[name][part])
                for name in given.sets
                for keep in given.keeps
            ]
            for part in ("validation_loss", "test_mse")
        }
        rows[variant] = {f"mean_log_ratio_{part}": mean(values) for part, values in ratios.items()}
    winner = min(rows, key=lambda variant: rows[variant]["mean_log_ratio_validation_loss"])
    print("winner:", winner)
    return {
        "question": "Which of the best scores serves the default schedule best?",
        "winner": winner,
        "rows": rows,
        "sets": given.sets,
        "keeps": given.keeps,
        "settings": asked,
        "cells": cells,
        "seed": 0,
        "machine": machine_line(threads=1),
        "versions": versions(),
    }


if __name__ == "__main__":
    main()
