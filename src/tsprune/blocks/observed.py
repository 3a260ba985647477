"""Instance scaling by what was observed, with a floor under the scale instead of a fallback (TTM, PatchTST)."""

from __future__ import annotations

import torch
from torch import Tensor

from tsprune.errors import TspruneError

SCALERS = ("std", "mean", "none")
FLOORS = {"std": 1e-5, "mean": 1e-10}


class ObservedScale:
    """Location and scale of the observed values of each row, in float32 or better.

    Args:
        values: `[..., L]`; what is not observed may be anything, NaN included.
        observed: bool `[..., L]`.
        scaler: `std`: the mean, and the root of the population variance plus the floor. `mean`: location 0 and the
            mean absolute value, at least the floor. `none`: 0 and 1.
        floor: None means 1e-5 for `std` and 1e-10 for `mean`.
        unobserved: scale of a row in which nothing was observed, broadcastable to `[..., 1]`, for `mean`; None means
            the floor.

    Attributes:
        location: `[..., 1]`.
        scale: `[..., 1]`.
    """

    def __init__(
        self,
        values: Tensor,
        observed: Tensor,
        scaler: str = "std",
        *,
        floor: float | None = None,
        unobserved: Tensor | float | None = None,
    ) -> None:
        if scaler not in SCALERS:
            raise TspruneError(f"scaler {scaler!r} is unknown, expected one of {', '.join(SCALERS)}")
        wide = values if values.dtype == torch.float64 else values.float()
        held = torch.where(observed, wide, 0.0)
        floor = FLOORS.get(scaler, 0.0) if floor is None else floor
        counted = observed.sum(-1, keepdim=True)
        number = counted.clamp(min=1)
        self.location = torch.zeros_like(held[..., :1])
        self.scale = torch.ones_like(self.location)
        if scaler == "std":
            self.location = held.sum(-1, keepdim=True) / number
            spread = torch.where(observed, wide - self.location, 0.0).square().sum(-1, keepdim=True) / number
            self.scale = torch.sqrt(spread + floor)
        elif scaler == "mean":
            size = held.abs().sum(-1, keepdim=True) / number
            if unobserved is not None:
                size = torch.where(counted > 0, size, unobserved)
            self.scale = size.clamp(min=floor)

    def apply(self, x: Tensor) -> Tensor:
        """Scale `[..., T]`; NaN stays NaN."""
        return (x.to(self.location.dtype) - self.location) / self.scale

    def invert(self, x: Tensor) -> Tensor:
        """Back to original units: `[..., T]`."""
        return x.to(self.location.dtype) * self.scale + self.location
