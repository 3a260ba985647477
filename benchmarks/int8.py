"""What does int8 cost in accuracy and give in time and bytes, and which choices make the difference?

    python benchmarks/int8.py FOLDER --work WORK [--models runs/pretrain] [--sets ETTh1 ETTm2]
    python benchmarks/int8.py FOLDER --work WORK --times

Each model is exported as `onnx_int8`, with ranges from 128 training windows and the bound held on 128 validation
windows; all errors are of evenly spread test windows, which steer nothing. Beside it: the same with a tenth of the
bound, ranges from drawn series, other ranges and rounding, and the dynamic quantisation of onnxruntime by default. The
graphs stay in WORK, so that `--times` can be run on a quiet machine: all of them in turn on one thread, with 1 and 16
windows; ratios are to the float32 graph, of processor time.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from long_horizon import SETS, folder_argument, require
from onnxruntime.quantization import calibrate, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process

from tsprune.data.batch import Batch
from tsprune.data.reading import ReadOptions
from tsprune.evaluation.cost import taking_turns, threads_set
from tsprune.evaluation.machine import load_average, machine_line, versions
from tsprune.exports._drawn import drawn_batches, drawn_calibration
from tsprune.exports._export import CALIBRATION, Request
from tsprune.exports._integers import Grid, in_int8
from tsprune.exports._products import Graph
from tsprune.exports._ranges import observe
from tsprune.exports.onnx import EXPORT as FLOAT32
from tsprune.exports.onnx import outputs
from tsprune.exports.onnx_int8 import BOUND, Judge, from_float32
from tsprune.models import fingerprint, load
from tsprune.preparing import Prepared, prepare
from tsprune.progress import Progress
from tsprune.settings import TaskSettings
from tsprune.stages import read_json, write_json

OWN = {"chronos_bolt": "chronos_bolt", "timer_xl": "timer_xl", "ttm": "ttm"}
BUNDLED = ("mini", "mini-moe")
JUDGING, WATCHED, ROWS = 128, 64, 16
TIMED = ("float32", "int8", "tight", "plain", "dynamic, same products", "ends too")


def graphs_of(ready: Prepared, folder: Path, whole: Path, brief: bool) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Facts of the exports, and every graph that is compared."""
    model, horizon = ready.model, ready.horizon
    fitting, judging = rows(ready.train.windows, CALIBRATION), rows(ready.validation[0], JUDGING)
    facts: dict[str, Any] = {}
    graphs = {"float32": (whole / "model.onnx").read_bytes()}
    drawn = drawn_calibration(model.context_length, horizon), drawn_batches(JUDGING, model.context_length, horizon)
    for name, calibration, batches, bound in (
        ("int8", fitting, judging, BOUND),
        ("tight", fitting, judging, BOUND / 10),
        ("drawn", *drawn, BOUND),
    ):
        if brief and name == "tight":
            continue
        out = folder / name
        out.mkdir(parents=True, exist_ok=True)
        options = {"error_bound": bound}
        request = Request(
            model, ready.task.model, out, batches, horizon, Progress(quiet=True), options, calibration, "training"
        )
        found = from_float32(request, whole)
        facts[name] = {"products": found["products"], "error": found["error"], "elsewhere": found["other_contexts"]}
        graphs[name] = (out / "model.onnx").read_bytes()
    return facts, graphs | (by_default(whole, folder) if brief else variants(graphs["float32"], fitting, folder))


def by_default(whole: Path, folder: Path) -> dict[str, bytes]:
    """The library's dynamic quantisation as it is."""
    quantize_dynamic(whole / "model.onnx", folder / "plain.onnx")
    return {"plain": (folder / "plain.onnx").read_bytes()}


def variants(content: bytes, fitting: list[Batch], folder: Path) -> dict[str, bytes]:
    """The same products by other ranges and rounding, and by the library's dynamic quantisation."""
    graph = Graph(onnx.load_from_string(content))
    contexts = [batch.context.float().numpy() for batch in fitting]
    observed = observe(graph, contexts)
    ends = [one for one in graph.products if one.fixed and all(name in observed.grids for name in one.inputs)]
    free = [one.name for one in graph.products if not one.fixed and all(name in observed.grids for name in one.inputs)]
    made = {
        "no shifts": in_int8(graph, free, observed.grids),
        "one scale per weight": in_int8(graph, free, observed.grids, per_channel=False),
        "ends too": in_int8(graph, [*free, *(one.name for one in ends)], observed.grids, observed.shifts),
    }
    for name, grids in other_grids(graph, np.concatenate(contexts)[:WATCHED]).items():
        made[name] = in_int8(graph, free, observed.grids | grids)
    found = {name: one.SerializeToString() for name, one in made.items()}
    source, ready, made_dynamic = (folder / f"{name}.onnx" for name in ("float32", "preprocessed", "dynamic"))
    source.write_bytes(content)
    # Some weights are turned in the graph; the library takes them for weights only once that is folded.
    quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
    nodes = [node for one in graph.products if one.name in free for node in one.nodes]
    quantize_dynamic(source, made_dynamic)
    found["plain"] = made_dynamic.read_bytes()
    quantize_dynamic(ready, made_dynamic, per_channel=True, nodes_to_quantize=nodes)
    found["dynamic, same products"] = made_dynamic.read_bytes()
    return found


