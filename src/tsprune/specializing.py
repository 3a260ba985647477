"""The whole way: candidates from one model and one panel, the proof, and the specialist."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsprune import candidates
from tsprune.__about__ import __version__
from tsprune.candidates import PRUNED
from tsprune.candidates._candidate import AS_PUBLISHED, Shorter
from tsprune.candidates._workshop import Workshop, plan_of
from tsprune.errors import TspruneError
from tsprune.evaluation.baselines import DEFAULT, Baseline, check
from tsprune.evaluation.baselines import names as baseline_names
from tsprune.evaluation.evaluate import Predictor
from tsprune.flags import Settings, validated
from tsprune.foldwork import fold_stages, folded_plan, folding_of, notes_of
from tsprune.models import fingerprint, load, save
from tsprune.models._forecaster import Forecaster
from tsprune.plan import Plan
from tsprune.predicting import as_model, as_panel
from tsprune.preparing import Prepared, prepare
from tsprune.progress import Progress
from tsprune.proof import MEASURED, baselines_of, judge, measured, open_test, say_costs
from tsprune.settings import (
    BaselineSettings,
    CandidateSettings,
    FinetuneSettings,
    FoldSettings,
    PruneSettings,
    TaskSettings,
)
from tsprune.stages import Run, read_json, write_json
from tsprune.stagework import check_place, check_pruning, with_task
from tsprune.tuningwork import check_tuning, tuning_facts

if TYPE_CHECKING:
    import pandas as pd

    from tsprune.data.panel import Panel
    from tsprune.data.reading import ReadOptions


@dataclass(frozen=True)
class Specialist:
    """What a run hands back.

    Args:
        directory: the run directory, with `report.html`, `results.json`, `plan.json` and `model/`.
        results: content of `results.json`.
        model: the model that was kept.
    """

    directory: Path
    results: Mapping[str, Any]
    model: Forecaster


def specialize(
    model: Forecaster | str | PathLike[str] = "mini",
    panel: Panel | pd.DataFrame | pd.Series[Any] | str | PathLike[str] | None = None,
    *,
    out: str | Path = "tsprune-run",
    options: ReadOptions | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Specialist:
    """Prune, fine-tune and prove a specialist; killed at any moment, the same call resumes.

    Args:
        model: name, directory, hub id, or a loaded model; never changed.
        panel: the series, a table, or the path of a file; None reads `data=...`, or the sample inside the package.
        out: run directory.
        options: how to read a file or a table.
        progress: where to report; None keeps quiet.
        settings: any field of `TaskSettings`, `PruneSettings`, `FinetuneSettings`, `FoldSettings`,
            `CandidateSettings` or `BaselineSettings`, such as `horizon=24`.

    Returns:
        The specialist with its results.

    Raises:
        TspruneError: anything about the input that cannot be met; nothing is half-written then.
    """
    sections = (TaskSettings, PruneSettings, FinetuneSettings, FoldSettings, CandidateSettings, BaselineSettings)
    known = {entry.name for section in sections for entry in fields(section)}
    if unknown := sorted(set(settings) - known):
        raise TspruneError(f"unknown setting {unknown[0]!r}; known: {', '.join(sorted(known))}")
    if panel is not None and settings.get("data"):
        raise TspruneError("the series are given twice, as panel and as data=...; leave one out")
    if not str(out):
        raise TspruneError("--out is empty; name a run directory, or leave it out for the default")

    def part(section: type[Settings]) -> Settings:
        names = {entry.name for entry in fields(section)}  # type: ignore[arg-type]
        return validated(section, {name: value for name, value in settings.items() if name in names})

    task, tuning, pruning = part(TaskSettings), part(FinetuneSettings), part(PruneSettings)
    baselines, chosen = part(BaselineSettings).baselines, part(CandidateSettings)
    trained, shorter = chosen.candidates, Shorter(chosen.scratch_steps, chosen.scratch_small)
    check(baselines)
    candidates.check(trained, pruning, tuning)
    loaded = None if isinstance(model, str | PathLike) else as_model(model)
    name = fspath(model) if isinstance(model, str | PathLike) else f"{model.family} model in memory"
    series = None if panel is None else as_panel(panel, options)
    prepared = prepare(replace(task, model=name), options, panel=series, model=loaded)
    quiet = progress or Progress(quiet=True)
    fold = part(FoldSettings).fold
    return Specialization(prepared, Path(out), pruning, tuning, quiet, baselines, trained, shorter, fold=fold).run()


class Specialization:
    """One run over a prepared task."""

    def __init__(
        self,
        prepared: Prepared,
        out: Path,
        pruning: PruneSettings,
        tuning: FinetuneSettings,
        progress: Progress,
        baselines: Sequence[str] = DEFAULT,
        trained: Sequence[str] = candidates.DEFAULT,
        shorter: Shorter = AS_PUBLISHED,
        *,
        fold: bool = False,
    ) -> None:
        self.prepared, self.tuning, self.progress, self.fold = prepared, tuning, progress, fold
        check(baselines)
        self.chosen_baselines = tuple(baselines)
        # Asking now refuses impossible tasks before anything is written.
        self.pruning = check_pruning(pruning, prepared.model)
        check_tuning(tuning, prepared.model)
        self.trained = {name: candidates.find(name) for name in candidates.ordered(trained)}
        candidates.check(self.trained, self.pruning, tuning, prepared)
        self.sizes = prepared.sizes
        _ = prepared.leakage
        self.workplace = Run(out, progress.say)
        check_place(out / "model")
        self.base = {"tsprune": __version__, **prepared.identity}
        self.workshop = Workshop(prepared, self.pruning, tuning, self.workplace, self.base, progress, shorter)

    def run(self) -> Specialist:
        """All stages in order; finished ones are taken as they stand. The directory is locked meanwhile."""
        try:
            # The brief tuning first, then the plan: what others start from is cut to its size.
            _ = self.workshop.start, self.workshop.pruned
            sources = {name: one.start.stage(self.workshop) for name, one in self.trained.items()}
            tuned = {name: one.training.stage(self.workshop, one, sources[name]) for name, one in self.trained.items()}
            final = self.folded(sources, tuned)
            validation = self.validation_stage(final)
            chosen = judge(validation)
            test = self.test_stage(final, chosen)
            return self.finish(sources, tuned, final, validation, test, chosen)
        finally:
            self.workplace.close()

    def folded(self, sources: Mapping[str, Path | None], tuned: Mapping[str, Path]) -> Mapping[str, Path]:
        """The stages with the models that are compared and handed back: folded where that is set and possible."""
        if not self.fold:
            return tuned
        plans = {name: plan_of(source) for name, source in sources.items()}
        return fold_stages(self.prepared, self.workplace, self.base, tuned, plans, self.progress)

    def models(self, tuned: Mapping[str, Path]) -> dict[str, Predictor]:
        """Every candidate by name, in the order of the table."""
        device = self.prepared.task.device
        found: dict[str, Predictor] = {**self.baselines, "zero_shot": self.prepared.model}
        return found | {name: load(folder / "model", device=device) for name, folder in tuned.items()}

    @cached_property
    def baselines(self) -> dict[str, Baseline]:
        """The chosen baselines by name, fitted when they are first asked for."""
        return baselines_of(self.prepared, self.chosen_baselines, self.progress)

    def validation_stage(self, tuned: Mapping[str, Path]) -> dict[str, Any]:
        """Metrics of every candidate on the validation windows."""
        inputs = {**self.base, **self._compared(tuned)}

        def make(work: Path) -> None:
            windows = self.prepared.validation[0]
            models = self.models(tuned)
            say_costs(models, windows, self.progress)
            with self.progress.stage("validate", len(models)) as bar:
                found = measured(work, self.prepared, models, windows, bar)
                bar.update(len(models), "")
            write_json(work / "validation.json", found)
            shutil.rmtree(work / MEASURED)

        folder = self.workplace.stage("validate", inputs, make)
        return dict(read_json(folder / "validation.json"))

    def test_stage(self, tuned: Mapping[str, Path], chosen: str) -> Path:
        """The test windows, opened once, for candidates that can no longer change."""
        task = self.prepared.task
        inputs = {
            **self.base,
            **self._compared(tuned),
            "chosen": chosen,
            "test_windows": task.test_windows,
            "latency_batch": task.latency_batch,
            # Test stages of older versions compared nothing.
            "comparison": 1,
        }

        def make(work: Path) -> None:
            models = self.models(tuned)
            say_costs(models, self.prepared.test[0], self.progress)
            with self.progress.stage("test", len(models) + 1) as bar:
                open_test(work, self.prepared, models, chosen, bar)

        return self.workplace.stage("test", inputs, make)

    def _compared(self, tuned: Mapping[str, Path]) -> dict[str, Any]:
        """Who is measured, as inputs of a stage; the usual baselines go without saying, as before there were others."""
        models = {name: fingerprint(load(folder / "model")) for name, folder in tuned.items()}
        if self.chosen_baselines == DEFAULT:
            return {"models": models}
        return {"models": models, "baselines": self.chosen_baselines}

    def finish(
        self,
        sources: Mapping[str, Path | None],
        tuned: Mapping[str, Path],
        final: Mapping[str, Path],
        validation: Mapping[str, Any],
        test: Path,
        chosen: str,
    ) -> Specialist:
        """Write `results.json`, `plan.json`, `model/` and the report."""
        from tsprune.proof import assemble, examples_from
        from tsprune.report import write_report

        pruned = self.workshop.pruned
        stages = {
            "rounds": read_json(pruned / "rounds.json"),
            "equivalence": read_json(pruned / "equivalence.json"),
            "test": read_json(test / "test.json"),
        }
        trials = {name: read_json(folder / "trials.json") for name, folder in tuned.items()}
        remarks = {name: one.training.notes(tuned[name]) for name, one in self.trained.items()}
        folding = {name: facts for name, folder in final.items() if (facts := folding_of(folder)) is not None}
        for name, facts in folding.items():
            remarks[name] = [*remarks[name], *notes_of(facts)]
        results = assemble(
            self.prepared, self.sizes, validation, stages, trials, chosen, self.workplace.seconds, remarks
        )
        results["tuning"] = tuning_facts(self.tuning, self.prepared.model)
        if tuple(self.trained) != candidates.DEFAULT:
            results["trained"] = {name: one.facts(self.workshop, tuned[name]) for name, one in self.trained.items()}
        out = self.workplace.directory
        plan = json.loads((pruned / "plan.json").read_text(encoding="utf-8"))
        if folding:
            results["folding"] = folding
        if PRUNED in folding:
            whole = Plan.read(pruned / "plan.json")
            plan = json.loads(folded_plan(whole, self.prepared, folding[PRUNED]).to_json())
        kept = kept_model(chosen, validation)
        if self.fold and kept == "zero_shot":
            self.progress.say("note: --fold: the untuned model is handed back as it came, without folding")
        model = (
            self.prepared.model
            if kept == "zero_shot"
            else load(final[kept] / "model", device=self.prepared.task.device)
        )
        save(with_task(model, self.prepared), out / "model", plan_of(sources.get(kept)))
        write_json(out / "plan.json", plan)
        # Kinds that were not to go would only fill the heat map with whole cells.
        kinds = {"head", "ffn_channel", *(group["kind"] for group in plan["groups"].values())}
        units = {
            name: {"kind": group.kind, "units": group.units, "parameters": group.parameters}
            for name, group in self.prepared.model.unit_groups().items()
            if group.kind in kinds
        }
        write_report(out / "report.html", results, plan, examples_from(test), units)
        write_json(out / "results.json", results)
        return Specialist(out, results, model)


def kept_model(chosen: str, validation: Mapping[str, Any]) -> str:
    """The candidate whose model is handed back: the chosen one, or the best network if a baseline won."""
    networks = {name: found for name, found in validation.items() if name not in baseline_names()}
    return chosen if chosen in networks else judge(networks)
