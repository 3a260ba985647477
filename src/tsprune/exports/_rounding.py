"""Weights to small integers, and what restores the statistics of an output channel afterwards.

Symmetric rounding to the nearest, one scale for each output channel. Rounding shifts and stretches a channel's weights
w to q; w' = (sigma_w / sigma_q) (q - mu_q) + mu_w has the mean and the variance of w again (2510.20673). That is one
factor and one summand for each channel, so it goes into the scale and an offset.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tsprune.models._packedbits import largest
from tsprune.models._quantised import weights_of

CORRECTIONS = ("none", "where_better", "everywhere")


@dataclass(frozen=True)
class Width:
    """How codes of one width become weights.

    Args:
        codes: `[R, C]` int32.
        scale: `[R]` float32.
        offset: `[R]` float32; 0 where a row was not corrected.
        corrected: bool `[R]`.
    """

    codes: Tensor
    scale: Tensor
    offset: Tensor
    corrected: Tensor

    def weights(self) -> Tensor:
        """`[R, C]`, float32."""
        return weights_of(self.codes, self.scale, self.offset if bool(self.corrected.any()) else None)


def rounded(weight: Tensor, bits: int) -> Tensor:
    """Codes `[R, C]` int32 of a weight `[R, C]`; a row of zeros has zeros."""
    step = _step(weight, bits)
    codes = torch.where(step > 0, weight.double() / step.where(step > 0, 1.0), 0.0).round()
    # A step of nearly nothing has few digits, and may be too short to reach the largest weight.
    return codes.clamp(-largest(bits), largest(bits)).int()


def plain(weight: Tensor, codes: Tensor, bits: int) -> Width:
    """Codes with the scale of plain rounding.

    Args:
        weight: `[R, C]`.
        codes: `[R, C]` of that many bits, see `rounded` and `tsprune.models._quantised.narrowed`.
        bits: their width.
    """
    step = _step(weight, bits).squeeze(1).float()
    return Width(codes, step, torch.zeros_like(step), torch.zeros(len(step), dtype=torch.bool))


def corrected(weight: Tensor, uncorrected: Width) -> Width:
    """Every row with the mean and the variance of its weights, where it has a variance.

    Maps with an input channel of zeros stay as they are: an offset would bring that channel back.
    """
    codes, wide = uncorrected.codes.double(), weight.double()
    if not weight.shape[1] or bool((weight == 0).all(0).any()):
        return uncorrected
    spread, wanted = codes.std(1, correction=0), wide.std(1, correction=0)
    # Weights that are all alike have no spread to restore; what rounding leaves of it is noise.
    can = (spread > 0) & (wanted > 1e-6 * wide.abs().amax(1))
    scale = torch.where(can, wanted / spread.where(can, 1.0), uncorrected.scale.double())
    offset = torch.where(can, wide.mean(1) - scale * codes.mean(1), 0.0)
    return replace(uncorrected, scale=scale.float(), offset=offset.float(), corrected=can)


def chosen(weight: Tensor, inputs: Tensor, codes: Tensor, bits: int, correction: str) -> Width:
    """Codes of one width with the scales and offsets of a correction.

    `where_better` takes the correction for a row only where its mean output moves less with it than without: a map is
    linear, so its mean output moves by the change of the weights times the mean input.

    Args:
        weight: `[R, C]`.
        inputs: mean input of each weight over calibration windows `[R, C]`, 0 where nothing is known.
        codes: `[R, C]`.
        bits: width of the codes.
        correction: one of `CORRECTIONS`.
    """
    rough = plain(weight, codes, bits)
    if correction == "none":
        return rough
    fine = corrected(weight, rough)
    if correction == "everywhere":
        return fine
    take = fine.corrected & (shift(weight, fine, inputs) < shift(weight, rough, inputs))
    return replace(
        fine,
        scale=torch.where(take, fine.scale, rough.scale),
        offset=torch.where(take, fine.offset, 0.0),
        corrected=take,
    )


def shift(weight: Tensor, width: Width, inputs: Tensor) -> Tensor:
    """By how much the mean output of each row moves, `[R]`, float64, not negative."""
    return ((width.weights().double() - weight.double()) * inputs.double()).sum(1).abs()


def _step(weight: Tensor, bits: int) -> Tensor:
    """Distance of neighbouring values of each row `[R, 1]`, float64, a number that float32 holds."""
    if not weight.shape[1]:
        return torch.zeros(len(weight), 1, dtype=torch.float64)
    return (weight.double().abs().amax(1, keepdim=True) / largest(bits)).float().double()
