"""The formula of 2505.23195 as it stands in print."""

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
    """Size of g + g**2 / 2, with g the derivative of the mean loss with respect to the unit's gate.

    Read to the letter: L is the mean loss of all windows given, so g is squared after averaging, and the first
    order has the sign of the derivative. `fisher` differs in both: it squares each window's own gradient, and takes the
    sign that the change of a gate from 1 to 0 has. All windows count as one macro-batch, so the score does not
    depend on how they are batched. Of many windows the mean gradient is small and its square smaller, which
    leaves little but `taylor`.

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
    return gradient_totals(model, batches, kinds, lambda g: g)


def finish(model: Forecaster, totals: Totals, *, kinds: Sequence[str]) -> dict[str, Tensor]:
    """Scores from the sums; see `scores`."""
    return {name: (g + g.square() / 2).abs() for name, g in totals.means().items()}
