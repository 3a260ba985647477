"""What scoring, choosing and cutting cost, in units of one forward pass, at the Chronos-Bolt-small shape.

    OMP_NUM_THREADS=1 python benchmarks/scoring_cost.py [--pairs 11] [--out benchmarks/results/scoring_cost.json]

Random weights, one thread. Timings of the four kinds of pass take turns, so that a neighbour on the machine hits all
of them; each ratio is of neighbours in time. Exits with 1 when a pass mark is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tsprune.data.batch import Batch
from tsprune.evaluation.machine import cpu_seconds_of_others, machine_line, versions
from tsprune.models._forecaster import Forecaster
from tsprune.models.chronos_bolt import ChronosBolt
from tsprune.pruning import lowest, prunable_parameters
from tsprune.scores.fisher import scores
from tsprune.slimming import slim

MOST_FORWARD_PASSES = 2.2
MOST_SECONDS_TO_CUT = 1.0
ROWS, CONTEXT, HORIZON = 16, 512, 64
HERE = Path(__file__).resolve().parent


def bolt_small() -> ChronosBolt:
    """The shape of amazon/chronos-bolt-small with random weights."""
    torch.manual_seed(0)
    section = {"context_length": CONTEXT, "input_patch_size": 16, "input_patch_stride": 16, "use_reg_token": True}
    section |= {"prediction_length": HORIZON, "quantiles": [k / 10 for k in range(1, 10)]}
    config = {"d_model": 512, "d_kv": 64, "num_heads": 8, "d_ff": 2048, "num_layers": 6, "num_decoder_layers": 6}
    return ChronosBolt({**config, "feed_forward_proj": "relu", "chronos_config": section}).eval()


def batch() -> Batch:
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(ROWS, CONTEXT + HORIZON, generator=draw)
    return Batch(values[:, :CONTEXT].contiguous(), values[:, CONTEXT:].contiguous())


def forward(model: Forecaster, windows: Batch) -> None:
    with torch.no_grad():
        model.loss(windows)


def fisher(model: Forecaster, windows: Batch) -> None:
    scores(model, [windows])


def backward(model: Forecaster, windows: Batch) -> None:
    """An ordinary training step without the optimiser."""
    model.zero_grad(set_to_none=True)
    model.loss(windows).sum().backward()


PASSES: dict[str, Callable[[Forecaster, Batch], None]] = {"forward": forward, "fisher": fisher, "backward": backward}


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of processor time of this process, and of wall time."""
    processor, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - processor, time.perf_counter() - wall


def summary(values: list[float]) -> dict[str, float]:
    q1, median, q3 = np.quantile(values, (0.25, 0.5, 0.75))
    found = {"median": median, "q1": q1, "q3": q3, "min": min(values), "max": max(values)}
    return {name: round(float(value), 5) for name, value in found.items()}


