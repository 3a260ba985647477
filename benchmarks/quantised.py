"""What do integers of 8 to 3 bits cost a model in accuracy, and what does restoring mean and variance give back?

    python benchmarks/quantised.py FOLDER [--model mini] [--horizon 96] [--windows 400]

Weights are rounded with plain scales, with the correction of channels whose mean output moves less for it (as the form
`quantised` does), and with all channels corrected. Training windows say which channels those are; the errors are of
evenly spread test windows, which steer nothing. Sizes are those of `model.safetensors` with one width alone.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from long_horizon import SETS, folder_argument, require

from tsprune.data.reading import ReadOptions
from tsprune.evaluation.evaluate import measure
from tsprune.evaluation.machine import load_average, machine_line, versions
from tsprune.exports._export import Request
from tsprune.exports._rounding import CORRECTIONS
from tsprune.exports.quantised import EXPORT, USUAL
from tsprune.models import fingerprint, load
from tsprune.models._forecaster import Forecaster
from tsprune.preparing import Prepared, prepare
from tsprune.progress import Progress
from tsprune.settings import TaskSettings
from tsprune.stages import write_json

CALIBRATION = 64


def one(ready: Prepared, folder: Path) -> dict[str, Any]:
    """Errors of the model and of every width and correction on one set."""
    windows = ready.train.windows
    draw = np.random.default_rng(0)
    chosen = np.sort(windows.sample(min(CALIBRATION, len(windows)), draw))
    batches = [ready.train.batch(chosen)]
    found: dict[str, Any] = {"full": errors(ready, ready.model), "windows": len(ready.test[0])}
    for correction in CORRECTIONS:
        out = folder / correction
        out.mkdir()
        options = {"bits": USUAL, "correction": correction}
        told = EXPORT.write(
            Request(ready.model, ready.task.model, out, batches, ready.horizon, Progress(quiet=True), options)
        )
        cells = {}
        for bits, facts in told["widths"].items():
            own = errors(ready, load(out, bits=int(bits)))
            ratio = {f"{key}_ratio": round(own[key] / found["full"][key], 5) for key in own}
            shown = {key: round(facts["written"][key], 6) for key in ("weight_error", "mean_shift", "corrected")}
            cells[bits] = {**own, **ratio, **shown, "bytes_alone": facts["bytes_alone"]}
            print(f"  {correction:<13} {bits} bits: MSE {own['mse']:.4f}, {ratio['mse_ratio']:.4f} of full", flush=True)
        found[correction] = cells
        found["bytes"] = {"full": told["bytes_before"], "several_widths": told["files"]["model.safetensors"]}
        found["quantised"] = told["quantised"]
    return found


def errors(ready: Prepared, model: Forecaster) -> dict[str, float]:
    """MSE and MAE on the test windows."""
    metrics = measure(model, ready.test[0], ready.split).metrics
    return {key: round(metrics[key], 6) for key in ("mse", "mae")}  # type: ignore[literal-required]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder_argument(parser)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--horizon", type=int, default=96)
    parser.add_argument("--windows", type=int, default=400, help="test windows per set, evenly spread")
    parser.add_argument("--sets", nargs="+", default=["ETTh1", "ETTm2"], choices=list(SETS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "quantised.json")
    given = parser.parse_args()
    require(given.folder, given.sets)
    torch.set_num_threads(1)
    found = {}
    for name in given.sets:
        data = SETS[name]
        task = TaskSettings(
            data=str(given.folder / data.file), model=given.model, horizon=given.horizon, split=data.split,
            test_windows=given.windows, threads=1,
        )  # fmt: skip
        ready = prepare(task, ReadOptions(season=data.season, grid=data.grid))  # type: ignore[arg-type]
        print(name, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            found[name] = {"fingerprint": fingerprint(ready.model), **one(ready, Path(folder))}
    write_json(
        given.out,
        {
            "question": "What do integers of 8 to 3 bits cost, and what does restoring mean and variance give back?",
            "model": given.model,
            "horizon": given.horizon,
            "calibration_windows": CALIBRATION,
            "sets": found,
            "machine": machine_line(busy=load_average() > 1.5, threads=1),
            "versions": versions(),
        },
    )


if __name__ == "__main__":
    main()
