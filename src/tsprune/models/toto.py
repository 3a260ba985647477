"""Toto 1 (Datadog/Toto-Open-Base-1.0): a causal patch decoder with layers across series, for metrics of systems."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from tsprune.blocks.across import AcrossSeriesAttention, Groups
from tsprune.blocks.folded import mixes
from tsprune.blocks.patching import left_fill, right_fill
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._config import entry
from tsprune.models._forecaster import Capabilities, Checkpoint, Forecaster
from tsprune.models._fresh import fresh_weights
from tsprune.models._names import Renames
from tsprune.models._toto_network import Backbone, seen_patches
from tsprune.models._toto_outlook import Outlook
from tsprune.models._toto_paths import Paths, path_quantiles, spread_uniforms
from tsprune.models._toto_tensors import put_together, taken_apart

LAYER = "model.transformer.layers.*"
KEYS = ("spacewise_every_n_layers", "scaler_cls")
KEYS_OF_TOTO_2 = ("layer_group_size", "num_variate_layers_per_group")


class Toto(Forecaster):
    """Toto 1 under the tensor names of the public checkpoint, its fused projections taken apart.

    What differs from the public code on the way from a batch to the network, which itself is the same:
    missing steps, padding up to a whole patch included, enter as the location of their patch, that is as 0, where the
    public code lets a stored 0 enter as (0 - location) / scale; whole patches before a row's first value are hidden
    from everyone, so that a row next to longer ones is forecast as alone.

    Attributes:
        num_samples: sample paths of a forecast longer than one patch.
        seed: of their random numbers, which are the same for every row. The rows of a group share them too.
    """

    family = "toto"
    head_paths = ("model.unembed", "model.output_distribution")
    capabilities = Capabilities(multivariate=True, past_covariates=True)
    checkpoints = (
        Checkpoint(
            "Datadog/Toto-Open-Base-1.0", 151.31, "Apache-2.0", "sizes and licence as published, not verified here"
        ),
    )
    pretraining_corpora = ("Salesforce/GiftEvalPretrain", "autogluon/chronos_datasets")
    names = Renames(
        [
            (f"{LAYER}.attention.wO", f"{LAYER}.layer.0.attention.o"),
            (f"{LAYER}.norm1.scale", f"{LAYER}.layer.0.layer_norm.weight"),
            (f"{LAYER}.mlp.2", f"{LAYER}.layer.1.mlp.wo"),
            # As the public code names it where a fused kernel is installed.
            (f"{LAYER}.mlp.0.w3", f"{LAYER}.layer.1.mlp.wo"),
            (f"{LAYER}.norm2.scale", f"{LAYER}.layer.1.layer_norm.weight"),
        ]
    )
    num_samples = 32
    seed = 0

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        if all(key in config for key in KEYS_OF_TOTO_2):
            raise TspruneError(
                "config.json: this is a Toto 2 model, another network; family toto reads Toto 1, "
                "such as Datadog/Toto-Open-Base-1.0"
            )
        self.config = dict(config)
        self.levels = tuple(k / 10 for k in range(1, 10))
        self.model = Backbone(config)
        self.patch = self.native_horizon = self.model.patch
        # Ours: public configs do not say what was trained on, which is 4096 steps.
        self.context_length = entry(config, "context_length", int, self.family, 4096)
        if self.context_length < 1:
            raise TspruneError("config.json: context_length is 0, expected a positive number of steps")
        if not any(isinstance(module, AcrossSeriesAttention) for module in self.modules()):
            self.capabilities = Capabilities()
        fresh_weights(self, 1, len(self.model.layers))

    @classmethod
    def recognises(cls, config: Mapping[str, Any]) -> bool:
        """By entries that only these configs have; those of Toto 2 too, which `from_config` refuses by its name."""
        return any(all(key in config for key in keys) for keys in (KEYS, KEYS_OF_TOTO_2))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A model with fresh weights."""
        return cls(config)

    def tensors_from_public(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fused projections taken apart; rotary tables, which some files hold, are computed instead."""
        return super().tensors_from_public(taken_apart(tensors, self.model.layers))

    def tensors_to_public(self) -> dict[str, Tensor]:
        """Fused projections put together where heads are even; others keep our names."""
        return self.public_layout(self.state_dict())

    def public_layout(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Any tensors that belong to the model's, such as gradients, in the names and layout of public checkpoints."""
        return {self.names.public(name): t for name, t in put_together(tensors, self.model.layers).items()}

    @property
    def mixes_series(self) -> bool:
        """Whether some attention across series has queries and keys left, or none of them has any heads."""
        return mixes(self)

    def forward(self, context: Tensor, *, observed: Tensor | None = None, groups: Groups | None = None) -> Outlook:
        """What every patch expects of the next one.

        Args:
            context: `[B, T * patch]`, own units, NaN = missing.
            observed: bool of that shape, which values enter the statistics; None: those that are not NaN. Others enter
                the network as they are, as in the public code.
            groups: which rows inform each other; None: none.

        Returns:
            Of the T tokens.
        """
        states, scale = self.model.read(context, ~torch.isnan(context) if observed is None else observed, groups)
        return self.model.outlook(states, scale)

    @property
    def log_loss(self) -> bool:
        """Whether the loss is a negative log density; here that is more than half of it."""
        return True

    def row_losses(self, batch: Batch) -> Tensor:
        """Pretraining loss of the target, and of every patch of the context given those before it.

        The mean over all their observed steps, as in pretraining, so the target is one of many patches; see
        `Outlook.losses`.

        Args:
            batch: with a target of at most one patch, which all patches before it forecast in the same pass.

        Returns:
            `[B]`.
        """
        wanted = self.wanted(batch)
        context = self._context(batch)
        outlook: Outlook = self(context, groups=_groups(batch))
        labels = torch.cat([context[:, self.patch :], right_fill(wanted, self.patch, float("nan"))], dim=-1)
        labels = labels.view(len(labels), -1, self.patch)
        counted = ~torch.isnan(labels) & (~torch.isnan(wanted)).any(-1)[:, None, None]
        if (seen := seen_patches(context.view(labels.shape))) is not None:
            counted &= seen[..., None]
        return outlook.losses(labels, counted).sum((1, 2)) / counted.sum((1, 2)).clamp(min=1)

    def predict(self, batch: Batch, steps: int) -> Tensor:
        """Quantiles `[B, Q, steps]`: those of the mixture for the first patch, then of all sample paths together.

        Each path goes on from one value for every step of a patch, drawn from its own outlook.
        """
        self.check_batch(batch)
        if self.num_samples < 1:
            raise TspruneError(f"num_samples is {self.num_samples}, expected one sample path or more")
        context = self._context(batch)
        paths = Paths(self.model, context, ~torch.isnan(context), _groups(batch))
        uniforms = spread_uniforms(self.num_samples, self.patch, self.seed)
        blocks = [paths.outlook.own.quantile(self.levels).squeeze(2).transpose(0, 1)]
        while len(blocks) * self.patch < steps:
            paths.follow(paths.outlook.draw(next(uniforms).to(context.device)))
            blocks.append(path_quantiles(paths.outlook, uniforms, self.levels))
        found = torch.cat(blocks, dim=-1)[..., :steps]
        return found.to(torch.promote_types(self.dtype, torch.float32))

    def _context(self, batch: Batch) -> Tensor:
        """The context that is used, filled on the left up to whole patches."""
        return left_fill(batch.context[:, -self.context_length :], self.patch)


def _groups(batch: Batch) -> Groups | None:
    return None if batch.group_ids is None else Groups.of(batch.group_ids)


FAMILY = Toto
