"""Random importance: the control every other score has to beat."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster
from tsprune.scores._taps import chosen_groups

NEEDS = "weights"


def scores(
    model: Forecaster, batches: Iterable[Batch], *, kinds: Sequence[str] = ("head", "ffn_channel"), seed: int = 0
) -> dict[str, Tensor]:
    """Uniform random numbers in proportion to a unit's parameters, so that cost-aware ranking stays random.

    Args:
        model: left as it was found.
        batches: not used.
        kinds: kinds of units to score.
        seed: the same seed gives the same scores.

    Returns:
        For each group name `[U]`, float64.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(group.units, generator=generator, dtype=torch.float64) * group.parameters
        for name, group in chosen_groups(model, kinds).items()
    }
