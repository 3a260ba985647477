"""TimesFM 1.0 and 2.0 (2310.10688): scaled by the first patch, told the frequency, without rotary positions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tsprune.blocks.attention import Attention
from tsprune.blocks.branch import Branch
from tsprune.blocks.feedforward import FeedForward
from tsprune.blocks.norms import RMSNorm
from tsprune.blocks.patching import ResidualPatchEmbedding
from tsprune.blocks.rowscale import RowScale
from tsprune.errors import TspruneError
from tsprune.models._config import entry, positive
from tsprune.models._fresh import fresh_weights
from tsprune.models._timesfm import FAMILY_NAME, Decoder, DecoderLayer, PatchDecoder

TIMESCALES = "decoder.position_emb.inv_timescales"
ENOUGH = 3
"""Observed values that a patch must have for its mean and deviation to scale the row."""


class ToldDecoder(Decoder):
    """A decoder that is told the frequency class of a series.

    Args:
        embedding: see `Decoder`.
        layers: see `Decoder`.
        frequencies: number of classes.
        width: residual width D.
    """

    def __init__(
        self, embedding: ResidualPatchEmbedding, layers: Sequence[DecoderLayer], frequencies: int, width: int
    ) -> None:
        super().__init__(embedding, layers)
        self.freq_emb = nn.Embedding(frequencies, width)


class TimesFM2(PatchDecoder):
    """TimesFM 1.0 and 2.0 under the tensor names of the transformers class.

    Up to release 4 of transformers, as in the original package, a first patch without any spread is scaled by 1; from
    release 5 on by `tolerance`. The entry `transformers_version` of the config decides, without it the newer rule
    holds.

    Attributes:
        frequency: class of the series, 0 (daily or finer), 1 (weekly, monthly) or 2 (coarser), for all rows or for
            each row `[B]`. Config entry of the same name; 0 without it.
    """

    head_paths = ("horizon_ff_layer",)
    # The paper's table for 1.0, the card of 2.0 for the rest, which it lists as an addition.
    pretraining_corpora = (
        "wiki_pageviews", "google_trends", "m4", "electricity", "traffic", "weather", "favorita", "libcity",
        "azure_vm_traces", "borg_cluster_data", "residential_load_power", "residential_pv_power", "q_traffic",
        "london_smart_meters_with_missing", "taxi_30min", "solar_power", "wind_power", "kdd2022", "largest", "era5",
        "cmip6", "buildings", "china_air_quality", "beijing_air_quality", "subseasonal", "kaggle_web_traffic_weekly",
    )  # fmt: skip

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        width, hidden = positive(config, "hidden_size", FAMILY_NAME), positive(config, "intermediate_size", FAMILY_NAME)
        heads, head_width = (
            positive(config, "num_attention_heads", FAMILY_NAME),
            positive(config, "head_dim", FAMILY_NAME),
        )
        layers = positive(config, "num_hidden_layers", FAMILY_NAME)
        eps = entry(config, "rms_norm_eps", float, FAMILY_NAME, 1e-6)
        dropout = entry(config, "attention_dropout", float, FAMILY_NAME, 0.0)
        frequencies = entry(config, "freq_size", int, FAMILY_NAME, 3)
        self.tolerance: float = entry(config, "tolerance", float, FAMILY_NAME, 1e-6)
        self.padding_value: float = entry(config, "pad_val", float, FAMILY_NAME, 1123581321.0)
        self.positive = entry(config, "truncate_negative", bool, FAMILY_NAME, False)
        self.frequency: int | Tensor = entry(config, "frequency", int, FAMILY_NAME, 0)
        if int(self.frequency) >= frequencies:
            raise TspruneError(f"config.json: frequency {self.frequency} is not among the {frequencies} of freq_size")
        self.flat_is_one = _release(config) < 5
        self.timescales = self._timescales(config, width)
        self.width = width

        def layer() -> DecoderLayer:
            attention = Attention(width, heads, head_width, query_scale=True, bias=True, dropout=dropout)
            feed = FeedForward(width, hidden, bias=True)
            # The second eps is fixed in the public code.
            return DecoderLayer(
                [
                    Branch("self_attn", attention, RMSNorm(width, eps), width),
                    Branch("mlp", feed, nn.LayerNorm(width, eps=1e-6), width),
                ]
            )

        embedding = ResidualPatchEmbedding(2 * self.patch, hidden, width, act="silu")
        self.decoder = ToldDecoder(embedding, [layer() for _ in range(layers)], frequencies, width)
        outputs = self.native_horizon * (1 + len(self.levels))
        self.horizon_ff_layer = ResidualPatchEmbedding(width, hidden, outputs, act="silu")
        fresh_weights(self, 1, layers)

    def _timescales(self, config: Mapping[str, Any], width: int) -> tuple[float, float] | None:
        """Shortest and longest scale of the sinusoids that tell positions; None without them."""
        if not entry(config, "use_positional_embedding", bool, FAMILY_NAME, False):
            return None
        if width % 2:
            raise TspruneError(f"config.json: use_positional_embedding needs an even hidden_size, found {width}")
        shortest = entry(config, "min_timescale", float, FAMILY_NAME, 1.0)
        longest = entry(config, "max_timescale", float, FAMILY_NAME, 10000.0)
        if shortest <= 0 or longest <= 0:
            raise TspruneError(f"config.json: min_timescale {shortest} and max_timescale {longest} must be positive")
        return shortest, longest

    def _rates(self) -> Tensor:
        """Frequencies of the sinusoids, `[D / 2]`, as the public checkpoint holds them."""
        shortest, longest = self.timescales or (1.0, 1.0)
        count = self.width // 2
        step = math.log(longest / shortest) / max(count - 1, 1)
        return shortest * torch.exp(torch.arange(count, dtype=torch.float32, device="cpu") * -step)

    def tensors_from_public(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Drop the table of frequencies, which follows from the config."""
        return super().tensors_from_public({name: t for name, t in tensors.items() if name != TIMESCALES})

    def tensors_to_public(self) -> dict[str, Tensor]:
        """With the table of frequencies, where the public checkpoint has it."""
        return super().tensors_to_public() | ({TIMESCALES: self._rates()} if self.timescales else {})

    def filled(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """As in every network of the family; besides, values equal to `pad_val` are padding wherever they stand."""
        values, observed = super().filled(context)
        # In float32, which cannot tell the public value from its neighbours.
        observed = observed & ((values.float() - self.padding_value).abs() >= self.tolerance)
        return values.masked_fill(~observed, 0.0), observed

    def network(self, values: Tensor, observed: Tensor, scale: RowScale) -> tuple[Tensor, Tensor | None]:
        """One pass, see `PatchDecoder.network`."""
        patches, held = (part.view(part.shape[0], -1, self.patch) for part in (values, observed))
        location, spread = self._first_patch(patches, held)
        x = self.decoder.embed((patches - location[:, None]) / spread[:, None], held)
        seen = held.any(-1)
        classes = torch.as_tensor(self.frequency, device=x.device).reshape(-1)
        x = x + self.decoder.freq_emb(classes.repeat(x.shape[0] // len(classes)))[:, None]
        if self.timescales:
            x = x + self._positions(seen).to(x.dtype)
        last = self.horizon_ff_layer(self.decoder(x, seen)[:, -1])
        entries = last.view(last.shape[0], self.native_horizon, -1).transpose(1, 2).to(values.dtype)
        factor, shift = spread / scale.scale, (location - scale.location) / scale.scale
        return entries * factor[:, None] + shift[:, None], None

    def _first_patch(self, patches: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and population deviation `[R, 1]` of the first patch with enough values; without any, of the last."""
        enough = held.sum(-1) >= ENOUGH
        place = torch.where(enough.any(-1), enough.int().argmax(-1), patches.shape[1] - 1)[:, None, None]
        place = place.expand(-1, 1, self.patch)
        chosen, counted = patches.gather(1, place)[:, 0], held.gather(1, place)[:, 0]
        number = counted.sum(-1, keepdim=True).clamp(min=1)
        location = chosen.masked_fill(~counted, 0.0).sum(-1, keepdim=True) / number
        squares = (chosen - location).masked_fill(~counted, 0.0).square().sum(-1, keepdim=True)
        spread = (squares / number).sqrt()
        if self.flat_is_one:
            return location, torch.where(spread < self.tolerance, 1.0, spread)
        return location, spread.clamp(min=self.tolerance)

    def _positions(self, seen: Tensor) -> Tensor:
        """Sinusoids `[R, N, D]`, counted from the first patch that is not padding."""
        tokens = seen.shape[1]
        first = torch.where(seen.any(-1), seen.int().argmax(-1), -1)[:, None]
        places = torch.arange(tokens, device=seen.device) - first
        # The remainder by a number that a graph does not know; places lie between minus it and it.
        places = torch.where(places < 0, places + tokens, torch.where(places < tokens, places, 0))
        angles = places[..., None].float() * self._rates().to(seen.device)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _release(config: Mapping[str, Any]) -> int:
    """Release of transformers that wrote the config, its first number; a high one where nobody said."""
    written = entry(config, "transformers_version", str, FAMILY_NAME, "")
    first = written.split(".")[0]
    return int(first) if first.isdigit() else 5
