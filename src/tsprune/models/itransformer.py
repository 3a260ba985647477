"""iTransformer (2310.06625): an encoder whose tokens are the series of a window, to be trained on your own data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsprune.blocks.across import Groups
from tsprune.blocks.attention import Attention
from tsprune.blocks.branch import Branch, Layer
from tsprune.blocks.feedforward import FeedForward
from tsprune.blocks.patching import fill_gaps
from tsprune.blocks.prepacked import Linear
from tsprune.blocks.rowscale import RowScale
from tsprune.blocks.tracing import all_set, fitted, newest
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._config import entry, positive
from tsprune.models._convolutions import as_convolutions, as_maps
from tsprune.models._forecaster import Capabilities, Forecaster, each_window, window_index
from tsprune.models._names import Renames

NAME = "itransformer"
LAYER = "encoder.attn_layers.*"
SIZES = ("seq_len", "pred_len", "d_model", "n_heads", "e_layers")
"""Entries that every config of the family has."""
TASKS = ("long_term_forecast", "short_term_forecast")
EPS = 1e-5
"""Added to the variance of a series."""


class EncoderLayer(Layer):
    """Attention among the series of a window and feed-forward, each with its norm on the sum."""

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`[W, N, D]` in and out."""
        attention, feed = self.branches
        out: Tensor = feed(attention(x, mask=mask))
        return out


