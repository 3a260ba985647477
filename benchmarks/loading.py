"""How long does a slim checkpoint take from its files to the first forecast, and is that proportional to its size?

    OMP_NUM_THREADS=1 python benchmarks/loading.py [--rounds 9] [--models NAME=DIR ...]

`mini`, `mini-moe`, the Chronos-Bolt-small shape with random weights, and what `--models` names: each whole, and cut by
a plan to half and to a quarter of its heads, feed-forward channels and experts. Every checkpoint is copied to an empty
folder and loaded there by a fresh process that is offline and knows no other model; it forecasts 64 steps from 512 of
one series (or as many as the model takes), on one thread. All checkpoints take turns, and the table has medians over
the rounds.

Apart from each other: importing torch; our own imports, the family's module among them; loading, by wall clock and in
processor time, and the parts of it; the first forecast. `whole_s` is everything from starting Python on. The files are
in the page cache. A straight line through the processor times of loading, over parameters, says what is fixed and what
grows; it is drawn through all checkpoints, and through those of each model, of which there are three.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
SOURCES = ("mini", "mini-moe", "bolt_small")
SHARES = {"whole": 1.0, "half": 0.5, "quarter": 0.25}
CONTEXT, HORIZON = 512, 64
PARTS = {
    "family_of": "family",
    "without_weights": "network",
    "slim": "cut",
    "read_weights": "read",
    "fill": "checked_and_given",
}
"""Steps of loading, and what they are called in the result."""
GROWING = ("read", "checked_and_given")
TIMES = ("torch_s", "imports_s", "load_s", "load_cpu_s", "first_s", "first_cpu_s", "whole_s")


def one(folder: str, family: str, context: int, horizon: int) -> dict[str, Any]:
    """What a fresh process measures; nothing of the project is imported before torch is."""
    started = time.perf_counter()
    import torch

    torch.set_num_threads(1)
    with_torch = time.perf_counter()
    from tsprune import registry
    from tsprune.data.batch import Batch
    from tsprune.models import _loading

    registry.find("tsprune.models", family)
    batch = Batch(torch.randn(1, context, generator=torch.Generator().manual_seed(0)))
    parts = dict.fromkeys(PARTS.values(), 0.0)
    for name, part in PARTS.items():
        setattr(_loading, name, timed(getattr(_loading, name), parts, part))
    imported, before = time.perf_counter(), time.process_time()
    model = _loading.load(folder)
    loaded, between = time.perf_counter(), time.process_time()
    model.forecast(batch, horizon)
    done, after, now = time.perf_counter(), time.process_time(), time.monotonic()
    return {
        "torch_s": with_torch - started,
        "imports_s": imported - with_torch,
        "load_s": loaded - imported,
        "load_cpu_s": between - before,
        "first_s": done - imported,
        "first_cpu_s": after - before,
        "parts_cpu_s": parts,
        "forecast_at": now,
        "parameters": model.parameter_count(),
    }


def timed(work: Callable[..., Any], into: dict[str, float], name: str) -> Callable[..., Any]:
    def worked(*given: Any, **named: Any) -> Any:
        before = time.process_time()
        try:
            return work(*given, **named)
        finally:
            into[name] += time.process_time() - before

    return worked


def checkpoints(sources: dict[str, str], place: Path) -> list[dict[str, Any]]:
    """Every model whole and cut, each alone in an empty folder."""
    from score_costs import bolt_small

    from tsprune.models import load, save
    from tsprune.slimming import slim

    found: list[dict[str, Any]] = []
    for name, source in sources.items():
        model = bolt_small() if source == "bolt_small" else load(source)
        if source == "bolt_small":
            model.config["architectures"] = ["ChronosBoltModelForForecasting"]
        for size, share in SHARES.items():
            made = save(model if share == 1 else slim(model, kept(model, share)), place / "made" / name / size)
            folder = place / f"alone-{len(found)}"
            shutil.copytree(made, folder)
            found.append(
                {
                    "model": name,
                    "size": size,
                    "family": model.family,
                    "folder": str(folder),
                    "bytes": sum(file.stat().st_size for file in folder.iterdir()),
                    "context": min(CONTEXT, model.context_length),
                }
            )
    # What the slim ones were cut from is gone before anything is timed.
    shutil.rmtree(place / "made")
    return found


def kept(model: Any, share: float) -> dict[str, list[int]]:
    """The first units of every group of heads, of feed-forward channels and of experts."""
    groups = model.unit_groups()
    shared = {group.path for group in groups.values() if group.kind == "kv_group"}
    return {
        name: list(range(max(1, group.floor, int(group.units * share))))
        for name, group in groups.items()
        if group.kind in ("kv_group", "ffn_channel", "expert") or (group.kind == "head" and group.path not in shared)
    }


def measure(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """One fresh process."""
    given = [checkpoint["folder"], checkpoint["family"], checkpoint["context"], HORIZON]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(HERE / "loading.py"), "--one", json.dumps(given)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=checkpoint["folder"],
    )
    if done.returncode:
        raise SystemExit(f"{checkpoint['model']} {checkpoint['size']}: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"whole_s": found["forecast_at"] - began}


def row(checkpoint: dict[str, Any], seen: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds, with quartiles of the processor time of loading."""
    about = {name: checkpoint[name] for name in ("model", "size", "family", "bytes", "context")}
    low, high = np.quantile([one["load_cpu_s"] for one in seen], (0.25, 0.75))
    return {
        **about,
        "parameters": seen[0]["parameters"],
        **{name: rounded(statistics.median(one[name] for one in seen)) for name in TIMES},
        "load_cpu_quartiles_s": [rounded(float(low)), rounded(float(high))],
        "parts_cpu_s": {
            part: rounded(statistics.median(one["parts_cpu_s"][part] for one in seen)) for part in PARTS.values()
        },
    }


