"""Layer drop: the whole layer, or branch, that matters least goes, one per round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tsprune.blocks.kinds import WHOLE
from tsprune.schedules._schedule import Schedule


@dataclass(frozen=True)
class LayerDrop(Schedule):
    """Whole layers go, or whole attention and feed-forward branches where these are named as units.

    What is left is scored again before the next one goes. With a budget it goes on until that is reached, which is then
    hit within one layer or branch.
    """

    whole = True

    def kinds(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """Those of the wanted kinds that are whole; layers where none is."""
        return tuple(kind for kind in wanted if kind in WHOLE) or ("layer",)

    def last(self, budget: bool) -> int | None:
        """A budget may need more rounds."""
        return None if budget else self.rounds

    def share(self, number: int, final: float | None) -> None:
        """Units are counted."""
        return None

    def count(self, alive: int) -> int:
        """One."""
        return 1

    def describe(self) -> str:
        """The ratio plays no part."""
        return f"layer_drop ema {self.ema:g}"


SCHEDULE = LayerDrop
