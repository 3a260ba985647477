"""What the stages write, whether run alone or by `specialize`: plans, slim checkpoints, tuned models."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tsprune.blocks.units import shell
from tsprune.errors import TspruneError
from tsprune.evaluation.cost import flops
from tsprune.finetuning import Trial, finetune
from tsprune.models import save
from tsprune.models._forecaster import TASK, Forecaster
from tsprune.models._loading import CONFIG, PLAN, WEIGHTS
from tsprune.plan import Plan
from tsprune.preparing import Prepared
from tsprune.progress import Bar, Progress
from tsprune.pruning import Round, parameters_to_reach, prune
from tsprune.registry import find
from tsprune.repair import repair
from tsprune.schedules.progressive import Progressive
from tsprune.scores._taps import chosen_groups
from tsprune.settings import FinetuneSettings, PruneSettings
from tsprune.slimming import equivalence, make_plan, slim
from tsprune.stages import read_json, writable, write_json

EQUIVALENCE_WINDOWS = 64
EQUIVALENCE_LIMIT = 1e-9


def check_pruning(settings: PruneSettings, model: Forecaster | None = None) -> None:
    """Refuse, before any work, an unknown score, kinds of units that the model has not, and impossible numbers.

    Args:
        settings: how to prune.
        model: the model to be pruned; None checks only what needs no model.
    """
    for flag, check in (
        ("--score", lambda: find("tsprune.scores", settings.score)),
        ("--units", lambda: model is None or chosen_groups(model, settings.units)),
    ):
        try:
            check()
        except TspruneError as error:
            raise TspruneError(f"{flag}: {error}") from None
    _schedule(settings)


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


def _schedule(settings: PruneSettings) -> Progressive:
    return Progressive(settings.ratio, settings.rounds, settings.ema, settings.prune_patience)


def adapt_to(ready: Prepared, settings: PruneSettings, out: Path, progress: Progress) -> None:
    """Tune briefly before scoring; writes `model/` and `trials.json`; resumes from `training/`.

    What matters to the pretrained weights is not quite what will matter once they are tuned, and the score's
    expansion holds best near a minimum of the task's loss.
    """
    finetune_to(ready, _brief(settings), out, progress, label="tune briefly before scoring")


def adapted(ready: Prepared, settings: PruneSettings, progress: Progress) -> Forecaster:
    """The same without files; with no steps, the model as it comes."""
    if not settings.adapt_steps:
        return ready.model
    with progress.stage("tune briefly before scoring", settings.adapt_steps) as bar:
        brief, steps = _brief(settings), _Steps(bar)
        return finetune(ready.model, ready.train, ready.steering, brief, seed=ready.task.seed, report=steps).model


def _brief(settings: PruneSettings) -> FinetuneSettings:
    """One run at one rate without search; validation may hand the model back as it came."""
    return FinetuneSettings(
        steps=settings.adapt_steps, search_steps=0, learning_rates=(settings.adapt_rate,), evaluations=3
    )


def prune_by_rounds(ready: Prepared, settings: PruneSettings, base: Forecaster, out: Path, progress: Progress) -> Plan:
    """Progressive pruning of `base`; writes `rounds.json` and what `write_slim` writes."""
    schedule = _schedule(settings)
    with progress.stage("prune", settings.rounds) as bar:

        def report(done: Round) -> None:
            note = f"loss {done.validation_loss:.4f}, {done.parameters / 1e6:.2f} M parameters"
            bar.update(done.round, note)

        outcome = prune(
            base,
            lambda number: ready.macro_batch(number, settings.prune_windows),
            ready.steering,
            score=settings.score,
            schedule=schedule,
            kinds=settings.units,
            rank=settings.rank,
            tolerance=settings.tolerance,
            seed=ready.task.seed,
            refit=settings.repair,
            report=report,
        )
        best = outcome.best
        bar.update(settings.rounds, f"kept round {best.round}, {best.removed_share:.0%} removed")
    rounds = [{key: value for key, value in vars(r).items() if key != "kept"} for r in outcome.rounds]
    write_json(out / "rounds.json", {"rounds": rounds, "best_round": best.round, "adapt_steps": settings.adapt_steps})
    name = f"progressive ratio {settings.ratio:g} ema {settings.ema:g} rank {settings.rank}"
    if settings.adapt_steps:
        name += f", scored after {settings.adapt_steps} tuning steps"
    if settings.repair:
        name += ", repaired by least squares after every round"
    return write_slim(ready, outcome.model, best.kept, out, score=settings.score, schedule=name)


def read_scores(ready: Prepared, scores: Path, keep: float) -> dict[str, Any]:
    """The content of a file of `tsprune score`, checked against the model and the share to keep."""
    if not 0 < keep < 1:
        raise TspruneError(f"--keep {keep} must lie between 0 and 1")
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


def prune_by_scores(ready: Prepared, settings: PruneSettings, scores: Path, keep: float, out: Path) -> Plan:
    """One shot by stored scores until at most `keep` of the parameters are left; writes as `prune_by_rounds`."""
    stored = read_scores(ready, scores, keep)
    goal = int(keep * ready.model.parameter_count())
    kept = parameters_to_reach(ready.model, stored["values"], goal, settings.rank)
    return one_shot(ready, settings, ready.model, kept, out, score=stored["score"], schedule=f"one shot keep {keep:g}")


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
    smaller = slim(base, kept)
    checked = masked_against_slim(ready, base, smaller, kept)
    sizes = {"context": ready.split.context, "horizon": ready.horizon}
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
    label: str = "fine-tune",
) -> tuple[Trial, list[Trial]]:
    """Fine-tune the prepared model, or `start`; writes `model/` and `trials.json`; resumes from `training/`."""
    model = ready.model if start is None else start
    searched = settings.search_steps * len(settings.learning_rates)
    total = settings.steps + (searched if len(settings.learning_rates) > 1 else 0)
    with progress.stage(label, total) as bar:
        tuned = finetune(
            model,
            ready.train,
            ready.steering,
            settings,
            seed=ready.task.seed,
            directory=out / "training",
            report=_Steps(bar),
        )
        bar.update(total, f"loss {tuned.best.validation_loss:.4f} at step {tuned.best.best_step}")
    write_json(out / "trials.json", [asdict(trial) for trial in tuned.trials])
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
