"""TinyTimeMixer r1 and r2 (ibm-granite/granite-timeseries-ttm-*): mixers over patches, channels and series."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsprune.blocks.mixerstack import MIXERS
from tsprune.blocks.observed import ObservedScale
from tsprune.blocks.rowscale import RowScale
from tsprune.blocks.tracing import fitted, newest
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._config import entry
from tsprune.models._forecaster import Capabilities, Checkpoint, Forecaster, each_window, window_index
from tsprune.models._fresh import fresh_weights
from tsprune.models._names import Renames
from tsprune.models._rollout import as_given, unrounded
from tsprune.models._ttm_network import Decoder, Encoder, Head
from tsprune.models._ttm_settings import Settings

STACKS = ("backbone.encoder.mlp_mixer_encoder", "decoder.decoder_block")


def _renames() -> Renames:
    rules = []
    for layer in (form for stack in STACKS for form in (f"{stack}.mixers.*.mixer_layers.*", f"{stack}.mixers.*")):
        for place, mixer in enumerate(MIXERS):
            public, own = f"{layer}.{mixer}", f"{layer}.layer.{place}"
            rules += [
                (f"{public}.norm.norm", f"{own}.layer_norm"),
                (f"{public}.mlp.fc1", f"{own}.{mixer}.mlp.wi"),
                (f"{public}.mlp.fc2", f"{own}.{mixer}.mlp.wo"),
                (f"{public}.gating_block.attn_layer", f"{own}.{mixer}.gating"),
            ]
    return Renames(rules)


class TTM(Forecaster):
    """The TinyTimeMixer network under the tensor names of the public checkpoint.

    A model whose mode or decoder mode is `mix_channel` mixes the series of a window: it takes groups of exactly
    `num_input_channels` rows, in the order it was trained on. Any other works on each row alone.

    Missing values: the public network takes them as zeros in original units, with a mask that only the scaling reads;
    `forward` does the same where it is given a mask. Without one, as in `row_losses` and `predict`, missing values,
    and what a short context lacks on the left, enter as 0 on the instance scale: as the row's own location.
    """

    family = "ttm"
    capabilities = Capabilities(quantiles=False)
    head_paths = ("decoder", "head")
    objectives = ("own", "mse")
    names = _renames()
    checkpoints = (
        Checkpoint("ibm-granite/granite-timeseries-ttm-r1", 0.81, "Apache-2.0", "512 to 96 steps"),
        Checkpoint("ibm-granite/granite-timeseries-ttm-r1@1024_96_v1", 0.95, "Apache-2.0", "1024 to 96 steps"),
        Checkpoint(
            "ibm-granite/granite-timeseries-ttm-r2", 0.86, "Apache-2.0",
            "a revision for each pair of context and horizon; size not verified here",
        ),
        Checkpoint("ibm-research/ttm-research-r2", 0.86, "research use only", "size not verified here"),
    )  # fmt: skip
    # Data sets of the Monash archive that the model card of r1 lists; r2 was trained on a larger collection.
    pretraining_corpora = (
        "australian_electricity_demand", "australian_weather", "bitcoin", "kdd_cup_2018", "london_smart_meters",
        "saugeen_river_flow", "solar_power", "sunspots", "solar", "us_births", "wind_farms", "wind_power",
        "larger collection of TTM r2",
    )  # fmt: skip

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = dict(config)
        self.settings = settings = Settings(config)
        encoder, decoder = settings.encoder, settings.decoder
        self.patch, self.context_length = settings.patch, settings.context
        self.native_horizon = settings.kept_horizon
        self.levels = (settings.level if settings.loss == "pinball" else 0.5,)
        mixes = settings.series > 1
        self.window_rows = self.settings.series if mixes else 1
        self.capabilities = Capabilities(multivariate=mixes, past_covariates=mixes, quantiles=False)
        self.backbone = nn.ModuleDict(
            {"encoder": Encoder(encoder, settings.patch, settings.vocabulary, settings.positions)}
        )
        self.decoder = Decoder(encoder.width, settings.patch, decoder, settings.raw)
        self.head = Head(decoder.patches * decoder.width, settings.horizon, settings.head_dropout)
        self._freq_token = 0
        if config.get("freq_token") is not None:
            self.freq_token = entry(config, "freq_token", int, self.family)
        fresh_weights(self, 1, encoder.layers * max(1, encoder.levels) + decoder.layers * max(1, decoder.levels))

    @classmethod
    def recognises(cls, config: Mapping[str, Any]) -> bool:
        """By model type, or by architecture name."""
        named = [config.get("model_type") or "", *(config.get("architectures") or [])]
        return any(str(name).lower().startswith("tinytimemixer") for name in named)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A model with fresh weights."""
        return cls(config)

    @property
    def freq_token(self) -> int:
        """Time resolution told to a model with a resolution prefix; the config's entry of that name, which may be set.

        The public tokens: 0 unknown, 1 a minute, 2 two, 3 five, 4 ten, 5 fifteen, 6 thirty minutes, 7 an hour, 8 a
        day, 9 a week.
        """
        return self._freq_token

    @freq_token.setter
    def freq_token(self, token: int) -> None:
        if not 0 <= token < self.settings.vocabulary:
            raise TspruneError(
                f"freq_token is {token}; this model "
                + (f"has 0..{self.settings.vocabulary - 1}" if self.settings.vocabulary else "has no resolution prefix")
            )
        self._freq_token = self.config["freq_token"] = token

    def forward(
        self,
        values: Tensor,
        *,
        mask: Tensor | None = None,
        freq_token: Tensor | None = None,
        unobserved: Tensor | None = None,
    ) -> tuple[Tensor, ObservedScale]:
        """Forecasts on the instance scale.

        Args:
            values: `[W, C, L]`, windows of C series in original units, NaN = missing; only the last `context_length`
                steps are used. C is any number in a model that does not mix series.
            mask: bool `[W, C, L]`, False = missing; see the class for what that changes. None: not NaN.
            freq_token: time resolution of each window `[W]`; None means the attribute of that name.
            unobserved: scale of series without any observed value, broadcastable to `[W, C, 1]`, for models scaled by
                the mean; None means the config's, else the smallest.

        Returns:
            `[W, C, native_horizon]` and the scale that turns it into original units.
        """
        settings = self.settings
        values = values.to(torch.promote_types(values.dtype, self.dtype))
        lacking = self.context_length - values.shape[-1]
        values = fitted(values, self.context_length)
        observed = ~torch.isnan(values)
        if mask is not None:
            observed &= F.pad(mask.bool()[..., -self.context_length :], (max(0, lacking), 0))
        default = settings.unobserved if unobserved is None else unobserved
        scale = ObservedScale(values, observed, settings.scaler, floor=settings.floor, unobserved=default)
        # With a mask what is missing enters as it was given, as in public code.
        shown = observed if mask is None else torch.ones_like(observed)
        scaled = torch.where(shown, scale.apply(torch.where(torch.isnan(values), 0.0, values)), 0.0)
        # Counted from the end: points that do not fill a patch are the oldest.
        start = (self.context_length - self.patch) % settings.stride
        patches = scaled[..., start:].unfold(-1, self.patch, settings.stride).to(self.dtype)
        if freq_token is None:
            freq_token = torch.full(values.shape[:1], self._freq_token, device=values.device)
        state = self.backbone["encoder"](patches, freq_token)
        out: Tensor = self.head(self.decoder(state, patches))[..., : self.native_horizon]
        return out.to(scale.location.dtype), scale

    def row_losses(self, batch: Batch) -> Tensor:
        """The config's loss, or the squared error, averaged over the steps with a target.

        The public loss is in original units. Here it is in units of the row's own standard deviation, see `RowScale`,
        whatever the network's scaling: that of a constant row is close to 0.

        Args:
            batch: with a target of at most the native horizon.

        Returns:
            `[B]`.
        """
        wanted = self.wanted(batch)
        order = self._windows(batch)
        context = newest(batch.context[order], self.context_length)
        prediction, scale = self(context)
        units = scale.scale / RowScale.of(context.to(scale.scale.dtype), ~torch.isnan(context)).scale
        target = scale.apply(wanted[order])
        counted = ~torch.isnan(target)
        target = torch.where(counted, target, 0.0)
        losses = self.step_losses(prediction[..., : target.shape[-1]] * units, target * units) * counted
        return (losses.sum(-1) / counted.sum(-1).clamp(min=1)).flatten()[_inverse(order)]

    def step_losses(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The loss of every step by the objective, same shape."""
        error = target - prediction
        loss = "mse" if self.objective == "mse" else self.settings.loss
        if loss == "mse":
            return error.square()
        if loss == "mae":
            return error.abs()
        if loss == "huber":
            return F.huber_loss(prediction, target, reduction="none", delta=self.settings.delta)
        if loss == "pinball":
            return torch.maximum(self.settings.level * error, (self.settings.level - 1) * error)
        raise TspruneError("config.json: loss is null, so the model has no loss of its own; tune it on mse")

    def predict(self, batch: Batch, steps: int) -> Tensor:
        """Point forecasts `[B, 1, steps]`; beyond the native horizon they are fed back."""
        self.check_batch(batch)
        order = self._windows(batch)
        context = newest(unrounded(batch.context)[order], self.context_length)
        blocks: list[Tensor] = []
        while len(blocks) * self.native_horizon < steps:
            prediction, scale = self(context)
            blocks.append(scale.invert(prediction))
            context = newest(torch.cat([context, blocks[-1]], dim=-1), self.context_length)
        rows = as_given(torch.cat(blocks, dim=-1)[..., :steps].flatten(0, 1), batch.context)
        return (rows if self.settings.series == 1 else rows[_inverse(order)])[:, None]

    def network_windows(self, batch: Batch) -> Tensor:
        """One window for each of the network's rows where series are mixed; else the rows of the batch."""
        return window_index(batch) if self.settings.series == 1 else each_window(batch)

    def _windows(self, batch: Batch) -> Tensor:
        """Rows of the batch by window and series, `[W, C]`; without mixing every row is a window."""
        rows = torch.arange(batch.rows, device=batch.context.device)
        series, targets = self.settings.series, self.settings.targets
        if series == 1:
            return rows[:, None]
        index = window_index(batch)
        if len(odd := (sizes := torch.bincount(index))[sizes != series]):
            raise TspruneError(
                f"a window has {int(odd[0])} series, this model mixes exactly {series} (num_input_channels): "
                f"forecast {series} series together, in the order it was trained on"
            )
        order = torch.argsort(index, stable=True).view(-1, series)
        wanted = torch.ones_like(rows, dtype=torch.bool) if batch.is_target is None else batch.is_target
        asked = wanted[order].any(0).nonzero().flatten().tolist()
        if targets is not None and (other := sorted(set(asked) - set(targets))):
            raise TspruneError(
                f"series {other[0]} of a window is to be forecast, this model forecasts {list(targets)} "
                "(prediction_channel_indices); give the others as past covariates"
            )
        return order


def _inverse(order: Tensor) -> Tensor:
    """Where each row of the batch is in an order `[W, C]` of all rows."""
    return torch.argsort(order.flatten())


FAMILY = TTM
