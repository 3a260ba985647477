"""How far two forecasts of the same windows are from each other in shape and in value.

Letters: R rows, H steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tsprune.scores._ranks import rank_correlations

_STEPS = 8
"""Single-precision steps within which a forecast counts as constant: rounding must not be ranked."""


def spearman_distance(first: Tensor, second: Tensor) -> Tensor:
    """1 - Spearman's rank correlation of each pair of rows: `[R]`, float64, from 0 for the same order to 2.

    Ties get average ranks. A constant row has no order: beside one that is not it counts as distance 1, that of no
    relation, so that a forecast that collapsed to a line is not taken for a good one; two constant rows have the same
    shape and distance 0. A row with a value that is not finite counts as distance 1.

    Args:
        first: `[R, H]`.
        second: `[R, H]`.
    """
    a, b = first.double(), second.double()
    finite = (torch.isfinite(a) & torch.isfinite(b)).all(-1)
    a, b = torch.where(finite[:, None], a, 0.0), torch.where(finite[:, None], b, 0.0)
    flat = constant(a), constant(b)
    found = torch.where(flat[0] | flat[1], (flat[0] ^ flat[1]).double(), 1 - rank_correlations(a, b))
    return torch.where(finite, found.clamp(0, 2), 1.0)


def constant(values: Tensor) -> Tensor:
    """bool `[R]`: rows whose entries differ by no more than single precision does at their size."""
    spread = values.amax(-1) - values.amin(-1)
    return spread <= _STEPS * torch.finfo(torch.float32).eps * values.abs().amax(-1)


def relative_difference(found: Tensor, reference: Tensor) -> float:
    """Root of the summed squared differences over that of the reference's squares: 0 for the same, 1 for all zeros."""
    size = reference.double().square().sum()
    gap = (found.double() - reference.double()).square().sum()
    return 0.0 if gap == 0 else float((gap / size).sqrt())


def squared_error(found: Tensor, truth: Tensor) -> float | None:
    """Mean squared error over the steps that came, `[R, H]`; None where none did."""
    seen = torch.isfinite(truth)
    if not bool(seen.any()):
        return None
    return float((found - truth)[seen].square().mean())
