"""Is a dense forward pass of ours as fast as that of the original implementation?

    OMP_NUM_THREADS=1 python benchmarks/originals.py --originals PYTHON [PYTHON ...] [--seconds 15] [--cases ttm toto]

PYTHON is the interpreter of an environment with the original packages; with several, each case takes the first that has
its class. For every family: random weights at a public checkpoint's sizes, saved by `tsprune.save` and loaded by the
original class; the same inputs; outputs are compared first, and a case whose outputs are apart is not timed. Then both
take turns, each in a process of its own on one thread, so that a neighbour on the machine hits both. A pass is the
network with its scaling and patching, or tokenising, in eval mode without gradients; nothing is rolled out.

Ours is timed as it is and inside `model.prepacked()`. A ratio is the median of ours over the median of theirs;
quartiles are of the ratios of single rounds. A measurement is marked busy when the load average at its beginning is
above 1.5, or when other programs took more than half a core during it; the next run measures it again. Finished cells
lie in runs/benchmarks: remove originals.jsonl there after changing code. Linux. Exits with 1 when outputs are apart or
an original fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import Store
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# The public sizes are those of the contract tests.
sys.path.insert(0, str(ROOT))

from originals_cases import ABSENT, CASES, CONTEXT, STEPS, Case, Tensors, random_model  # noqa: E402

from tsprune.evaluation.machine import cpu_seconds_of_others, load_average, machine_line, versions  # noqa: E402
from tsprune.models import load, save  # noqa: E402
from tsprune.speed.runtimes.prepacked import sharing  # noqa: E402
from tsprune.stages import write_json  # noqa: E402

MOST_APART = 3e-4
"""Accepted largest difference of outputs, in standard deviations of the original's."""
MOST_LOAD = 1.5
MOST_OTHERS = 0.5
TURN_SECONDS, MOST_PASSES = 0.3, 50
"""A turn lasts so long, if that takes no more passes."""
FEWEST_ROUNDS, MOST_ROUNDS = 7, 41
QUIET = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}


class Missing(Exception):
    """An environment lacks the class of a case."""


class Failed(Exception):
    """An original could not be run, or gives something else than ours."""


