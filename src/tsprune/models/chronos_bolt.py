"""Chronos-Bolt (amazon/chronos-bolt-*): T5 over patches whose decoder gives the horizon in one step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from tsprune.blocks.across import SingleStepAttention
from tsprune.blocks.branch import Layer
from tsprune.blocks.patching import (
    InstanceScale,
    ResidualPatchEmbedding,
    context_patches,
    newest_observed,
    pinball,
    right_fill,
)
from tsprune.blocks.tracing import all_set, newest, tracing
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._config import entry, patch_setup
from tsprune.models._corpora import CHRONOS
from tsprune.models._forecaster import Capabilities, Checkpoint, Forecaster
from tsprune.models._fresh import fresh_weights
from tsprune.models._rollout import as_given, empirical_quantiles, unrounded
from tsprune.models._t5 import (
    CROSS,
    Parts,
    Stack,
    cross_attentions,
    tables,
    with_one_embedding,
    with_own_tables,
    with_shared_tables,
)


class DecoderLayer(Layer):
    """Self-attention of one step, attention to the encoder, feed-forward."""

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """`[B, 1, D]` in and out; `memory` is `[B, T, D]`."""
        attention, cross, feed = self.branches
        out: Tensor = feed(cross(attention(x), memory=memory, mask=mask))
        return out


class ChronosBolt(Forecaster):
    """The Chronos-Bolt network under the tensor names of the public checkpoint.

    One difference in layout: public checkpoints store one table of relative biases per stack, in block 0. Here
    every self-attention owns its table, as blocks may lose different heads; loading copies the public table to
    all blocks, saving writes those that differ from the first.
    """

    family = "chronos_bolt"
    head_paths = ("output_patch_embedding",)
    capabilities = Capabilities()
    checkpoints = (
        Checkpoint("amazon/chronos-bolt-tiny", 8.65, "Apache-2.0"),
        Checkpoint("amazon/chronos-bolt-mini", 21.24, "Apache-2.0"),
        Checkpoint("amazon/chronos-bolt-small", 47.72, "Apache-2.0"),
        Checkpoint("amazon/chronos-bolt-base", 205.29, "Apache-2.0"),
    )
    pretraining_corpora = CHRONOS

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        section = patch_setup(config, self.family)
        self.config = dict(config)
        self.patch = int(section["input_patch_size"])
        self.stride = entry(section, "input_patch_stride", int, self.family, self.patch)
        self.levels = tuple(float(level) for level in section["quantiles"])
        self.context_length = entry(section, "context_length", int, self.family)
        self.native_horizon = entry(section, "prediction_length", int, self.family)
        if self.native_horizon < 1 or self.context_length < 1:
            raise TspruneError("config.json: context_length and prediction_length must be positive")
        self.reg_token = entry(section, "use_reg_token", bool, self.family, False)
        self.start_token = entry(config, "decoder_start_token_id", int, self.family, 0)
        self.parts = parts = Parts(config, self.family)
        width, hidden, act = parts.width, parts.hidden, parts.act
        self.shared = nn.Embedding(2 if self.reg_token else 1, width)
        if self.start_token >= self.shared.num_embeddings:
            raise TspruneError(
                f"config.json: decoder_start_token_id {self.start_token} is not among the special tokens"
            )
        self.input_patch_embedding = ResidualPatchEmbedding(
            2 * self.patch, hidden, width, act=act, dropout=parts.dropout
        )
        self.encoder = parts.encoder()
        self.decoder = Stack(
            parts.decoder_depth,
            lambda: DecoderLayer(
                [parts.attention(SingleStepAttention), parts.attention(name=CROSS), parts.feed_forward()]
            ),
            parts,
        )
        self.output_patch_embedding = ResidualPatchEmbedding(
            width, hidden, len(self.levels) * self.native_horizon, act=act, dropout=parts.dropout
        )
        fresh_weights(self, parts.head_width, parts.encoder_depth)

    def essential(self) -> list[list[str]]:
        """The cross-attentions: without any, the decoder would not see the context."""
        return [cross_attentions(len(self.decoder.block))]

    def stored_once(self) -> list[list[str]]:
        """The tables of relative biases of each stack."""
        return tables(self.state_dict())

    @classmethod
    def recognises(cls, config: Mapping[str, Any]) -> bool:
        """By architecture name, or by the pipeline class."""
        return "ChronosBoltModelForForecasting" in (config.get("architectures") or []) or (
            config.get("chronos_pipeline_class") == "ChronosBoltPipeline"
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A model with fresh weights."""
        return cls(config)

    def tensors_from_public(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Drop the tied copies of the token embedding and give every block its table of relative biases."""
        ours = with_own_tables(with_one_embedding(tensors))
        # The public code has this map, tied to the embedding, and never uses it.
        ours.pop("lm_head.weight", None)
        return ours

    def tensors_to_public(self) -> dict[str, Tensor]:
        """Our tensors, without tables of relative biases that equal that of block 0."""
        return with_shared_tables(self.state_dict())

    def forward(self, context: Tensor, *, mask: Tensor | None = None) -> tuple[Tensor, InstanceScale]:
        """Quantiles on the instance scale.

        Args:
            context: `[B, L]`, original units, NaN = missing; only the last `context_length` steps are used.
            mask: bool `[B, L]`, False hides a value from the tokens (not from the scaling); None: not NaN.

        Returns:
            `[B, Q, native_horizon]` and the scale that turns it into original units.
        """
        context, observed = newest_observed(context, mask, self.context_length)
        scale = InstanceScale(context)
        values, held = context_patches(scale.apply(context), observed, self.patch, self.stride)
        x = self.input_patch_embedding(torch.cat([values.to(self.dtype), held.to(self.dtype)], dim=-1))
        rows, seen = x.shape[0], held.any(-1)
        if self.reg_token:
            x = torch.cat([x, self.shared.weight[1].expand(rows, 1, -1).to(x.dtype)], dim=1)
            seen = nn.functional.pad(seen, (0, 1), value=True)
        allowed = None if all_set(seen) else seen[:, None, None, :]
        memory = self.encoder(x, allowed, self.parts.distances(x.shape[1], x.device, bidirectional=True))
        # In a graph what comes before the first look at the context is the same for all rows: a constant.
        start = self.shared.weight[self.start_token].expand(1 if tracing() else rows, 1, -1).to(x.dtype)
        out = self.output_patch_embedding(self.decoder(start, memory, allowed))
        return out.view(rows, len(self.levels), self.native_horizon).to(scale.location.dtype), scale

    def row_losses(self, batch: Batch, *, mask: Tensor | None = None) -> Tensor:
        """Pinball on the instance scale, averaged over levels, summed over the whole native horizon.

        Steps with a missing target, or beyond the target, count as 0.

        Args:
            batch: with a target of at most the native horizon.
            mask: see `forward`.

        Returns:
            `[B]`.
        """
        wanted = self.wanted(batch)
        prediction, scale = self(batch.context, mask=mask)
        target = right_fill(scale.apply(wanted), self.native_horizon, float("nan"))
        counted = ~torch.isnan(target)
        levels = torch.tensor(self.levels, device=target.device)
        losses = pinball(prediction, torch.where(counted, target, torch.zeros_like(target)), levels)
        return (losses * counted[:, None, :]).mean(1).sum(-1)

    def predict(self, batch: Batch, steps: int) -> Tensor:
        """Quantiles `[B, Q, steps]`; beyond the native horizon every quantile path is fed back."""
        self.check_batch(batch)
        context = unrounded(batch.context)
        prediction, scale = self(context)
        blocks = [scale.invert(prediction)]
        rows, paths = batch.rows, len(self.levels)
        context = newest(context, self.context_length)[:, None].expand(-1, paths, -1)
        while sum(block.shape[-1] for block in blocks) < steps:
            context = newest(torch.cat([context, blocks[-1]], dim=-1), self.context_length)
            prediction, scale = self(context.flatten(0, 1))
            samples = scale.invert(prediction).view(rows, paths * paths, -1)
            blocks.append(empirical_quantiles(samples, self.levels))
        return as_given(torch.cat(blocks, dim=-1)[..., :steps], batch.context)


FAMILY = ChronosBolt
