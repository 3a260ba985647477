"""A grid from its file to its tables: jobs, results as they come, comparisons, latencies, page."""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tsprune import candidates, registry
from tsprune.bench.gathering import Gathered
from tsprune.bench.jobs import Done, Job
from tsprune.bench.latencies import busy, latencies
from tsprune.bench.recipes._recipe import Recipe
from tsprune.bench.runners import processes
from tsprune.bench.spec import RECIPES, Spec
from tsprune.bench.store import WORK, Store, rows_text
from tsprune.bench.work import forget, key_of, panel_of
from tsprune.errors import TspruneError
from tsprune.evaluation import baselines
from tsprune.evaluation.machine import machine_line, versions
from tsprune.progress import Bar, Progress
from tsprune.stages import held, write_json, write_text

ROWS, SUMMARY, COMPARISONS, LATENCIES = "results.jsonl", "summary.json", "comparisons.json", "latency.jsonl"
FAILED = "failed"


def bench(
    spec: Spec,
    out: Path,
    *,
    workers: int = 1,
    ray: str = "",
    progress: Progress | None = None,
    run: bool = True,
) -> dict[str, Any]:
    """Run what is missing of a grid, and write what is made of all of it.

    Killed at any moment, the same call goes on: finished cells are kept, begun trainings continue. Results do not
    depend on how many processes or machines work, nor on the order in which they finish.

    Args:
        spec: the grid.
        out: directory for cells, `results.jsonl`, `comparisons.json`, `summary.json`, tables and page.
        workers: jobs at a time, one core each; with Ray 0 takes the whole cluster.
        ray: address of a Ray cluster, `auto`, or `local`; "" works in processes of this machine.
        progress: told what happens.
        run: False makes tables and page of what is finished.

    Returns:
        The content of `summary.json`.

    Raises:
        TspruneError: anything about grid, data or models that cannot be met, before any work; or some jobs failed,
            after the others are done.
    """
    progress = progress or Progress(quiet=True)
    recipe: Recipe = registry.find(RECIPES, spec.recipe).RECIPE
    spec = recipe.settled(spec)
    forget()
    _refuse(spec)
    with held(out):
        return _Bench(spec, recipe, out, workers, ray, progress).run(run)


def _refuse(spec: Spec) -> None:
    """Refuse, before any work, what no job could do."""
    baselines.check(spec.baselines)
    for model in spec.models:
        for entry in spec.data:
            _, pruning, tuning = spec.sections(model, entry)
            candidates.check(spec.candidates, pruning, tuning)
    for horizon in spec.horizons:
        for entry in spec.data:
            panel_of(spec, entry, horizon)


class _Bench:
    """One run over a grid; the arguments are those of `bench`."""

    def __init__(self, spec: Spec, recipe: Recipe, out: Path, workers: int, ray: str, progress: Progress) -> None:
        self.spec, self.recipe, self.out = spec, recipe, out
        self.workers, self.ray, self.progress = workers, ray, progress
        self.store = Store(out)
        self.keyed: list[tuple[Job, str]] = []
        self.failed: dict[str, str] = {}

    def run(self, work: bool) -> dict[str, Any]:
        """Wave after wave, then the tables."""
        for wave in self.recipe.waves():
            jobs = [(job, key_of(self.spec, job)) for job in wave(self.spec, self._look)]
            self.keyed += jobs
            if work:
                self._wave(jobs)
        gathered = Gathered(self.spec, self.keyed, self.store)
        timed = self._timed(gathered, work)
        summary = self._written(gathered, timed)
        if self.failed:
            words, reason = next(iter(self.failed.items()))
            raise TspruneError(
                f"{len(self.failed)} of {len(self.keyed)} jobs failed, the first is {words}: {reason}; tracebacks "
                f"are in {self.out / FAILED}, the same command tries them again"
            )
        return summary

    def _look(self, job: Job, name: str) -> dict[str, Any] | None:
        return self.store.get(key_of(self.spec, job), name)

    def _wave(self, jobs: Sequence[tuple[Job, str]]) -> None:
        missing = [(left, key) for job, key in jobs if (left := self.store.missing(key, job)) is not None]
        done = len(jobs) - len(missing)
        if done:
            self.progress.say(f"{done} of {len(jobs)} jobs are finished and are not done again")
        if not missing:
            return
        # Jobs hold mappings and cannot be keys; their text can.
        keys = {repr(job): key for job, key in missing}
        tasks = [(job, str(self.store.work(key).resolve())) for job, key in missing]
        clock = _Clock([job for job, _ in missing], max(1, self.workers))
        with self.progress.stage("bench", len(missing)) as bar:

            def handed(job: Job, found: Done | Exception) -> None:
                self._keep(job, keys[repr(job)], found)
                bar.update(bar.done + 1, clock.note(job, bar))

            self._runner()(self.spec.to_json(), tasks, handed, self.workers, self.ray)
        if not self.failed:
            shutil.rmtree(self.out / WORK, ignore_errors=True)

    def _runner(self) -> Any:
        if self.ray:
            from tsprune.bench.runners import ray

            return ray.run
        return processes.run

    def _keep(self, job: Job, key: str, found: Done | Exception) -> None:
        if isinstance(found, Done):
            self.store.add(key, found)
            shutil.rmtree(self.store.work(key), ignore_errors=True)
            (self.out / FAILED / f"{key}.txt").unlink(missing_ok=True)
            return
        self.failed[job.words()] = " ".join(str(found).split()) or type(found).__name__
        text = "".join(traceback.format_exception(found))
        write_text(self.out / FAILED / f"{key}.txt", f"{job.words()}\n\n{text}")
        self.progress.say(f"failed: {job.words()}: {self.failed[job.words()]}")

    def _timed(self, gathered: Gathered, measure: bool) -> list[dict[str, Any]]:
        if not self.spec.latency:
            return []
        return latencies(gathered, self.out / "latency", self.progress, measure)

    def _written(self, gathered: Gathered, timed: list[dict[str, Any]]) -> dict[str, Any]:
        """Every file that is made of the cells."""
        from tsprune.bench.pages.page import write_page
        from tsprune.bench.pages.recipepage import write_recipe_page
        from tsprune.bench.pages.tables import latex, markdown
        from tsprune.evaluation.resultrows import write_rows

        summary = summary_of(self.spec, gathered, timed)
        compared = gathered.comparisons(summary["measure"])
        summary |= self.recipe.summary(gathered)
        write_text(self.out / ROWS, rows_text(gathered.rows))
        write_text(self.out / LATENCIES, rows_text(timed))
        if rows := gathered.benchmark():
            path = self.out / f"{self.spec.protocol}.csv"
            path.unlink(missing_ok=True)
            write_rows(path, rows)
        write_json(self.out / COMPARISONS, compared)
        write_json(self.out / SUMMARY, summary)
        if gathered.judged:
            write_text(self.out / "table.md", markdown(gathered.judged, summary))
            write_text(self.out / "table.tex", latex(gathered.judged, summary))
            write_page(self.out / "bench.html", gathered.judged, timed, compared, summary)
        if told := self.recipe.told(summary):
            headline, parts = told
            name = self.spec.recipe
            write_recipe_page(self.out / f"{name}.html", f"{self.spec.name}: {name}", headline, parts, summary)
        return summary


