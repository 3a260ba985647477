"""How far importance scores agree with themselves: on halves of the windows, early and late, and kept for more."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from tsprune.bench.jobs import Done, Job, Result
from tsprune.bench.spec import Spec
from tsprune.bench.work import readies, workshop
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.registry import find
from tsprune.scoring import check_score, portions, window_times
from tsprune.stability import as_json, scored
from tsprune.stagework import check_pruning

KIND = "stability"


def run(spec: Spec, job: Job, place: Path) -> Done:
    """Scores of the model after its brief tuning, by every score that is wanted; of the first fold."""
    ready, pruning, tuning = next(iter(readies(spec, job)))
    pruning = check_pruning(pruning, ready.model)
    with workshop(ready, pruning, tuning, place, 0) as shop:
        model = shop.model_of(shop.start)
    windows = ready.macro_windows(1, pruning.prune_windows)

    def batches_of(chosen: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> list[Batch]:
        return portions(model, ready.batches_of(windows[chosen]), pruning)

    results, refused = {}, {}
    for name in job.wanted:
        started = time.monotonic()
        module = find("tsprune.scores", name)
        kinds = [kind for kind in pruning.units if kind in getattr(module, "KINDS", pruning.units)]
        try:
            check_score(pruning, kinds)
            times = window_times(ready, windows)
            found, agreement = scored(
                module, model, batches_of, times, kinds=kinds, seed=ready.task.seed, rank=pruning.rank
            )
        except TspruneError as error:
            refused[name] = str(error)
            continue
        row: dict[str, Any] = {"kind": KIND, "windows": len(windows), "agreement": as_json(agreement)}
        arrays = {f"{model.unit_groups()[group].kind}|{group}": np.asarray(v.cpu()) for group, v in found.items()}
        results[name] = Result(row, arrays, "", time.monotonic() - started)
    return Done(results, refused)
