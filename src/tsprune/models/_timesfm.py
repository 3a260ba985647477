"""What TimesFM 1.0/2.0 and 2.5 have in common: padding in front, roll-out by the point forecast, losses."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsprune.blocks.branch import Layer
from tsprune.blocks.patching import ResidualPatchEmbedding, fill_gaps, left_fill, pinball
from tsprune.blocks.positions import causal_mask
from tsprune.blocks.rowscale import RowScale
from tsprune.blocks.tracing import all_set, newest
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._config import entry, positive
from tsprune.models._forecaster import Capabilities, Forecaster, at_levels, window_index
from tsprune.models._names import Renames, Rule
from tsprune.models._rollout import as_given, unrounded, widest

FAMILY_NAME = "timesfm"
OLDER, NEWER = "timesfm", "timesfm2_5"
"""Model types: 1.0 and 2.0, and 2.5."""


def _attention_rules(prefix: str) -> list[Rule]:
    public, own = f"{prefix}.layers.*.self_attn", f"{prefix}.layers.*.layer.0.self_attn"
    return [
        (f"{public}.scaling", f"{own}.query_scale.weight"),
        *((f"{public}.{name}_proj", f"{own}.{name}") for name in "qkvo"),
        (public, own),
    ]


def _layer_rules(prefix: str, names: Mapping[str, str]) -> list[Rule]:
    return [(f"{prefix}.layers.*.{public}", f"{prefix}.layers.*.layer.{own}") for public, own in names.items()]


NAMES = Renames(
    [
        *_attention_rules("decoder"),
        *_layer_rules(
            "decoder",
            {
                "input_layernorm": "0.layer_norm",
                "mlp.layer_norm": "1.layer_norm",
                "mlp.gate_proj": "1.mlp.wi",
                "mlp.down_proj": "1.mlp.wo",
            },
        ),
        *_attention_rules("model"),
        *_layer_rules(
            "model",
            {
                "input_layernorm": "0.layer_norm",
                "post_attention_layernorm": "0.closing_norm",
                "pre_feedforward_layernorm": "1.layer_norm",
                "post_feedforward_layernorm": "1.closing_norm",
                # Files say ff0 and ff1, the modules of the public code fc1 and fc2.
                "mlp.ff0": "1.mlp.wi",
                "mlp.ff1": "1.mlp.wo",
                "mlp.fc1": "1.mlp.wi",
                "mlp.fc2": "1.mlp.wo",
            },
        ),
        *(
            (f"{block}.input_layer", f"{block}.hidden_layer")
            for block in (
                "decoder.input_ff_layer",
                "model.input_ff_layer",
                "horizon_ff_layer",
                "output_projection_point",
                "output_projection_quantiles",
            )
        ),
    ]
)


class DecoderLayer(Layer):
    """Causal self-attention, feed-forward."""

    def forward(self, x: Tensor, mask: Tensor | None, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        """`[B, T, D]` in and out; `mask` is causal already, None where no token is padding."""
        attention, feed = self.branches
        out: Tensor = feed(attention(x, mask=mask, causal=mask is None, rotary=rotary))
        return out


class Decoder(nn.Module):
    """The embedding of patches and the stack of layers.

    Args:
        embedding: of a patch's values and of which of them are padding.
        layers: in order.
    """

    def __init__(self, embedding: ResidualPatchEmbedding, layers: Sequence[DecoderLayer]) -> None:
        super().__init__()
        self.input_ff_layer = embedding
        self.layers = nn.ModuleList(layers)

    def embed(self, patches: Tensor, held: Tensor) -> Tensor:
        """Tokens `[B, N, D]` of scaled patches `[B, N, P]`, of which `held` (bool) says what is no padding."""
        dtype = self.input_ff_layer.residual_layer.weight.dtype
        values = patches.masked_fill(~held, 0.0)
        out: Tensor = self.input_ff_layer(torch.cat([values.to(dtype), (~held).to(dtype)], dim=-1))
        return out

    def forward(self, x: Tensor, seen: Tensor, rotary: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """`[B, N, D]` in and out; `seen` is bool `[B, N]`, False for tokens that are padding."""
        mask = None if all_set(seen) else causal_mask(seen)
        for layer in self.layers:
            x = layer(x, mask, rotary)
        return x


class PatchDecoder(Forecaster):
    """A decoder over patches that forecasts the mean and the quantiles of a whole horizon at the last patch.

    An entry of its output is the mean (entry 0) or a quantile (the others, in the order of `levels`).

    Gaps are filled by straight lines. What is missing in front is padding.

    Attributes:
        window_size: steps of the moving average by which a series is cut into trend and rest, which are forecast each
            by itself and added; 0 for none. Config entry of the same name.
        positive: whether forecasts of a row without negative values are clamped to 0. The public code looks at the
            smallest value of the whole batch instead.
        point: entry that is fed back to forecast beyond one horizon.
    """

    family = FAMILY_NAME
    capabilities = Capabilities(missing_values=False)
    objectives = ("own", "mse")
    names = NAMES
    point = 0
    positive = False

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = dict(config)
        self.patch = positive(config, "patch_length", FAMILY_NAME)
        self.context_length = positive(config, "context_length", FAMILY_NAME)
        self.native_horizon = positive(config, "horizon_length", FAMILY_NAME)
        levels: list[Any] = entry(config, "quantiles", list, FAMILY_NAME)
        if not levels or sorted(set(levels)) != levels or not all(0 < level < 1 for level in levels):
            raise TspruneError(f"config.json: quantiles {levels[:5]} must be increasing levels between 0 and 1")
        self.levels = tuple(float(level) for level in levels)
        self.window_size: int = entry(config, "window_size", int, FAMILY_NAME, 0)

    @classmethod
    def recognises(cls, config: Mapping[str, Any]) -> bool:
        """By architecture name, or by the model type."""
        return bool(generation(config))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A model with fresh weights."""
        return cls(config)

    @abstractmethod
    def network(self, values: Tensor, observed: Tensor, scale: RowScale) -> tuple[Tensor, Tensor | None]:
        """One pass.

        Args:
            values: `[R, L]` in original units, L a multiple of the patch, 0 where nothing was observed.
            observed: bool `[R, L]`.
            scale: what the output is on.

        Returns:
            Entries `[R, 1 + Q, native_horizon]` on that scale, and, of a network that can say so for more steps, how
            far the entries lie from the point forecast, `[R, 1 + Q, steps]`.
        """

    @property
    def passes(self) -> int:
        """Rows of the network for each row of the batch."""
        return 2 if self.window_size else 1

    def network_windows(self, batch: Batch) -> Tensor:
        """Trends come first, then what is left of the series."""
        return window_index(batch).repeat(self.passes)

    def forward(self, context: Tensor, *, scale: RowScale | None = None) -> tuple[Tensor, Tensor | None, RowScale]:
        """Mean and quantiles on the instance scale.

        Args:
            context: `[B, L]`, original units, NaN = missing; only the last `context_length` steps are used.
            scale: the instance scale to use; None means that of the context's observed values.

        Returns:
            What `network` returns for the rows of the batch, and the scale.
        """
        values, observed = self.filled(context)
        scale = RowScale.of(values, observed) if scale is None else scale
        if not self.window_size:
            return *self.network(values, observed, scale), scale
        trend = F.pad(values, (self.window_size - 1, 0)).unfold(-1, self.window_size, 1).mean(-1)
        location = torch.cat([scale.location, torch.zeros_like(scale.location)])
        halves = RowScale(location, scale.scale.repeat(2, 1))
        entries, offsets = self.network(torch.cat([trend, values - trend]), observed.repeat(2, 1), halves)
        rows = values.shape[0]
        return entries[:rows] + entries[rows:], None if offsets is None else offsets[:rows] + offsets[rows:], scale

    def filled(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Values in whole patches `[B, N * patch]`, 0 where nothing was observed, and bool observed."""
        wide = widest(self.dtype, context.dtype)
        whole = left_fill(fill_gaps(newest(context, self.context_length).to(wide)), self.patch)
        observed = ~torch.isnan(whole)
        return whole.masked_fill(~observed, 0.0), observed

    def row_losses(self, batch: Batch) -> Tensor:
        """Squared error of the mean plus the pinball loss averaged over levels; or the squared error of the median.

        Averaged over the steps that have a target. Public code takes it in original units (2.0), or pairs the entries
        below the median with wrong levels (2.5).

        Args:
            batch: with a target of at most the native horizon.

        Returns:
            `[B]`.
        """
        wanted = self.wanted(batch)
        steps = wanted.shape[1]
        entries, _, scale = self(batch.context)
        mean: Tensor = entries[:, 0, :steps]
        quantiles: Tensor = entries[:, 1:, :steps]
        target: Tensor = scale.apply(wanted)
        counted = ~torch.isnan(target)
        target = target.masked_fill(~counted, 0.0)
        if self.objective == "mse":
            losses = (at_levels(quantiles, self.levels, [0.5])[:, 0] - target).square()
        else:
            levels = torch.tensor(self.levels, device=target.device)
            losses = (mean - target).square() + pinball(quantiles, target, levels).mean(1) / 2
        return (losses * counted).sum(-1) / counted.sum(-1).clamp(min=1)

    def predict(self, batch: Batch, steps: int) -> Tensor:
        """Quantiles `[B, Q, steps]`; beyond the native horizon the point forecast is fed back."""
        self.check_batch(batch)
        values, observed = self.filled(unrounded(batch.context))
        context = values.masked_fill(~observed, torch.nan)
        entries, offsets, scale = self(context)
        blocks: list[Tensor] = [scale.invert(entries)]
        while len(blocks) * self.native_horizon < steps:
            context = newest(torch.cat([context, blocks[-1][:, self.point]], dim=-1), self.context_length)
            entries, _, own = self(context)
            blocks.append(own.invert(entries))
        whole = torch.cat(blocks, dim=-1)[..., :steps]
        if offsets is not None:
            whole = self.spread(whole, offsets * scale.scale[:, :, None])
        found: Tensor = whole[:, 1:]
        if self.positive:
            without = values.masked_fill(~observed, torch.inf).amin(-1) >= 0
            found = torch.where(without[:, None, None], found.clamp(min=0.0), found)
        return as_given(found, batch.context)

    def spread(self, entries: Tensor, offsets: Tensor) -> Tensor:
        """Put the quantiles at their distance from the point forecast, as far as that is known."""
        raise TspruneError(f"{type(self).__name__} gives no distances")


def generation(config: Mapping[str, Any]) -> str:
    """Model type of the network that a config describes; empty where it is none of the family."""
    architectures = config.get("architectures") or []
    if "TimesFm2_5ModelForPrediction" in architectures:
        return NEWER
    if "TimesFmModelForPrediction" in architectures:
        return OLDER
    kind = config.get("model_type")
    return str(kind) if kind in (NEWER, OLDER) and not architectures else ""
