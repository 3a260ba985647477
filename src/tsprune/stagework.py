"""What the stages write, whether run alone or by `specialize`: plans, slim checkpoints, tuned models."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tsprune.blocks.kinds import KINDS, USUAL, WHOLE
from tsprune.blocks.units import shell
from tsprune.budgets import Budget, Sizes
from tsprune.budgetwork import WORK, budget_of, settle_budget
from tsprune.errors import TspruneError
from tsprune.evaluation.cost import flops
from tsprune.finetuning import Trial, finetune
from tsprune.indexing import worth_indexing
from tsprune.models import save
from tsprune.models._forecaster import TASK, Forecaster
from tsprune.models._weightfiles import CONFIG, PLAN, WEIGHTS
from tsprune.plan import Plan
from tsprune.preparing import Prepared
from tsprune.progress import Bar, Progress
from tsprune.pruning import Outcome, prune, reach
from tsprune.registry import find
from tsprune.repair import repair
from tsprune.rounds import Round
from tsprune.schedules._schedule import Schedule
from tsprune.scores._taps import chosen_groups
from tsprune.scoring import check_score, portions
from tsprune.settings import FinetuneSettings, PruneSettings
from tsprune.slimming import equivalence, make_plan, slim
from tsprune.stages import read_json, writable, write_json
from tsprune.tuning_modes import check_head

EQUIVALENCE_WINDOWS = 64
EQUIVALENCE_LIMIT = 1e-9


def check_pruning(settings: PruneSettings, model: Forecaster | None = None) -> PruneSettings:
    """Refuse, before any work, an unknown score, kinds of units that the model has not, and impossible numbers.

    Args:
        settings: how to prune.
        model: the model to be pruned; None checks only what needs no model.

    Returns:
        The settings; with a model, their kinds of units are chosen where they name none.
    """
    for flag, check in (
        ("--schedule", lambda: find("tsprune.schedules", settings.schedule)),
        ("--score", lambda: find("tsprune.scores", settings.score)),
        ("--units", lambda: model is None or not settings.units or chosen_groups(model, settings.units)),
    ):
        try:
            check()
        except TspruneError as error:
            raise TspruneError(f"{flag}: {error}") from None
    if model is not None and settings.adapt_steps and settings.adapt_tuning == "head":
        check_head(model)
    if not settings.units:
        if model is None:
            return settings
        settings = replace(settings, units=usual_units(model, settings.score))
    kinds = schedule_of(settings).kinds(settings.units)
    check_score(settings, kinds)
    whole = [kind for kind in kinds if kind in WHOLE]
    if settings.uniform and whole:
        raise TspruneError(
            f"--uniform takes the same share of every group, and {whole[0]} has but one unit in each; leave it out, or "
            "name other --units"
        )
    return settings


def usual_units(model: Forecaster, score: str) -> tuple[str, ...]:
    """The kinds that go where nobody names any: the usual ones that the model has and the score can judge.

    Raises:
        TspruneError: there are none; the message lists the kinds that the model has.
    """
    present = {group.kind for group in model.unit_groups().values()}
    able = getattr(find("tsprune.scores", score), "KINDS", None) or KINDS
    possible = [kind for kind in able if kind in present]
    found = tuple(kind for kind in USUAL if kind in possible) or tuple(possible)
    if not found:
        raise TspruneError(
            f"--units: the score {score} can judge {', '.join(able)}, and the model has "
            f"{', '.join(sorted(present)) or 'no units left'}; choose another --score"
        )
    return found


def check_place(directory: Path) -> Path:
    """Refuse, before any work, a directory for a checkpoint that cannot be written or holds something else."""
    writable(directory.parent)
    if directory.exists() and not directory.is_dir():
        raise TspruneError(f"--out {directory.parent}: {directory} is a file, expected room for a model; move it away")
    if directory.is_dir():
        foreign = sorted(entry.name for entry in directory.iterdir() if entry.name not in (CONFIG, PLAN, WEIGHTS))
        if foreign:
            raise TspruneError(
                f"--out {directory.parent}: {directory} holds {', '.join(foreign[:5])}, which is no part of a model; "
                "choose another directory"
            )
    return directory


def schedule_of(settings: PruneSettings) -> Schedule:
    """The schedule that the settings name, with their numbers."""
    module = find("tsprune.schedules", settings.schedule)
    made: Schedule = module.SCHEDULE(
        settings.ratio, settings.rounds, settings.ema, settings.prune_patience, settings.epoch_batches
    )
    return made


def adapt_to(
    ready: Prepared, settings: PruneSettings, out: Path, progress: Progress, *, dropout: float | None = None
) -> None:
    """Tune briefly before scoring; writes `model/` and `trials.json`; resumes from `training/`.

    What matters to the pretrained weights is not quite what will matter once they are tuned, and the score's
    expansion holds best near a minimum of the task's loss. `dropout` as in the tuning that follows.
    """
    finetune_to(ready, _brief(settings, dropout), out, progress, label="tune briefly before scoring")


def adapted(ready: Prepared, settings: PruneSettings, progress: Progress) -> Forecaster:
    """The same without files; with no steps, the model as it comes."""
    if not settings.adapt_steps:
        return ready.model
    with progress.stage("tune briefly before scoring", settings.adapt_steps) as bar:
        brief, steps = _brief(settings), _Steps(bar)
        return finetune(ready.model, ready.train, ready.steering, brief, seed=ready.task.seed, report=steps).model


def _brief(settings: PruneSettings, dropout: float | None = None) -> FinetuneSettings:
    """One run at one rate without search; validation may hand the model back as it came."""
    return FinetuneSettings(
        tuning=settings.adapt_tuning,
        steps=settings.adapt_steps,
        search_steps=0,
        learning_rates=(settings.adapt_rate,),
        evaluations=3 if settings.adapt_tuning == "full" else 10,
        dropout=dropout,
    )


def prune_by_rounds(ready: Prepared, settings: PruneSettings, base: Forecaster, out: Path, progress: Progress) -> Plan:
    """Prune `base` by the schedule, to the budget if there is one; writes `rounds.json` and what `write_slim` writes.

    Every round is stored in `rounds/`, from where a killed pruning goes on, and which is removed at the end.
    """
    schedule, work = schedule_of(settings), out / WORK
    budget = budget_of(ready, settings, base, work, progress)
    last = schedule.last(budget is not None)
    with progress.stage("prune", last or settings.rounds) as bar:

        def report(done: Round) -> None:
            note = f"loss {done.validation_loss:.4f}, {done.parameters / 1e6:.2f} M parameters"
            # Where a budget ends the rounds, how many there will be is not known before.
            bar.update(done.round if last else min(done.round, settings.rounds), note)

        outcome = prune(
            base,
            lambda number: portions(base, ready.macro_batch(number, settings.prune_windows), settings),
            ready.steering,
            score=settings.score,
            schedule=schedule,
            kinds=settings.units,
            rank=settings.rank,
            tolerance=settings.tolerance,
            seed=ready.task.seed,
            refit=settings.repair,
            budget=budget,
            uniform=settings.uniform,
            regrow=settings.regrow,
            directory=work,
            report=report,
        )
        best = outcome.best
        note = f"kept round {best.round}, {best.removed_share:.0%} removed"
        bar.update(last or settings.rounds, note + (", the budget is out of reach" if outcome.missed else ""))
    plan = write_slim(
        ready, outcome.model, best.kept, out, score=settings.score, schedule=_told(settings, schedule, budget)
    )
    write_json(out / "rounds.json", _rounds(settings, outcome, budget))
    settle_budget(ready, outcome.model, best.kept, budget, out, progress)
    return plan


def _told(settings: PruneSettings, schedule: Schedule, budget: Budget | None) -> str:
    """The schedule in the words of the plan."""
    name = f"{schedule.describe()} rank {settings.rank}"
    name += f", to {budget.words}" if budget else f", validation decides within {settings.tolerance:g}"
    name += ", uniform" if settings.uniform else ""
    name += ", with regrowth" if settings.regrow else ""
    if settings.adapt_steps:
        name += f", scored after {settings.adapt_steps} tuning steps"
    if settings.repair:
        name += ", repaired by least squares after every round"
    return name


def _rounds(settings: PruneSettings, outcome: Outcome, budget: Budget | None) -> dict[str, Any]:
    """Content of `rounds.json`."""
    rounds = [{key: value for key, value in vars(r).items() if key != "kept"} for r in outcome.rounds]
    facts: dict[str, Any] = {"rounds": rounds, "best_round": outcome.best.round, "adapt_steps": settings.adapt_steps}
    decided = {"budget": budget.words} if budget else {"tolerance": settings.tolerance}
    return facts | {"schedule": settings.schedule} | decided


def read_scores(ready: Prepared, scores: Path) -> dict[str, Any]:
    """The content of a file of `tsprune score`, checked against the model."""
    try:
        stored = read_json(scores)
    except TspruneError as error:
        raise TspruneError(f"--scores {error}") from None
    try:
        base, found = stored["base_fingerprint"], stored["groups"]
        values = {name: torch.tensor(entry["scores"], dtype=torch.float64) for name, entry in found.items()}
    except (TypeError, KeyError, ValueError, AttributeError):
        raise TspruneError(f"--scores {scores}: not a file written by 'tsprune score'; run that first") from None
    if base != ready.identity["model"]:
        raise TspruneError(
            f"--scores {scores} were made for the model {stored.get('base_model')!r} with other weights than "
            f"{ready.task.model!r}; score this model first"
        )
    return {"score": str(stored.get("score", "")), "values": values}


def prune_by_scores(ready: Prepared, settings: PruneSettings, scores: Path, out: Path, progress: Progress) -> Plan:
    """One shot by stored scores until the budget is reached; writes what `write_slim` writes."""
    stored = read_scores(ready, scores)
    budget = budget_of(ready, settings, ready.model, out / WORK, progress)
    if budget is None:
        raise TspruneError("--scores needs a budget: give --keep, such as --keep 0.6, or --speedup")
    sizes = Sizes.of(ready.model, budget.measure)
    kept, _ = reach(ready.model, stored["values"], sizes, budget.goal, settings.rank, settings.uniform)
    told = f"one shot {budget.words.removeprefix('--')}" + (", uniform" if settings.uniform else "")
    plan = one_shot(ready, settings, ready.model, kept, out, score=stored["score"], schedule=told)
    settle_budget(ready, ready.model, kept, budget, out, progress)
    return plan


def one_shot(
    ready: Prepared,
    settings: PruneSettings,
    base: Forecaster,
    kept: Mapping[str, Sequence[int]],
    out: Path,
    *,
    score: str,
    schedule: str,
) -> Plan:
    """Cut at once what is not kept, repaired if so set; writes what `write_slim` writes."""
    if settings.repair:
        base = repair(base, kept, ready.macro_batch(0, settings.prune_windows))
        schedule += ", repaired by least squares"
    return write_slim(ready, base, kept, out, score=score, schedule=schedule)


def write_slim(
    ready: Prepared, base: Forecaster, kept: Mapping[str, Sequence[int]], out: Path, *, score: str, schedule: str
) -> Plan:
    """Cut `base`; write `plan.json`, with the operations before and after, `equivalence.json` and the slim `model/`."""
    sizes = {"context": ready.split.context, "horizon": ready.horizon}
    indexed = worth_indexing(base, kept, **sizes, rows=ready.task.latency_batch)
    smaller = slim(base, kept, indexed)
    checked = masked_against_slim(ready, base, smaller, kept)
    plan = make_plan(
        ready.model,
        kept,
        base_model=ready.task.model,
        base_fingerprint=ready.identity["model"],
        score=score,
        schedule=schedule,
        data_fingerprint=ready.identity["data"],
        seed=ready.task.seed,
        flops={"before": flops(ready.model, **sizes), "after": flops(smaller, **sizes)},
        indexed=indexed,
    )
    save(smaller, out / "model", plan)
    plan.write(out / "plan.json")
    write_json(out / "equivalence.json", checked)
    return plan


def masked_against_slim(
    ready: Prepared, base: Forecaster, smaller: Forecaster, kept: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """The slim model against the masked one on training windows; too large a difference stops the run."""
    batch = ready.macro_batch(0, EQUIVALENCE_WINDOWS)[0]
    found = equivalence(base, smaller, kept, batch, ready.horizon)
    if not found["relative_float64"] <= EQUIVALENCE_LIMIT:
        raise TspruneError(
            f"the slim model differs from the masked one by {found['relative_float64']:.2e} of the forecasts' spread "
            f"in float64, over {EQUIVALENCE_LIMIT:g}; this is a defect of tsprune, please report it"
        )
    return found


def finetune_to(
    ready: Prepared,
    settings: FinetuneSettings,
    out: Path,
    progress: Progress,
    *,
    start: Forecaster | None = None,
    plan: Plan | None = None,
    teacher: Forecaster | None = None,
    label: str = "fine-tune",
) -> tuple[Trial, list[Trial]]:
    """Fine-tune the prepared model, or `start`; writes `model/` and `trials.json`; resumes from `training/`.

    `teacher` is the dense model that is followed where the settings distill.
    """
    model = ready.model if start is None else start
    total = settings.steps + settings.search_steps * settings.searched_rates
    with progress.stage(label, total) as bar:
        tuned = finetune(
            model,
            ready.train,
            ready.steering,
            settings,
            seed=ready.task.seed,
            directory=out / "training",
            report=_Steps(bar),
            teacher=teacher,
        )
        bar.update(total, f"loss {tuned.best.validation_loss:.4f} at step {tuned.best.best_step}")
    write_json(out / "trials.json", [trial.facts() for trial in tuned.trials])
    save(with_task(tuned.model, ready), out / "model", plan)
    shutil.rmtree(out / "training", ignore_errors=True)
    return tuned.best, list(tuned.trials)


def with_task(model: Forecaster, ready: Prepared) -> Forecaster:
    """A shallow copy whose config says what the model was tuned and judged for, so that forecasts can follow suit."""
    named = shell(model)
    named.config = {**model.config, TASK: ready.description}
    return named


class _Steps:
    """Adds up the steps of the runs of one fine-tuning for its bar."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        self.before, self.last, self.label = 0, 0, ""

    def __call__(self, label: str, step: int, total: int, loss: float) -> None:
        """One validation of one run is done."""
        if label != self.label:
            self.before, self.last, self.label = self.before + self.last, 0, label
        self.last = step
        self.bar.update(self.before + step, f"loss {loss:.4f}, learning rate {label.split()[-1]}")
