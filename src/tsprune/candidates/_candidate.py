"""What a candidate is: a start, and a training that goes on from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsprune.candidates import FLAG

if TYPE_CHECKING:
    from tsprune.candidates._workshop import Workshop
    from tsprune.preparing import Prepared
    from tsprune.settings import FinetuneSettings, PruneSettings


@dataclass(frozen=True)
class Shorter:
    """How candidates from scratch get less than what their authors published; as it stands, they do not.

    Args:
        steps: at most; 0 leaves what was published.
        small: whether the smallest published size is trained, whatever the data.
    """

    steps: int = 0
    small: bool = False


AS_PUBLISHED = Shorter()


class Start(ABC):
    """Where a candidate starts."""

    words: str
    """For the results, such as `the pruned model`."""

    def check(self, flag: str, pruning: PruneSettings, ready: Prepared | None) -> None:
        """Raise TspruneError, beginning with `flag`, where it cannot be had; `ready` is None before data are read."""
        return None

    @abstractmethod
    def stage(self, workshop: Workshop) -> Path | None:
        """The finished stage with `model/` to start from; None for the model as it came, or for fresh weights."""


class Training(ABC):
    """How a candidate is trained."""

    def check(self, flag: str, tuning: FinetuneSettings, ready: Prepared | None) -> None:
        """Raise TspruneError, beginning with `flag`, where it cannot be done; `ready` is None before data are read."""
        return None

    @abstractmethod
    def stage(self, workshop: Workshop, candidate: Candidate, source: Path | None) -> Path:
        """The finished stage: `model/`, and `trials.json` with one entry per trial.

        Args:
            workshop: makes the stages of this run.
            candidate: whose training this is.
            source: what `Start.stage` gave.
        """

    @abstractmethod
    def facts(self, workshop: Workshop, folder: Path) -> dict[str, Any]:
        """How it was trained, JSON-able: `training` and `budget` in words, and what else there is to say.

        Args:
            workshop: of this run.
            folder: what `stage` gave.
        """

    def notes(self, folder: Path) -> list[str]:
        """What to say under the table, one line each."""
        return []


@dataclass(frozen=True)
class Candidate:
    """One of the models that a run trains and compares.

    Args:
        name: that of its file.
        label: short, for the progress bar.
        start: where it starts.
        training: how it goes on.
    """

    name: str
    label: str
    start: Start
    training: Training

    def check(self, pruning: PruneSettings, tuning: FinetuneSettings, ready: Prepared | None) -> None:
        """Raise TspruneError where it cannot be trained; with `ready` None only for what needs no data."""
        flag = f"{FLAG} {self.name}"
        self.start.check(flag, pruning, ready)
        self.training.check(flag, tuning, ready)

    def facts(self, workshop: Workshop, folder: Path) -> dict[str, Any]:
        """Start and training for the results."""
        return {"start": self.start.words, **self.training.facts(workshop, folder)}
