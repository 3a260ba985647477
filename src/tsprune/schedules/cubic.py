"""Cubic ramp: much goes early, less and less towards the end (Zhu and Gupta, arXiv 1710.01878)."""

from __future__ import annotations

from dataclasses import dataclass

from tsprune.schedules._schedule import Schedule

HALF = 0.5


@dataclass(frozen=True)
class Cubic(Schedule):
    """After round n of N a share of F (1 - (1 - n/N)**3) is gone (their equation 1, starting from nothing).

    F is what the budget asks for; without one, half of what can be removed.
    """

    def share(self, number: int, final: float | None) -> float:
        """See the class."""
        return (HALF if final is None else final) * (1 - (1 - number / self.rounds) ** 3)

    def describe(self) -> str:
        """The ratio plays no part."""
        return f"cubic rounds {self.rounds} ema {self.ema:g}"


SCHEDULE = Cubic
