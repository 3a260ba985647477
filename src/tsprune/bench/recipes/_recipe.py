"""What a recipe says: which jobs there are, and which come after others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from tsprune.bench.gathering import Gathered
from tsprune.bench.jobs import Job
from tsprune.bench.kinds.tuned import ZERO_SHOT
from tsprune.bench.spec import Spec

Look = Callable[[Job, str], "dict[str, Any] | None"]
"""The finished cell of a job and a candidate; None while there is none."""


class Recipe(ABC):
    """A way to use a grid."""

    def settled(self, spec: Spec) -> Spec:
        """The grid with what the recipe takes for granted; TspruneError where it makes no sense."""
        return spec

    @abstractmethod
    def waves(self) -> list[Callable[[Spec, Look], list[Job]]]:
        """Lists of jobs, each made when those before are done."""

    def summary(self, gathered: Gathered) -> dict[str, Any]:
        """What the recipe adds to the summary, JSON-able."""
        return {}

    def told(self, summary: dict[str, Any]) -> tuple[str, list[dict[str, Any]]] | None:
        """Headline and parts of a page of its own (see `recipepage`), or None where the grid's page says it all."""
        return None


def everything(spec: Spec, look: Look) -> list[Job]:
    """Every job of the plain grid: baselines, networks from scratch, and the candidates of every model.

    Cheap ones first, then seed by seed, so that what is there early covers the whole grid.
    """
    found = [
        Job("baselines", None, entry.name, horizon, share, None, spec.baselines)
        for horizon in spec.horizons
        for entry in spec.data
        for share in spec.shares
    ]
    for seed in spec.seeds:
        for horizon in spec.horizons:
            for entry in spec.data:
                for share in spec.shares:
                    for model in (one for one in spec.models if seed in spec.seeds_of(one)):
                        wanted = (ZERO_SHOT, *spec.tuned())
                        found.append(Job("tuned", model.name, entry.name, horizon, share, seed, wanted))
                    if spec.fresh() and seed in spec.fresh_seeds:
                        found.append(Job("scratch", None, entry.name, horizon, share, seed, spec.fresh()))
    return found
