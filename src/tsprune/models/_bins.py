"""From values to tokens and back: division by the mean absolute value, then bins of equal width (Chronos-T5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from tsprune.errors import TspruneError
from tsprune.models._config import entry

CLASS = "MeanScaleUniformBins"


@dataclass(frozen=True)
class UniformBins:
    """Bins of scaled values as token ids (arXiv 2403.07815, section 3.1).

    The first ids are special; one more id is never given to a value, then the bins follow.

    Args:
        low: centre of the first bin.
        high: centre of the last bin.
        tokens: number of ids in all.
        special: number of special ids.
        pad: id of a missing value, a special one.
        end: id that follows the last value, a special one.
        ends: whether it really follows contexts and targets.
    """

    low: float
    high: float
    tokens: int
    special: int
    pad: int
    end: int
    ends: bool

    @classmethod
    def of(cls, section: Mapping[str, Any], family: str) -> Self:
        """From the `chronos_config` of a public config; raises TspruneError naming an impossible entry."""
        if (kind := entry(section, "tokenizer_class", str, family, CLASS)) != CLASS:
            raise TspruneError(f"config.json: tokenizer_class is {kind!r}, family {family} has only {CLASS}")
        limits = entry(section, "tokenizer_kwargs", dict, family)
        found = cls(
            low=entry(limits, "low_limit", float, family),
            high=entry(limits, "high_limit", float, family),
            tokens=entry(section, "n_tokens", int, family),
            special=entry(section, "n_special_tokens", int, family, 2),
            pad=entry(section, "pad_token_id", int, family, 0),
            end=entry(section, "eos_token_id", int, family, 1),
            ends=entry(section, "use_eos_token", bool, family, True),
        )
        if not found.low < found.high:
            raise TspruneError(f"config.json: low_limit {found.low:g} must be below high_limit {found.high:g}")
        if found.bins < 2:
            raise TspruneError(
                f"config.json: n_tokens {found.tokens} leave no two bins beside n_special_tokens {found.special}"
            )
        for name, token in (("pad_token_id", found.pad), ("eos_token_id", found.end)):
            if token >= found.special:
                raise TspruneError(
                    f"config.json: {name} {token} must be below n_special_tokens {found.special}: ids from there on "
                    "stand for values"
                )
        return found

    @property
    def bins(self) -> int:
        """Number of bins."""
        return self.tokens - self.special - 1

    def centres(self, like: Tensor) -> Tensor:
        """The middle of each bin, `[bins]`, in scaled units."""
        # Made on the CPU in any case: a bin's edge is not to move with the device.
        return torch.linspace(self.low, self.high, self.bins, dtype=like.dtype, device="cpu").to(like.device)

    def scale(self, context: Tensor) -> Tensor:
        """Mean absolute value of what is observed of each row `[B, L]`: `[B, 1]`, 1 where that is not positive."""
        wide = context if context.dtype == torch.float64 else context.float()
        mean = wide.abs().nanmean(-1, keepdim=True)
        return torch.where(mean > 0, mean, torch.ones_like(mean))

    def encode(self, values: Tensor, scale: Tensor) -> Tensor:
        """Token ids `[B, T]` of values in original units, NaN = missing.

        A value on the edge of two bins belongs to the upper one, values beyond the limits to the outermost bins.
        """
        scaled = values.to(scale.dtype) / scale
        centres = self.centres(scaled)
        edges = (centres[1:] + centres[:-1]) / 2
        ids = torch.bucketize(scaled.contiguous(), edges, right=True) + self.special + 1
        return torch.where(torch.isnan(scaled), torch.full_like(ids, self.pad), ids)

    def decode(self, ids: Tensor, scale: Tensor) -> Tensor:
        """Original units of token ids `[B, ..., T]`; ids that stand for no value become the first bin.

        Args:
            ids: int64.
            scale: `[B, 1]`.
        """
        centres = self.centres(scale)
        values = centres[(ids - self.special - 1).clamp(0, self.bins - 1)]
        return values * scale.view(-1, *[1] * (ids.ndim - 1))

    def with_end(self, ids: Tensor) -> Tensor:
        """The ids `[B, T]`, followed by the id that ends a series where that is used."""
        return torch.nn.functional.pad(ids, (0, 1), value=self.end) if self.ends else ids
