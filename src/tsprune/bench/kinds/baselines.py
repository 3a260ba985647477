"""Baselines, which belong to no model and draw nothing."""

from __future__ import annotations

import time
from pathlib import Path

from tsprune.bench.jobs import Done, Job, entries
from tsprune.bench.kinds.tuned import Fold
from tsprune.bench.spec import Spec
from tsprune.bench.work import measured, readies, result_of
from tsprune.evaluation import baselines
from tsprune.progress import Progress
from tsprune.proof import baselines_of


def run(spec: Spec, job: Job, place: Path) -> Done:
    """Fit and measure."""
    protocol = spec.protocol_of(entries(spec, job)[1], job.horizon)
    baselines.check(job.wanted)
    folds: dict[str, list[Fold]] = {}
    for ready, _, _ in readies(spec, job, neutral=True):
        for name, fitted in baselines_of(ready, job.wanted, Progress(quiet=True)).items():
            folds.setdefault(name, []).append((ready, fitted, measured(protocol, ready, fitted)))
    started = time.monotonic()
    return Done({name: result_of(protocol, found, "baseline", {}, started=started) for name, found in folds.items()})