def of_others() -> float | None:
    """Processor seconds of everybody but this process and those that it has started and that have ended."""
    from tsprune.evaluation.machine import cpu_seconds_of_others

    spent, own = cpu_seconds_of_others(), os.times()
    return None if spent is None else spent - own.children_user - own.children_system


def rounded(seconds: float) -> float:
    return round(seconds, 5)


def line(rows: Sequence[dict[str, Any]], of: Callable[[dict[str, Any]], float]) -> dict[str, float]:
    """The least-squares line of a time over parameters, weighted by the inverse of the time so that all count alike."""
    million = np.array([one["parameters"] for one in rows]) / 1e6
    seconds = np.array([of(one) for one in rows])
    slope, fixed = np.polyfit(million, seconds, 1, w=1 / seconds)
    off = np.abs(fixed + slope * million - seconds) / seconds
    return {
        "fixed_ms": round(float(fixed) * 1e3, 2),
        "ms_per_million_parameters": round(float(slope) * 1e3, 3),
        "largest_relative_error": round(float(off.max()), 3),
    }


def growing(one: dict[str, Any]) -> float:
    """Seconds of the parts of loading that go through the weights."""
    return sum(float(one["parts_cpu_s"][part]) for part in GROWING)


def report(rows: list[dict[str, Any]], rounds: int, busy: bool) -> dict[str, Any]:
    from tsprune.evaluation.machine import machine_line, versions

    models = list(dict.fromkeys(one["model"] for one in rows))
    by_model = {model: [one for one in rows if one["model"] == model] for model in models}
    return {
        "question": "How long from the files of a checkpoint to its first forecast, and what of it is fixed?",
        "context": CONTEXT,
        "horizon": HORIZON,
        "rounds": rounds,
        "rows": rows,
        "lines": {
            "loading": line(rows, lambda one: one["load_cpu_s"]),
            "reading and checking alone": line(rows, growing),
            **{f"loading of {model}": line(own, lambda one: one["load_cpu_s"]) for model, own in by_model.items()},
        },
        "bytes_per_parameter": {
            f"{one['model']} {one['size']}": round(one["bytes"] / one["parameters"], 3) for one in rows
        },
        "busy": busy,
        "machine": machine_line(busy=busy, threads=1),
        "versions": versions(("safetensors",)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--models", nargs="*", default=[], metavar="NAME=DIR", help="further models, by checkpoint")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "loading.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(*json.loads(given.one))))
        return 0
    from tsprune.stages import write_json

    sources = {name: name for name in SOURCES} | dict(one.split("=", 1) for one in given.models)
    with tempfile.TemporaryDirectory() as place:
        found = checkpoints(sources, Path(place))
        seen: list[list[dict[str, Any]]] = [[] for _ in found]
        began, others = time.monotonic(), of_others()
        for _ in range(given.rounds):
            for checkpoint, into in zip(found, seen, strict=True):
                into.append(measure(checkpoint))
        now = of_others()
        busy = others is None or now is None or (now - others) / (time.monotonic() - began) > (os.cpu_count() or 1) / 2
    rows = [row(checkpoint, own) for checkpoint, own in zip(found, seen, strict=True)]
    content = report(rows, given.rounds, busy)
    write_json(given.out, content)
    for found_row in rows:
        print(
            f"{found_row['model'] + ' ' + found_row['size']:<22} {found_row['parameters'] / 1e6:7.2f} M  "
            f"load {found_row['load_cpu_s'] * 1e3:6.1f} ms  whole {found_row['whole_s'] * 1e3:6.0f} ms"
        )
    for name, fit in content["lines"].items():
        print(f"{name}: {fit}")
    print(content["machine"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
