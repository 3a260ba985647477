"""The whole way: candidates from one model and one panel, the proof, and the specialist."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsprune.__about__ import __version__
from tsprune.errors import TspruneError
from tsprune.evaluation.baselines import DEFAULT, Baseline, check
from tsprune.evaluation.baselines import names as baseline_names
from tsprune.evaluation.evaluate import Predictor
from tsprune.flags import Settings, validated
from tsprune.models import fingerprint, load, save
from tsprune.models._forecaster import Forecaster
from tsprune.plan import Plan
from tsprune.predicting import as_model, as_panel
from tsprune.preparing import Prepared, prepare
from tsprune.progress import Progress
from tsprune.proof import MEASURED, baselines_of, judge, measured, open_test, say_costs
from tsprune.pruning import random_plan
from tsprune.settings import BaselineSettings, FinetuneSettings, PruneSettings, TaskSettings
from tsprune.stages import Run, read_json, write_json
from tsprune.stagework import (
    adapt_to,
    check_place,
    check_pruning,
    finetune_to,
    one_shot,
    prune_by_rounds,
    with_task,
)
from tsprune.tuningwork import check_tuning, tuning_facts

if TYPE_CHECKING:
    import pandas as pd

    from tsprune.data.panel import Panel
    from tsprune.data.reading import ReadOptions

TUNED = ("full_finetuning", "random_prune_finetune", "prune_then_finetune")
LABELS = {"full_finetuning": "whole", "random_prune_finetune": "pruned at random", "prune_then_finetune": "pruned"}


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
        settings: any field of `TaskSettings`, `PruneSettings`, `FinetuneSettings` or `BaselineSettings`, such as
            `horizon=24`.

    Returns:
        The specialist with its results.

    Raises:
        TspruneError: anything about the input that cannot be met; nothing is half-written then.
    """
    sections = (TaskSettings, PruneSettings, FinetuneSettings, BaselineSettings)
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
    baselines = part(BaselineSettings).baselines
    check(baselines)
    loaded = None if isinstance(model, str | PathLike) else as_model(model)
    name = fspath(model) if isinstance(model, str | PathLike) else f"{model.family} model in memory"
    series = None if panel is None else as_panel(panel, options)
    prepared = prepare(replace(task, model=name), options, panel=series, model=loaded)
    return Specialization(prepared, Path(out), pruning, tuning, progress or Progress(quiet=True), baselines).run()


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
    ) -> None:
        self.prepared, self.tuning, self.progress = prepared, tuning, progress
        check(baselines)
        self.chosen_baselines = tuple(baselines)
        # Asking now refuses impossible tasks before anything is written.
        self.pruning = check_pruning(pruning, prepared.model)
        check_tuning(tuning, prepared.model)
        self.sizes = prepared.sizes
        self.workplace = Run(out, progress.say)
        check_place(out / "model")
        self.base = {"tsprune": __version__, **prepared.identity}

    def run(self) -> Specialist:
        """All stages in order; finished ones are taken as they stand. The directory is locked meanwhile."""
        try:
            start = self.adapt_stage()
            pruned = self.rewind_stage(start) if self.pruning.rewind else self.prune_stage(start)
            random = self.random_stage(start, pruned)
            sources = {"full_finetuning": start, "random_prune_finetune": random, "prune_then_finetune": pruned}
            tuned = {name: self.finetune_stage(name, sources[name], start) for name in TUNED}
            validation = self.validation_stage(tuned)
            chosen = judge(validation)
            test = self.test_stage(tuned, chosen)
            return self.finish(tuned, pruned, random, validation, test, chosen)
        finally:
            self.workplace.close()

    def adapt_stage(self) -> Path | None:
        """The brief tuning that pruned and unpruned candidates all go on from: `model/`; None without any step."""
        if not self.pruning.adapt_steps:
            return None
        inputs = {**self.base, "steps": self.pruning.adapt_steps, "rate": self.pruning.adapt_rate}
        inputs["tuning"] = self.pruning.adapt_tuning
        inputs["dropout"] = self.tuning.dropout

        def make(work: Path) -> None:
            adapt_to(self.prepared, self.pruning, work, self.progress, dropout=self.tuning.dropout)

        return self.workplace.stage("adapt", inputs, make)

    def model_of(self, stage: Path | None) -> Forecaster:
        """The model that a stage wrote; None stands for the model as it came."""
        return self.prepared.model if stage is None else load(stage / "model", device=self.prepared.task.device)

    def prune_stage(self, start: Path | None) -> Path:
        """Progressive pruning: `rounds.json`, `plan.json`, `equivalence.json`, `model/`."""
        inputs = {**self.base, **asdict(self.pruning), "from": None if start is None else start.name}

        def make(work: Path) -> None:
            prune_by_rounds(self.prepared, self.pruning, self.model_of(start), work, self.progress)

        return self.workplace.stage("prune", inputs, make)

    def rewind_stage(self, start: Path | None) -> Path:
        """The plan found on the fully tuned dense model, applied to the weights before that tuning; files as above.

        Only the scores see the tuned weights. The full fine-tuning is the dense candidate's, which is made anyway, and
        the pruned model is tuned from the same start with the same budget as before. (Rewinding as in arXiv
        2003.02389, to the weights before tuning.)
        """
        found = self.prune_stage(self.finetune_stage("full_finetuning", start, start))
        names = ("repair", "prune_windows")
        inputs = {**self.base, "plan": found.name, "from": None if start is None else start.name}
        inputs |= {name: getattr(self.pruning, name) for name in names}

        def make(work: Path) -> None:
            plan = Plan.read(found / "plan.json")
            schedule = f"{plan.schedule}; scored after a full fine-tuning, rewound to the weights before it"
            one_shot(
                self.prepared,
                self.pruning,
                self.model_of(start),
                plan.kept,
                work,
                score=plan.score,
                schedule=schedule,
            )
            write_json(work / "rounds.json", read_json(found / "rounds.json"))

        return self.workplace.stage("rewind", inputs, make)

    def random_stage(self, start: Path | None, pruned: Path) -> Path:
        """The control: random units leave until the model is as small as the pruned one."""
        plan = Plan.read(pruned / "plan.json")
        inputs = {**self.base, "parameters": plan.parameters["after"], "units": self.pruning.units}
        inputs |= {name: getattr(self.pruning, name) for name in ("repair", "prune_windows")}
        inputs["from"] = None if start is None else start.name

        def make(work: Path) -> None:
            base, goal = self.model_of(start), plan.parameters["after"]
            kept = random_plan(base, goal, kinds=self.pruning.units, seed=self.prepared.task.seed)
            one_shot(self.prepared, self.pruning, base, kept, work, score="random", schedule="one shot")

        return self.workplace.stage("random-prune", inputs, make)

    def finetune_stage(self, name: str, source: Path | None, start: Path | None) -> Path:
        """Fine-tune the dense model or a slim one with the same routine and budget: `model/`, `trials.json`.

        Where the settings distill, every tuned candidate follows the dense model after its brief tuning, `start`, the
        dense one itself too: were it the pruned ones alone, what distillation gives would pass for a gain of pruning.
        """
        inputs = {**self.base, **asdict(self.tuning), "candidate": name}
        if source is not None:
            inputs["from"] = fingerprint(load(source / "model"))
        if self.tuning.distill:
            inputs["teacher"] = None if start is None else start.name

        def make(work: Path) -> None:
            model = self.model_of(source)
            teacher = self.model_of(start) if self.tuning.distill else None
            # Stages that cut have a plan, the brief tuning has none.
            plan = Plan.read(source / "plan.json") if source and (source / "plan.json").exists() else None
            label = f"fine-tune: {LABELS[name]}"
            finetune_to(
                self.prepared, self.tuning, work, self.progress, start=model, plan=plan, teacher=teacher, label=label
            )

        return self.workplace.stage(name.replace("_", "-"), inputs, make)

    def candidates(self, tuned: Mapping[str, Path]) -> dict[str, Predictor]:
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
            models = self.candidates(tuned)
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
        }

        def make(work: Path) -> None:
            models = self.candidates(tuned)
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
        tuned: Mapping[str, Path],
        pruned: Path,
        random: Path,
        validation: Mapping[str, Any],
        test: Path,
        chosen: str,
    ) -> Specialist:
        """Write `results.json`, `plan.json`, `model/` and the report."""
        from tsprune.proof import assemble, examples_from
        from tsprune.report import write_report

        stages = {
            "rounds": read_json(pruned / "rounds.json"),
            "equivalence": read_json(pruned / "equivalence.json"),
            "test": read_json(test / "test.json"),
        }
        trials = {name: read_json(folder / "trials.json") for name, folder in tuned.items()}
        results = assemble(self.prepared, self.sizes, validation, stages, trials, chosen, self.workplace.seconds)
        results["tuning"] = tuning_facts(self.tuning, self.prepared.model)
        out = self.workplace.directory
        plan = json.loads((pruned / "plan.json").read_text(encoding="utf-8"))
        kept = kept_model(chosen, validation)
        model = (
            self.prepared.model
            if kept == "zero_shot"
            else load(tuned[kept] / "model", device=self.prepared.task.device)
        )
        source = {"prune_then_finetune": pruned, "random_prune_finetune": random}.get(kept)
        save(
            with_task(model, self.prepared), out / "model", None if source is None else Plan.read(source / "plan.json")
        )
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
