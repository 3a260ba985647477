"""What baselines with normal quantiles share."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

from torch import Tensor

from tsprune.errors import TspruneError


def check_request(horizon: int, levels: Sequence[float]) -> None:
    """Refuse what no forecast can be made for.

    Raises:
        TspruneError: the horizon is not positive, or a level is not strictly between 0 and 1.
    """
    if horizon < 1:
        raise TspruneError(f"horizon is {horizon}, expected a positive number of steps")
    if any(not 0 < level < 1 for level in levels):
        raise TspruneError(f"quantile levels {list(levels)[:5]} must lie strictly between 0 and 1")


def normal_quantiles(point: Tensor, sigma: Tensor, levels: Sequence[float]) -> Tensor:
    """Quantiles `[B, Q, H]` of normal distributions with these means and standard deviations, both `[B, H]`."""
    z = point.new_tensor([NormalDist().inv_cdf(level) for level in levels])
    return point[:, None, :] + z[None, :, None] * sigma[:, None, :]
