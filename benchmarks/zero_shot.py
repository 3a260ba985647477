"""Zero-shot forecasts of a model against seasonal naive on the seven long-horizon sets.

python benchmarks/zero_shot.py FOLDER [--model mini] [--horizon 96] [--windows 5000]
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from long_horizon import SETS, folder_argument, require

from tsprune.data.reading import ReadOptions
from tsprune.evaluation.baselines.seasonal_naive import SeasonalNaive
from tsprune.evaluation.evaluate import measure
from tsprune.evaluation.machine import machine_line
from tsprune.models import fingerprint
from tsprune.preparing import prepare
from tsprune.settings import TaskSettings
from tsprune.stages import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder_argument(parser)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--horizon", type=int, default=96)
    parser.add_argument(
        "--windows", type=int, default=5000, help="test windows at most per set, evenly spread; 0 = all"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "zero_shot.json")
    given = parser.parse_args()
    require(given.folder, list(SETS))
    rows = {}
    for name, data in SETS.items():
        task = TaskSettings(
            data=str(given.folder / data.file), model=given.model, horizon=given.horizon, split=data.split,
            test_windows=given.windows,
        )  # fmt: skip
        ready = prepare(task, ReadOptions(season=data.season, grid=data.grid))  # type: ignore[arg-type]
        windows, stride = ready.test
        model = measure(ready.model, windows, ready.split).metrics
        naive = measure(SeasonalNaive(ready.panel.season()), windows, ready.split).metrics
        rows[name] = {"windows": len(windows), "stride": stride, "model": dict(model), "seasonal_naive": dict(naive)}
        rows[name]["ratio"] = {key: model[key] / naive[key] for key in ("mse", "mae")}
        print(
            f"{name:<21} MSE {model['mse']:.3f} / {naive['mse']:.3f} = {rows[name]['ratio']['mse']:.3f}   "
            f"MAE {model['mae']:.3f} / {naive['mae']:.3f} = {rows[name]['ratio']['mae']:.3f}   {len(windows)} windows",
            flush=True,
        )
    summary = {
        "geometric_mean_mse_ratio": math.exp(sum(math.log(r["ratio"]["mse"]) for r in rows.values()) / len(rows)),
        "geometric_mean_mae_ratio": math.exp(sum(math.log(r["ratio"]["mae"]) for r in rows.values()) / len(rows)),
        "wins_mse": sum(r["ratio"]["mse"] < 1 for r in rows.values()),
        "wins_mae": sum(r["ratio"]["mae"] < 1 for r in rows.values()),
    }
    print(summary)
    write_json(
        given.out,
        {
            "model": given.model,
            "fingerprint": fingerprint(ready.model),
            "horizon": given.horizon,
            "context": ready.split.context,
            "machine": machine_line(threads=torch.get_num_threads()),
            "sets": rows,
            **summary,
        },
    )


if __name__ == "__main__":
    main()
