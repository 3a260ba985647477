"""Progressive global pruning: a share of what is still alive goes after every macro-batch, by smoothed scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tsprune.errors import TspruneError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Progressive:
    """The paper's schedule (2505.23195): smooth the scores over macro-batches, remove the lowest share, repeat.

    After n rounds a share of 1 - (1 - ratio)**n of the prunable parameters is gone.

    Args:
        ratio: share of the prunable parameters still alive that one round removes.
        rounds: rounds at most.
        ema: weight of the newest macro-batch in the smoothed scores.
        patience: rounds in a row outside the tolerance after which pruning stops.
    """

    ratio: float = 0.06
    rounds: int = 12
    ema: float = 0.5
    patience: int = 4

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if not 0 < self.ratio < 1:
            raise TspruneError(f"--ratio {self.ratio} must lie between 0 and 1")
        if not 0 < self.ema <= 1:
            raise TspruneError(f"--ema {self.ema} must be above 0 and at most 1")
        if self.rounds < 1 or self.patience < 1:
            raise TspruneError(f"--rounds {self.rounds} and --prune-patience {self.patience} must be at least 1")

    def amounts(self) -> Iterator[float]:
        """Share of the alive prunable parameters to remove in each round."""
        for _ in range(self.rounds):
            yield self.ratio

    def smooth(self, before: dict[str, Tensor] | None, new: dict[str, Tensor]) -> dict[str, Tensor]:
        """Exponential moving average of scores; the first macro-batch counts in full."""
        if before is None:
            return new
        return {name: self.ema * score + (1 - self.ema) * before[name] for name, score in new.items()}
