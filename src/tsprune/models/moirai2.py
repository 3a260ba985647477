"""Moirai 2.0 (Salesforce/moirai-2.0-R-small): a causal patch decoder that gives quantiles of several patches at once.

Public weights are non-commercial. `S` series with `C` context and `H` horizon steps take `S * (C + H) / patch` tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tsprune.blocks.patching import ResidualPatchEmbedding
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._config import entry
from tsprune.models._forecaster import Capabilities, Checkpoint
from tsprune.models._fresh import fresh_weights
from tsprune.models._packedencoder import PackedEncoder, check_tokens, swiglu
from tsprune.models._packedforecaster import LICENCE, NOTE, PackedForecaster, row_means
from tsprune.models._packedwindows import PackedWindows, all_rows, causal_mean_fill, pack_windows
from tsprune.models._packing import Packed
from tsprune.models._rollout import DECILES, as_given, empirical_quantiles, unrounded

CONTEXT = 2048


class Moirai2(PackedForecaster):
    """The Moirai 2 network under the tensor names of the public checkpoint.

    A token sees the values of its patch and which of them were observed, and forecasts the next `num_predict_token`
    patches. Longer horizons feed every quantile path back and take quantiles of the forecasts of all paths, as the
    public code does. Missing values enter as the mean of what came before, marked as not observed; before the first
    value of a series stands that value.

    Known futures of covariates are refused: attention is causal, so a patch would be forecast without seeing what is
    known of it.

    One entry of the config is ours and optional: `context_length` (2048 steps, or what fits).
    """

    family = "moirai2"
    capabilities = Capabilities(multivariate=True, past_covariates=True)
    objectives = ("own", "mse")
    head_paths = ("out_proj",)
    pretraining_corpora = (
        "GIFT-Eval pretraining",
        "GIFT-Eval training splits",
        "Chronos-Mixup",
        "KernelSynth",
        "Salesforce internal",
    )
    checkpoints = (Checkpoint("Salesforce/moirai-2.0-R-small", 11.39, LICENCE, NOTE),)

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config, self.levels = dict(config), _levels(config)
        width = entry(config, "d_model", int, self.family)
        hidden = entry(config, "d_ff", int, self.family)
        self.patch = entry(config, "patch_size", int, self.family)
        self.ahead = entry(config, "num_predict_token", int, self.family, 1)
        if self.patch < 1 or self.ahead < 1:
            raise TspruneError(
                f"config.json: patch_size {self.patch} and num_predict_token {self.ahead} must be positive"
            )
        self.scaling = entry(config, "scaling", bool, self.family, True)
        self.native_horizon = self.ahead * self.patch
        most = entry(config, "max_seq_len", int, self.family)
        usual = max(1, min(CONTEXT // self.patch, most - self.ahead)) * self.patch
        self.context_length = entry(config, "context_length", int, self.family, usual)
        check_tokens(config, self.family, self.context_length, self.native_horizon, self.patch)
        self.in_proj = ResidualPatchEmbedding(2 * self.patch, width, width, act="silu")
        self.encoder = PackedEncoder(config, self.family, lambda w, dropout: swiglu(w, hidden, dropout), causal=True)
        self.out_proj = ResidualPatchEmbedding(width, width, len(self.levels) * self.native_horizon, act="silu")
        fresh_weights(self, 1, len(self.encoder.layers))

    @classmethod
    def recognises(cls, config: Mapping[str, Any]) -> bool:
        """By its constructor's arguments."""
        return "patch_size" in config and "num_predict_token" in config and "distr_output" not in config

    def forward(self, packed: Packed) -> tuple[Tensor, Tensor, Tensor]:
        """Quantiles of the patches that follow each token, on the scale of its series.

        Args:
            packed: any packed tokens, several samples per row included.

        Returns:
            `[B, T, K, Q, P]` for K patches; location and scale of the series, `[B, T, 1]`.
        """
        location, scale = self.scales(packed)
        scaled = ((packed.values - location) / scale).to(self.dtype)
        x = self.in_proj(torch.cat([scaled, packed.observed.to(self.dtype)], dim=-1))
        out: Tensor = self.out_proj(self.encoder(x, packed)).to(location.dtype)
        return out.view(*out.shape[:-1], self.ahead, len(self.levels), self.patch), location, scale

    def row_losses(self, batch: Batch) -> Tensor:
        """Loss of each row on the instance scale, averaged over its observed target steps.

        By the objective `own` the quantile loss of all forecasts of target patches, also those which see earlier
        target patches, averaged over levels; by `mse` the squared error of the median from the context alone. Patches
        of the context are not scored: the scale is made of them.

        Args:
            batch: with a target of at most the native horizon.

        Returns:
            `[B]`.
        """
        target = self.wanted(batch)
        windows = self._windows(batch, target.shape[1], teach=True)
        packed, rows = windows.packed, windows.rows
        prediction, location, scale = self(packed)
        values = (packed.values - location) / scale
        counted = packed.observed & packed.predicted[..., None]
        if self.objective == "mse":
            middle = self.levels.index(0.5)
            median = windows.last(prediction)[:, : windows.ahead, middle]
            return row_means((median - windows.horizon(values)).square(), windows.horizon(counted), rows, batch.rows)
        series = torch.where(packed.sample_id > 0, packed.series, -1)

        def line(tokens: Tensor) -> Tensor:
            # No token before the last K of the context reaches the target.
            return torch.cat([windows.recent(tokens, self.ahead), windows.horizon(tokens)], dim=1)

        losses, valid = next_patch_losses(
            line(prediction), line(values), line(counted), line(series), line(packed.time_id), self.levels
        )
        return row_means(losses, valid, rows, batch.rows)

    def predict(self, batch: Batch, steps: int) -> Tensor:
        """Quantiles `[B, Q, steps]`; of covariates what `all_rows` says."""
        self.check_batch(batch)
        windows = self._windows(replace(batch, context=unrounded(batch.context)), steps)
        return all_rows(batch, windows.rows, as_given(self.quantile_patches(windows)[..., :steps], batch.context))

    def _windows(self, batch: Batch, steps: int, *, teach: bool = False) -> PackedWindows:
        size = self.patch
        return pack_windows(
            batch,
            size,
            size,
            limit=self.context_length,
            fill=causal_mean_fill,
            ahead=math.ceil(steps / size),
            teach=teach,
        )

    def quantile_patches(self, windows: PackedWindows) -> Tensor:
        """Quantiles of all horizon tokens in own units, however many these are: `[n, Q, M * P]`.

        Beyond the first K patches the network runs on a copy of the window for each level, in which this level's
        forecast so far stands as observed and takes part in the scale.
        """
        packed, series, levels = windows.packed, windows.series, len(self.levels)
        count, paths, done = packed.values.shape[0], 1, 0
        place = torch.arange(series, device=packed.values.device)
        ahead = (
            windows.past * series + place[:, None] * windows.ahead + torch.arange(windows.ahead, device=place.device)
        )
        source = place * windows.past + windows.past - 1
        found: list[Tensor] = []
        while True:
            prediction, location, scale = self(packed)
            fresh = prediction * scale[:, :, None, None] + location[:, :, None, None]
            fresh = fresh[:, source, : windows.ahead - done]
            new = fresh.shape[2]
            samples = fresh.permute(0, 3, 1, 2, 4).reshape(count, paths * levels, -1)
            pooled = samples if paths == 1 else empirical_quantiles(samples, self.levels)
            found.append(pooled.view(count, levels, series, new, self.patch))
            done += new
            if done == windows.ahead:
                break
            if paths == 1:
                packed, paths = packed.repeated(levels), levels
            packed = _fed(
                packed, ahead[:, done - new : done].flatten(), found[-1].reshape(count * levels, -1, self.patch)
            )
            source = ahead[:, done - 1]
        patches = torch.cat(found, dim=3).transpose(1, 2).flatten(0, 1)
        return patches.flatten(2)[windows.place]


