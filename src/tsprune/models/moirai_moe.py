"""Moirai-MoE (Salesforce/moirai-moe-1.0-R-*): a causal patch decoder whose feed-forward networks are 32 experts.

Public weights are non-commercial. `S` series with `C` context steps take `S * C / patch` tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tsprune.blocks.distributions import Mixture
from tsprune.blocks.experts import Distances, MixtureOfExperts
from tsprune.blocks.patchsizes import PatchSizeLinear, chosen_sizes
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._config import entry
from tsprune.models._forecaster import Capabilities, Checkpoint
from tsprune.models._fresh import fresh_weights
from tsprune.models._mixturehead import MixtureHead
from tsprune.models._packedencoder import PackedEncoder, check_tokens, positive_sizes, swiglu
from tsprune.models._packedforecaster import LICENCE, NOTE, PackedForecaster, mixture_losses, row_means
from tsprune.models._packedwindows import PackedWindows, all_rows, by_paths, causal_mean_fill, pack_windows
from tsprune.models._packing import Packed
from tsprune.models._rollout import DECILES

CONTEXT = 2048
USUAL_PATCH = 16
PUBLIC_CENTRES = "encoder.centroid"
OWN_CENTRES = "encoder.layers.{}.layer.1.ffn.gate.centroids"


class MoiraiMoE(PackedForecaster):
    """The Moirai-MoE network under the tensor names of the public checkpoint.

    Every token becomes the parameters of a mixture for every step of the next patch; quantiles are those of its
    distribution function. Longer horizons go patch by patch: quantile paths are fed back, see `by_paths`; the public
    code feeds back samples instead. Missing values enter as the mean of what came before.

    A token goes to the two experts whose centres are FARTHEST from it, as the public code has it, weighed by a softmax
    of the two distances. The public file holds the centres of all layers as one float64 tensor `encoder.centroid`;
    here each layer has its own, in the type of the weights. Saving stacks them again, unless layers have different
    numbers of experts left: then each layer's centres are a tensor `encoder.centroid.<layer>`.

    Known futures of covariates are refused: attention is causal, so a patch would be forecast without seeing what is
    known of it.

    Four entries of the config are ours and optional: `patch_size` (the one nearest to 16 where it is absent),
    `context_length` (2048 steps, or what fits), `num_experts` and `num_experts_per_token` (32 and 2).
    """

    family = "moirai_moe"
    capabilities = Capabilities(multivariate=True, past_covariates=True)
    objectives = ("own", "mse")
    head_paths = ("param_proj",)
    pretraining_corpora = ("LOTSA",)
    checkpoints = (
        Checkpoint("Salesforce/moirai-moe-1.0-R-small", 117.03, LICENCE, NOTE),
        Checkpoint("Salesforce/moirai-moe-1.0-R-base", 935.07, LICENCE, NOTE + "; size computed"),
    )

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config, self.levels = dict(config), DECILES
        width = entry(config, "d_model", int, self.family)
        hidden = entry(config, "d_ff", int, self.family)
        experts = entry(config, "num_experts", int, self.family, 32)
        used = entry(config, "num_experts_per_token", int, self.family, 2)
        self.sizes = positive_sizes(config, "patch_sizes", self.family)
        usual = min(self.sizes, key=lambda size: (abs(size - USUAL_PATCH), size))
        self.patch = entry(config, "patch_size", int, self.family, usual)
        if self.patch not in self.sizes:
            raise TspruneError(f"config.json: patch_size is {self.patch}, expected one of patch_sizes {self.sizes}")
        self.scaling = entry(config, "scaling", bool, self.family, True)
        self.native_horizon = self.patch
        most = entry(config, "max_seq_len", int, self.family)
        fits = max(1, min(CONTEXT // self.patch, most - 1)) * self.patch
        self.context_length = entry(config, "context_length", int, self.family, fits)
        check_tokens(config, self.family, self.context_length, self.native_horizon, self.patch)
        widths = [width] * len(self.sizes)
        self.in_proj = PatchSizeLinear(self.sizes, widths)
        self.res_proj = PatchSizeLinear(self.sizes, widths)
        self.feat_proj = PatchSizeLinear(widths, widths)

        def mixture(width: int, dropout: float) -> MixtureOfExperts:
            inner = [swiglu(width, hidden, dropout) for _ in range(experts)]
            return MixtureOfExperts(width, inner, used, normalise=True, router=Distances(width, experts))

        self.encoder = PackedEncoder(config, self.family, mixture, causal=True)
        self.param_proj = MixtureHead(entry(config, "distr_output", dict, self.family), width, self.sizes)
        fresh_weights(self, 1, len(self.encoder.layers))

    @classmethod
    def recognises(cls, config: Mapping[str, Any]) -> bool:
        """By its constructor's arguments: unlike the first generation it has a `d_ff`."""
        return "distr_output" in config and "patch_sizes" in config and "d_ff" in config

    def tensors_from_public(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Public names to ours; the centres are given to their layers, in the type of the other weights."""
        ours: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if name == PUBLIC_CENTRES:
                ours |= {OWN_CENTRES.format(layer): centres for layer, centres in enumerate(tensor.unbind(0))}
            elif (layer := re.fullmatch(rf"{re.escape(PUBLIC_CENTRES)}\.(\d+)", name)) is not None:
                ours[OWN_CENTRES.format(layer[1])] = tensor
            else:
                ours[self.names.ours(name)] = tensor
        kind = ours["encoder.norm.weight"].dtype if "encoder.norm.weight" in ours else torch.float32
        return {name: tensor.to(kind) if name.endswith(".centroids") else tensor for name, tensor in ours.items()}

    def tensors_to_public(self) -> dict[str, Tensor]:
        """Our tensors under public names, the centres stacked where that is possible."""
        own = self.state_dict()
        names = {OWN_CENTRES.format(layer): layer for layer in range(len(self.encoder.layers))}
        found = {self.names.public(name): tensor for name, tensor in own.items() if name not in names}
        centres = {names[name]: tensor for name, tensor in own.items() if name in names}
        if len(centres) == len(names) and len({tensor.shape for tensor in centres.values()}) == 1:
            return found | {PUBLIC_CENTRES: torch.stack(list(centres.values()))}
        return found | {f"{PUBLIC_CENTRES}.{layer}": tensor for layer, tensor in centres.items()}

    def forward(self, packed: Packed) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Parameters of the mixture at every step of the patch behind each token, on the scale of its series.

        Args:
            packed: any packed tokens, several samples per row included.

        Returns:
            Parameters by public name, `[B, T, P]`, the logits of the weights `[B, T, P, K]`; location and scale of
            the series, `[B, T, 1]`.
        """
        location, scale = self.scales(packed)
        choice = chosen_sizes(packed.patch_size, self.sizes)
        scaled = ((packed.values - location) / scale).to(self.dtype)
        x = self.feat_proj(F.silu(self.in_proj(scaled, choice)), choice) + self.res_proj(scaled, choice)
        return self.param_proj(self.encoder(x, packed), choice), location, scale

    @property
    def log_loss(self) -> bool:
        """Whether the loss is a negative log density."""
        return self.objective == "own"

    def row_losses(self, batch: Batch) -> Tensor:
        """Loss of each row on the instance scale, averaged over its observed target steps.

        By the objective `own` the negative log density of the patch behind the context, by `mse` the squared error of
        the predictive mean. Patches of the context are not scored: the scale is made of them, and such patches were
        left out in pretraining (2410.10469).

        Args:
            batch: with a target of at most one patch.

        Returns:
            `[B]`.
        """
        target = self.wanted(batch)
        windows = self._windows(batch)
        mixture, location, scale = self._mixture(windows, target.shape[1])
        scaled = (target[windows.rows].to(location.dtype) - location) / scale
        losses, counted = mixture_losses(mixture.base, scaled, self.objective)
        return row_means(losses, counted, windows.rows, batch.rows)

    def predict(self, batch: Batch, steps: int) -> Tensor:
        """Quantiles `[B, Q, steps]`; of covariates what `all_rows` says."""
        self.check_batch(batch)
        return by_paths(batch, steps, self.native_horizon, self.levels, self._block)

    def _block(self, batch: Batch, steps: int, levels: Sequence[float]) -> Tensor:
        windows = self._windows(batch)
        quantiles = self._mixture(windows, steps)[0].quantile(levels)
        return all_rows(batch, windows.rows, quantiles.transpose(0, 1))

    def _windows(self, batch: Batch) -> PackedWindows:
        return pack_windows(batch, self.patch, max(self.sizes), limit=self.context_length, fill=causal_mean_fill)

    def _mixture(self, windows: PackedWindows, steps: int) -> tuple[Mixture, Tensor, Tensor]:
        """Predictive distribution of the target rows `[n, steps]`, location and scale `[n, 1]`."""
        parameters, location, scale = self(windows.packed)
        of_steps = {name: windows.last(value)[:, :steps] for name, value in parameters.items()}
        location, scale = (windows.last(value)[:, :1] for value in (location, scale))
        return self.param_proj.mixture(of_steps, location, scale), location, scale


FAMILY = MoiraiMoE
"""A causal decoder over packed patches with experts."""
