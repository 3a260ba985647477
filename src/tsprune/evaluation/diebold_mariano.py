"""The test of Diebold and Mariano: do two models' losses differ by more than chance?

Letters: R rows, U units (origins in time order, or series), h the horizon in window steps.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tsprune.errors import TspruneError
from tsprune.evaluation.intervals import shared_terms
from tsprune.evaluation.metrics import RowErrors
from tsprune.evaluation.student import two_sided_p
from tsprune.evaluation.timeblocks import Blocks

Kernel = Literal["rectangular", "bartlett"]

_Floats = NDArray[np.float64]
_NO_CHANGE = 1e-12


@dataclass(frozen=True)
class DieboldMariano:
    """What the test found.

    Attributes:
        difference: mean loss of the first model less that of the second; negative: the first is better.
        statistic: with the small-sample correction; None where there is no variance to divide by, or too few units.
        p_value: two-sided; None where there is no statistic.
        units: number of loss differences U.
        lags: autocovariances in the variance, h - 1.
        kernel: their weights: all 1 (rectangular), or falling in a line (bartlett) where those gave no variance.
        note: what hinders the test, or ""; one line.
    """

    difference: float
    statistic: float | None
    p_value: float | None
    units: int
    lags: int
    kernel: Kernel
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain data; the note only where there is one."""
        return {key: value for key, value in asdict(self).items() if key != "note" or value}


def diebold_mariano(first: ArrayLike, second: ArrayLike, horizon: int = 1) -> DieboldMariano:
    """Test that two models have the same expected loss.

    The mean d of the loss differences is divided by its standard error, whose long-run variance takes in the
    autocovariances up to lag h - 1, since forecasts h steps ahead have errors that depend on each other over h - 1
    steps (Diebold and Mariano 1995, section 1). All weigh the same; where the result is not positive, Bartlett's
    weights 1 - k / h stand in, under which it cannot be negative (Harvey, Leybourne and Whitehouse 2017). The statistic
    is multiplied by sqrt((U + 1 - 2 h + h (h - 1) / U) / U) and compared with Student's t of U - 1 degrees of freedom
    (Harvey, Leybourne and Newbold 1997, the modified statistic). Where U is not many times h, the test still finds
    differences too easily.

    Args:
        first: losses of one model, one per unit in time order `[U]`.
        second: losses of the other on the same units `[U]`.
        horizon: h, the horizon in steps between units; 1 where targets do not overlap.

    Returns:
        The result. Equal losses have p 1; differences that are the same in every window have no variance, so no p.

    Raises:
        TspruneError: for losses that differ in number or are not finite, or a horizon below 1.
    """
    one, two = (np.asarray(losses, np.float64) for losses in (first, second))
    if one.ndim != 1 or one.shape != two.shape or not len(one):
        raise TspruneError(
            f"losses have shapes {list(one.shape)} and {list(two.shape)}, expected one loss per window from both models"
        )
    if not (np.isfinite(one).all() and np.isfinite(two).all()):
        raise TspruneError("some losses are not finite, expected numbers; leave out windows without an observed target")
    if horizon < 1:
        raise TspruneError(f"the horizon is {horizon} window steps, expected at least 1")
    gaps = one - two
    count, mean = len(gaps), math.fsum(gaps.tolist()) / len(gaps)
    if not gaps.any():
        return DieboldMariano(0.0, 0.0, 1.0, count, horizon - 1, "rectangular", "the losses are equal in every window")
    if count <= horizon:
        note = f"{count} units are too few for a test with a horizon of {horizon} window steps"
        return DieboldMariano(mean, None, None, count, horizon - 1, "rectangular", note)
    variance, kernel = long_run_variance(gaps, horizon - 1)
    if variance <= _NO_CHANGE * mean * mean:
        note = "the losses differ by the same in every window, which leaves no variance to test against"
        return DieboldMariano(mean, None, None, count, horizon - 1, kernel, note)
    correction = (count - horizon) * (count - horizon + 1) / count**2
    statistic = mean * math.sqrt(correction * count / variance)
    return DieboldMariano(mean, statistic, two_sided_p(statistic, count - 1), count, horizon - 1, kernel)


def compare_rows(first: RowErrors, second: RowErrors, blocks: Blocks, measure: str) -> DieboldMariano:
    """The test between two models' errors, unit by unit.

    The loss of a unit is the sum of its rows' numerators over the mean denominator of all units, so that the mean loss
    is the measure itself. Rows of one origin are added up first: what series have in common does not count as many
    observations.

    Args:
        first: errors of one model.
        second: errors of the other, on the same rows.
        blocks: the units of these rows.
        measure: one of `metrics.MEASURES`.

    Raises:
        TspruneError: for an unknown measure, rows of other windows, or a measure without a denominator.
    """
    sums = blocks.sums(np.stack(shared_terms(measure, first, second), axis=1))
    total = float(sums[:, 2].sum())
    if not total > 0:
        raise TspruneError(f"{measure} has no denominator in these windows; choose another measure")
    losses = sums[:, :2] * (len(sums) / total)
    return diebold_mariano(losses[:, 0], losses[:, 1], blocks.overlap)


def long_run_variance(values: ArrayLike, lags: int) -> tuple[float, Kernel]:
    """Variance of the mean times U: autocovariances up to `lags`, divided by U, and the weights that were used.

    Args:
        values: a series `[U]`, U above `lags`.
        lags: how many autocovariances to take in.
    """
    plain = np.asarray(values, np.float64)
    centred = plain - plain.mean()
    count = len(centred)
    covariances = np.array([centred[lag:] @ centred[: count - lag] for lag in range(lags + 1)]) / count
    rectangular = float(covariances[0] + 2 * covariances[1:].sum())
    if rectangular > 0:
        return rectangular, "rectangular"
    weights = 1 - np.arange(1, lags + 1) / (lags + 1)
    return float(covariances[0] + 2 * (weights * covariances[1:]).sum()), "bartlett"
