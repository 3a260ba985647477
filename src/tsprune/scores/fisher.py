"""Loss change predicted to second order, the curvature by the empirical Fisher information (2505.23195)."""

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
    return finish(model, collect(model, batches, kinds=kinds), kinds=kinds)


def collect(model: Forecaster, batches: Iterable[Batch], *, kinds: Sequence[str]) -> Totals:
    """What has to be known of the windows, as sums over them."""
    return gradient_totals(model, batches, kinds, of_window)


def finish(model: Forecaster, totals: Totals, *, kinds: Sequence[str]) -> dict[str, Tensor]:
    """Scores from the sums; see `scores`."""
    return totals.means()


def of_window(gradients: Tensor) -> Tensor:
    """Predicted loss change of each window, from gate gradients of the same shape."""
    return -gradients + gradients.square() / 2
