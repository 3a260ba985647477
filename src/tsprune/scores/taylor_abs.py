"""First-order loss change of each window by its size (Michel et al., arXiv 1905.10650)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster
from tsprune.scores._taps import gradient_totals
from tsprune.scores._work import Totals

NEEDS = "backward"


def scores(
    model: Forecaster, batches: Iterable[Batch], *, kinds: Sequence[str] = ("head", "ffn_channel"), seed: int = 0
) -> dict[str, Tensor]:
    """Mean size of the derivative of each window's loss with respect to the unit's gate, mean |g_n|.

    A unit that helps some windows and hurts others counts as much as it moves either; see `taylor`.

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
    return finish(model, collect(model, batches, kinds=kinds), kinds=kinds)


def collect(model: Forecaster, batches: Iterable[Batch], *, kinds: Sequence[str]) -> Totals:
    """What has to be known of the windows, as sums over them."""
    return gradient_totals(model, batches, kinds, lambda g: g.abs())


def finish(model: Forecaster, totals: Totals, *, kinds: Sequence[str]) -> dict[str, Tensor]:
    """Scores from the sums; see `scores`."""
    return totals.means()
