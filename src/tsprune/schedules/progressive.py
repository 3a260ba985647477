"""Progressive global pruning: a share of what is still alive goes after every macro-batch, by smoothed scores."""

from __future__ import annotations

from dataclasses import dataclass

from tsprune.schedules._schedule import Schedule


@dataclass(frozen=True)
class Progressive(Schedule):
    """The paper's idea (2505.23195) in parameters: smooth the scores, remove the lowest share, repeat.

    After n rounds a share of 1 - (1 - ratio)**n of the prunable parameters is gone. With a budget, the ratio is the one
    that ends on it with the last round.
    """

    def share(self, number: int, final: float | None) -> float:
        """See the class."""
        if final is None:
            return float(1 - (1 - self.ratio) ** number)
        return float(1 - (1 - final) ** (number / self.rounds))


SCHEDULE = Progressive
