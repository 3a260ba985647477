"""Latency of a network of Chronos-Bolt small's sizes by torch and by onnxruntime, dense and at half the operations.

python benchmarks/onnx_latency.py [--rounds 40] [--context 512] [--channels 928]

Half of the heads go, and hidden channels down to --channels of 2048, from all layers alike. With 1024 slightly more
than half of the operations are left, since embedding and output stay whole; with 928 it is half. Weights are random,
which times do not see.
The four runs take turns on one thread; medians of processor time, so that other programs on the machine weigh less.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tsprune.data.batch import Batch
from tsprune.evaluation.cost import flops
from tsprune.evaluation.machine import machine_line
from tsprune.exporting import export
from tsprune.exports._drawn import drawn_batches
from tsprune.exports.onnx import session
from tsprune.models._forecaster import Forecaster
from tsprune.models.chronos_bolt import ChronosBolt
from tsprune.progress import Progress
from tsprune.slimming import slim
from tsprune.stages import write_json

HORIZON = 64
CONFIG: dict[str, Any] = {
    "architectures": ["ChronosBoltModelForForecasting"],
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_decoder_layers": 6,
    "num_heads": 8,
    "feed_forward_proj": "relu",
    "chronos_config": {
        "context_length": 2048,
        "prediction_length": HORIZON,
        "input_patch_size": 16,
        "input_patch_stride": 16,
        "quantiles": [level / 10 for level in range(1, 10)],
        "use_reg_token": True,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--channels", type=int, default=928)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "onnx_latency.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dense = ChronosBolt.from_config(CONFIG).eval()
    models = {"dense": dense, "slim": cut(dense, given.channels)}
    costs = {name: flops(model, given.context, HORIZON) for name, model in models.items()}
    with tempfile.TemporaryDirectory() as folder:
        graphs = {name: graph(model, Path(folder) / name) for name, model in models.items()}
        rows = {rows: timed(models, graphs, rows, given.context, given.rounds) for rows in given.batches}
    found = {
        "context": given.context,
        "channels": given.channels,
        "horizon": HORIZON,
        "rounds": given.rounds,
        "flops": costs | {"ratio": costs["slim"] / costs["dense"]},
        "parameters": {name: model.parameter_count() for name, model in models.items()},
        "milliseconds": {str(count): times for count, times in rows.items()},
        "ratios": {str(count): ratios(times) for count, times in rows.items()},
        "machine": machine_line(threads=1),
    }
    print(found)
    write_json(given.out, found)


def cut(model: Forecaster, channels: int) -> Forecaster:
    """Half of the heads of all layers, and so many hidden channels of each."""
    stay = {"head": lambda units: units // 2, "ffn_channel": lambda units: channels}
    kept = {
        name: list(range(stay[group.kind](group.units)))
        for name, group in model.unit_groups().items()
        if group.kind in stay
    }
    return slim(model, kept)


def graph(model: Forecaster, out: Path) -> Callable[..., Any]:
    """The model as a written graph that was compared with it."""
    batches = drawn_batches(16, model.context_length, HORIZON)
    progress = Progress()
    export(model, "onnx", out, source="random", batches=batches, horizon=HORIZON, progress=progress)
    return session(out / "model.onnx")


def timed(
    models: dict[str, Forecaster], graphs: dict[str, Callable[..., Any]], rows: int, context: int, rounds: int
) -> dict[str, float]:
    """Median processor time in milliseconds of the four runs, which take turns."""
    x = torch.randn(rows, context)
    runs: dict[str, Callable[[], Any]] = {}
    for name in models:
        runs[f"torch {name}"] = lambda name=name: models[name].forecast(Batch(x), HORIZON)  # type: ignore[misc]
        runs[f"onnx {name}"] = lambda name=name: graphs[name](x.numpy())  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 3):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if turn >= 3:
                times[name].append(1000 * (time.process_time() - start))
    return {name: statistics.median(found) for name, found in times.items()}


def ratios(times: dict[str, float]) -> dict[str, float]:
    """Slim over dense for both, and onnxruntime over torch for both models."""
    return {
        "torch slim / dense": times["torch slim"] / times["torch dense"],
        "onnx slim / dense": times["onnx slim"] / times["onnx dense"],
        "onnx / torch, dense": times["onnx dense"] / times["torch dense"],
        "onnx / torch, slim": times["onnx slim"] / times["torch slim"],
    }


if __name__ == "__main__":
    main()
