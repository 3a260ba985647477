"""What every schedule answers; by itself, the common ground of all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tsprune.errors import TspruneError
from tsprune.rounds import Round, choose, late_rounds

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Schedule(ABC):
    """How much goes when, and when to score again.

    A round scores, removes and validates. It goes down either to a share of what can be removed (`share`) or by a
    number of units (`count`). A budget, where there is one, is never undershot by more than one unit, and the rounds
    end on it.

    Args:
        ratio: share of what is still alive that one round removes, where no budget says otherwise.
        rounds: rounds at most, where no budget asks for more.
        ema: weight of the newest macro-batch in the smoothed scores.
        patience: rounds in a row outside the tolerance after which pruning stops; not used with a budget.
        steps: macro-batches of a round that is an epoch; only `ema_online` has more than one.
    """

    ratio: float = 0.06
    rounds: int = 12
    ema: float = 0.5
    patience: int = 4
    steps: int = 4

    whole: ClassVar[bool] = False
    """Whether it removes whole layers or branches only."""

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if not 0 < self.ratio < 1:
            raise TspruneError(f"--ratio {self.ratio} must lie between 0 and 1")
        if not 0 < self.ema <= 1:
            raise TspruneError(f"--ema {self.ema} must be above 0 and at most 1")
        if self.rounds < 1 or self.patience < 1:
            raise TspruneError(f"--rounds {self.rounds} and --prune-patience {self.patience} must be at least 1")
        if self.steps < 1:
            raise TspruneError(f"--epoch-batches {self.steps} must be at least 1")

    @property
    def cuts(self) -> int:
        """How often a round scores and cuts before it validates."""
        return 1

    @property
    def draws(self) -> int:
        """How many macro-batches one scoring takes."""
        return 1

    def kinds(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """Kinds of units that go, of those that are wanted."""
        return tuple(wanted)

    def last(self, budget: bool) -> int | None:
        """Number of the last round; None where the rounds go on until the budget is reached."""
        return self.rounds

    @abstractmethod
    def share(self, number: int, final: float | None) -> float | None:
        """Share of what can be removed that is gone after a round, or None where units are counted.

        Args:
            number: of the round, from 1.
            final: the share that the budget asks for; None without a budget.
        """

    def count(self, alive: int) -> int:
        """Units that go with the next cut when so many are alive, at least one; only where `share` is None."""
        return max(1, round(self.ratio / self.cuts * alive))

    def smooth(self, before: Mapping[str, Tensor] | None, new: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Exponential moving average of scores; the first macro-batch counts in full."""
        if before is None:
            return dict(new)
        return {name: self.ema * score + (1 - self.ema) * before[name] for name, score in new.items()}

    def stops(self, rounds: Sequence[Round], tolerance: float) -> bool:
        """Whether validation has had enough, where there is no budget."""
        return late_rounds(rounds, tolerance) >= self.patience

    def choose(self, rounds: Sequence[Round], tolerance: float) -> Round:
        """The round that validation keeps, where there is no budget."""
        return choose(rounds, tolerance)

    def describe(self) -> str:
        """Name and numbers, for the plan."""
        return f"{type(self).__module__.rsplit('.', 1)[-1]} ratio {self.ratio:g} ema {self.ema:g}"
