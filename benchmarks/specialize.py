"""`tsprune specialize` on long-horizon sets: candidates' tables, wall time of each stage, averages over the sets.

python benchmarks/specialize.py FOLDER [--sets ETTh1 ETTh2 ETTm1 electricity_7clients] [--runs DIR]

A run directory per set and seed makes it resumable.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path

from long_horizon import SETS, folder_argument, require

from tsprune.data.reading import ReadOptions
from tsprune.preparing import prepare
from tsprune.progress import Progress
from tsprune.report import results_text
from tsprune.settings import FinetuneSettings, PruneSettings, TaskSettings
from tsprune.specializing import Specialization
from tsprune.stages import write_json

DEFAULT_SETS = ["ETTh1", "ETTh2", "ETTm1", "electricity_7clients"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder_argument(parser)
    parser.add_argument("--sets", nargs="+", default=DEFAULT_SETS, choices=list(SETS))
    parser.add_argument("--model", default="mini")
    parser.add_argument("--horizon", type=int, default=96)
    parser.add_argument("--label", default="", help="name of the model in the results, instead of --model")
    parser.add_argument("--head-steps", type=int, default=0, help="tune the head so long first, at 1e-3")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--windows", type=int, default=TaskSettings.test_windows)
    parser.add_argument(
        "--runs", type=Path, default=None, help="where run directories are kept; default: a temporary one"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "specialize.json")
    given = parser.parse_args()
    require(given.folder, given.sets)
    runs = given.runs or Path(tempfile.mkdtemp(prefix="tsprune-benchmark-"))
    found = []
    for seed in given.seeds:
        for name in given.sets:
            results = one(given, name, seed, runs / f"{name}-{seed}", FinetuneSettings())
            found.append({"set": name, **results})
            print(f"\n{name}, seed {seed}\n{results_text(results, 100)}\n{results['verdict']}\n", flush=True)
            told = {"model": given.label or given.model, "horizon": given.horizon, "head_steps": given.head_steps}
            write_json(given.out, {**told, "summary": summary(found), "runs": found})
    print(summary(found))


def one(given: argparse.Namespace, name: str, seed: int, out: Path, tuning: FinetuneSettings) -> dict:
    data = SETS[name]
    task = TaskSettings(
        data=str(given.folder / data.file), model=given.model, horizon=given.horizon, split=data.split, seed=seed,
        threads=given.threads, test_windows=given.windows,
    )  # fmt: skip
    ready = prepare(task, ReadOptions(season=data.season, grid=data.grid))  # type: ignore[arg-type]
    head = PruneSettings(adapt_steps=given.head_steps, adapt_rate=1e-3, adapt_tuning="head")
    run = Specialization(ready, out, head if given.head_steps else PruneSettings(), tuning, Progress())
    results = json.dumps(dict(run.run().results))
    # Where the model lies on this machine says nothing to anybody else.
    named: dict = json.loads(results.replace(given.model, given.label)) if given.label else json.loads(results)
    return named


def summary(found: list[dict]) -> dict:
    """Geometric means over the runs of each candidate's test MSE and parameters over full fine-tuning's."""
    ratios: dict[str, dict[str, float]] = {}
    for name in ("seasonal_naive", "zero_shot", "random_prune_finetune", "prune_then_finetune"):
        mse, size = [], []
        for run in found:
            by_name = {c["name"]: c for c in run["candidates"]}
            full = by_name["full_finetuning"]
            mse.append(math.log(by_name[name]["test"]["mse"] / full["test"]["mse"]))
            size.append(by_name[name]["parameters"] / full["parameters"])
        ratios[name] = {
            "test_mse_over_full_finetuning": math.exp(sum(mse) / len(mse)),
            "parameters_over_full_finetuning": sum(size) / len(size),
        }
    return {"runs": len(found), **ratios}


if __name__ == "__main__":
    main()
