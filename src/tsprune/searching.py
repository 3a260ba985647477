"""What the trials of a fine-tuning try: the usual learning rates one by one, or what optuna proposes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster
from tsprune.settings import FinetuneSettings


@dataclass(frozen=True)
class Choice:
    """What one run is trained with.

    Args:
        learning_rate: the highest of the run.
        weight_decay: decoupled.
        dropout: of every place; None leaves the model's own rates.
        searched: which of the fields but the learning rate are searched.
    """

    learning_rate: float
    weight_decay: float
    dropout: float | None
    searched: tuple[str, ...] = ()

    def settings(self, given: FinetuneSettings) -> FinetuneSettings:
        """The settings of this run."""
        return replace(given, weight_decay=self.weight_decay, dropout=self.dropout)

    def facts(self) -> dict[str, float | None]:
        """What is searched beside the learning rate, by name."""
        return {name: getattr(self, name) for name in self.searched}


class Search(ABC):
    """Proposes what to try, one trial after the other; between `ask` and `tell` lies one trial.

    Killed and begun anew it proposes the same, as long as it is told the same: what it knows lies in the checkpoints
    of the trials.

    Attributes:
        trials: how many there are.
        evaluations: how often a trial is validated.
        judges: whether `hopeless` may end a trial.
    """

    trials: int
    evaluations: int
    judges = False

    @abstractmethod
    def ask(self) -> Choice:
        """What the next trial is trained with; without trials, what the full run is."""

    def hopeless(self, losses: Sequence[float]) -> bool:
        """Whether to end the trial that was asked for last, given all its validation losses so far."""
        return False

    def tell(self, losses: Sequence[float], pruned: bool) -> None:
        """How the trial that was asked for last went: its validation losses, and whether it was ended as hopeless."""
        return None

    def label(self, number: int) -> str:
        """A name for a trial; with its learning rate it is that of one trial alone."""
        return "search"


class Grid(Search):
    """The learning rates of the settings in their order; all else as set."""

    evaluations = 2

    def __init__(self, settings: FinetuneSettings) -> None:
        self.settings, self.trials = settings, settings.searched_rates
        self._rates = iter(settings.rates)

    def ask(self) -> Choice:
        """The next rate; the first where none is searched."""
        return Choice(next(self._rates), self.settings.weight_decay, self.settings.dropout)


def search_of(settings: FinetuneSettings, model: Forecaster, seed: int) -> Search:
    """The search that the settings ask for.

    Args:
        settings: how to tune.
        model: that is tuned; not changed.
        seed: of what is drawn.

    Raises:
        TspruneError: it needs a package that is not installed.
    """
    if not settings.trials:
        return Grid(settings)
    check_optuna(settings)
    from tsprune.tpesearch import TpeSearch

    return TpeSearch(settings, model, seed)


def check_optuna(settings: FinetuneSettings) -> None:
    """Raise TspruneError where the search needs optuna and it is not installed; it is not imported for that."""
    import importlib.util

    if settings.trials and importlib.util.find_spec("optuna") is None:
        raise TspruneError(
            f"--trials {settings.trials} needs the package optuna, which is not installed; "
            "pip install 'tsprune[tune]', or leave --trials out"
        )
