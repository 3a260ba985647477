"""From finished cells to tidy rows, in the order of the grid, and to comparisons window by window."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tsprune.bench import SPECIALIST
from tsprune.bench.jobs import Arrays, Job, entries, joined
from tsprune.bench.spec import Spec
from tsprune.bench.store import Store
from tsprune.errors import TspruneError
from tsprune.evaluation.comparing import Options, compare, overall

JUDGED = ("tuned", "zero_shot", SPECIALIST, "scratch", "baseline")
"""Kinds of rows that stand in the tables; other recipes have kinds of their own."""
_COMPARED = ("tuned", "scratch", "baselines")
Keyed = Sequence[tuple[Job, str]]
"""Jobs with their keys, in the order of the grid."""


class Gathered:
    """The finished part of a grid.

    Args:
        spec: the grid.
        keyed: its jobs.
        store: what is finished.
    """

    def __init__(self, spec: Spec, keyed: Keyed, store: Store) -> None:
        self.spec, self.keyed, self.store = spec, keyed, store
        self.missing: list[str] = []
        self.protocols: dict[str, None] = {}
        self.seconds = 0.0
        self._cells: dict[tuple[str, str], dict[str, Any]] = {}
        self.rows = [row for job, key in keyed for row in self._of(job, key)]
        self.judged = [row for row in self.rows if row["kind"] in JUDGED]

    def _of(self, job: Job, key: str) -> list[dict[str, Any]]:
        """The rows of one job, and with all its candidates the specialist's."""
        place = self._place(job)
        found = []
        lacking: list[str] = []
        for name in job.wanted:
            cell = self.store.get(key, name)
            if cell is None:
                lacking.append(name)
            elif "refused" in cell:
                self.missing.append(f"{job.words()}: {cell['refused']}")
            else:
                self._cells[key, name] = cell
                self.seconds += cell["seconds"]
                if cell["protocol"]:
                    self.protocols[cell["protocol"]] = None
                found.append({**place, "candidate": name, **cell["row"]})
        if lacking:
            which = f"all {len(lacking)}" if lacking == list(job.wanted) else ", ".join(lacking)
            self.missing.append(f"{job.words()}: {which} not done")
        if job.kind == "tuned" and not lacking and (chosen := chosen_of(found)):
            row = next(row for row in found if row["candidate"] == chosen)
            found.append({**row, "candidate": SPECIALIST, "kind": SPECIALIST, "chosen": chosen})
        return found

    def _place(self, job: Job) -> dict[str, Any]:
        protocol = self.spec.protocol_of(entries(self.spec, job)[1], job.horizon)
        return {**job.cell(), "horizon": protocol.horizon}

    def benchmark(self) -> list[dict[str, Any]]:
        """Result rows in the form of a benchmark, the model named by grid's model, candidate and seed."""
        found = []
        for job, key in self.keyed:
            for name in job.wanted:
                parts = [job.model or "", name, "" if job.seed is None else f"seed {job.seed}"]
                label = " ".join(part for part in parts if part)
                for row in self._cells.get((key, name), {}).get("benchmark", ()):
                    column = "model" if "model" in row else "model_name"
                    found.append({**row, column: label})
        return found

    def done(self, key: str, name: str) -> bool:
        """Whether a cell holds a result."""
        return (key, name) in self._cells

    def tasks(self) -> list[tuple[tuple[Any, ...], Job]]:
        """Data set, horizon, share and model of every tuned job, each once, with one of its jobs."""
        found: dict[tuple[Any, ...], Job] = {}
        for job, _ in self.keyed:
            if job.kind == "tuned":
                found.setdefault((job.data, job.horizon, job.share, job.model), job)
        return list(found.items())

    def comparisons(self, measure: str) -> list[dict[str, Any]]:
        """Every task's candidates and rivals against the reference, the seeds joined.

        Only seeds for which everything is finished count. What has no seed, such as a baseline, stands in for each.
        """
        found = []
        for (data, horizon, share, model), job in self.tasks():
            seeds, arrays = self._complete(data, horizon, share, model)
            if not seeds:
                continue
            place = {"model": model, "data": data, "horizon": self._place(job)["horizon"], "share": share}
            found.append({**place, "seeds": seeds, "compared": self._compared(arrays, measure)})
        return found

    def _compared(self, arrays: Mapping[str, list[Arrays]], measure: str) -> dict[str, Any]:
        try:
            models = {name: joined(parts) for name, parts in arrays.items()}
            blocks = next(iter(models.values()))[1]
            rows = {name: rows for name, (rows, _) in models.items()}
            return compare(rows, self.spec.reference, blocks, Options(measure))
        except TspruneError as error:
            return {"measure": measure, "reference": self.spec.reference, "refused": str(error)}

    def _complete(
        self, data: str, horizon: int, share: float, model: str | None
    ) -> tuple[list[int], dict[str, list[Arrays]]]:
        """Seeds that are finished, and for every candidate and rival the errors of each of these seeds.

        What has no seed stands in for each; what has fewer seeds than the model is used in turn.
        """
        own: dict[int, dict[str, Arrays]] = {}
        others: dict[str, list[Arrays]] = {}
        for job, key in self.keyed:
            place = (job.data, job.horizon, job.share)
            if place != (data, horizon, share) or job.model not in (None, model) or job.kind not in _COMPARED:
                continue
            there = {name: self.store.arrays(key, name) for name in job.wanted if self._has_arrays(key, name)}
            if job.kind != "tuned" or job.seed is None:
                for name, found in there.items():
                    others.setdefault(name, []).append(found)
                continue
            rows = [{"candidate": name, **self._cells[key, name]["row"]} for name in there]
            if len(rows) == len(job.wanted) and (chosen := chosen_of(rows)):
                there[SPECIALIST] = there[chosen]
            own[job.seed] = there
        names = set().union(*own.values()) if own else set()
        seeds = sorted(seed for seed, found in own.items() if set(found) == names)
        if not seeds or self.spec.reference not in names | set(others):
            return [], {}
        arrays = {name: [own[seed][name] for seed in seeds] for name in sorted(names)}
        stand_ins = {name: [found[i % len(found)] for i in range(len(seeds))] for name, found in others.items()}
        return seeds, arrays | stand_ins

    def _has_arrays(self, key: str, name: str) -> bool:
        return bool(self._cells.get((key, name), {}).get("arrays"))

    def overalls(self, measure: str, reference: str) -> dict[str, Any]:
        """Summary over tasks by model, and over all models; only tasks with every candidate count.

        Returns:
            By model, and for `all`, what `comparing.overall` gives; or `refused` with the reason.
        """
        errors = self._errors(measure)
        found: dict[str, Any] = {}
        for name in [*(entry.name for entry in self.spec.models), "all"]:
            chosen = {task: by for task, by in errors.items() if name in ("all", task[-1])}
            names = set().union(*chosen.values()) if chosen else set()
            whole = {str(task): by for task, by in chosen.items() if set(by) == names}
            sets = {str(task): str(task[0]) for task in chosen}
            try:
                found[name] = overall(whole, reference, data_sets=sets)
                found[name]["tasks_left_out"] = len(chosen) - len(whole)
            except TspruneError as error:
                found[name] = {"refused": str(error)}
        return found

    def _errors(self, measure: str) -> dict[tuple[Any, ...], dict[str, float]]:
        """Mean error over seeds of every candidate and rival, by data set, horizon, share and model."""
        found: dict[tuple[Any, ...], dict[str, float]] = {}
        for (data, horizon, share, model), job in self.tasks():
            horizon = self._place(job)["horizon"]
            place = (data, horizon, share)
            rows = [row for row in self.judged if (row["data"], row["horizon"], row["share"]) == place]
            here = [row for row in rows if row["model"] in (None, model)]
            by = {name: mean_of(here, name, measure) for name in dict.fromkeys(row["candidate"] for row in here)}
            found[data, horizon, share, model] = {name: value for name, value in by.items() if value is not None}
        return {task: by for task, by in found.items() if by}

    def plan(self, key: str, name: str) -> str:
        """The plan by which a candidate was cut, as JSON text; "" for one that is whole."""
        return str(self._cells.get((key, name), {}).get("plan", ""))

    def sizes(self, latencies: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float | None]]]:
        """Geometric means over tasks and seeds of parameters, operations and latency over the reference's, by model."""
        found: dict[str, dict[str, dict[str, float | None]]] = {}
        for entry in self.spec.models:
            rows = [row for row in self.judged if row["model"] == entry.name]
            timed = [row for row in latencies if row["model"] == entry.name]
            names = [*dict.fromkeys(row["candidate"] for row in rows)]
            found[entry.name] = {
                name: {
                    "parameters": self._shrunk(rows, name, "parameters"),
                    "flops": self._shrunk(rows, name, "flops"),
                    "latency": self._shrunk(timed, name, "latency_ms"),
                }
                for name in names
            }
        return found

    def _shrunk(self, rows: Iterable[Mapping[str, Any]], name: str, what: str) -> float | None:
        places: dict[tuple[Any, ...], dict[str, float]] = {}
        for row in rows:
            if row["candidate"] in (name, self.spec.reference) and row.get(what):
                place = tuple(row.get(part) for part in ("data", "horizon", "share", "seed"))
                places.setdefault(place, {})[row["candidate"]] = row[what]
        logs = [
            math.log(by[name] / by[self.spec.reference])
            for by in places.values()
            if name in by and self.spec.reference in by
        ]
        return math.exp(math.fsum(logs) / len(logs)) if logs else None


def chosen_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """The candidate with the lowest validation MSE; "" where none has one."""
    able = {row["candidate"]: row["validation"]["mse"] for row in rows if row["validation"]["mse"] is not None}
    return min(able, key=lambda name: able[name]) if able else ""


def mean_of(rows: Iterable[Mapping[str, Any]], name: str, measure: str) -> float | None:
    """Mean test error of a candidate over seeds; None where one is missing."""
    values = [row["test"].get(measure) for row in rows if row["candidate"] == name]
    return math.fsum(values) / len(values) if values and None not in values else None
