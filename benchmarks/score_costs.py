"""What do every score, choosing and cutting cost, in units of one forward pass over the same windows?

    OMP_NUM_THREADS=1 python benchmarks/score_costs.py [--rounds 3] [--shapes bolt_small mini]

At the Chronos-Bolt-small shape with random weights, and on the bundled model; one thread. A scoring is of three batches
(a run scores eight), so that what is done once for a scoring counts as it does there. In every round the forward pass
and all scores take turns, so that a neighbour on the machine hits all of them; each ratio is of neighbours in time.
Ablation and stable rank are several passes by definition and timed on a single batch, once. Marks: fisher at most 2.2
forward passes, scores without a backward pass at most 1.15, cutting under a second. Memory is the peak of a process of
its own: at most 1.2 times that of a forward pass, which keeps its graph where the score goes backward too. Linux only.
Exits with 1 when a mark is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tsprune.data.batch import Batch
from tsprune.evaluation.machine import cpu_seconds_of_others, machine_line, versions
from tsprune.models import load
from tsprune.models._forecaster import Forecaster
from tsprune.models.chronos_bolt import ChronosBolt
from tsprune.pruning import parameters_to_reach
from tsprune.registry import find, names
from tsprune.slimming import slim
from tsprune.stages import write_json

MOST_FORWARD_PASSES = 2.2
MOST_FORWARD_ONLY = 1.15
MOST_SECONDS_TO_CUT = 1.0
MOST_MEMORY = 1.2
CONTEXT, HORIZON = 512, 64
# Windows in a batch; scoring takes 64, a model of 48 M parameters keeps a core busy with fewer.
ROWS = {"bolt_small": 16}
USUAL_ROWS = 64
BATCHES = 3
# One pass per unit, or two per attention: by definition not a single pass.
SEVERAL_PASSES = ("ablation", "stable_rank")
HERE = Path(__file__).resolve().parent


def bolt_small(heads: int = 8, hidden: int = 2048) -> ChronosBolt:
    """The shape of amazon/chronos-bolt-small with random weights, or with fewer heads and feed-forward channels."""
    torch.manual_seed(0)
    section = {"context_length": CONTEXT, "input_patch_size": 16, "input_patch_stride": 16, "use_reg_token": True}
    section |= {"prediction_length": HORIZON, "quantiles": [k / 10 for k in range(1, 10)]}
    config = {"d_model": 512, "d_kv": 64, "num_heads": heads, "d_ff": hidden, "num_layers": 6, "num_decoder_layers": 6}
    return ChronosBolt({**config, "feed_forward_proj": "relu", "chronos_config": section}).eval()


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of processor time of this process, and of wall time."""
    processor, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - processor, time.perf_counter() - wall


def summary(values: list[float]) -> dict[str, float]:
    q1, median, q3 = np.quantile(values, (0.25, 0.5, 0.75))
    found = {"median": median, "q1": q1, "q3": q3, "min": min(values), "max": max(values)}
    return {name: round(float(value), 5) for name, value in found.items()}


