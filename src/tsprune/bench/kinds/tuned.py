"""The model as it came, and every candidate that starts from it: trained first, all of them, and measured then."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tsprune import candidates
from tsprune.bench.jobs import Done, Job, Result, entries
from tsprune.bench.spec import Spec
from tsprune.bench.work import measured, on_device, readies, result_of, workshop
from tsprune.errors import TspruneError
from tsprune.evaluation.evaluate import Evaluation, Predictor
from tsprune.evaluation.leakage import PRETRAINING
from tsprune.preparing import Prepared
from tsprune.stages import read_json
from tsprune.stagework import check_pruning
from tsprune.tuningwork import check_tuning

ZERO_SHOT = "zero_shot"
Fold = tuple[Prepared, Predictor, dict[str, Evaluation]]


def run(spec: Spec, job: Job, place: Path) -> Done:
    """Train and measure; finished trainings of a job that was killed are taken as they stand."""
    protocol = spec.protocol_of(entries(spec, job)[1], job.horizon)
    seconds: dict[str, float] = {}
    refused: dict[str, str] = {}
    folds: dict[str, list[Fold]] = {}
    trials: dict[str, list[dict[str, Any]]] = {}
    plans: dict[str, str] = {}
    for number, (ready, pruning, tuning) in enumerate(readies(spec, job)):
        pruning = check_pruning(pruning, ready.model)
        check_tuning(tuning, ready.model)
        models: dict[str, Predictor] = {}
        with workshop(ready, pruning, tuning, place, number) as shop:
            for name in job.wanted:
                if name == ZERO_SHOT:
                    models[name] = ready.model
                    continue
                started, candidate = time.monotonic(), candidates.find(name)
                try:
                    candidate.check(pruning, tuning, ready)
                except TspruneError as error:
                    refused[name] = str(error)
                    continue
                source = candidate.start.stage(shop)
                folder = candidate.training.stage(shop, candidate, source)
                models[name] = on_device(folder, ready)
                trials.setdefault(name, []).append(best_trial(read_json(folder / "trials.json")))
                if source is not None and (source / "plan.json").exists():
                    plans[name] = (source / "plan.json").read_text(encoding="utf-8")
                seconds[name] = seconds.get(name, 0.0) + time.monotonic() - started
        # Every training of the fold has ended before a test window is cut.
        for name, model in models.items():
            folds.setdefault(name, []).append((ready, model, measured(protocol, ready, model)))
    results = {name: _result(protocol, name, found, trials, plans, seconds) for name, found in folds.items()}
    return Done(results, refused)


def _result(
    protocol: Any,
    name: str,
    found: list[Fold],
    trials: dict[str, list[dict[str, Any]]],
    plans: dict[str, str],
    seconds: dict[str, float],
) -> Result:
    ready = found[-1][0]
    guards = {one["guard"]: one for one in ready.leakage}
    more: dict[str, Any] = {"pretraining_overlap": guards[PRETRAINING]["words"]}
    more["leaks"] = [one["words"] for one in guards.values() if one["verdict"] == "found"]
    if name in trials:
        more["training"] = trials[name] if len(trials[name]) > 1 else trials[name][0]
    kind = "zero_shot" if name == ZERO_SHOT else "tuned"
    made = result_of(protocol, found, kind, more, plan=plans.get(name, ""))
    return replace(made, seconds=seconds.get(name, 0.0))


def best_trial(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """The trial that was kept, and how many there were."""
    best = min(trials, key=lambda trial: trial["validation_loss"])
    return {**best, "trials": len(trials), "steps_in_all": sum(trial["steps"] for trial in trials)}
