"""Loss change predicted to second order, the curvature by the empirical Fisher information (2505.23195)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster
from tsprune.scores._taps import chosen_groups, gate_gradients

NEEDS = "backward"


def scores(
    model: Forecaster, batches: Iterable[Batch], *, kinds: Sequence[str] = ("head", "ffn_channel"), seed: int = 0
) -> dict[str, Tensor]:
    """Predicted change of the mean loss when a unit is removed.

    With g_n the derivative of window n's loss with respect to the unit's gate, the score is the mean over windows
    of -g_n + g_n**2 / 2. The square is of each window's own gradient, so the score does not depend on how
    windows are batched. Positive: removal is predicted to raise the loss; negative: to lower it.

    Args:
        model: left as it was found.
        batches: windows with targets.
        kinds: kinds of units to score.
        seed: not used; part of every score's signature.

    Returns:
        For each group name `[U]`, float64.

    Raises:
        TspruneError: no batch, or the model has no unit of a wanted kind.
    """
    groups = chosen_groups(model, kinds)
    totals = {name: torch.zeros(group.units, dtype=torch.float64) for name, group in groups.items()}
    windows = 0
    for batch in batches:
        gradients = gate_gradients(model, batch.to(model.device), groups)
        for name, g in gradients.items():
            totals[name] += (-g + g.square() / 2).sum(0).cpu()
        windows += len(next(iter(gradients.values())))
    if not windows:
        raise TspruneError("scoring needs at least one batch of windows, got none")
    return {name: total / windows for name, total in totals.items()}
