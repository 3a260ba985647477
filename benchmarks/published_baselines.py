"""Linear baselines against their published errors, and statistical ones against the library itself, on ETTh1.

python benchmarks/published_baselines.py FOLDER
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from long_horizon import SETS, folder_argument, require

from tsprune.data.reading import read
from tsprune.data.split import Split
from tsprune.evaluation import baselines
from tsprune.evaluation.evaluate import measure
from tsprune.evaluation.machine import machine_line
from tsprune.stages import write_json

CONTEXT, HORIZON, WINDOWS = 336, 96, 21
# Zeng et al., arXiv 2205.13504, table 2: MSE on all test windows at a context of 336.
PUBLISHED = {"nlinear": 0.374, "dlinear": 0.375}
LIBRARY = {"seasonal_naive": "SeasonalNaive", "auto_ets": "AutoETS", "auto_theta": "AutoTheta"}
WITHIN, EQUAL = 0.03, 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    folder_argument(parser)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/published_baselines.json"))
    given = parser.parse_args()
    require(given.folder, ["ETTh1"])
    split = Split.make(read(given.folder / SETS["ETTh1"].file), HORIZON, CONTEXT, "etth")
    linear = {name: against_paper(split, name) for name in PUBLISHED}
    statistical = {name: against_library(split, name) for name in LIBRARY}
    for name, row in linear.items():
        print(f"{name}: MSE {row['mse']:.4f}, published {row['published']}, {row['apart']:+.1%}")
    for name, row in statistical.items():
        print(f"{name}: at most {row['apart']:.1e} standard deviations from statsforecast on {WINDOWS} windows")
    facts = {"set": "ETTh1", "context": CONTEXT, "horizon": HORIZON}
    machine = machine_line(threads=torch.get_num_threads())
    write_json(given.out, facts | {"machine": machine, "linear": linear, "statistical": statistical})
    missed = [name for name, row in linear.items() if abs(row["apart"]) > WITHIN]
    if missed := missed + [name for name, row in statistical.items() if row["apart"] > EQUAL]:
        sys.exit(f"error: not within the marks ({WITHIN:.0%} and {EQUAL:g}): {', '.join(missed)}")


def against_paper(split: Split, name: str) -> dict[str, Any]:
    """Error over every test window of every series, beside the published one."""
    started = time.perf_counter()
    model = baselines.fit([name], split, split.panel.season())[name]
    seconds = time.perf_counter() - started
    found = measure(model, split.test(), split)
    mse = found.metrics["mse"] or float("nan")
    return {
        **found.metrics,
        "published": PUBLISHED[name],
        "apart": mse / PUBLISHED[name] - 1,
        "fit_seconds": round(seconds, 2),
        "notes": list(found.notes),
    }


def against_library(split: Split, name: str) -> dict[str, Any]:
    """The largest difference to the library's own forecast of the same values in the units of the data."""
    from statsforecast import models

    season, test = split.panel.season(), split.test()
    chosen = np.unique(np.linspace(0, len(test) - 1, WINDOWS).astype(int))
    levels = (0.5,) if name == "seasonal_naive" else (0.1, 0.5, 0.9)
    batch, series = test.batch(chosen), test.target_series(chosen)
    found = baselines.fit([name], split, season)[name].forecast(batch, HORIZON, levels).double().numpy()
    mean, std = (values[series, 0][:, None, None] for values in (split.scaler.mean, split.scaler.std))
    worst = 0.0
    for row, values in enumerate(test.contexts(chosen).astype(np.float64)):
        made = getattr(models, LIBRARY[name])(season_length=season)
        expected = made.forecast(y=values, h=HORIZON, level=None if len(levels) == 1 else [80])
        point = expected["mean"]
        wanted = [point]
        if len(levels) > 1:
            wanted = [np.minimum(expected["lo-80"], point), point, np.maximum(expected["hi-80"], point)]
        worst = max(worst, float(np.abs(found[row] - (np.array(wanted) - mean[row]) / std[row]).max()))
    return {"windows": len(chosen), "apart": worst}


if __name__ == "__main__":
    main()