class Originals:
    """A process in an environment of original packages, whose versions are `versions`."""

    def __init__(self, python: str) -> None:
        self.process = subprocess.Popen(
            [python, str(HERE / "originals_worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | QUIET,
        )
        self.versions: dict[str, str] = self._answer()["versions"]

    def ask(self, do: str, **given: Any) -> dict[str, Any]:
        print(json.dumps({"do": do} | given), file=self.process.stdin, flush=True)
        found = self._answer()
        if "missing" in found:
            raise Missing(found["missing"])
        if "error" in found:
            raise Failed(found["error"])
        return found

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise SystemExit("the process of the originals ended; what it printed stands above")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        self.process.wait()


def differences(ours: Tensors, theirs: Tensors) -> dict[str, float]:
    """The output that is farthest apart: largest difference, its spread, and the one over the other.

    Raises:
        Failed: outputs have other names or shapes, or are apart.
    """
    shapes = [{name: list(tensor.shape) for name, tensor in side.items()} for side in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise Failed(f"outputs differ in shape: ours {shapes[0]}, theirs {shapes[1]}")
    found = []
    for name, reference in theirs.items():
        if not torch.isfinite(reference).all() or not torch.isfinite(ours[name]).all():
            raise Failed(f"output {name!r} is not finite")
        difference = float((ours[name].double() - reference.double()).abs().max())
        spread = float(reference.double().std())
        # One location for all steps has no spread.
        spread = spread if spread > 0 else float(reference.abs().max())
        found.append((difference / spread if difference else 0.0, difference, spread, name))
    relative, difference, spread, name = max(found)
    if relative > MOST_APART:
        raise Failed(f"output {name!r} is apart by {difference:.3g}, {relative:.3g} of its deviation")
    return {"largest_difference": difference, "spread": spread, "relative": relative}


def timed(work: Callable[[], object], passes: int) -> dict[str, list[float]]:
    """Seconds of wall and of processor time of each pass."""
    wall, cpu = [], []
    for _ in range(passes):
        processor, started = time.process_time(), time.perf_counter()
        work()
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - processor)
    return {"wall": wall, "cpu": cpu}


def summary(values: list[float], factor: float = 1.0) -> dict[str, float]:
    q1, median, q3 = (float(factor * value) for value in np.quantile(values, (0.25, 0.5, 0.75)))
    return {"median": round(median, 4), "q1": round(q1, 4), "q3": round(q3, 4)}


def measured(ours: dict[str, Callable[[], object]], theirs: Originals, seconds: float) -> dict[str, Any]:
    """Turns of all sides, the other way round in every other round; a turn's time is the median of its passes."""

    def turn(side: str, passes: int) -> dict[str, float]:
        # The other process has just had the caches: where a pass is short, the first one is not counted.
        more = int(passes > 1)
        taken = timed(ours[side], passes + more) if side in ours else theirs.ask("time", passes=passes + more)
        return {clock: float(np.median(values[more:])) for clock, values in taken.items()}

    sides = [*ours, "theirs"]
    # The comparison has warmed both processes up; the first turn lays weights out.
    turn("prepacked", 1)
    once = {side: turn(side, 1)["wall"] for side in sides}
    passes = min(MOST_PASSES, max(1, round(TURN_SECONDS / max(once.values()))))
    whole = (passes + (passes > 1)) * sum(once.values())
    rounds = min(MOST_ROUNDS, max(FEWEST_ROUNDS, round(seconds / whole)))
    taken: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in sides if number % 2 else sides[::-1]:
            taken[side].append(turn(side, passes))
    found: dict[str, Any] = {"rounds": rounds, "passes_per_turn": passes}
    for clock in ("wall", "cpu"):
        times = {side: [one[clock] for one in taken[side]] for side in sides}
        found[clock] = beside(times["ours"], times["theirs"]) | {"theirs_ms": summary(times["theirs"], 1e3)}
        found[clock]["prepacked"] = beside(times["prepacked"], times["theirs"])
    return found


def beside(mine: list[float], other: list[float]) -> dict[str, Any]:
    """The ratio of medians, quartiles of the ratios of single rounds, and our times."""
    of_rounds = summary([a / b for a, b in zip(mine, other, strict=True)])
    ratio = {"ratio": round(float(np.median(mine) / np.median(other)), 4)}
    return ratio | {f"ratio_{name}": of_rounds[name] for name in ("q1", "q3")} | {"ours_ms": summary(mine, 1e3)}


def cell(case: Case, model: Any, theirs: Originals, rows: int, folder: Path, seconds: float) -> dict[str, Any]:
    """Compare, then time, one case with so many rows."""
    inputs = case.inputs(case.config(), rows)
    given, returned = folder / "inputs.safetensors", folder / "outputs.safetensors"
    save_file(inputs, given)
    theirs.ask("forward", inputs=str(given), outputs=str(returned))
    shown = case.shown(model, inputs, case.forward(model, inputs))
    reference = load_file(returned)
    apart = differences(shown, reference)
    with model.prepacked():
        differences(case.shown(model, inputs, case.forward(model, inputs)), reference)
    load_before, before, started = load_average(), cpu_seconds_of_others(), time.perf_counter()
    worker = theirs.ask("processor")["seconds"]
    twin = sharing(model)
    with twin.prepacked():
        sides = {"ours": lambda: case.forward(model, inputs), "prepacked": lambda: case.forward(twin, inputs)}
        found = measured(sides, theirs, seconds)
    taken, after = time.perf_counter() - started, cpu_seconds_of_others()
    worker = theirs.ask("processor")["seconds"] - worker
    others = None if before is None or after is None else round((after - before - worker) / taken, 3)
    busy = load_before > MOST_LOAD or others is None or others > MOST_OTHERS
    around = {"load_average": round(load_before, 2), "cores_of_others": others, "busy": busy}
    return {"difference": apart} | found | around


def measure_case(
    name: str, environments: list[Originals], missing: list[int], store: Store, seconds: float
) -> dict[str, str]:
    """Measure what is missing of a case; what could not be measured, and why."""
    case, reasons = CASES[name], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = load(save(random_model(case), folder / "model"))
        for theirs in environments:
            try:
                told = theirs.ask("load", name=name, directory=str(folder / "model"))
            except Missing as error:
                reasons.append(str(error))
                continue
            except Failed as error:
                return {name: f"FAILED: {error}"}
            for rows in missing:
                try:
                    found = cell(case, model, theirs, rows, folder, seconds)
                except Failed as error:
                    return {name: f"FAILED with {rows} rows: {error}"}
                facts = {"original": told["original"], "packages": theirs.versions, "parameters": told["parameters"]}
                store.add((name, rows), facts | found)
                print(line(name, rows, facts | found), flush=True)
            return {}
    return {name: f"no environment has it ({'; '.join(reasons)})"}


def line(name: str, rows: int, found: dict[str, Any]) -> str:
    wall, cpu = found["wall"], found["cpu"]
    return (
        f"{name:<20} {rows:>3} rows: ours {wall['ours_ms']['median']:>8.2f} ms, theirs "
        f"{wall['theirs_ms']['median']:>8.2f} ms, ratio {wall['ratio']:.2f} ({wall['ratio_q1']:.2f} to "
        f"{wall['ratio_q3']:.2f}), of processor time {cpu['ratio']:.2f}; apart by "
        f"{found['difference']['relative']:.0e}; prepacked {wall['prepacked']['ratio']:.2f}"
        f"{'  BUSY' if found['busy'] else ''}"
    )


def report(store: Store, left_out: dict[str, str], seconds: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        cells = {str(rows): store.found[name, rows] for rows in case.batches if (name, rows) in store.found}
        if cells:
            own = ("original", "packages", "parameters")
            facts = {key: next(iter(cells.values()))[key] for key in own}
            rows = {number: {k: v for k, v in one.items() if k not in own} for number, one in cells.items()}
            found[name] = {"family": case.family} | facts | {"rows": rows}
    busy = any(one["busy"] for case in found.values() for one in case["rows"].values())
    return {
        "question": "Is a dense forward pass of ours as fast as that of the original implementation?",
        "ratio": "time of ours over time of theirs, below 1 where ours is faster",
        "prepacked": "the same of ours inside model.prepacked(), weights laid out beforehand",
        "context": CONTEXT,
        "steps": STEPS,
        "seconds_per_cell": seconds,
        "most_apart": MOST_APART,
        "cases": found,
        "left_out": ABSENT | left_out,
        "machine": machine_line(busy=busy, threads=1),
        "versions": versions(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--originals", nargs="+", required=True, metavar="PYTHON")
    parser.add_argument("--seconds", type=float, default=15.0, help="for each measurement; seven rounds at least")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--allow-busy", action="store_true", help="measure, marked so, while other programs run")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "originals.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if load_average() > MOST_LOAD and not given.allow_busy:
        parser.exit(2, f"load average {load_average():.1f}: other programs are running; wait, or give --allow-busy\n")
    environments = [Originals(python) for python in given.originals]
    settings = ["originals", given.seconds, versions(), *(one.versions for one in environments)]
    store = Store(ROOT / "runs" / "benchmarks" / "originals.jsonl", settings)
    left_out: dict[str, str] = {}
    try:
        for name in given.cases:
            done = [rows for rows in CASES[name].batches if (name, rows) in store.found]
            if not given.allow_busy:
                done = [rows for rows in done if not store.found[name, rows]["busy"]]
            missing = [rows for rows in CASES[name].batches if rows not in done]
            if missing:
                with torch.no_grad():
                    left_out |= measure_case(name, environments, missing, store, given.seconds)
    finally:
        for one in environments:
            one.close()
        write_json(given.out, report(store, left_out, given.seconds))
    for name, reason in left_out.items():
        print(f"{name}: {reason}")
    return int(any(reason.startswith("FAILED") for reason in left_out.values()))


if __name__ == "__main__":
    sys.exit(main())
