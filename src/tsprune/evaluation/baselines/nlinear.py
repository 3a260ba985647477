"""NLinear: one linear map of what remains of the context after its last value is taken off (arXiv 2205.13504)."""

from __future__ import annotations

from torch import Tensor

from tsprune.evaluation.baselines._linear import Linear


class NLinear(Linear):
    """`y = W (x - x[-1]) + b + x[-1]`, so that a shift of the level shifts the forecast alike; see `Linear`."""

    @staticmethod
    def inputs(rows: Tensor) -> Tensor:
        """The rows themselves `[n, L]`."""
        return rows

    @staticmethod
    def centre(rows: Tensor) -> Tensor:
        """The last value of each row `[n, 1]`."""
        return rows[:, -1:]


BASELINE = NLinear