def _fed(packed: Packed, index: Tensor, values: Tensor) -> Packed:
    """The tokens with forecasts `[B, n, P]` in place of some of them `[n]`."""
    dtype = packed.values.dtype
    return replace(
        packed,
        values=packed.values.index_copy(1, index, values.to(dtype)),
        observed=packed.observed.index_fill(1, index, True),
        predicted=packed.predicted.index_fill(1, index, False),
    )


def next_patch_losses(
    prediction: Tensor, values: Tensor, counted: Tensor, series: Tensor, time_id: Tensor, levels: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Quantile losses of every token's forecasts of the K tokens behind it, averaged over levels.

    A pair of tokens counts when both are of one series and as many patches apart in time as in the row.

    Args:
        prediction: `[R, S, K, Q, P]`.
        values: `[R, S, P]`, what was to be forecast, on the same scale.
        counted: bool `[R, S, P]`, which of it counts.
        series: `[R, S]`, -1 for padding.
        time_id: `[R, S]`.
        levels: Q levels.

    Returns:
        Losses and bool which of them count, `[R, S, K, P]`.
    """
    length, ahead = prediction.shape[1:3]
    offset = torch.arange(1, ahead + 1, device=values.device)
    later = torch.arange(length, device=values.device)[:, None] + offset
    inside, later = later < length, later.clamp(max=length - 1)
    pair = inside & (series[:, :, None] == series[:, later]) & (series[:, :, None] >= 0)
    pair = pair & (time_id[:, later] - time_id[:, :, None] == offset)
    level = torch.tensor(list(levels), dtype=prediction.dtype, device=prediction.device)[:, None]
    error = values[:, later][..., None, :] - prediction
    losses = torch.maximum(level * error, (level - 1) * error).mean(-2)
    return losses, pair[..., None] & counted[:, later]


def _levels(config: Mapping[str, Any]) -> tuple[float, ...]:
    found = config.get("quantile_levels")
    levels = list(DECILES if found is None else found) if isinstance(found, list | tuple | None) else []
    numbers = all(isinstance(level, float) and 0 < level < 1 for level in levels)
    if not levels or not numbers or sorted(set(levels)) != levels:
        raise TspruneError(f"config.json: quantile_levels {found!r} must be increasing levels between 0 and 1")
    if 0.5 not in levels:
        raise TspruneError(f"config.json: quantile_levels {found!r} lacks 0.5, the point forecast")
    return tuple(levels)


FAMILY = Moirai2
"""A causal decoder over packed patches with quantile heads."""
