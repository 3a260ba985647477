"""What every command does. Heavy modules are imported inside, so that help is instant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsprune.benchcommand import BenchSettings, run_bench
from tsprune.data.reading import ReadOptions
from tsprune.errors import TspruneError
from tsprune.exportcommand import ExportSettings, run_export
from tsprune.flags import Chosen
from tsprune.forecastcommand import PredictSettings, run_predict
from tsprune.latencycommand import LatencySettings, run_latency
from tsprune.lenscommand import LensSettings, run_lens
from tsprune.modelcommands import ConvertSettings, ModelsSettings, run_convert, run_models
from tsprune.outputs import (
    EvaluateOutput,
    FinetuneOutput,
    PretrainOutput,
    PruneOutput,
    RunOutput,
    ScoreOutput,
)
from tsprune.progress import Bar, Progress
from tsprune.settings import (
    BaselineSettings,
    CandidateSettings,
    FinetuneSettings,
    FoldSettings,
    PretrainSettings,
    PruneSettings,
    TaskSettings,
)
from tsprune.several import alone, shared

if TYPE_CHECKING:
    from tsprune.evaluation.evaluate import Predictor
    from tsprune.plan import Plan
    from tsprune.preparing import Prepared


def _prepared(chosen: Chosen, progress: Progress, *parts: str, bits: int = 0) -> Prepared:
    """Data and model, with everything inferred printed; a part that is needed and holds no window is refused."""
    from tsprune.preparing import prepare

    ready = prepare(chosen.make(TaskSettings), chosen.make(ReadOptions), bits=bits)
    for part in parts:
        getattr(ready, part)
    for line in ready.panel.describe():
        progress.say(line)
    split = ready.split.describe()
    progress.say(
        f"split {split['name']}: train until {split['train_end']}, validation until {split['validation_end']}, "
        f"test until {split['test_end']}; horizon {ready.horizon}, context {ready.split.context}"
    )
    judged = [part for part in ("validation", "test") if part in parts or "sizes" in parts]
    for note in (*ready.notes, *ready.window_notes(*judged)):
        progress.say(f"note: {note}")
    return ready


def _baselines(chosen: Chosen) -> tuple[str, ...]:
    """The baselines that were named; one whose library is missing is refused before any work."""
    from tsprune.evaluation.baselines import check

    found = chosen.make(BaselineSettings).baselines
    check(found)
    return found


def run_specialize(chosen: Chosen, quiet: bool) -> None:
    """Prune and fine-tune a model on your series, compare it with the alternatives, and report."""
    from tsprune import candidates
    from tsprune.budget import fit_minutes
    from tsprune.candidates._candidate import Shorter
    from tsprune.evaluation.baselines import names
    from tsprune.report.words import human
    from tsprune.specializing import Specialization
    from tsprune.stages import Run
    from tsprune.stagework import check_place, check_pruning
    from tsprune.tuningwork import check_tuning

    progress = Progress(quiet)
    place = chosen.make(RunOutput)
    if place.minutes < 0:
        raise TspruneError(f"--minutes {place.minutes} must not be negative")
    tuning, pruning = chosen.make(FinetuneSettings), chosen.make(PruneSettings)
    baselines, named = _baselines(chosen), chosen.make(CandidateSettings)
    trained, shorter = named.candidates, Shorter(named.scratch_steps, named.scratch_small)
    check_pruning(pruning)
    check_tuning(tuning)
    candidates.check(trained, pruning, tuning)
    out = Path(place.out)
    check_place(out / "model")
    ready = _prepared(chosen, progress, "sizes")
    pruning = check_pruning(pruning, ready.model)
    check_tuning(tuning, ready.model)
    candidates.check(trained, pruning, tuning, ready)
    if place.minutes:
        tuned = candidates.tuned(trained)
        tuning = fit_minutes(place.minutes, ready, pruning, tuning, Run(out), progress, len(tuned))
        for name in sorted(set(trained) - set(tuned)):
            progress.say(f"note: --minutes does not shorten {name}; --scratch-steps does")
    fold = chosen.make(FoldSettings).fold
    done = Specialization(ready, out, pruning, tuning, progress, baselines, trained, shorter, fold=fold).run()
    show_results(dict(done.results))
    print(f"report: {out / 'report.html'}")
    best = done.results["chosen"]
    what = f"best network, behind {human(best)}: " if best in names() else "model:  "
    print(f"{what}{out / 'model'}   (forecast with: tsprune predict {out / 'model'} --data YOUR.csv{_flags(ready)})")


def _flags(ready: Prepared) -> str:
    """The flags that a forecast has to repeat; horizon and context are stored with the model."""
    named = {"--past-covariates": ready.panel.past_names, "--known-covariates": ready.panel.known_names}
    flags = [f" {flag} '{','.join(names)}'" for flag, names in named.items() if names]
    return "".join([" --together" if ready.task.together else "", *flags])


def show_results(results: dict[str, Any]) -> None:
    """The table and the verdict."""
    import shutil
    import sys
    import textwrap

    from tsprune.report import results_table, results_text

    width, verdict = shutil.get_terminal_size((100, 24)).columns, results["verdict"]
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(results_table(results, width))
        verdict = textwrap.fill(verdict, width)
    else:
        print(results_text(results, max(width, 100)))
    print(f"\n{verdict}\n")


def run_score(chosen: Chosen, quiet: bool) -> None:
    """Score every unit of a model on training windows of your series."""
    from tsprune.scoring import score_to
    from tsprune.stages import writable_file
    from tsprune.stagework import adapted, check_pruning
    from tsprune.tuningwork import refuse_rewind

    progress = Progress(quiet)
    settings = chosen.make(PruneSettings)
    check_pruning(settings)
    refuse_rewind(settings)
    out = writable_file(Path(chosen.make(ScoreOutput).out))
    ready = _prepared(chosen, progress, "sizes" if settings.adapt_steps else "train")
    settings = check_pruning(settings, ready.model)
    for line in score_to(ready, adapted(ready, settings, progress), settings, out, progress):
        print(line)


def run_prune(chosen: Chosen, quiet: bool) -> None:
    """Prune a model on your series, round by round with validation, or in one shot by stored scores."""
    from tsprune.budgetwork import budget_missed
    from tsprune.foldwork import settle_folding
    from tsprune.stagework import adapted, check_place, check_pruning, prune_by_rounds, prune_by_scores
    from tsprune.tuningwork import refuse_rewind

    progress = Progress(quiet)
    place, settings = chosen.make(PruneOutput), chosen.make(PruneSettings)
    if place.plan:
        _transfer(chosen, place, settings, progress)
        return
    if place.scores and not (settings.keep or settings.speedup):
        raise TspruneError("--scores needs a budget: --scores FILE --keep 0.6, or --speedup 2")
    check_pruning(settings)
    refuse_rewind(settings)
    out = Path(place.out)
    check_place(out / "model")
    ready = _prepared(chosen, progress, "train", *(() if place.scores else ("validation",)))
    settings = check_pruning(settings, ready.model)
    if place.scores:
        plan = prune_by_scores(ready, settings, Path(place.scores), out, progress)
    else:
        plan = prune_by_rounds(ready, settings, adapted(ready, settings, progress), out, progress)
    plan = settle_folding(ready, chosen.make(FoldSettings).fold, plan, out, progress)
    _say_sizes(plan, out)
    if missed := budget_missed(out):
        print(f"{missed} is out of reach: every unit that may go is gone; name more kinds of units with --units")


def _say_sizes(plan: Plan, out: Path) -> None:
    before, after = plan.parameters["before"], plan.parameters["after"]
    print(
        f"{before:,} -> {after:,} parameters ({after / before:.0%}); plan: {out / 'plan.json'}, model: {out / 'model'}"
    )


def _transfer(chosen: Chosen, place: PruneOutput, settings: PruneSettings, progress: Progress) -> None:
    """Prune as a plan from elsewhere says."""
    from tsprune.foldwork import settle_folding
    from tsprune.plancommands import plan_path
    from tsprune.stagework import check_place
    from tsprune.transfer import prune_by_plan, unused

    void = unused(list(chosen.values))
    path, out = plan_path(place.plan, "--plan"), Path(place.out)
    check_place(out / "model")
    ready = _prepared(chosen, progress, "train")
    if void:
        progress.say(f"note: the plan decides which units go; without effect: {', '.join(void)}")
    plan, notes = prune_by_plan(ready, settings, path, out)
    for note in notes:
        progress.say(f"note: {note}")
    plan = settle_folding(ready, chosen.make(FoldSettings).fold, plan, out, progress)
    _say_sizes(plan, out)


def run_finetune(chosen: Chosen, quiet: bool) -> None:
    """Fine-tune a model, dense or pruned, on your series; validation may hand it back untuned."""
    from tsprune.pruning import validation_loss
    from tsprune.stagework import check_place, finetune_to
    from tsprune.tuningwork import check_tuning, teacher_of

    progress = Progress(quiet)
    settings, place = chosen.make(FinetuneSettings), chosen.make(FinetuneOutput)
    out = Path(place.out)
    check_tuning(settings)
    check_place(out / "model")
    ready = _prepared(chosen, progress, "train", "validation")
    check_tuning(settings, ready.model)
    teacher = teacher_of(settings, place.teacher, ready)
    start = validation_loss(ready.model, ready.steering)
    best, _ = finetune_to(ready, settings, out, progress, teacher=teacher)
    tried = {"learning rate": f"{best.learning_rate:g}"}
    for name, value in best.searched.items():
        tried[name.replace("_", " ")] = "the model's own" if value is None else f"{value:g}"
    print(
        f"validation loss {start:.4f} -> {best.validation_loss:.4f} "
        f"({', '.join(f'{name} {value}' for name, value in tried.items())}, step {best.best_step}); "
        f"model: {out / 'model'}"
    )
    if best.best_step == 0:
        print("no step improved validation: the model is handed back as it came")


def _advance(bar: Bar, done: int, total: int) -> None:
    bar.update(done)


def run_evaluate(chosen: Chosen, quiet: bool) -> None:
    """Score a model beside baselines on the test or validation part of your series."""
    from tsprune.evaluation.evaluate import measure
    from tsprune.evaluation.overlap import pretraining_overlap
    from tsprune.proof import baselines_of, say_costs
    from tsprune.stages import writable_file, write_json

    progress = Progress(quiet)
    place = chosen.make(EvaluateOutput)
    if place.part not in ("test", "validation"):
        raise TspruneError(f"--part {place.part!r} is unknown; use test or validation")
    if place.out:
        writable_file(Path(place.out))
    baselines = _baselines(chosen)
    ready = _prepared(chosen, progress, place.part, bits=place.bits)
    windows, stride = ready.test if place.part == "test" else ready.validation
    findings = ready.guarded(place.part)
    overlap = pretraining_overlap(ready.panel, ready.model.pretraining_corpora)
    progress.say(f"possible pretraining overlap: {': '.join(overlap)}")
    rivals = baselines_of(ready, baselines, progress)
    say_costs(rivals, windows, progress)
    found: dict[str, Any] = {}
    models: dict[str, Predictor] = {**rivals, ready.task.model: ready.model}
    for name, model in models.items():
        with progress.stage(f"evaluate: {name}", len(windows)) as bar:
            result = measure(
                model, windows, ready.split, batch_size=ready.task.batch_size, progress=partial(_advance, bar)
            )
        found[name] = {"metrics": dict(result.metrics), "notes": list(result.notes)}
    print(
        f"{place.part} part, {len(windows):,} windows, stride {stride}, horizon {ready.horizon}, "
        "z-scored by the train part"
    )
    for name, entry in found.items():
        numbers = "  ".join(
            f"{k.upper()} {'-' if v is None else format(v, '.4f')}" for k, v in entry["metrics"].items()
        )
        print(f"{name:<24} {numbers}")
        for note in entry["notes"]:
            print(f"  note: {note}")
    if place.out:
        write_json(
            Path(place.out),
            {
                "part": place.part,
                "windows": len(windows),
                "stride": stride,
                "identity": ready.identity,
                "leakage": findings,
                "models": found,
            },
        )


def run_pretrain(chosen: Chosen, quiet: bool) -> None:
    """Train a model of a family from scratch on simulated series and, where given, your folder of real ones."""
    from tsprune.pretraining import pretrain
    from tsprune.stages import writable

    place, settings = chosen.make(PretrainOutput), chosen.make(PretrainSettings)
    out = writable(Path(place.out))
    written = pretrain(place.family, place.size, settings, out, place.corpus, place.threads, Progress(quiet))
    print(f"model: {written}")


@dataclass(frozen=True)
class Command:
    """One command: its name, what it does, its options, a field given without a flag, and commands of two words that
    begin with its name."""

    name: str
    run: Callable[[Chosen, bool], None]
    sections: tuple[type, ...]
    positional: str = ""
    beside: tuple[Command, ...] = ()


TASK = (TaskSettings, ReadOptions)
_ALL = (
    Command(
        "specialize",
        run_specialize,
        (
            TaskSettings,
            RunOutput,
            PruneSettings,
            FinetuneSettings,
            FoldSettings,
            CandidateSettings,
            BaselineSettings,
            ReadOptions,
        ),
    ),
    Command("score", run_score, (TaskSettings, ScoreOutput, PruneSettings, ReadOptions)),
    Command("prune", run_prune, (TaskSettings, PruneOutput, PruneSettings, FoldSettings, ReadOptions)),
    Command("finetune", run_finetune, (TaskSettings, FinetuneOutput, FinetuneSettings, ReadOptions)),
    Command("evaluate", run_evaluate, (TaskSettings, EvaluateOutput, BaselineSettings, ReadOptions)),
    Command("predict", run_predict, (PredictSettings, ReadOptions), "model"),
    Command("lens", run_lens, (TaskSettings, LensSettings, ReadOptions), "model"),
    Command("export", run_export, (TaskSettings, ExportSettings, ReadOptions), "model"),
    Command(
        "bench",
        run_bench,
        (BenchSettings,),
        "grid",
        (Command("latency", alone(run_latency, "bench latency"), (LatencySettings,), "models"),),
    ),
    Command("pretrain", run_pretrain, (PretrainOutput, PretrainSettings)),
    Command("models", run_models, (ModelsSettings,), "family"),
    Command("convert", run_convert, (ConvertSettings,), "checkpoint"),
)
COMMANDS: tuple[Command, ...] = tuple(
    replace(entry, run=shared(entry.run) if entry.name in ("score", "prune") else alone(entry.run, entry.name))
    for entry in _ALL
)
