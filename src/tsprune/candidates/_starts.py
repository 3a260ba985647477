"""Where candidates start: dense, pruned by rounds, cut at once to the same size, or with fresh weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsprune import registry
from tsprune.candidates._candidate import Start
from tsprune.errors import TspruneError

if TYPE_CHECKING:
    from tsprune.candidates._workshop import Workshop
    from tsprune.models._forecaster import Forecaster
    from tsprune.preparing import Prepared
    from tsprune.settings import PruneSettings


class Dense(Start):
    """The whole model after the brief tuning that all share."""

    words = "the whole model after the brief tuning"

    def stage(self, workshop: Workshop) -> Path | None:
        """The brief tuning."""
        return workshop.start


class Rounds(Start):
    """The model pruned round by round with the run's score."""

    words = "the model pruned by the score"

    def stage(self, workshop: Workshop) -> Path | None:
        """The pruning."""
        return workshop.pruned


@dataclass(frozen=True)
class OneShot(Start):
    """The whole model after the brief tuning, cut at once to the parameters of the pruned one, or just below.

    Args:
        name: of the stage.
        score: name of a score in `tsprune.scores` whose lowest units leave.
        words: for the results.
        rank: see `tsprune.ranking.Prunable.order`.
        units: kinds of units that leave; empty for those of the run.
    """

    name: str
    score: str
    words: str
    rank: str = "magnitude"
    units: tuple[str, ...] = ()

    def check(self, flag: str, pruning: PruneSettings, ready: Prepared | None) -> None:
        """Refuse a model without such units."""
        if ready is not None and self.units:
            there = sorted({group.kind for group in ready.model.unit_groups().values()})
            if not set(self.units) & set(there):
                raise TspruneError(
                    f"{flag}: removes units of kind {', '.join(self.units)}, this {ready.model.family} model has "
                    f"{', '.join(there) or 'none left'}; leave the candidate out"
                )

    def stage(self, workshop: Workshop) -> Path | None:
        """The cut."""
        units = self.units or workshop.pruning.units
        # The random control is as old as the runs it is compared in: its stage keeps its name.
        more: dict[str, Any] = {} if self.score == "random" else {"score": self.score, "rank": self.rank}

        def choose(model: Forecaster, goal: int) -> Mapping[str, Sequence[int]]:
            return self._chosen(workshop, model, units, goal)

        return workshop.cut(self.name, units, choose, self.score, more)

    def _chosen(
        self, workshop: Workshop, model: Forecaster, units: Sequence[str], goal: int
    ) -> Mapping[str, Sequence[int]]:
        from tsprune.pruning import parameters_to_reach
        from tsprune.scoring import portions

        module, ready = registry.find("tsprune.scores", self.score), workshop.prepared
        settings = replace(workshop.pruning, score=self.score, units=tuple(units))
        windows = () if module.NEEDS == "weights" else ready.macro_batch(1, settings.prune_windows)
        values = module.scores(model, windows and portions(model, windows, settings), kinds=units, seed=ready.task.seed)
        return parameters_to_reach(model, values, goal, self.rank)


class Fresh(Start):
    """Fresh weights: nothing of the pretrained model."""

    words = "fresh weights"

    def stage(self, workshop: Workshop) -> Path | None:
        """Nothing to be made."""
        return None