def pass_times(model: Forecaster, windows: Batch, pairs: int) -> dict[str, object]:
    """Forward, score, backward, in turn."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in PASSES}
    for number in range(pairs + 2):
        for name, work in PASSES.items():
            taken = timed(lambda work=work: work(model, windows))  # type: ignore[misc]
            if number >= 2:
                seconds[name].append(taken)
        model.zero_grad(set_to_none=True)
    result: dict[str, object] = {"pairs": pairs}
    for name, values in seconds.items():
        result[f"{name}_cpu_seconds"] = summary([cpu for cpu, _ in values])
    for name in ("fisher", "backward"):
        for column, clock in ((0, "cpu"), (1, "wall")):
            ratios = [a[column] / b[column] for a, b in zip(seconds[name], seconds["forward"], strict=True)]
            result[f"{name}_over_forward_{clock}"] = summary(ratios)
    return result


def cutting_times(model: Forecaster, repeats: int) -> dict[str, object]:
    """Choosing half of the prunable parameters by one global ranking, and cutting them out."""
    groups = {name: g for name, g in model.unit_groups().items() if g.kind in ("head", "ffn_channel")}
    draw = torch.Generator().manual_seed(1)
    values = {name: torch.rand(g.units, generator=draw, dtype=torch.float64) for name, g in groups.items()}
    alive = {name: list(range(g.units)) for name, g in groups.items()}
    half = 0.5 * prunable_parameters(groups, alive)
    kept = lowest(values, groups, alive, half)
    choosing = [timed(lambda: lowest(values, groups, alive, half)) for _ in range(repeats)]
    cutting = [timed(lambda: slim(model, kept)) for _ in range(repeats)]
    return {
        "units": sum(g.units for g in groups.values()),
        "parameters_before": model.parameter_count(),
        "parameters_after": slim(model, kept).parameter_count(),
        "choosing_cpu_seconds": summary([cpu for cpu, _ in choosing]),
        "cutting_cpu_seconds": summary([cpu for cpu, _ in cutting]),
        "cutting_wall_seconds": summary([wall for _, wall in cutting]),
    }


def resident(field: str) -> float:
    """`VmRSS` (now) or `VmHWM` (highest) of this process in MiB; Linux only."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"/proc/self/status has no {field}; memory can be measured on Linux only")


def own_memory(name: str) -> dict[str, float]:
    """In this fresh process: resident memory with the model loaded, and the peak during a second pass of one kind."""
    model, windows = bolt_small(), batch()
    before = resident("VmRSS")
    for _ in range(2):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        PASSES[name](model, windows)
        model.zero_grad(set_to_none=True)
    return {"loaded_mib": round(before, 1), "peak_mib": round(resident("VmHWM"), 1)}


def memory() -> dict[str, dict[str, float]]:
    """Peak memory of each kind of pass, each in a process of its own."""
    found = {}
    for name in PASSES:
        command = [sys.executable, str(Path(__file__).resolve()), "--memory-of", name]
        found[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "scoring_cost.json")
    parser.add_argument("--memory-of", choices=list(PASSES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory_of:
        print(json.dumps(own_memory(options.memory_of)))
        return 0
    model, windows = bolt_small(), batch()
    started, others = time.monotonic(), cpu_seconds_of_others()
    passes = pass_times(model, windows, options.pairs)
    cutting = cutting_times(model, 5)
    now = cpu_seconds_of_others()
    # Both readings cover the whole machine, not only the cores this process may use.
    busy = others is None or now is None or (now - others) / (time.monotonic() - started) > (os.cpu_count() or 1) / 2
    ratio = passes["fisher_over_forward_cpu"]["median"]  # type: ignore[index]
    cut = cutting["cutting_wall_seconds"]["median"]  # type: ignore[index]
    marks = {
        "fisher_over_forward_cpu_median": {"value": ratio, "at_most": MOST_FORWARD_PASSES},
        "cutting_wall_seconds_median": {"value": cut, "at_most": MOST_SECONDS_TO_CUT},
    }
    for mark in marks.values():
        mark["pass"] = mark["value"] <= mark["at_most"]
    shape = {"family": "chronos_bolt", "weights": "random", "d_model": 512, "heads": 8, "d_kv": 64, "d_ff": 2048}
    shape |= {"encoder_layers": 6, "decoder_layers": 6, "parameters": model.parameter_count()}
    shape |= {"context": CONTEXT, "horizon": HORIZON, "patch": 16, "batch": ROWS, "kinds": "head, ffn_channel"}
    report = {
        "question": "What do scoring, choosing and cutting cost?",
        "shape": shape,
        "passes": passes,
        "cutting_keep_half": cutting,
        "memory": memory(),
        "marks": marks,
        "pass": all(mark["pass"] for mark in marks.values()),
        "machine": machine_line(busy=busy, threads=1),
        "versions": versions(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({name: report[name] for name in ("passes", "cutting_keep_half", "memory", "marks")}, indent=2))
    print(report["machine"])
    return 0 if report["pass"] else 1


if __name__ == "__main__":
    sys.exit(main())
