"""Networks from scratch, which owe nothing to any of the grid's models."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tsprune import candidates
from tsprune.bench.jobs import Done, Job, entries
from tsprune.bench.kinds.tuned import Fold
from tsprune.bench.spec import Spec
from tsprune.bench.work import measured, on_device, readies, result_of, workshop
from tsprune.candidates._candidate import Shorter
from tsprune.errors import TspruneError
from tsprune.stages import read_json


def run(spec: Spec, job: Job, place: Path) -> Done:
    """Train and measure; a training that was killed goes on after its last epoch."""
    protocol = spec.protocol_of(entries(spec, job)[1], job.horizon)
    started, refused = time.monotonic(), {}
    folds: dict[str, list[Fold]] = {}
    facts: dict[str, dict[str, Any]] = {}
    context = spec.scratch.get("context", 0)
    shorter = Shorter(spec.scratch.get("steps", 0), spec.scratch.get("small", False))
    for number, (ready, pruning, tuning) in enumerate(readies(spec, job, context=context, neutral=True)):
        with workshop(ready, pruning, tuning, place, number, shorter) as shop:
            for name in job.wanted:
                candidate = candidates.find(name)
                try:
                    candidate.check(pruning, tuning, ready)
                except TspruneError as error:
                    refused[name] = str(error)
                    continue
                folder = candidate.training.stage(shop, candidate, None)
                said = candidate.training.facts(shop, folder)
                facts[name] = {"budget": said["budget"], **read_json(folder / "trials.json")[0]}
                model = on_device(folder, ready)
                folds.setdefault(name, []).append((ready, model, measured(protocol, ready, model)))
    found = {}
    for name, parts in folds.items():
        made = result_of(protocol, parts, "scratch", {"training": facts[name]})
        found[name] = replace(made, seconds=(time.monotonic() - started) / len(folds))
    return Done(found, refused)
