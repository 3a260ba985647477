"""Zero-shot forecasts of a model against seasonal naive on the seven long-horizon sets.

python benchmarks/zero_shot.py FOLDER [--model mini] [--horizon 96] [--windows 5000]
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

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
    for name in SETS:
        rows[name] = one(given.folder, name, given.model, given.horizon, given.windows)
        print(line(name, rows[name]), flush=True)
    facts = {name: rows["ETTh1"][name] for name in ("fingerprint", "context")}
    machine = machine_line(threads=torch.get_num_threads())
    print(summary(rows))
    write_json(
        given.out,
        {"model": given.model, "horizon": given.horizon, **facts, "machine": machine, "sets": rows, **summary(rows)},
    )


def one(folder: Path, name: str, model: str, horizon: int, most: int) -> dict[str, Any]:
    """Errors of a model and of seasonal naive on one set, and their ratios."""
    data = SETS[name]
    task = TaskSettings(
        data=str(folder / data.file), model=model, horizon=horizon, split=data.split, test_windows=most
    )  # fmt: skip
    ready = prepare(task, ReadOptions(season=data.season, grid=data.grid))  # type: ignore[arg-type]
    windows, stride = ready.test
    own = measure(ready.model, windows, ready.split).metrics
    naive = measure(SeasonalNaive(ready.panel.season()), windows, ready.split).metrics
    return {
        "windows": len(windows),
        "stride": stride,
        "context": ready.split.context,
        "fingerprint": fingerprint(ready.model),
        "model": dict(own),
        "seasonal_naive": dict(naive),
        "ratio": {key: own[key] / naive[key] for key in ("mse", "mae")},  # type: ignore[literal-required]
    }


def line(name: str, row: dict[str, Any]) -> str:
    own, naive, ratio = row["model"], row["seasonal_naive"], row["ratio"]
    shown = [f"{key.upper()} {own[key]:.3f} / {naive[key]:.3f} = {ratio[key]:.3f}" for key in ("mse", "mae")]
    return f"{name:<21} {'   '.join(shown)}   {row['windows']} windows"


def summary(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Geometric means of the ratios over the sets, and on how many the model is better."""
    found: dict[str, float] = {}
    for key in ("mse", "mae"):
        ratios = [row["ratio"][key] for row in rows.values()]
        found[f"geometric_mean_{key}_ratio"] = math.exp(sum(map(math.log, ratios)) / len(ratios))
        found[f"wins_{key}"] = sum(ratio < 1 for ratio in ratios)
    return found


if __name__ == "__main__":
    main()
