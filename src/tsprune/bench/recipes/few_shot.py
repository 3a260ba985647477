"""Few-shot curves: the grid with ever more of the training windows (asked for by reviewers of arXiv 2505.23195)."""

from __future__ import annotations

from dataclasses import replace

from tsprune.bench.recipes.grid import Grid
from tsprune.bench.spec import Spec

SHARES = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)


class FewShot(Grid):
    """The grid over shares of the training windows."""

    def settled(self, spec: Spec) -> Spec:
        """With the usual shares where none is named."""
        return replace(spec, shares=SHARES) if spec.shares == (1.0,) else spec


RECIPE = FewShot()
