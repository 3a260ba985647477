"""Every candidate of every model on every data set and horizon."""

from __future__ import annotations

from collections.abc import Callable

from tsprune.bench.jobs import Job
from tsprune.bench.recipes._recipe import Look, Recipe, everything
from tsprune.bench.spec import Spec


class Grid(Recipe):
    """The plain grid."""

    def waves(self) -> list[Callable[[Spec, Look], list[Job]]]:
        """All at once."""
        return [everything]


RECIPE = Grid()
