"""Training a small network from fresh weights on the training windows, as its authors published it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsprune import registry
from tsprune.candidates._candidate import Candidate, Training
from tsprune.errors import TspruneError

if TYPE_CHECKING:
    from tsprune.candidates._workshop import Workshop
    from tsprune.preparing import Prepared
    from tsprune.settings import FinetuneSettings

MOST_SERIES = 21
"""Series whose windows fill a batch: as many as weather has, the widest set whose published batch is the usual one."""
FACTS = "facts.json"
STEEPER = 10.0
"""By how much the published rate is raised, within one cycle, where steps are fewer than published.

PatchTST on ETTh1: 512 such steps validate at an MSE of 0.682, the published 6,400 at a tenth of the rate at 0.704."""


def later_tenths(rate: float, epoch: int, share: float) -> float:
    """Four epochs at the rate, from then on each a tenth lower than the one before."""
    return float(rate * 0.9 ** max(0, epoch - 3))


def halving(rate: float, epoch: int, share: float) -> float:
    """Two epochs at the rate, from then on each at half of the one before."""
    return float(rate * 0.5 ** max(0, epoch - 1))


def one_cycle(rate: float, epoch: int, share: float, rising: float = 0.4) -> float:
    """Up from a 25th of the rate, then down to a ten-thousandth of where it began, both along half a cosine."""
    low, end = rate / 25, rate / 25 / 1e4
    if share < rising:
        return low + (rate - low) * (1 - math.cos(math.pi * share / rising)) / 2
    return end + (rate - end) * (1 + math.cos(math.pi * (share - rising) / (1 - rising))) / 2


DECAYS: dict[str, Callable[[float, int, float], float]] = {
    "a tenth lower each epoch after the fourth": later_tenths,
    "halved each epoch after the second": halving,
    "one cycle": one_cycle,
}
"""From highest rate, epoch (from 0) and share of all steps that is done to the rate of a step."""


@dataclass(frozen=True)
class Recipe:
    """A network and its training as published.

    Args:
        source: the paper.
        config: of the family, in its public layout.
        batch: windows of all series in a step.
        epochs: passes over the training windows at most.
        patience: epochs without a better validation error after which it stops.
        rate: highest learning rate of Adam.
        decay: how the rate falls, one of `DECAYS`.
        steps: at most, where the epochs are cut short; else 0.
    """

    source: str
    config: Mapping[str, Any]
    batch: int
    epochs: int
    patience: int
    rate: float
    decay: str
    steps: int = 0

    def inputs(self) -> dict[str, Any]:
        """What decides the training, for the hash of its stage."""
        return {name: value for name, value in asdict(self).items() if name != "steps" or value}


def portion(ready: Prepared, recipe: Recipe) -> tuple[int, int]:
    """Training windows of a step, single series where these are apart, and steps of an epoch.

    Raises:
        TspruneError: no window to train on.
    """
    windows = ready.split.train()
    if not len(windows):
        raise TspruneError("there is no training window; use more data, a shorter --horizon or a shorter --context")
    apart = 1 if windows.grouping == "all" else min(len(ready.split.panel.series), MOST_SERIES)
    rows = min(recipe.batch * apart, len(windows))
    # What is left over after the last full batch is not used in that epoch, as published.
    return rows, len(windows) // rows


@dataclass(frozen=True)
class Published(Training):
    """Trained with published settings and the published budget, whatever the other candidates get.

    Args:
        family: in `tsprune.models`.
        recipe: sizes and settings for these data; with True the smallest published size.
        refuse: raises TspruneError, beginning with its first argument, where the family cannot have these data.
    """

    family: str
    recipe: Callable[[Prepared, bool], Recipe]
    refuse: Callable[[str, Prepared], None]

    def check(self, flag: str, tuning: FinetuneSettings, ready: Prepared | None) -> None:
        """Refuse data that the family cannot have."""
        if ready is not None:
            self.refuse(flag, ready)

    def stage(self, workshop: Workshop, candidate: Candidate, source: Path | None) -> Path:
        """The training."""
        ready, recipe = workshop.prepared, self.shortened(workshop)
        # Neither weights nor loss of the pretrained model play a part, so that any run on these data may go on from it.
        inputs = {name: value for name, value in workshop.base.items() if name not in ("model", "loss")}
        inputs |= {"family": self.family, "recipe": recipe.inputs(), "candidate": candidate.name}

        def make(work: Path) -> None:
            from tsprune.candidates._course import train_to

            train_to(ready, self.family, recipe, work, workshop.progress, f"train: {candidate.label}")

        return workshop.workplace.stage(candidate.name.replace("_", "-"), inputs, make)

    def shortened(self, workshop: Workshop) -> Recipe:
        """The recipe, with fewer steps where the run says so."""
        shorter = workshop.shorter
        found = self.recipe(workshop.prepared, shorter.small)
        _, per_epoch = portion(workshop.prepared, found)
        if not 0 < shorter.steps < found.epochs * per_epoch:
            return found
        return replace(found, steps=shorter.steps, rate=found.rate * STEEPER, decay="one cycle")

    def facts(self, workshop: Workshop, folder: Path) -> dict[str, Any]:
        """Settings and budget."""
        from tsprune.stages import read_json

        found: dict[str, Any] = read_json(folder / FACTS)
        return {name: value for name, value in found.items() if name != "notes"}

    def notes(self, folder: Path) -> list[str]:
        """The budget, which is not that of the others, and what the family cannot do."""
        from tsprune.stages import read_json

        found = read_json(folder / FACTS)
        return [f"{found['training']}; {found['budget']}", *found["notes"]]


def refuse_covariates(flag: str, family: str, ready: Prepared) -> None:
    """Refuse covariates that the family would have to ignore.

    Raises:
        TspruneError: there are some; beginning with `flag`.
    """
    able = registry.find("tsprune.models", family).FAMILY.capabilities
    for can, given, what in (
        (able.past_covariates, ready.panel.past_names, "past-covariates"),
        (able.known_covariates, ready.panel.known_names, "known-covariates"),
    ):
        if given and not can:
            raise TspruneError(
                f"{flag}: family {family} cannot use --{what} ({', '.join(given[:5])}); leave the candidate or the "
                "covariates out"
            )