def resident(field: str) -> float:
    """`VmRSS` (now) or `VmHWM` (highest) of this process in MiB; Linux only."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"/proc/self/status has no {field}; memory can be measured on Linux only")


def cutting(name: str, repeats: int = 5) -> dict[str, Any]:
    """Choosing what stays of half the parameters by one global ranking, and cutting the rest out."""
    model, _ = shape(name)
    values = find("tsprune.scores", "random").scores(model, [], kinds=("head", "ffn_channel"), seed=1)
    goal = model.parameter_count() // 2
    kept = parameters_to_reach(model, values, goal)
    choosing = [timed(lambda: parameters_to_reach(model, values, goal)) for _ in range(repeats)]
    taken = [timed(lambda: slim(model, kept)) for _ in range(repeats)]
    return {
        "units": sum(len(v) for v in values.values()),
        "parameters_before": model.parameter_count(),
        "parameters_after": slim(model, kept).parameter_count(),
        "choosing_wall_seconds": summary([wall for _, wall in choosing]),
        "cutting_wall_seconds": summary([wall for _, wall in taken]),
    }


def shape(name: str) -> tuple[Forecaster, Batch]:
    model = bolt_small() if name == "bolt_small" else load(name)
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(ROWS.get(name, USUAL_ROWS), CONTEXT + HORIZON, generator=draw)
    return model.eval(), Batch(values[:, :CONTEXT].contiguous(), values[:, CONTEXT:].contiguous())


def scorable(model: Forecaster) -> dict[str, tuple[str, ...]]:
    """Scores that fit the model, with the kinds they are timed on."""
    have = {group.kind for group in model.unit_groups().values()}
    found = {}
    for score in names("tsprune.scores"):
        able = getattr(find("tsprune.scores", score), "KINDS", ("head", "ffn_channel"))
        kinds = tuple(kind for kind in able if kind in have)
        if kinds:
            found[score] = ("attention",) if score == "ablation" else kinds
    return found


def passes(model: Forecaster, windows: Batch, batches: int) -> dict[str, Callable[[], object]]:
    """Forward passes without and with a graph, ordinary backward passes, and every score, over so many batches."""

    def forward() -> None:
        with torch.no_grad():
            for _ in range(batches):
                model.loss(windows)

    def graph() -> None:
        for _ in range(batches):
            model.loss(windows).sum()

    def backward() -> None:
        for _ in range(batches):
            model.zero_grad(set_to_none=True)
            model.loss(windows).sum().backward()
            model.zero_grad(set_to_none=True)

    found: dict[str, Callable[[], object]] = {"forward": forward, "forward with graph": graph, "backward": backward}
    for score, kinds in scorable(model).items():
        module = find("tsprune.scores", score)
        given = [windows] * (1 if score in SEVERAL_PASSES else batches)
        found[score] = partial(module.scores, model, given, kinds=kinds, seed=0)
    return found


def times(name: str, rounds: int) -> dict[str, Any]:
    model, windows = shape(name)
    works = passes(model, windows, BATCHES)
    seconds: dict[str, list[tuple[float, float]]] = {key: [] for key in works}
    for number in range(rounds + 1):
        for key, work in works.items():
            if key in SEVERAL_PASSES and number != 1:
                continue
            taken = timed(work)
            if number:  # The first round warms up.
                seconds[key].append(taken)
    found: dict[str, Any] = {}
    for key, values in seconds.items():
        row: dict[str, Any] = {"cpu_seconds": summary([cpu for cpu, _ in values])}
        if key != "forward":
            for place, clock in ((0, "cpu"), (1, "wall")):
                share = BATCHES if key in SEVERAL_PASSES else 1
                ratios = [share * a[place] / b[place] for a, b in zip(values, seconds["forward"], strict=False)]
                row[f"over_forward_{clock}"] = summary(ratios)
        if key in names("tsprune.scores"):
            row["needs"] = find("tsprune.scores", key).NEEDS
        found[key] = row
    units = sum(g.units for g in model.unit_groups().values() if g.kind == "attention")
    if "ablation" in found:
        found["ablation"]["passes"] = units + 1
        found["ablation"]["over_forward_cpu_per_pass"] = found["ablation"]["over_forward_cpu"]["median"] / (units + 1)
    return found


def own_memory(name: str, key: str) -> dict[str, float]:
    """In this fresh process: resident memory with the model loaded, and the peak during a second pass of one kind."""
    model, windows = shape(name)
    work = passes(model, windows, 1)[key]
    before = resident("VmRSS")
    for _ in range(2):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        work()
    return {"loaded_mib": round(before, 1), "peak_mib": round(resident("VmHWM"), 1)}


def memory(name: str) -> dict[str, dict[str, float]]:
    """Peak of each kind of pass in a process of its own, and over that of a forward pass."""
    found = {}
    for key in passes(*shape(name), 1):
        command = [sys.executable, str(Path(__file__).resolve()), "--memory-of", name, key]
        found[key] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for entry in found.values():
        for reference in ("forward", "forward with graph"):
            ratio = entry["peak_mib"] / found[reference]["peak_mib"]
            entry[f"peak_over_{reference.replace(' ', '_')}"] = round(ratio, 3)
    return found


def marks(name: str, costs: dict[str, Any], peaks: dict[str, Any], cuts: dict[str, Any]) -> list[dict[str, Any]]:
    """What must hold; peaks of scores with a backward pass are held against a forward pass that keeps its graph."""
    seconds = cuts["cutting_wall_seconds"]["median"]
    found = [{"mark": f"{name}: seconds to cut", "value": seconds, "at_most": MOST_SECONDS_TO_CUT}]
    for score, row in costs.items():
        ratio = row.get("over_forward_cpu", {}).get("median")
        if score == "fisher":
            found.append({"mark": f"{name}: fisher over forward", "value": ratio, "at_most": MOST_FORWARD_PASSES})
        elif row.get("needs") == "forward" and score not in SEVERAL_PASSES:
            found.append({"mark": f"{name}: {score} over forward", "value": ratio, "at_most": MOST_FORWARD_ONLY})
        if "needs" in row:
            key = "peak_over_forward_with_graph" if row["needs"] == "backward" else "peak_over_forward"
            said = f"{name}: peak memory of {score}, {key.removeprefix('peak_').replace('_', ' ')}"
            found.append({"mark": said, "value": peaks[score][key], "at_most": MOST_MEMORY})
    return [mark | {"pass": mark["value"] <= mark["at_most"]} for mark in found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shapes", nargs="+", default=["bolt_small", "mini"], help="bolt_small, mini or a directory")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "score_costs.json")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.memory_of:
        print(json.dumps(own_memory(*given.memory_of)))
        return 0
    started, others = time.monotonic(), cpu_seconds_of_others()
    costs = {name: times(name, given.rounds) for name in given.shapes}
    now = cpu_seconds_of_others()
    busy = others is None or now is None or (now - others) / (time.monotonic() - started) > (os.cpu_count() or 1) / 2
    peaks = {name: memory(name) for name in given.shapes}
    cuts = {name: cutting(name) for name in given.shapes}
    held = [mark for name in given.shapes for mark in marks(name, costs[name], peaks[name], cuts[name])]
    report = {
        "question": "What do every score, choosing and cutting cost, in forward passes over the same windows?",
        "batch": {name: ROWS.get(name, USUAL_ROWS) for name in given.shapes},
        "batches": BATCHES,
        "context": CONTEXT,
        "horizon": HORIZON,
        "rounds": given.rounds,
        "shapes": {name: {"times": costs[name], "memory": peaks[name], "cut": cuts[name]} for name in given.shapes},
        "marks": held,
        "pass": all(mark["pass"] for mark in held),
        "machine": machine_line(busy=busy, threads=1),
        "versions": versions(),
    }
    write_json(given.out, report)
    for name in given.shapes:
        for key, row in costs[name].items():
            ratio = row.get("over_forward_cpu", {}).get("median", 1.0)
            peak = peaks[name][key]
            print(f"{name:<12} {key:<20} {ratio:>7.2f} x forward {peak['peak_mib']:>8.0f} MiB {row.get('needs', '')}")
    for mark in held:
        if not mark["pass"]:
            print(f"missed: {mark['mark']} {mark['value']:.3f}, at most {mark['at_most']}")
    print(report["machine"])
    return 0 if report["pass"] else 1


if __name__ == "__main__":
    sys.exit(main())
