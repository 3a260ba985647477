"""One shot: score once, on as many windows as the rounds of another schedule see together, and cut once."""

from __future__ import annotations

from dataclasses import dataclass

from tsprune.schedules._schedule import Schedule


@dataclass(frozen=True)
class OneShot(Schedule):
    """Without a budget, as much goes as `rounds` rounds of the ratio would take; validation keeps it or does not."""

    @property
    def draws(self) -> int:
        """All macro-batches at once."""
        return self.rounds

    def last(self, budget: bool) -> int:
        """The only round."""
        return 1

    def share(self, number: int, final: float | None) -> float:
        """The same whatever the round."""
        return 1 - (1 - self.ratio) ** self.rounds if final is None else final

    def describe(self) -> str:
        """There is nothing to smooth."""
        return "one_shot"


SCHEDULE = OneShot
