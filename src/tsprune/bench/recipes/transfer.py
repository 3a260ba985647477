"""The transfer matrix: a plan found on one data set, applied to every other (arXiv 2505.23195, section on transfer)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tsprune.bench.gathering import Gathered
from tsprune.bench.jobs import Job
from tsprune.bench.kinds.transfer import PREFIX
from tsprune.bench.recipes._recipe import Look, Recipe, everything
from tsprune.bench.spec import Spec
from tsprune.candidates import PRUNED
from tsprune.errors import TspruneError
from tsprune.report.words import human


class Transfer(Recipe):
    """The grid, and then every plan on every other data set."""

    def settled(self, spec: Spec) -> Spec:
        """With the pruned candidate and full fine-tuning only, unless more are named; needs two data sets."""
        if len(spec.data) < 2:
            raise TspruneError("recipe transfer needs at least two data sets, the plan of each goes to the others")
        return spec

    def waves(self) -> list[Callable[[Spec, Look], list[Job]]]:
        """The grid first, since the plans come from it."""
        return [everything, transfers]

    def summary(self, gathered: Gathered) -> dict[str, Any]:
        """By model: error with a plan from elsewhere over the error with the data's own, and over full fine-tuning.

        Means over horizons and seeds are geometric.
        """
        found, spec = {}, gathered.spec
        for model in spec.models:
            own = [row for row in gathered.rows if row["model"] == model.name and "test" in row]
            names = [entry.name for entry in spec.data]
            found[model.name] = {
                "sources": names,
                "targets": names,
                "over_own_plan": [[_ratio(own, s, t, PRUNED) for t in names] for s in names],
                "over_reference": [[_ratio(own, s, t, spec.reference) for t in names] for s in names],
            }
        return {"transfer": found}

    def told(self, summary: dict[str, Any]) -> tuple[str, list[dict[str, Any]]] | None:
        """A matrix for every model, and what crossing costs on average."""
        parts, logs = [], []
        for model, found in summary["transfer"].items():
            values = found["over_own_plan"]
            logs += [math.log(v) for i, row in enumerate(values) for j, v in enumerate(row) if i != j and v is not None]
            for key, over in (("over_own_plan", "the data's own plan"), ("over_reference", summary["reference"])):
                title = f"{model}: test MSE over that with {human(over)}"
                matrix = {"rows": found["sources"], "columns": found["targets"], "values": found[key], "middle": 1.0}
                matrix |= {"title": title, "axis_names": ("plan found on", "applied to")}
                parts.append({"title": title, "matrix": matrix})
        if not logs:
            return "No plan has been applied elsewhere yet.", [
                {**part, "matrix": None, "missing": "not done"} for part in parts
            ]
        mean = math.exp(math.fsum(logs) / len(logs))
        share = sum(log <= math.log(1.01) for log in logs) / len(logs)
        return (
            f"A plan from other data gives {mean:.3f} times the error of the data's own plan (geometric mean over "
            f"{len(logs)} crossings); in {share:.0%} of them it costs 1 % at most.",
            parts,
        )


def transfers(spec: Spec, look: Look) -> list[Job]:
    """A job for every model and target: the plans of the other data sets, as far as they are there."""
    found = []
    for job in everything(spec, look):
        if job.kind != "tuned":
            continue
        plans = {}
        for entry in spec.data:
            cell = look(replace(job, data=entry.name), PRUNED)
            if entry.name != job.data and cell is not None and cell.get("plan"):
                plans[PREFIX + entry.name] = cell["plan"]
        if plans:
            more = {"plans": plans, "words": ["plans of other data"]}
            found.append(replace(job, kind="transfer", wanted=tuple(plans), more=more))
    return found


def _ratio(rows: list[dict[str, Any]], source: str, target: str, over: str) -> float | None:
    name = PRUNED if source == target else PREFIX + source
    places: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in rows:
        if row["data"] == target and row["candidate"] in (name, over) and row["test"]["mse"]:
            place = (row["horizon"], row["share"], row["seed"])
            places.setdefault(place, {})[row["candidate"]] = row["test"]["mse"]
    logs = [math.log(by[name] / by[over]) for by in places.values() if name in by and over in by]
    return math.exp(math.fsum(logs) / len(logs)) if logs else None


RECIPE = Transfer()
