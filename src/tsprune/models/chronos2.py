"""Chronos-2 (amazon/chronos-2): a patch encoder that attends in time and across the series of a group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from tsprune.blocks.across import AcrossSeriesAttention, Groups
from tsprune.blocks.attention import Attention
from tsprune.blocks.branch import Branch, Layer
from tsprune.blocks.feedforward import FeedForward
from tsprune.blocks.folded import mixes
from tsprune.blocks.norms import RMSNorm
from tsprune.blocks.patching import (
    InstanceScale,
    ResidualPatchEmbedding,
    context_patches,
    newest_observed,
    pinball,
    right_fill,
)
from tsprune.blocks.positions import rotary_table
from tsprune.blocks.tracing import all_set, newest
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._config import entry, feed_forward_kind, patch_setup
from tsprune.models._forecaster import Capabilities, Checkpoint, Forecaster, at_levels
from tsprune.models._fresh import fresh_weights
from tsprune.models._rollout import as_given, level_masses, unrounded, weighted_quantiles

PATHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class EncoderLayer(Layer):
    """Time attention with rotary positions, attention across the group, feed-forward."""

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        groups: Groups | None,
        observed: Tensor | None,
    ) -> Tensor:
        """`[B, T, D]` in and out."""
        time, group, feed = self.branches
        x = time(x, mask=mask, rotary=rotary)
        x = group(x, groups=groups, observed=observed)
        out: Tensor = feed(x)
        return out


class Encoder(nn.Module):
    """The stack of layers and its final norm."""

    def __init__(self, config: Mapping[str, Any], family: str) -> None:
        super().__init__()
        width, heads = entry(config, "d_model", int, family), entry(config, "num_heads", int, family)
        self.head_width = entry(config, "d_kv", int, family)
        hidden = entry(config, "d_ff", int, family)
        self.theta = entry(config, "rope_theta", float, family, 10000.0)
        eps = entry(config, "layer_norm_epsilon", float, family, 1e-6)
        dropout = entry(config, "dropout_rate", float, family, 0.1)
        act, gated = feed_forward_kind(config, family)
        if gated:
            raise TspruneError(
                "config.json: the activation is gated; family chronos2 has only plain feed-forward networks"
            )

        def attention(kind: type[Attention], rotary: bool) -> Branch:
            inner = kind(width, heads, self.head_width, rotary=rotary, scale=1.0, dropout=dropout)
            return Branch("self_attention", inner, RMSNorm(width, eps), width, dropout)

        def feed_forward() -> Branch:
            inner = FeedForward(width, hidden, act=act, dropout=dropout)
            return Branch("mlp", inner, RMSNorm(width, eps), width, dropout)

        self.block = nn.ModuleList(
            EncoderLayer([attention(Attention, True), attention(AcrossSeriesAttention, False), feed_forward()])
            for _ in range(entry(config, "num_layers", int, family))
        )
        self.final_layer_norm = RMSNorm(width, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, observed: Tensor, groups: Groups | None) -> Tensor:
        """Encode tokens.

        Args:
            x: `[B, T, D]`.
            observed: bool `[B, T]`, False for tokens without any observed value.
            groups: the rows' groups, or None when every row is alone.

        Returns:
            `[B, T, D]`.
        """
        everywhere = all_set(observed)
        mask = None if everywhere else observed[:, None, None, :]
        positions = torch.arange(x.shape[1], device=x.device)
        rotary = rotary_table(positions, self.head_width, self.theta)
        x = self.dropout(x)
        for layer in self.block:
            x = layer(x, mask, rotary, groups, None if everywhere else observed)
        out: Tensor = self.dropout(self.final_layer_norm(x))
        return out


class Chronos2(Forecaster):
    """The Chronos-2 network under the tensor names of the public checkpoint."""

    family = "chronos2"
    head_paths = ("output_patch_embedding",)
    capabilities = Capabilities(multivariate=True, past_covariates=True, known_covariates=True)
    checkpoints = (
        Checkpoint("amazon/chronos-2", 119.48, "Apache-2.0"),
        Checkpoint("autogluon/chronos-2-small", 28.26, "Apache-2.0", "sizes inferred from the parameter count"),
        Checkpoint("autogluon/chronos-2-synth", 119.48, "Apache-2.0", "pretrained on simulated series alone"),
    )

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        section = patch_setup(config, self.family)
        self.config = dict(config)
        self.patch = self.output_patch = int(section["input_patch_size"])
        self.stride = entry(section, "input_patch_stride", int, self.family, self.patch)
        if entry(section, "output_patch_size", int, self.family, self.patch) != self.patch:
            raise TspruneError("config.json: output_patch_size must equal input_patch_size in family chronos2")
        self.levels = tuple(float(level) for level in section["quantiles"])
        self.context_length = entry(section, "context_length", int, self.family)
        self.native_horizon = entry(section, "max_output_patches", int, self.family, 1) * self.patch
        self.time_scale = entry(section, "time_encoding_scale", int, self.family, self.context_length)
        self.arcsinh = entry(section, "use_arcsinh", bool, self.family, False)
        self.reg_token = entry(section, "use_reg_token", bool, self.family, False)
        width, hidden = entry(config, "d_model", int, self.family), entry(config, "d_ff", int, self.family)
        act, _ = feed_forward_kind(config, self.family)
        dropout = entry(config, "dropout_rate", float, self.family, 0.1)
        self.shared = nn.Embedding(2 if self.reg_token else 1, width)
        self.input_patch_embedding = ResidualPatchEmbedding(3 * self.patch, hidden, width, act=act, dropout=dropout)
        self.encoder = Encoder(config, self.family)
        self.output_patch_embedding = ResidualPatchEmbedding(
            width, hidden, len(self.levels) * self.patch, act=act, dropout=dropout
        )
        self.reset_parameters()

    @classmethod
    def recognises(cls, config: Mapping[str, Any]) -> bool:
        """By architecture name, or by the pipeline class."""
        return "Chronos2Model" in (config.get("architectures") or []) or (
            config.get("chronos_pipeline_class") == "Chronos2Pipeline"
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A model with fresh weights."""
        return cls(config)

    @property
    def mixes_series(self) -> bool:
        """Whether some attention across series has queries and keys left, or none of them has any heads.

        Single series have no use for these queries and keys, so a cut for them removes them first.
        """
        return mixes(self)

    def reset_parameters(self) -> None:
        """Fresh weights."""
        fresh_weights(self, self.encoder.head_width, len(self.encoder.block))

    def forward(
        self,
        context: Tensor,
        *,
        steps: int,
        mask: Tensor | None = None,
        group_ids: Tensor | None = None,
        future: Tensor | None = None,
    ) -> tuple[Tensor, InstanceScale]:
        """Quantiles on the instance scale.

        Args:
            context: `[B, L]`, original units, NaN = missing; only the last `context_length` steps are used.
            steps: forecast steps, a multiple of the patch, at most what one pass may give.
            mask: bool `[B, L]`, False hides a value from the tokens (not from the scaling); None: not NaN.
            group_ids: `[B]`, or None when every row is alone.
            future: known future values `[B, <= steps]`, NaN = unknown, or None.

        Returns:
            `[B, Q, steps]` and the scale that turns it into original units.
        """
        context, observed = newest_observed(context, mask, self.context_length)
        scale = InstanceScale(context, arcsinh=self.arcsinh)
        past, seen = self._past_tokens(scale.apply(context), observed)
        ahead = self._future_tokens(scale, future, steps, context.shape[0])
        tokens = [past, ahead]
        if self.reg_token:
            tokens.insert(1, self.shared.weight[1].expand(context.shape[0], 1, -1).to(past.dtype))
        x = torch.cat(tokens, dim=1)
        always = torch.ones(x.shape[0], x.shape[1] - seen.shape[1], dtype=torch.bool, device=seen.device)
        groups = None if group_ids is None else Groups.of(group_ids)
        encoded = self.encoder(x, torch.cat([seen, always], dim=1), groups)
        out = self.output_patch_embedding(encoded[:, -(steps // self.patch) :])
        out = out.view(out.shape[0], -1, len(self.levels), self.patch).transpose(1, 2)
        return out.flatten(2).to(scale.location.dtype), scale

    def _past_tokens(self, scaled: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Embedded context patches `[B, N, D]` and which of them hold an observed value `[B, N]`."""
        values, held = context_patches(scaled, observed, self.patch, self.stride)
        rows, count, _ = values.shape
        clock = torch.arange(-count * self.patch, 0, device=values.device, dtype=torch.float32) / self.time_scale
        return self._embed(clock.expand(rows, -1), values, held), held.any(-1)

    def _future_tokens(self, scale: InstanceScale, future: Tensor | None, steps: int, rows: int) -> Tensor:
        """Embedded future patches `[B, steps / patch, D]`."""
        clock = torch.arange(steps, device=scale.location.device, dtype=torch.float32) / self.time_scale
        if future is None:
            values = torch.zeros(rows, steps, device=clock.device)
            return self._embed(clock.expand(rows, -1), values, values)
        if future.shape[1] > steps:
            raise TspruneError(f"known future values cover {future.shape[1]} steps, more than the {steps} forecast")
        known = right_fill(scale.apply(future), steps, float("nan"))
        held = ~torch.isnan(known)
        return self._embed(clock.expand(rows, -1), torch.where(held, known, torch.zeros_like(known)), held)

    def _embed(self, clock: Tensor, values: Tensor, held: Tensor) -> Tensor:
        parts = [part.to(self.dtype).reshape(part.shape[0], -1, self.patch) for part in (clock, values, held)]
        embedded: Tensor = self.input_patch_embedding(torch.cat(parts, dim=-1))
        return embedded

    def row_losses(self, batch: Batch, *, mask: Tensor | None = None, steps: int | None = None) -> Tensor:
        """Pinball on the instance scale, summed over levels, averaged over the output steps of whole patches.

        Steps with a missing target or a known future value count as 0 but stay in the average, as in the
        public code.

        Args:
            batch: with a target.
            mask: see `forward`.
            steps: output steps; None means the fewest whole patches that hold the target.

        Returns:
            `[B]`.
        """
        if batch.target is None:
            raise TspruneError("the batch has no target; a loss needs one")
        if steps is None:
            self.check_native(batch.target.shape[1])
            steps = -(-batch.target.shape[1] // self.patch) * self.patch
        prediction, scale = self(batch.context, steps=steps, mask=mask, group_ids=batch.group_ids, future=batch.future)
        target = right_fill(scale.apply(batch.target), steps, float("nan"))
        counted = ~torch.isnan(target)
        if batch.future is not None:
            counted &= torch.isnan(right_fill(batch.future, steps, float("nan")))
        levels = torch.tensor(self.levels, device=target.device)
        losses = pinball(prediction, torch.where(counted, target, torch.zeros_like(target)), levels)
        return (losses * counted[:, None, :]).mean(-1).sum(-1)

    def predict(self, batch: Batch, steps: int) -> Tensor:
        """Quantiles `[B, Q, steps]`; beyond the native horizon nine quantile paths are fed back."""
        context, future, rows = unrounded(batch.context), batch.future, batch.rows
        blocks = [self._one_block(context, batch.group_ids, future, steps)]
        context = context[:, None]
        ids = None
        if batch.group_ids is not None:
            # Each path of a group's rows is a group of its own; rows that are alone stay so.
            own = torch.unique(batch.group_ids, return_inverse=True)[1]
            ids = (own[:, None] * len(PATHS) + torch.arange(len(PATHS), device=own.device)).reshape(-1)
        weights = torch.outer(level_masses(PATHS), level_masses(self.levels)).reshape(-1)
        while (done := sum(block.shape[-1] for block in blocks)) < steps:
            last = blocks[-1]
            paths = at_levels(last, self.levels, PATHS)
            if future is not None:
                known = right_fill(future[:, : last.shape[-1]], last.shape[-1], float("nan"))[:, None]
                paths = torch.where(torch.isnan(known), paths, known)
                future = future[:, last.shape[-1] :]
            context = torch.cat([context.expand(-1, len(PATHS), -1), paths], dim=-1)
            context = newest(context, self.context_length)
            samples = self._one_block(
                context.flatten(0, 1),
                ids,
                None if future is None or not future.shape[1] else future.repeat_interleave(len(PATHS), 0),
                steps - done,
            )
            pooled = samples.reshape(rows, -1, samples.shape[-1])
            blocks.append(weighted_quantiles(pooled, weights, self.levels))
        return as_given(torch.cat(blocks, dim=-1)[..., :steps], batch.context)

    def _one_block(self, context: Tensor, group_ids: Tensor | None, future: Tensor | None, wanted: int) -> Tensor:
        steps = min(-(-wanted // self.patch) * self.patch, self.native_horizon)
        ahead = None if future is None else future[:, :steps]
        prediction, scale = self(context, steps=steps, group_ids=group_ids, future=ahead)
        quantiles: Tensor = scale.invert(prediction)
        return quantiles


FAMILY = Chronos2
