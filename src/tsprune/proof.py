"""Choosing by validation, opening the test part once, and the results file."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tsprune.candidates import DENSE
from tsprune.errors import TspruneError
from tsprune.evaluation import baselines
from tsprune.evaluation.baselines import Baseline
from tsprune.evaluation.cost import flops, latency, parameters
from tsprune.evaluation.evaluate import Predictor, examples, measure
from tsprune.evaluation.machine import cores, machine_line, versions
from tsprune.evaluation.overlap import pretraining_overlap
from tsprune.evaluation.standings import read_rows, standings, write_rows
from tsprune.evaluation.timeblocks import Blocks
from tsprune.stages import read_json, write_json

if TYPE_CHECKING:
    from tsprune.data.windows import WindowSet
    from tsprune.preparing import Prepared
    from tsprune.progress import Bar, Progress
    from tsprune.report import ForecastExample

SCHEMA = 1
EXAMPLES = 6
LATENCY_THREADS = 1
MEASURED = "measured"
"""Folder of an unfinished stage with what was measured so far."""
TRIED = ("learning_rate", "steps", "best_step", "validation_loss", "weight_decay", "dropout", "pruned")
"""What the results say of a trial; the last three where optuna searched."""


def judge(validation: Mapping[str, Any]) -> str:
    """The candidate with the lowest validation MSE; candidates without one cannot be chosen."""
    errors = {name: found["metrics"]["mse"] for name, found in validation.items()}
    able = {name: error for name, error in errors.items() if error is not None and math.isfinite(error)}
    if not able:
        raise TspruneError("no candidate has a validation error: the validation part holds no observed value")
    return min(able, key=lambda name: able[name])


def baselines_of(ready: Prepared, chosen: Sequence[str], progress: Progress) -> dict[str, Baseline]:
    """The baselines of these names, ready to forecast; fitting them is a stage of its own only where some learn."""
    split, season, steering = ready.split, ready.panel.season(), ready.task.validation_windows
    if set(chosen) <= set(baselines.DEFAULT):
        return baselines.fit(chosen, split, season, steering=steering)
    with progress.stage("fit baselines", len(chosen)) as bar:
        found = baselines.fit(chosen, split, season, steering=steering, report=bar.advance)
        bar.update(len(chosen), "")
    return found


def say_costs(models: Mapping[str, object], windows: WindowSet, progress: Progress) -> None:
    """Say of every baseline that takes its time how long, before it starts."""
    if progress.quiet:
        return
    for name, model in models.items():
        if isinstance(model, Baseline) and (cost := model.cost(windows)):
            progress.say(f"note: {name} {cost}")


def measured(
    work: Path, ready: Prepared, models: Mapping[str, Predictor], windows: WindowSet, bar: Bar
) -> dict[str, Any]:
    """Metrics and notes of every candidate by name; those measured before a kill are taken from `work`."""
    folder, found = work / MEASURED, {}
    for name, model in models.items():
        path, rows = folder / f"{name}.json", _rows_file(work, name)
        if not (path.exists() and rows.exists()):
            result = measure(model, windows, ready.split, batch_size=ready.task.batch_size)
            # The rows first: once the metrics are there, all is.
            write_rows(rows, result.rows)
            write_json(path, {"metrics": dict(result.metrics), "notes": list(result.notes)})
        found[name] = read_json(path)
        bar.advance(name.replace("_", " "))
    return found


def _rows_file(work: Path, name: str) -> Path:
    return work / MEASURED / f"{name}.safetensors"


def compared(work: Path, ready: Prepared, names: Iterable[str], chosen: str) -> dict[str, Any]:
    """What the test windows say of these candidates, from the errors that `measured` left in `work`.

    The reference is full fine-tuning, the dense model with the same budget, or the untuned one where that was not
    trained.
    """
    rows = {name: read_rows(_rows_file(work, name)) for name in names}
    reference = DENSE if DENSE in rows else "zero_shot"
    return standings(rows, reference, chosen, Blocks.of(ready.test[0]), seed=ready.task.seed)


def open_test(work: Path, ready: Prepared, models: Mapping[str, Predictor], chosen: str, bar: Bar) -> None:
    """Everything measured after the choice: test metrics, who leads whom, costs, example forecasts."""
    found = measured(work, ready, models, ready.test[0], bar)
    context, horizon = ready.split.context, ready.horizon
    times = latency(models, ready.task.latency_batch, context, horizon, threads=LATENCY_THREADS)
    for name, model in models.items():
        found[name] |= {
            "parameters": parameters(model),
            "flops": flops(model, context, horizon),
            "latency_ms": times[name].median_ms,
            "latency_spread_ms": [times[name].q1_ms, times[name].q3_ms],
        }
    write_json(
        work / "test.json",
        {
            "candidates": found,
            "comparison": compared(work, ready, models, chosen),
            "machine": machine_line(busy=any(t.busy for t in times.values()), threads=LATENCY_THREADS),
            "latency_busy": any(t.busy for t in times.values()),
            "examples": [
                asdict(example) | {"quantiles": {f"{k:g}": v for k, v in example.quantiles.items()}}
                for example in _clean(_pick(ready, models, chosen))
            ],
        },
    )
    shutil.rmtree(work / MEASURED)
    bar.advance("")


def _pick(ready: Prepared, models: Mapping[str, Predictor], chosen: str) -> list[ForecastExample]:
    """Examples of several series and moments: the middle test window of as many series as there is room for."""
    windows = ready.test[0]
    per_window = windows.targets_per_window
    if per_window > 1:
        middle = len(windows) // 2
        rows = [middle * per_window + place for place in range(min(EXAMPLES, per_window))]
    else:
        series = np.unique(windows.series_index)
        picked = series[np.unique(np.linspace(0, len(series) - 1, min(EXAMPLES, len(series))).astype(int))]
        each = -(-min(EXAMPLES, len(windows)) // len(picked))
        rows = []
        for one in picked:
            own = np.flatnonzero(windows.series_index == one)
            rows += own[np.unique(((np.arange(each) + 0.5) / each * len(own)).astype(int))].tolist()
    others = {name: models[name] for name in ("zero_shot",) if name != chosen}
    return examples(models[chosen], windows, rows[:EXAMPLES], others=others)


def _clean(found: list[ForecastExample]) -> list[ForecastExample]:
    """Missing values as None, which JSON can hold."""
    from dataclasses import replace

    def plain(values: list[float]) -> list[Any]:
        return [None if math.isnan(value) else float(value) for value in values]

    return [replace(example, history=plain(example.history), truth=plain(example.truth)) for example in found]


def examples_from(test: Path) -> list[ForecastExample]:
    """The examples that the test stage stored."""
    from tsprune.report import ForecastExample

    def full(values: list[float | None]) -> list[float]:
        return [math.nan if value is None else value for value in values]

    return [
        ForecastExample(
            series=entry["series"],
            window=entry["window"],
            history=full(entry["history"]),
            truth=full(entry["truth"]),
            quantiles={float(level): path for level, path in entry["quantiles"].items()},
            other=entry["other"],
        )
        for entry in read_json(test / "test.json")["examples"]
    ]


def assemble(
    ready: Prepared,
    sizes: tuple[int, int, int],
    validation: Mapping[str, Any],
    stages: Mapping[str, Any],
    trials: Mapping[str, Any],
    chosen: str,
    seconds: Mapping[str, float],
    remarks: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """The content of `results.json`, schema 1; `remarks` are what else there is to say of a candidate, by name."""
    from tsprune.report import protocol_words, verdict

    test = stages["test"]
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "protocol": protocol(ready, sizes, test["machine"], bool(test["latency_busy"])),
        "candidates": [
            {
                "name": name,
                "validation": validation[name]["metrics"],
                "test": found["metrics"],
                **{key: found[key] for key in ("parameters", "flops", "latency_ms", "latency_spread_ms")},
                "notes": "; ".join(
                    dict.fromkeys([*remarks.get(name, ()), *validation[name]["notes"], *found["notes"]])
                ),
            }
            for name, found in test["candidates"].items()
        ],
        "chosen": chosen,
        "comparison": test["comparison"],
        "equivalence": stages["equivalence"],
        "seed": ready.task.seed,
        "versions": versions(),
        "timings": dict(seconds),
        "pruning": stages["rounds"],
        "search": {name: [{key: t[key] for key in TRIED if key in t} for t in found] for name, found in trials.items()},
    }
    results["protocol"]["words"] = protocol_words(results)
    results["verdict"] = verdict(results)
    return results


def protocol(ready: Prepared, sizes: tuple[int, int, int], machine: str, busy: bool) -> dict[str, Any]:
    """How the numbers came about."""
    panel, task = ready.panel, ready.task
    names = ("train", "validation", "test")
    strides = (ready.train.windows.stride, ready.validation[1], ready.test[1])
    return {
        "data": Path(panel.source).name if panel.source else "table",
        "fingerprint": panel.fingerprint(),
        "model": task.model,
        "horizon": ready.horizon,
        "context": ready.split.context,
        "frequency": panel.frequency,
        "season": panel.season(),
        "split": ready.split.describe(),
        "windows": dict(zip(names, sizes, strict=True)),
        "strides": dict(zip(names, strides, strict=True)),
        "scale": "z-score fitted on train, per series",
        "series": len(ready.split.panel.series),
        "threads": task.threads or cores(),
        "latency_threads": LATENCY_THREADS,
        "latency_batch": task.latency_batch,
        "latency_busy": busy,
        "machine": machine,
        "inferred": dict(panel.inferred),
        "repairs": [*panel.repairs, *ready.notes, *ready.window_notes("validation", "test")],
        "pretraining_overlap": ": ".join(pretraining_overlap(panel, ready.model.pretraining_corpora)),
        "leakage": list(ready.leakage),
    }
