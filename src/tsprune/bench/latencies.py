"""How long a forecast takes, measured at the end by this process alone, one thread, models in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tsprune.bench.gathering import Gathered
from tsprune.bench.jobs import Job, entries
from tsprune.bench.work import NEUTRAL
from tsprune.evaluation.cost import latency
from tsprune.evaluation.evaluate import Predictor
from tsprune.models import load
from tsprune.plan import Plan
from tsprune.progress import Progress
from tsprune.slimming import slim
from tsprune.stages import digest, read_json, write_json

BATCH, THREADS = 1, 1


def latencies(gathered: Gathered, directory: Path, progress: Progress, measure: bool = True) -> list[dict[str, Any]]:
    """Latency of every candidate of every task, for the first seed that is finished; what is there is not timed again.

    Only shapes are timed: candidates that are not cut share the time of the whole model. Networks from scratch and
    baselines are not timed.

    Args:
        gathered: what is finished.
        directory: where times are kept.
        progress: told what happens.
        measure: False takes only what was timed before.
    """
    wanted = _jobs(gathered)
    found: list[dict[str, Any]] = []
    if not measure:
        return [row for job, key in wanted for row in _of(gathered, job, key, directory, measure)]
    with progress.stage("time forecasts", len(wanted)) as bar:
        for job, key in wanted:
            found += _of(gathered, job, key, directory, measure)
            bar.advance(job.words())
    return found


def _jobs(gathered: Gathered) -> list[tuple[Job, str]]:
    first: dict[tuple[Any, ...], tuple[Job, str]] = {}
    for job, key in gathered.keyed:
        if job.kind == "tuned" and any(row for row in _rows(gathered, job)):
            first.setdefault((job.model, job.data, job.horizon, job.share), (job, key))
    return list(first.values())


def _rows(gathered: Gathered, job: Job) -> list[dict[str, Any]]:
    cell = {key: value for key, value in job.cell().items() if key != "horizon"}
    horizon = gathered.spec.protocol_of(entries(gathered.spec, job)[1], job.horizon).horizon
    return [row for row in gathered.judged if row["horizon"] == horizon and all(row[k] == v for k, v in cell.items())]


def _of(gathered: Gathered, job: Job, key: str, directory: Path, measure: bool) -> list[dict[str, Any]]:
    rows = {row["candidate"]: row for row in _rows(gathered, job)}
    texts = {name: gathered.plan(key, name) for name in rows}
    plans = {name: Plan.from_json(text) for name, text in texts.items() if text}
    shapes = {name: digest([plans[name].kept, plans[name].indexed]) if name in plans else _WHOLE for name in rows}
    path = directory / f"{digest([key, shapes])}.json"
    if not path.exists() and not measure:
        return []
    if not path.exists():
        context, horizon = next(iter(rows.values()))["context"], next(iter(rows.values()))["horizon"]
        model, _ = entries(gathered.spec, job)
        base = load(model.path if model else NEUTRAL)
        # One model for every shape; weights do not matter to time.
        models: dict[str, Predictor] = {
            shape: slim(base, plans[name]) if name in plans else base for name, shape in shapes.items()
        }
        times = latency(models, BATCH, context, horizon, threads=THREADS)
        write_json(path, {shape: vars(time) for shape, time in times.items()})
    timed = read_json(path)
    place = {part: value for part, value in job.cell().items() if part not in ("seed", "horizon")}
    found = []
    for name, row in rows.items():
        # The specialist is one of the others.
        time = timed[shapes[row.get("chosen", name)]]
        facts = {"latency_ms": time["median_ms"], "spread_ms": [time["q1_ms"], time["q3_ms"]], "batch": BATCH}
        found.append({**place, "horizon": row["horizon"], "candidate": name, **facts, "busy": time["busy"]})
    return found


_WHOLE = "whole"


def busy(found: Sequence[Mapping[str, Any]]) -> bool:
    """Whether other programs ran while any was timed."""
    return any(row["busy"] for row in found)
