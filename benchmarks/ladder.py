"""How much faster is a pruned model on each runtime, pruning's part apart from the runtime's?

    OMP_NUM_THREADS=1 python benchmarks/ladder.py [--repeats 30] [--runtimes eager prepacked onnx onnx_int8]

At the Chronos-Bolt-small shape with random weights: whole, built with half and with a quarter of the heads and of the
feed-forward width (patch embeddings included, so that operations are halved), and the whole one cut to half of its
heads and channels by a plan, which leaves the patch embeddings. The bundled models and those of `--models`, whole and
cut to half of their heads, channels and experts by a plan.
Batches of 1, 16 and the largest that pays, one thread, all models and runtimes in turn. Marks for half, by processor
time: eager at most 0.60 of the whole model at a batch of 1 and 0.54 at 16; ONNX Runtime at most 0.52; 80 and 95 % of
the operations that were saved must show in the time of eager torch.

The result is written after every case. Run again, finished cases stay, unless they were measured while other programs
kept the machine busy; `--fresh` measures everything again. Exits with 1 when a mark is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from score_costs import bolt_small

from tsprune.evaluation.machine import machine_line, versions
from tsprune.latencycommand import LatencySettings
from tsprune.models import load, save
from tsprune.models._forecaster import Forecaster
from tsprune.progress import Progress
from tsprune.slimming import slim
from tsprune.speed.ladder import climb
from tsprune.stages import read_json, write_json

HERE = Path(__file__).resolve().parent
BATCHES = ("1", "16", "max")
CASES = ("bolt_small", "mini", "mini-moe")
SMALLER = {"half": (4, 1024), "quarter": (2, 512)}
"""Heads and feed-forward width of smaller networks of the Chronos-Bolt-small shape."""
CUT = "half_by_plan"
MOST = {("eager", 1): 0.60, ("eager", 16): 0.54, ("onnx", 1): 0.52, ("onnx", 16): 0.52}
LEAST_EFFICIENCY = {1: 0.80, 16: 0.95}


def kept(model: Forecaster) -> dict[str, list[int]]:
    """The first half of every group of heads, of feed-forward channels and of experts."""
    groups = model.unit_groups()
    shared = {group.path for group in groups.values() if group.kind == "kv_group"}
    return {
        name: list(range(max(1, group.floor, group.units // 2)))
        for name, group in groups.items()
        if group.kind in ("kv_group", "ffn_channel", "expert") or (group.kind == "head" and group.path not in shared)
    }


def models_of(source: str, folder: Path) -> list[str]:
    """Checkpoints of the whole model and of the smaller ones, in folders of their names."""
    model: Forecaster = bolt_small() if source == "bolt_small" else load(source)
    found = {"dense": model}
    if source == "bolt_small":
        found |= {name: bolt_small(heads, hidden) for name, (heads, hidden) in SMALLER.items()}
        for one in found.values():
            one.config["architectures"] = ["ChronosBoltModelForForecasting"]
    found[CUT] = slim(model, kept(model))
    return [str(save(one, folder / name)) for name, one in found.items()]


def measured(source: str, asked: dict[str, Any]) -> dict[str, Any]:
    """The ladder of one case."""
    with tempfile.TemporaryDirectory() as folder:
        settings = LatencySettings(
            models=tuple(models_of(source, Path(folder))),
            batches=tuple(asked["batches"]),
            threads=("1",),
            runtimes=tuple(asked["runtimes"]),
            repeats=asked["repeats"],
            alone=asked.get("alone", True),
        )
        found = climb(settings, Progress())
    for model in found["models"]:
        # A temporary folder.
        del model["source"]
    return found | {"asked": asked}


def marks(case: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """Whether half of the units take as little as they should, by processor time; wall time stands beside it."""
    held = []
    flops = {model["name"]: model["flops"] for model in found["models"]}
    for table in found["tables"]:
        for row in table["rows"]:
            where = row["runtime"], table["windows"]
            if case != "bolt_small" or row["model"] != "half" or row["error"]:
                continue
            about = {"runtime": where[0], "batch": where[1], "busy": table["busy"], "wall": row["pruning"]}
            value = row["pruning_cpu"]
            if where in MOST:
                held.append(
                    {"mark": "time", **about, "value": value, "at_most": MOST[where], "pass": value <= MOST[where]}
                )
            if where[0] == "eager" and where[1] in LEAST_EFFICIENCY:
                share = (1 - value) / (1 - flops["half"] / flops["dense"])
                least = LEAST_EFFICIENCY[where[1]]
                held.append(
                    {"mark": "saved", **about, "value": share, "at_least": least, "pass": share >= least}
                )  # fmt: skip
    return held


def is_done(earlier: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Whether a case was measured as asked, on a machine that nobody else kept busy."""
    return bool(earlier) and not earlier["busy"] and earlier["asked"] == asked


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--runtimes", nargs="+", default=["eager", "prepacked", "onnx", "onnx_int8"])
    parser.add_argument("--batches", nargs="+", default=list(BATCHES))
    parser.add_argument("--label", default="", help="put behind the names of the cases, which then stand beside others")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=CASES)
    parser.add_argument("--models", nargs="*", default=[], metavar="NAME=DIR", help="further models, by checkpoint")
    parser.add_argument("--no-alone", action="store_true", help="without memory and loading in fresh processes")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "ladder.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    earlier = read_json(given.out)["cases"] if given.out.exists() and not given.fresh else {}
    cases: dict[str, Any] = dict(earlier)
    sources = {case: case for case in given.cases} | dict(one.split("=", 1) for one in given.models)
    asked = {"repeats": given.repeats, "runtimes": given.runtimes, "batches": given.batches}
    if given.no_alone:
        asked["alone"] = False
    for case, source in sources.items():
        name = case + given.label
        if not is_done(earlier.get(name, {}), asked):
            cases[name] = measured(source, asked)
            write_json(given.out, report(cases))
    content = report(cases)
    write_json(given.out, content)
    for mark in content["marks"]:
        bound = f"at most {mark['at_most']}" if "at_most" in mark else f"at least {mark['at_least']}"
        said = "" if mark["pass"] else "  MISSED"
        name = f"{mark['mark']} {mark['runtime']} batch {mark['batch']}"
        print(f"{name:<24} {mark['value']:.3f} (wall {mark['wall']:.3f}), {bound}{said}")
    print(content["machine"])
    return 0 if content["pass"] else 1


def report(cases: dict[str, Any]) -> dict[str, Any]:
    held = [mark for case, found in cases.items() for mark in marks(case, found)]
    busy = any(found["busy"] for found in cases.values())
    return {
        "question": "How much faster is a pruned model on each runtime, pruning's part apart from the runtime's?",
        "cases": cases,
        "marks": held,
        "busy": busy,
        "pass": all(mark["pass"] for mark in held),
        "machine": machine_line(busy=busy, threads=1),
        "versions": versions(("onnx", "onnxruntime")),
    }


if __name__ == "__main__":
    sys.exit(main())