def summary_of(spec: Spec, gathered: Gathered, timed: list[dict[str, Any]]) -> dict[str, Any]:
    """What the grid says as a whole."""
    protocols = {spec.protocol_of(entry, horizon).headline for entry in spec.data for horizon in spec.horizons}
    measures = list(next(iter(protocols)))
    against = [spec.reference, *(name for name in spec.fresh() if name != spec.reference)]
    return {
        "name": spec.name,
        "recipe": spec.recipe,
        "measure": measures[0],
        "measures": measures,
        "reference": spec.reference,
        "models": [entry.name for entry in spec.models],
        "data": [entry.name for entry in spec.data],
        "horizons": list(dict.fromkeys(row["horizon"] for row in gathered.rows)) or list(spec.horizons),
        "candidates": list(dict.fromkeys(row["candidate"] for row in gathered.judged)),
        "seeds": list(spec.seeds),
        "shares": list(spec.shares),
        "protocols": list(gathered.protocols),
        "settings": dict(spec.settings) | ({"scratch": dict(spec.scratch)} if spec.fresh() else {}),
        "missing": gathered.missing,
        "overall": {measure: gathered.overalls(measure, spec.reference) for measure in measures},
        "against": {name: {measure: gathered.overalls(measure, name) for measure in measures} for name in against[1:]},
        "sizes": gathered.sizes(timed),
        "latency_busy": busy(timed),
        "machine": machine_line(busy=busy(timed), threads=1),
        "versions": versions(),
        "seconds": round(gathered.seconds, 1),
        "notes": _notes(spec, gathered),
    }


def _notes(spec: Spec, gathered: Gathered) -> list[str]:
    notes = [f"{row['model']} on {row['data']}: {words}" for row in gathered.judged for words in row.get("leaks", ())]
    notes = list(dict.fromkeys(notes))
    if len(spec.seeds) < 3:
        notes.append(f"{len(spec.seeds)} seeds: differences of a few percent may be those of the seeds; use 3 at least")
    budgets = [row["training"]["budget"] for row in gathered.judged if row["kind"] == "scratch"]
    notes += [f"networks from scratch: {budget.split(';')[0]}" for budget in dict.fromkeys(budgets)][:3]
    return notes


class _Clock:
    """How much longer it takes: by the time of jobs of the same kind and model, else of all that are done."""

    def __init__(self, jobs: Sequence[Job], workers: int) -> None:
        self.left = [(job.kind, job.model) for job in jobs]
        self.workers, self.started = workers, time.monotonic()
        self.took: dict[Any, list[float]] = {}
        self.last = self.started

    def note(self, job: Job, bar: Bar) -> str:
        """One more is done."""
        kind = (job.kind, job.model)
        self.left.remove(kind)
        now = time.monotonic()
        # With several at work the gap between two ends is the share of one.
        self.took.setdefault(kind, []).append(now - self.last)
        self.last = now
        everything = [gap for gaps in self.took.values() for gap in gaps]
        usual = sum(everything) / len(everything)
        left = sum(sum(gaps) / len(gaps) if (gaps := self.took.get(kind)) else usual for kind in self.left)
        minutes = f"about {left / 60:.0f} min left" if left >= 90 else f"about {left:.0f} s left"
        return f"{job.words()}; {minutes if self.left else 'done'}"
