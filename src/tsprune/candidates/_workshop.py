"""The stages in which the candidates of a run are made: each once, taken as it stands when it is finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from tsprune.candidates import DENSE, find
from tsprune.candidates._candidate import AS_PUBLISHED, Shorter
from tsprune.models import fingerprint, load
from tsprune.models._forecaster import Forecaster
from tsprune.plan import Plan
from tsprune.preparing import Prepared
from tsprune.progress import Progress
from tsprune.settings import FinetuneSettings, PruneSettings
from tsprune.stages import Run, read_json, write_json
from tsprune.stagework import adapt_to, finetune_to, one_shot, prune_by_rounds

Choice = Callable[[Forecaster, int], Mapping[str, Sequence[int]]]
"""From the model to be cut and the parameters to reach to the units that stay, by group."""


class Workshop:
    """What candidates start from and how they are tuned, in one run directory.

    Args:
        prepared: data and model.
        pruning: how the run prunes, its kinds of units chosen.
        tuning: how the run tunes.
        workplace: where the stages go.
        base: what every stage depends on.
        progress: told what happens.
        shorter: how candidates from scratch get less than what was published.
    """

    def __init__(
        self,
        prepared: Prepared,
        pruning: PruneSettings,
        tuning: FinetuneSettings,
        workplace: Run,
        base: Mapping[str, Any],
        progress: Progress,
        shorter: Shorter = AS_PUBLISHED,
    ) -> None:
        self.prepared, self.pruning, self.tuning = prepared, pruning, tuning
        self.workplace, self.base, self.progress = workplace, base, progress
        self.shorter = shorter

    @cached_property
    def start(self) -> Path | None:
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

    @cached_property
    def pruned(self) -> Path:
        """The chosen score's cut: `rounds.json`, `plan.json`, `equivalence.json`, `model/`."""
        return self._rewound() if self.pruning.rewind else self._by_rounds(self.start)

    def _by_rounds(self, source: Path | None) -> Path:
        inputs = {**self.base, **asdict(self.pruning), "from": _name(source)}

        def make(work: Path) -> None:
            prune_by_rounds(self.prepared, self.pruning, self.model_of(source), work, self.progress)

        return self.workplace.stage("prune", inputs, make)

    def _rewound(self) -> Path:
        """The plan found on the fully tuned dense model, applied to the weights before that tuning; files as above.

        Only the scores see the tuned weights. The full fine-tuning is the dense candidate's, which is made anyway, and
        the pruned model is tuned from the same start with the same budget as before. (Rewinding as in arXiv
        2003.02389, to the weights before tuning.)
        """
        dense = self.finetuned(DENSE, find(DENSE).label, self.tuning, self.start)
        found = self._by_rounds(dense)
        inputs = {**self.base, "plan": found.name, "from": _name(self.start), **self._cutting()}

        def make(work: Path) -> None:
            plan = Plan.read(found / "plan.json")
            schedule = f"{plan.schedule}; scored after a full fine-tuning, rewound to the weights before it"
            base = self.model_of(self.start)
            one_shot(self.prepared, self.pruning, base, plan.kept, work, score=plan.score, schedule=schedule)
            write_json(work / "rounds.json", read_json(found / "rounds.json"))

        return self.workplace.stage("rewind", inputs, make)

    def cut(self, stage: str, units: Sequence[str], choose: Choice, score: str, more: Mapping[str, Any]) -> Path:
        """A control: units leave at once until the model is as small as the pruned one; files as of `pruned`.

        Args:
            stage: its name.
            units: kinds of units that may go.
            choose: says which stay.
            score: for the plan.
            more: what else the stage depends on.
        """
        goal = Plan.read(self.pruned / "plan.json").parameters["after"]
        inputs = {**self.base, "parameters": goal, "units": tuple(units), "from": _name(self.start), **self._cutting()}

        def make(work: Path) -> None:
            base = self.model_of(self.start)
            one_shot(self.prepared, self.pruning, base, choose(base, goal), work, score=score, schedule="one shot")

        return self.workplace.stage(stage, {**inputs, **more}, make)

    def _cutting(self) -> dict[str, Any]:
        return {name: getattr(self.pruning, name) for name in ("repair", "prune_windows")}

    def finetuned(self, name: str, label: str, settings: FinetuneSettings, source: Path | None) -> Path:
        """Tune the dense model or a slim one with the same routine and budget: `model/`, `trials.json`.

        Where the settings distill, every tuned candidate follows the dense model after its brief tuning, the dense one
        itself too: were it the pruned ones alone, what distillation gives would pass for a gain of pruning.

        Args:
            name: of the candidate.
            label: for the progress bar.
            settings: of this candidate.
            source: stage with the model to be tuned; None for the model as it came.
        """
        inputs = {**self.base, **settings.inputs(), "candidate": name}
        if source is not None:
            inputs["from"] = fingerprint(load(source / "model"))
        if settings.distill:
            inputs["teacher"] = _name(self.start)

        def make(work: Path) -> None:
            finetune_to(
                self.prepared,
                settings,
                work,
                self.progress,
                start=self.model_of(source),
                plan=plan_of(source),
                teacher=self.model_of(self.start) if settings.distill else None,
                label=f"fine-tune: {label}",
            )

        return self.workplace.stage(name.replace("_", "-"), inputs, make)


def plan_of(stage: Path | None) -> Plan | None:
    """The plan of a stage that cuts; the others, such as the brief tuning, have none."""
    return Plan.read(stage / "plan.json") if stage and (stage / "plan.json").exists() else None


def _name(stage: Path | None) -> str | None:
    return None if stage is None else stage.name