class ITransformer(Forecaster):
    """iTransformer for forecasting under the tensor names of the Time-Series-Library.

    One token is the whole context of one series, `seq_len` steps of it. What a shorter context lacks in front is filled
    with the row's own mean, which sets no scale: mean and deviation are those of the values there are. Gaps
    are filled by straight lines. The series of a window see each other, in no order; a row without group is alone.
    Beyond `pred_len` steps the forecasts of all series of the window are fed back.
    """

    family = NAME
    head_paths = ("projection",)
    capabilities = Capabilities(multivariate=True, past_covariates=True, missing_values=False, quantiles=False)
    names = Renames(
        [
            (f"{LAYER}.attention.query_projection", f"{LAYER}.layer.0.attention.q"),
            (f"{LAYER}.attention.key_projection", f"{LAYER}.layer.0.attention.k"),
            (f"{LAYER}.attention.value_projection", f"{LAYER}.layer.0.attention.v"),
            (f"{LAYER}.attention.out_projection", f"{LAYER}.layer.0.attention.o"),
            (f"{LAYER}.norm1", f"{LAYER}.layer.0.layer_norm"),
            (f"{LAYER}.conv1", f"{LAYER}.layer.1.feed_forward.wi"),
            (f"{LAYER}.conv2", f"{LAYER}.layer.1.feed_forward.wo"),
            (f"{LAYER}.norm2", f"{LAYER}.layer.1.layer_norm"),
        ]
    )

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = dict(config)
        if (task := entry(config, "task_name", str, NAME, TASKS[0])) not in TASKS:
            raise TspruneError(f"config.json: task_name is {task!r}, family {NAME} does only {' and '.join(TASKS)}")
        self.context_length, self.native_horizon = positive(config, "seq_len", NAME), positive(config, "pred_len", NAME)
        self.levels = (0.5,)
        # Some write it as a number.
        if (norm := config.get("use_norm", True)) not in (0, 1):
            raise TspruneError(f"config.json: use_norm is {norm!r}, expected true or false")
        self.normalises = bool(norm)
        width, heads = positive(config, "d_model", NAME), positive(config, "n_heads", NAME)
        if heads > width:
            raise TspruneError(f"config.json: n_heads {heads} leave no width to a head, d_model is {width}")
        hidden = entry(config, "d_ff", int, NAME, 0) or 4 * width
        dropout = entry(config, "dropout", float, NAME, 0.0)
        # The original code takes every other name for gelu.
        act = "relu" if entry(config, "activation", str, NAME, "gelu") == "relu" else "gelu"

        def layer() -> EncoderLayer:
            attention = Attention(width, heads, width // heads, bias=True, dropout=dropout)
            feed = FeedForward(width, hidden, act=act, bias=True, dropout=dropout)
            return EncoderLayer(
                [
                    Branch("attention", attention, nn.LayerNorm(width), width, dropout, after=True),
                    Branch("feed_forward", feed, nn.LayerNorm(width), width, dropout, after=True),
                ]
            )

        # The maps keep torch's own first weights, which are those of the original code.
        self.enc_embedding = nn.ModuleDict({"value_embedding": Linear(self.context_length, width)})
        self.dropout = nn.Dropout(dropout)
        layers = nn.ModuleList(layer() for _ in range(entry(config, "e_layers", int, NAME)))
        self.encoder = nn.ModuleDict({"attn_layers": layers, "norm": nn.LayerNorm(width)})
        self.projection = Linear(width, self.native_horizon)

    @classmethod
    def recognises(cls, config: Mapping[str, Any]) -> bool:
        """By the names of its sizes, unless the config says that it is another model."""
        named = config.get("architectures") or config.get("model_type") or config.get("model", "iTransformer")
        return named == "iTransformer" and all(size in config for size in SIZES) and "input_token_len" not in config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A model with fresh weights."""
        return cls(config)

    @property
    def mixes_series(self) -> bool:
        """Whether some attention has queries and keys left, or none of them has any heads.

        A series alone attends to itself whatever they are, so a cut for single series removes them first.
        """
        alive = [m for m in self.modules() if isinstance(m, Attention) and m.heads]
        return not alive or any(attention.shape.pair_width for attention in alive)

    def network_windows(self, batch: Batch) -> Tensor:
        """One sequence of series for each window."""
        return each_window(batch)

    def tensors_from_public(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convolutions of width 1 are linear maps."""
        return super().tensors_from_public(as_maps(tensors))

    def tensors_to_public(self) -> dict[str, Tensor]:
        """Our tensors under the names that the checkpoint files carry, the feed-forward maps as convolutions."""
        return as_convolutions(super().tensors_to_public())

    def forward(self, values: Tensor, *, marks: Tensor | None = None, present: Tensor | None = None) -> Tensor:
        """Forecasts of all series of every window.

        Args:
            values: `[W, N, seq_len]`, original units, NaN only where a series has not begun yet.
            marks: features of the time steps `[W, F, seq_len]`, such as the hour. They become tokens that all series
                see, as they are, and nothing is forecast for them. None for none.
            present: bool `[W, N]`, False where a window has fewer series than others; None for everywhere.

        Returns:
            `[W, N, pred_len]` in original units, float32 or better.
        """
        wide = values if values.dtype == torch.float64 else values.float()
        mean = wide.nanmean(-1, keepdim=True).nan_to_num(0.0)
        centred = (wide - mean).nan_to_num(0.0)
        number = (~torch.isnan(wide)).sum(-1, keepdim=True)
        spread = (centred.square().sum(-1, keepdim=True) / number.clamp(min=1) + EPS).sqrt()
        given = centred / spread if self.normalises else centred + mean
        series = given.shape[1]
        if marks is not None:
            given = torch.cat([given, marks.to(given.dtype)], dim=1)
        mask = None
        if present is not None and not all_set(present):
            mask = F.pad(present, (0, given.shape[1] - series), value=True)[:, None, None, :]
        x = self.dropout(self.enc_embedding["value_embedding"](given.to(self.dtype)))
        for layer in cast(nn.ModuleList, self.encoder["attn_layers"]):
            x = layer(x, mask)
        out = self.projection(self.encoder["norm"](x)[:, :series]).to(wide.dtype)
        result: Tensor = out * spread + mean if self.normalises else out
        return result

    def _forecasts(self, context: Tensor, groups: Groups) -> Tensor:
        """Forecasts `[B, pred_len]` of rows `[B, seq_len]`, NaN only before their beginning."""
        count, most = groups.members.shape
        values = context[groups.members.flatten()].view(count, most, -1)
        found: Tensor = self(values, present=None if groups.alone else groups.present)
        return found.flatten(0, 1)[groups.place]

    def _rows(self, context: Tensor) -> Tensor:
        """The last `seq_len` steps of `[B, L]` without gaps; NaN where a row has not begun yet."""
        return fitted(fill_gaps(newest(context, self.context_length)), self.context_length)

    def row_losses(self, batch: Batch) -> Tensor:
        """Mean squared error over the steps with a target, in standard deviations of the row's context.

        Args:
            batch: with a target of at most the native horizon.

        Returns:
            `[B]`.
        """
        wanted = self.wanted(batch)
        steps = wanted.shape[1]
        context = self._rows(batch.context)
        forecasts = self._forecasts(context, Groups.of(window_index(batch)))
        wide = context.to(forecasts.dtype)
        scale = RowScale.of(wide, ~torch.isnan(wide)).scale
        counted = ~torch.isnan(wanted)
        errors = (forecasts[:, :steps] - wanted.to(forecasts.dtype)) / scale
        squares: Tensor = errors.masked_fill(~counted, 0.0).square().sum(-1) / counted.sum(-1).clamp(min=1)
        return squares

    def predict(self, batch: Batch, steps: int) -> Tensor:
        """Point forecasts `[B, 1, steps]`; beyond the native horizon those of all series are fed back."""
        self.check_batch(batch)
        context = self._rows(batch.context)
        groups = Groups.single(context) if batch.group_ids is None else Groups.of(window_index(batch))
        blocks = []
        for _ in range(-(-steps // self.native_horizon)):
            blocks.append(self._forecasts(context, groups))
            context = newest(torch.cat([context, blocks[-1].to(context.dtype)], dim=-1), self.context_length)
        return torch.cat(blocks, dim=-1)[:, None, :steps]


FAMILY = ITransformer
