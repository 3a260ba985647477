"""What does each further cut cost? Errors of the pruned model by size, with and without repair, before fine-tuning.

python benchmarks/size_curve.py FOLDER [--sets ETTh1 ETTm1] [--rounds 4 8 12]

The model is tuned briefly, as in a run, then pruned with the default settings for more and more rounds. Nothing is
chosen here: the test errors explain the results of specialize.py, they do not steer them.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from long_horizon import SETS, folder_argument, require

from tsprune.data.reading import ReadOptions
from tsprune.evaluation.evaluate import measure
from tsprune.evaluation.machine import machine_line, versions
from tsprune.preparing import prepare
from tsprune.progress import Progress
from tsprune.pruning import prune
from tsprune.schedules.progressive import Progressive
from tsprune.settings import PruneSettings, TaskSettings
from tsprune.slimming import slim
from tsprune.stages import write_json
from tsprune.stagework import adapted

EVERYTHING = 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder_argument(parser)
    parser.add_argument("--sets", nargs="+", default=["ETTh1", "ETTm1"], choices=list(SETS))
    parser.add_argument("--rounds", nargs="+", type=int, default=[4, 8, 12])
    parser.add_argument("--windows", type=int, default=2000, help="test windows, evenly spread")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "size_curve.json")
    given = parser.parse_args()
    require(given.folder, given.sets)
    found = {name: curve(given, name) for name in given.sets}
    said = {"question": "What does each further cut cost, before fine-tuning?", "sets": found, "seed": 0}
    write_json(given.out, said | {"machine": machine_line(), "versions": versions()})


def curve(given: argparse.Namespace, name: str) -> list[dict]:
    data, settings = SETS[name], PruneSettings()
    task = TaskSettings(
        data=str(given.folder / data.file), horizon=96, split=data.split, test_windows=given.windows
    )  # fmt: skip
    ready = prepare(task, ReadOptions(season=data.season, grid=data.grid))  # type: ignore[arg-type]
    base = adapted(ready, settings, Progress(quiet=True))
    rows = []
    for rounds in [0, *given.rounds]:
        model, repaired = base, base
        if rounds:
            model, repaired = (pruned(ready, base, replace(settings, rounds=rounds, repair=r)) for r in (False, True))
        row = {"rounds": rounds, "parameters": repaired.parameter_count()}
        row |= {"parameters_over_dense": row["parameters"] / base.parameter_count()}
        for label, one in (("cut", model), ("cut_and_repaired", repaired)):
            for part, windows in (("validation", ready.validation[0]), ("test", ready.test[0])):
                row[f"{label}_{part}_mse"] = measure(one, windows, ready.split).metrics["mse"]
        rows.append(row)
        print(name, row, flush=True)
    return rows


def pruned(ready, base, settings):  # type: ignore[no-untyped-def]
    schedule = Progressive(settings.ratio, settings.rounds, settings.ema, settings.prune_patience)
    outcome = prune(
        base, lambda number: ready.macro_batch(number, settings.prune_windows), ready.steering,
        score=settings.score, schedule=schedule, kinds=settings.units, rank=settings.rank, tolerance=EVERYTHING,
        seed=ready.task.seed, refit=settings.repair,
    )  # fmt: skip
    return slim(outcome.model, outcome.best.kept)


if __name__ == "__main__":
    main()
