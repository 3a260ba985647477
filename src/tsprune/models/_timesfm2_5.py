"""TimesFM 2.5: running scales per patch, rotary positions, a head of its own for the spread up to far ahead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tsprune.blocks.attention import Attention
from tsprune.blocks.branch import Branch
from tsprune.blocks.feedforward import FeedForward
from tsprune.blocks.norms import RMSNorm
from tsprune.blocks.patching import ResidualPatchEmbedding
from tsprune.blocks.positions import rotary_table
from tsprune.blocks.rowscale import RowScale
from tsprune.blocks.tracing import all_set
from tsprune.errors import TspruneError
from tsprune.models._config import entry, positive
from tsprune.models._fresh import fresh_weights
from tsprune.models._timesfm import FAMILY_NAME, Decoder, DecoderLayer, PatchDecoder

TOLERANCE = 1e-6
"""Deviation on the instance scale below which a patch is not scaled."""


class TimesFM25(PatchDecoder):
    """TimesFM 2.5 under the tensor names of the transformers class.

    The public code first scales a row by mean and deviation of the whole context window, the zeros of the padding
    included; that cancels out but for rounding, which it makes worse. Here the observed values alone count.

    Attributes:
        flip: whether the forecast is averaged with that of the series upside down.
        spread_head: whether the quantiles come from the head that says how far they lie from the point forecast.
    """

    head_paths = ("output_projection_point", "output_projection_quantiles")

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        width, hidden = positive(config, "hidden_size", FAMILY_NAME), positive(config, "intermediate_size", FAMILY_NAME)
        heads = positive(config, "num_attention_heads", FAMILY_NAME)
        self.head_width: int = entry(config, "head_dim", int, FAMILY_NAME, width // heads)
        kv_heads = entry(config, "num_key_value_heads", int, FAMILY_NAME, heads)
        layers = positive(config, "num_hidden_layers", FAMILY_NAME)
        eps = entry(config, "rms_norm_eps", float, FAMILY_NAME, 1e-6)
        dropout = entry(config, "attention_dropout", float, FAMILY_NAME, 0.0)
        act = entry(config, "activation", str, FAMILY_NAME, "swish")
        attention_bias = entry(config, "attention_bias", bool, FAMILY_NAME, False)
        feed_bias = entry(config, "use_bias", bool, FAMILY_NAME, False)
        self.theta = _theta(config)
        self.positive = entry(config, "infer_is_positive", bool, FAMILY_NAME, True)
        self.flip: bool = entry(config, "force_flip_invariance", bool, FAMILY_NAME, True)
        self.spread_head: bool = entry(config, "use_continuous_quantile_head", bool, FAMILY_NAME, True)
        self.point = min(entry(config, "decode_index", int, FAMILY_NAME, 5), len(self.levels))
        self.spread_steps = positive(config, "output_quantile_len", FAMILY_NAME)

        def norm() -> RMSNorm:
            return RMSNorm(width, eps)

        def layer() -> DecoderLayer:
            attention = Attention(
                width, heads, self.head_width, kv_heads=kv_heads, rotary=True, query_scale=True, norm_last=True,
                qk_norm=lambda: RMSNorm(self.head_width, eps), bias=attention_bias, dropout=dropout,
            )  # fmt: skip
            feed = FeedForward(width, hidden, act=act, bias=feed_bias)
            return DecoderLayer(
                [
                    Branch("self_attn", attention, norm(), width, closing=norm()),
                    Branch("mlp", feed, norm(), width, closing=norm()),
                ]
            )

        embedding = ResidualPatchEmbedding(2 * self.patch, width, width, act=act)
        self.model = Decoder(embedding, [layer() for _ in range(layers)])
        entries = 1 + len(self.levels)
        self.output_projection_point = ResidualPatchEmbedding(
            width, width, self.native_horizon * entries, act=act, bias=False
        )
        self.output_projection_quantiles = ResidualPatchEmbedding(
            width, width, self.spread_steps * entries, act=act, bias=False
        )
        fresh_weights(self, 1, layers)

    @property
    def passes(self) -> int:
        """Rows of the network for each row of the batch; those upside down come last."""
        return super().passes * (2 if self.flip else 1)

    def network(self, values: Tensor, observed: Tensor, scale: RowScale) -> tuple[Tensor, Tensor | None]:
        """One pass, see `PatchDecoder.network`."""
        scaled = scale.apply(values).masked_fill(~observed, 0.0)
        if self.flip:
            scaled, observed = torch.cat([scaled, -scaled]), observed.repeat(2, 1)
        entries, spreads = self._heads(scaled, observed)
        if self.flip:
            entries = _upright(entries)
            spreads = None if spreads is None else _upright(spreads)
        if spreads is None:
            return entries, None
        offsets = spreads - spreads[:, [self.point]]
        return self.spread(entries, offsets), offsets

    def _heads(self, scaled: Tensor, observed: Tensor) -> tuple[Tensor, Tensor | None]:
        """What both heads say at the last patch, on the scale of the input: `[R, 1 + Q, steps]`."""
        patches, held = (part.view(part.shape[0], -1, self.patch) for part in (scaled, observed))
        location, deviation = running_moments(patches, held)
        divisor = torch.where(deviation < TOLERANCE, 1.0, deviation)
        x = self.model.embed((patches - location[..., None]) / divisor[..., None], held)
        seen = held.any(-1)
        places = torch.arange(seen.shape[1], device=seen.device)
        if not all_set(seen):
            places = places - (~seen).sum(-1, keepdim=True)
        last = self.model(x, seen, rotary_table(places, self.head_width, self.theta))[:, -1]
        heads = [self.output_projection_point]
        if self.spread_head:
            heads.append(self.output_projection_quantiles)
        found = [
            head(last).view(last.shape[0], -1, 1 + len(self.levels)).transpose(1, 2).to(scaled.dtype)
            * deviation[:, -1, None, None]
            + location[:, -1, None, None]
            for head in heads
        ]
        return found[0], found[1] if self.spread_head else None

    def spread(self, entries: Tensor, offsets: Tensor) -> Tensor:
        """Put the quantiles at their distance from the point forecast, as far ahead as the distance is known.

        Args:
            entries: `[B, 1 + Q, H]`.
            offsets: `[B, 1 + Q, steps]` on the same scale.

        Returns:
            As `entries`; the mean and the point forecast stay.
        """
        moved = [0 < number != self.point for number in range(1 + len(self.levels))]
        chosen = torch.tensor(moved, device=entries.device)[:, None]
        reach = min(entries.shape[-1], offsets.shape[-1])
        near = entries[..., :reach]
        near = torch.where(chosen, near[:, [self.point]] + offsets[..., :reach], near)
        return torch.cat([near, entries[..., reach:]], dim=-1)


def running_moments(patches: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population deviation of all that was observed up to the end of each patch.

    Args:
        patches: `[R, N, P]`, on a scale near 1, as sums of squares are taken.
        held: bool `[R, N, P]`.

    Returns:
        Both `[R, N]`; 0 before the first observed value.
    """
    values = patches.masked_fill(~held, 0.0).double()
    number = held.sum(-1).cumsum(-1).clamp(min=1)
    mean = values.sum(-1).cumsum(-1) / number
    variance = values.square().sum(-1).cumsum(-1) / number - mean.square()
    return mean.to(patches.dtype), variance.clamp(min=0.0).sqrt().to(patches.dtype)


def _upright(entries: Tensor) -> Tensor:
    """Average rows `[2 R, 1 + Q, H]`, the second half upside down, where an upper quantile is a lower one."""
    rows = entries.shape[0] // 2
    plain, flipped = entries[:rows], entries[rows:]
    turned = torch.cat([flipped[:, :1], flipped[:, 1:].flip(1)], dim=1)
    return (plain - turned) / 2


def _theta(config: Mapping[str, Any]) -> float:
    """Base of the rotary frequencies."""
    section = entry(config, "rope_parameters", dict, FAMILY_NAME, {})
    kind = entry(section, "rope_type", str, FAMILY_NAME, "default")
    if kind != "default":
        raise TspruneError(f"config.json: rope_type {kind!r} is not supported, family timesfm knows 'default' only")
    theta: float = entry(
        section, "rope_theta", float, FAMILY_NAME, entry(config, "rope_theta", float, FAMILY_NAME, 1e4)
    )
    return theta