def other_grids(graph: Graph, context: Any) -> dict[str, dict[str, Grid]]:
    """Ranges by percentiles and by entropy, as the library computes them."""
    run = outputs(graph.watched().SerializeToString(), graph.inputs)
    values = {name: found for name, found in zip(graph.inputs, run(context), strict=True) if found.size}
    ways = {
        "percentile 99.9": ("percentile", 99.9),
        "percentile 99.99": ("percentile", 99.99),
        "entropy": ("entropy", 0),
    }
    found = {}
    for way, (method, percentile) in ways.items():
        collector = calibrate.HistogramCollector(method, False, 2048, 128, percentile, "same")
        with contextlib.redirect_stdout(io.StringIO()):
            collector.collect({name: [one] for name, one in values.items()})
            ranges = collector.compute_collection_result()
        found[way] = {name: Grid.of(*map(float, ranges[name][:2])) for name in values}
    return found


def rows(windows: Any, most: int) -> list[Batch]:
    """At most so many windows, evenly spread, a few at a time."""
    return [batch for _, batch in windows.thin(most)[0].batches(ROWS)]


def beside(content: bytes, batch: Batch) -> float:
    """How far a forecast moves when another series, a hundred times as rough, is in the same batch."""
    run = outputs(content, ["quantiles"])
    context = batch.context.float().numpy()[:1]
    spike = context.copy()
    spike[:, ::7] += 100 * context.std()
    (alone,), (together,) = run(context), run(np.concatenate([context, spike]))
    return float(np.abs(together[:1] - alone).max() / alone.std())


def one(ready: Prepared, folder: Path, whole: Path, brief: bool) -> dict[str, Any]:
    """Errors of all graphs on the test windows of one set."""
    facts, graphs = graphs_of(ready, folder, whole, brief)
    tests = rows(ready.test[0], len(ready.test[0]))
    judge = Judge.of(tests, ready.model.levels, whole / "model.onnx")
    cells = {}
    for name, content in graphs.items():
        (folder / f"{name.replace(' ', '_').replace(',', '')}.graph").write_bytes(content)
        errors = judge.errors(content)
        cells[name] = {key: round(value, 5) for key, value in errors.items()}
        cells[name] |= {"beside": round(beside(content, tests[0]), 6), "bytes": len(content)}
        print(f"  {name:<24} MSE {errors['mse_ratio']:.4f} moved {errors['moved']:.5f}", flush=True)
    return {"test_windows": len(ready.test[0]), "exports": facts, "test": cells}


def timed(folder: Path, batch: Batch, repeats: int) -> dict[str, Any]:
    """Processor time over that of the float32 graph, medians of turns."""
    context = batch.context.float().numpy()
    found: dict[str, Any] = {}
    with threads_set(1):
        named = {name: folder / f"{name.replace(' ', '_').replace(',', '')}.graph" for name in TIMED}
        named = {name: path for name, path in named.items() if path.exists()}
        runs = {name: outputs(path.read_bytes(), ["quantiles"]) for name, path in named.items()}
        for count in (1, ROWS):
            given = np.resize(context, (count, context.shape[1]))
            times = taking_turns({name: partial(run, given) for name, run in runs.items()}, repeats)
            base = times["float32"].cpu_ms
            found[str(count)] = {name: round(one.cpu_ms / base, 3) for name, one in times.items()}
            found[str(count)]["busy"] = any(one.busy for one in times.values())
    return found


def prepared(model: str, name: str, folder: Path, horizon: int, windows: int) -> Prepared:
    """Model and data."""
    data = SETS[name]
    task = TaskSettings(
        data=str(folder / data.file), model=model, horizon=horizon, split=data.split, test_windows=windows, threads=1
    )
    return prepare(task, ReadOptions(season=data.season, grid=data.grid))  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder_argument(parser)
    parser.add_argument("--work", type=Path, required=True, help="folder for the graphs")
    parser.add_argument("--models", type=Path, default=Path("runs/pretrain"), help="a folder for each family")
    parser.add_argument("--only", nargs="+", default=[*BUNDLED, *OWN], choices=[*BUNDLED, *OWN])
    parser.add_argument("--sets", nargs="+", default=["ETTh1", "ETTm2"], choices=list(SETS))
    parser.add_argument("--horizon", type=int, default=96)
    parser.add_argument("--windows", type=int, default=400, help="test windows per set, evenly spread")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--brief", action="store_true", help="the exports and the library's default alone")
    parser.add_argument("--times", action="store_true", help="time the graphs that an earlier run left in --work")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "int8.json")
    given = parser.parse_args()
    require(given.folder, given.sets)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    content = read_json(given.out) if given.out.exists() else {}
    models = content.setdefault("models", {})
    for model in given.only:
        source = str(given.models / OWN[model] / "model") if model in OWN else model
        whole = given.work / model / "float32"
        for name in given.sets:
            ready = prepared(source, name, given.folder, given.horizon, given.windows)
            print(model, name, flush=True)
            if given.times:
                batch = rows(ready.test[0], ROWS)[0]
                models[model]["sets"][name]["times"] = timed(given.work / model / name, batch, given.repeats)
                print(models[model]["sets"][name]["times"], flush=True)
            else:
                if not (whole / "model.onnx").exists():
                    whole.mkdir(parents=True)
                    batches = drawn_batches(8, ready.model.context_length, given.horizon)
                    FLOAT32.write(Request(ready.model, source, whole, batches, given.horizon, Progress(quiet=True)))
                own = models.setdefault(model, {"fingerprint": fingerprint(load(source)), "sets": {}})
                own["parameters"] = ready.model.parameter_count()
                own["sets"][name] = one(ready, given.work / model / name, whole, given.brief)
            content |= {"horizon": given.horizon, "bound": BOUND, "calibration_windows": CALIBRATION}
            content |= {"validation_windows": JUDGING, "versions": versions(("onnx", "onnxruntime"))}
            content["timing" if given.times else "machine"] = machine_line(busy=load_average() > 1.5, threads=1)
            write_json(given.out, content)


if __name__ == "__main__":
    main()
