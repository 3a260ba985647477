"""A plan found on another data set, applied to this one and tuned like every other candidate."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from tsprune.bench.jobs import Done, Job, entries
from tsprune.bench.kinds.tuned import Fold, best_trial
from tsprune.bench.spec import Spec
from tsprune.bench.work import measured, on_device, readies, result_of, workshop
from tsprune.candidates._workshop import Workshop
from tsprune.plan import Plan
from tsprune.stages import digest, read_json
from tsprune.stagework import check_pruning, one_shot
from tsprune.transfer import check_fit

PREFIX = "plan_of_"


def run(spec: Spec, job: Job, place: Path) -> Done:
    """Cut by each of `job.more["plans"]`, JSON texts by `plan_of_NAME`, then tune and measure."""
    protocol = spec.protocol_of(entries(spec, job)[1], job.horizon)
    folds: dict[str, list[Fold]] = {}
    trials, seconds = {}, dict.fromkeys(job.wanted, 0.0)
    for number, (ready, pruning, tuning) in enumerate(readies(spec, job)):
        pruning = check_pruning(pruning, ready.model)
        models = {}
        with workshop(ready, pruning, tuning, place, number) as shop:
            for name in job.wanted:
                started = time.monotonic()
                plan = Plan.from_json(job.more["plans"][name], name)
                check_fit(plan, ready.model, Path(name))

                def cut(work: Path, shop: Workshop = shop, plan: Plan = plan, name: str = name) -> None:
                    start = shop.model_of(shop.start)
                    told = f"transferred, {name}"
                    one_shot(shop.prepared, shop.pruning, start, plan.kept, work, score=plan.score, schedule=told)

                source = shop.workplace.stage(
                    name.replace("_", "-"), {**shop.base, "plan": digest(plan.to_json())}, cut
                )
                folder = shop.finetuned(name, name, tuning, source)
                models[name] = on_device(folder, ready)
                trials[name] = best_trial(read_json(folder / "trials.json"))
                seconds[name] += time.monotonic() - started
        for name, model in models.items():
            folds.setdefault(name, []).append((ready, model, measured(protocol, ready, model)))
    results = {}
    for name, found in folds.items():
        made = result_of(protocol, found, "transferred", {"training": trials[name]})
        results[name] = replace(made, seconds=seconds[name])
    return Done(results)
