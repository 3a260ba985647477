"""Moirai 1.0 and 1.1 (Salesforce/moirai-1.*-R-*): a masked encoder over the patches of any number of series.

Public weights are non-commercial. All series of a window stand behind each other in one sequence, so `C` context and
`H` horizon steps of `S` series take `S * (C + H) / patch` tokens, each of which attends to all others: with patches of
32, a context of 2048 and a horizon of 96 are 67 tokens for one series, 469 for seven. Training went up to 512.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tsprune.blocks.distributions import Mixture
from tsprune.blocks.patchsizes import PatchSizeLinear, chosen_sizes
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._config import entry
from tsprune.models._forecaster import Capabilities, Checkpoint, window_index, window_mean
from tsprune.models._fresh import fresh_weights
from tsprune.models._mixturehead import MixtureHead
from tsprune.models._packedencoder import PackedEncoder, check_tokens, hidden_width, positive_sizes, swiglu
from tsprune.models._packedforecaster import LICENCE, NOTE, PackedForecaster, mixture_losses, row_means
from tsprune.models._packedwindows import PackedWindows, all_rows, by_paths, pack_windows, zero_fill
from tsprune.models._packing import Packed
from tsprune.models._rollout import DECILES

CONTEXT = 2048
USUAL_PATCH = 32
AUTO = "auto"


class Moirai(PackedForecaster):
    """The Moirai 1 network under the tensor names of the public checkpoint.

    The horizon's tokens are a learned mask; each becomes the parameters of a mixture for every step of its patch.
    Quantiles are those of the mixture's distribution function. But for the negative binomial part, whose counts are
    read as continuous (see `NegativeBinomial`), that is what the public sampling tends to with many samples. Horizons
    beyond the native one are rolled out: quantile paths are fed back, see `by_paths`.

    Three entries of the config are ours and optional, named as the arguments of the public forecaster:
    `patch_size` (the one nearest to 32 where it is absent), `context_length` (2048 steps, or what fits) and
    `prediction_length` (half of it), steps of one pass. With the patch size "auto" each window is forecast with the
    patch size that has the least loss on its last steps, as many as are forecast, given those before; losses, and
    windows without such steps, use the patch size nearest to 32.
    """

    family = "moirai"
    capabilities = Capabilities(multivariate=True, past_covariates=True, known_covariates=True)
    objectives = ("own", "mse")
    head_paths = ("param_proj",)
    pretraining_corpora = ("LOTSA",)
    checkpoints = (
        Checkpoint("Salesforce/moirai-1.1-R-small", 13.83, LICENCE, NOTE),
        Checkpoint("Salesforce/moirai-1.1-R-base", 91.36, LICENCE, NOTE),
        Checkpoint("Salesforce/moirai-1.1-R-large", 310.97, LICENCE, NOTE + "; size computed"),
        Checkpoint("Salesforce/moirai-1.0-R-small", 13.83, LICENCE, NOTE),
        Checkpoint("Salesforce/moirai-1.0-R-base", 91.36, LICENCE, NOTE),
        Checkpoint("Salesforce/moirai-1.0-R-large", 310.97, LICENCE, NOTE + "; size computed"),
    )

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config, self.levels = dict(config), DECILES
        width = entry(config, "d_model", int, self.family)
        self.sizes = positive_sizes(config, "patch_sizes", self.family)
        self.scaling = entry(config, "scaling", bool, self.family, True)
        self.patch, self.auto = _patch(config, self.sizes)
        self.context_length, self.native_horizon = self._lengths(config)
        self.mask_encoding = nn.Embedding(1, width)
        self.in_proj = PatchSizeLinear(self.sizes, [width] * len(self.sizes))
        self.encoder = PackedEncoder(config, self.family, lambda w, dropout: swiglu(w, hidden_width(w), dropout))
        self.param_proj = MixtureHead(entry(config, "distr_output", dict, self.family), width, self.sizes)
        fresh_weights(self, 1, len(self.encoder.layers))

    @classmethod
    def recognises(cls, config: Mapping[str, Any]) -> bool:
        """By its constructor's arguments: the later generations have a `d_ff`."""
        return "distr_output" in config and "patch_sizes" in config and "d_ff" not in config

    def _lengths(self, config: Mapping[str, Any]) -> tuple[int, int]:
        """Steps of context and of one pass; without entries two thirds of the tokens at most are context."""
        size, most = self.patch, entry(config, "max_seq_len", int, self.family)
        usual = max(1, min(CONTEXT // size, most * 2 // 3)) * size
        context = entry(config, "context_length", int, self.family, usual)
        horizon = entry(config, "prediction_length", int, self.family, max(1, context // size // 2) * size)
        check_tokens(config, self.family, context, horizon, size)
        return context, horizon

    def forward(self, packed: Packed) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Parameters of the mixture at every step of every token, on the scale of its series.

        Args:
            packed: any packed tokens, several samples per row included.

        Returns:
            Parameters by public name, `[B, T, P]`, the logits of the weights `[B, T, P, K]`; location and scale of
            the series, `[B, T, 1]`.
        """
        location, scale = self.scales(packed)
        choice = chosen_sizes(packed.patch_size, self.sizes)
        x = self.in_proj(((packed.values - location) / scale).to(self.dtype), choice)
        x = torch.where(packed.predicted[..., None], self.mask_encoding.weight[0], x)
        return self.param_proj(self.encoder(x, packed), choice), location, scale

    @property
    def log_loss(self) -> bool:
        """Whether the loss is a negative log density."""
        return self.objective == "own"

    def row_losses(self, batch: Batch) -> Tensor:
        """Loss of each row on the instance scale, averaged over its observed target steps.

        By the objective `own` the negative log density, by `mse` the squared error of the predictive mean.

        Args:
            batch: with a target of at most the native horizon.

        Returns:
            `[B]`.
        """
        return self._losses(batch, self.wanted(batch), self.patch, self.objective)

    def _losses(self, batch: Batch, target: Tensor, size: int, objective: str) -> Tensor:
        windows = self._windows(batch, target.shape[1], size)
        mixture, location, scale = self._mixture(windows, target.shape[1], size)
        scaled = (target[windows.rows].to(location.dtype) - location) / scale
        losses, counted = mixture_losses(mixture.base, scaled, objective)
        return row_means(losses, counted, windows.rows, batch.rows)

    def predict(self, batch: Batch, steps: int) -> Tensor:
        """Quantiles `[B, Q, steps]`; of covariates what `all_rows` says."""
        self.check_batch(batch)
        return by_paths(batch, steps, self.native_horizon, self.levels, self._block)

    def _block(self, batch: Batch, steps: int, levels: Sequence[float]) -> Tensor:
        """Quantiles `[B, Q, steps]` of at most the native horizon."""
        if not self.auto:
            return self._quantiles(batch, steps, levels, self.patch)
        size = self._best_sizes(batch, steps)[window_index(batch)]
        found = batch.context.new_zeros(batch.rows, len(levels), steps, dtype=self._wide)
        for one in torch.unique(size).tolist():
            rows = (size == one).nonzero().flatten()
            found = found.index_copy(0, rows, self._quantiles(_rows(batch, rows), steps, levels, one))
        return found

    def _best_sizes(self, batch: Batch, steps: int) -> Tensor:
        """Patch size for each window `[W]`: the least loss on the context's last steps."""
        index = window_index(batch)
        usual = torch.full((int(index.max()) + 1,), self.patch, device=index.device)
        context, target = batch.context[:, :-steps], batch.context[:, -steps:]
        if not context.shape[1]:
            return usual
        targets = torch.ones_like(index, dtype=torch.bool) if batch.is_target is None else batch.is_target
        future = None
        if batch.future is not None:
            known = ~torch.isnan(batch.future).all(-1, keepdim=True)
            future = torch.where(known, target, torch.full_like(target, torch.nan))
        past = replace(batch, context=context, target=None, future=future)
        tried = torch.stack([window_mean(self._losses(past, target, size, "own"), past) for size in self.sizes])
        known = ~torch.isnan(context).all(-1) & ~torch.isnan(target).all(-1) & targets
        told = torch.zeros_like(usual).index_add(0, index, known.long()) > 0
        return torch.where(told, torch.tensor(self.sizes, device=index.device)[tried.argmin(0)], usual)

    @property
    def _wide(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def _quantiles(self, batch: Batch, steps: int, levels: Sequence[float], size: int) -> Tensor:
        windows = self._windows(batch, steps, size)
        quantiles = self._mixture(windows, steps, size)[0].quantile(levels)
        return all_rows(batch, windows.rows, quantiles.transpose(0, 1))

    def _windows(self, batch: Batch, steps: int, size: int) -> PackedWindows:
        return pack_windows(
            batch, size, max(self.sizes), limit=self.context_length, fill=zero_fill, ahead=math.ceil(steps / size)
        )

    def _mixture(self, windows: PackedWindows, steps: int, size: int) -> tuple[Mixture, Tensor, Tensor]:
        """Predictive distribution of the target rows `[n, steps]`, location and scale `[n, 1]`."""
        parameters, location, scale = self(windows.packed)
        of_steps = {
            name: windows.horizon(value)[:, :, :size].flatten(1, 2)[:, :steps] for name, value in parameters.items()
        }
        location, scale = (windows.horizon(value)[:, 0, :1] for value in (location, scale))
        return self.param_proj.mixture(of_steps, location, scale), location, scale


def _patch(config: Mapping[str, Any], sizes: list[int]) -> tuple[int, bool]:
    """The fixed patch size, and whether forecasts choose their own."""
    usual = min(sizes, key=lambda size: (abs(math.log2(size / USUAL_PATCH)), size))
    given = config.get("patch_size", usual)
    if given not in (*sizes, AUTO) or isinstance(given, bool):
        raise TspruneError(f"config.json: patch_size is {given!r}, expected {AUTO!r} or one of patch_sizes {sizes}")
    return (usual, True) if given == AUTO else (int(given), False)


def _rows(batch: Batch, rows: Tensor) -> Batch:
    """Some rows of a batch, without its target."""
    names = ("context", "group_ids", "future", "is_target")
    parts = {name: value[rows] for name in names if (value := getattr(batch, name)) is not None}
    return Batch(**parts)


FAMILY = Moirai
"""A masked encoder over packed patches."""
