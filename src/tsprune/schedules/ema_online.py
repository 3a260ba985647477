"""The schedule of 2505.23195 as printed: units go after every macro-batch, validation speaks after every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tsprune.rounds import Round, choose
from tsprune.schedules._schedule import Schedule


@dataclass(frozen=True)
class EmaOnline(Schedule):
    """K = ratio / steps of the units still alive go after each macro-batch, by smoothed scores.

    A round is an epoch of `steps` macro-batches, so that it removes about 1 - exp(-ratio) of the units. Units are
    counted, whatever they cost; those whose score is exactly zero go at once and do not count. Pruning stops at the
    first epoch that does not improve validation, and keeps the best one; the unpruned model is epoch 0. With a budget
    it goes on until that is reached.
    """

    @property
    def cuts(self) -> int:
        """One after every macro-batch."""
        return self.steps

    def last(self, budget: bool) -> int | None:
        """A budget may need more epochs."""
        return None if budget else self.rounds

    def share(self, number: int, final: float | None) -> None:
        """Units are counted."""
        return None

    def stops(self, rounds: Sequence[Round], tolerance: float) -> bool:
        """At the first epoch that is not better than all before; the tolerance plays no part."""
        return len(rounds) > 1 and self.choose(rounds, tolerance) is not rounds[-1]

    def choose(self, rounds: Sequence[Round], tolerance: float) -> Round:
        """The best epoch, the first of equals."""
        best = choose(rounds, 0.0).validation_loss
        return next((r for r in rounds if r.validation_loss == best), rounds[0])

    def describe(self) -> str:
        """The ratio is one of units and epochs."""
        return f"ema_online ratio {self.ratio:g} per epoch of {self.steps} macro-batches, ema {self.ema:g}"


SCHEDULE = EmaOnline
