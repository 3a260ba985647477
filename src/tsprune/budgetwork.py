"""A budget on its way through a pruning: from the settings to a goal, and what became of it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tsprune.budgets import Budget, Flops, Measure, PredictedLatency, Sizes, keep_budget, parameters, speed_budget
from tsprune.errors import TspruneError
from tsprune.evaluation.cost import latency
from tsprune.evaluation.costtable import CostTable, measure_table
from tsprune.models import fingerprint
from tsprune.models._forecaster import Forecaster
from tsprune.preparing import Prepared
from tsprune.progress import Progress
from tsprune.settings import PruneSettings
from tsprune.slimming import slim
from tsprune.stages import digest, read_json, write_json

WORK = "rounds"
"""Folder in which a pruning keeps what it needs to go on after a kill; removed once it is done."""
COSTS = "costs.json"
BUDGET = "budget.json"


def budget_of(
    ready: Prepared, settings: PruneSettings, base: Forecaster, work: Path, progress: Progress
) -> Budget | None:
    """The budget that the settings name, or None where validation decides; says what is aimed at.

    Args:
        ready: gives context, horizon and batch of the forecast whose cost counts.
        settings: how to prune.
        base: the uncut model.
        work: where the table of costs is kept, so that a resumed run has the same one.
        progress: told the prediction.
    """
    if settings.speedup:
        counter = Flops(base, ready.split.context, ready.horizon, ready.task.latency_batch)
        budget = speed_budget(settings.speedup, PredictedLatency(_table(ready, base, counter, work), counter))
    elif settings.keep:
        measure: Measure = parameters
        if settings.keep_of == "flops":
            measure = Flops(base, ready.split.context, ready.horizon)
        budget = keep_budget(base, settings.keep, measure, settings.keep_of)
    else:
        return None
    if isinstance(budget.measure, PredictedLatency):
        table = budget.measure.table
        progress.say(
            f"{budget.words}: a forecast takes {table.dense_ms:.2f} ms on one thread, {table.rest_ms:.2f} ms of that "
            f"outside of layers; predicted after pruning: {budget.goal:.2f} ms"
        )
    return budget


def _table(ready: Prepared, base: Forecaster, counter: Flops, work: Path) -> CostTable:
    """Costs on this machine, measured once for one pruning."""
    sizes = (ready.split.context, ready.horizon, ready.task.latency_batch)
    identity, path = digest([fingerprint(base), sizes]), work / COSTS
    if path.exists():
        try:
            stored = read_json(path)
            if stored["for"] == identity:
                return CostTable.from_json(stored["table"])
        except (TspruneError, TypeError, KeyError):
            pass  # Measured anew below.
    table = measure_table(base, counter.of_modules, *sizes)
    write_json(path, {"for": identity, "table": table.to_json()})
    return table


def settle_budget(
    ready: Prepared,
    base: Forecaster,
    kept: Mapping[str, Sequence[int]],
    budget: Budget | None,
    out: Path,
    progress: Progress,
) -> None:
    """Write what became of a budget to `budget.json`, latency measured beside the prediction; end the work folder."""
    shutil.rmtree(out / WORK, ignore_errors=True)
    if budget is None:
        (out / BUDGET).unlink(missing_ok=True)
        return
    sizes = Sizes.of(base, budget.measure)
    facts: dict[str, Any] = {"words": budget.words, "goal": budget.goal, "whole": sizes({}), "reached": sizes(kept)}
    if isinstance(budget.measure, PredictedLatency):
        models = {"whole": base, "slim": slim(base, kept)}
        timed = latency(models, ready.task.latency_batch, ready.split.context, ready.horizon, 1)
        before, after = timed["whole"].median_ms, timed["slim"].median_ms
        facts["measured_ms"] = {"whole": before, "slim": after}
        busy = "; the machine was busy, so the times are not reliable" if timed["slim"].busy else ""
        progress.say(
            f"predicted {facts['reached']:.2f} ms, measured {after:.2f} ms, against {before:.2f} ms of the uncut "
            f"model: {before / after:.2f} times as fast{busy}"
        )
    write_json(out / BUDGET, facts)


def budget_missed(out: Path) -> str:
    """The flag of a budget that was out of reach, or nothing."""
    if not (out / BUDGET).exists():
        return ""
    facts = read_json(out / BUDGET)
    return " ".join(facts["words"].split()[:2]) if facts["reached"] > facts["goal"] else ""
