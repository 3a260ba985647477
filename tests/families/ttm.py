"""TinyTimeMixer: series by channel, missing values as zeros with a mask, losses in original units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tests.families._kit import Adapter, Family, Public, Tensors, seen
from torch import Tensor

from tsprune.models._forecaster import Forecaster
from tsprune.models.ttm import TTM


class TinyTimeMixer(Adapter):
    """Tensors of the cases are `[windows, steps, channels]`, ours `[windows, channels, steps]`."""

    def forward(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        assert isinstance(model, TTM)
        values, mask = inputs["past_values"].transpose(1, 2), _turned(inputs.get("past_observed_mask"))
        lacking = model.context_length - values.shape[-1]
        if lacking > 0 and mask is None:
            # The public code takes its own padding as observed where nobody gave a mask.
            values = torch.nn.functional.pad(values, (lacking, 0))
        with seen(model, {"backbone_hidden_state": "backbone.encoder"}) as found:
            prediction, scale = model(
                values, mask=mask, freq_token=inputs.get("freq_token"), unobserved=_of_the_batch(model, values, mask)
            )
        targets = model.settings.targets
        chosen = list(range(values.shape[1]) if targets is None else sorted(targets))
        forecast = scale.invert(prediction)[:, chosen]
        outputs = {
            "prediction_outputs": forecast.transpose(1, 2),
            "backbone_hidden_state": found["backbone_hidden_state"],
            "loc": scale.location[:, chosen].transpose(1, 2),
            "scale": scale.scale[:, chosen].transpose(1, 2),
        }
        if (future := _turned(inputs.get("future_values"))) is not None and model.settings.loss is not None:
            counted = _turned(inputs.get("future_observed_mask"))
            counted = torch.ones_like(future) if counted is None else counted
            if future.shape[1] != len(chosen):
                future, counted = future[:, chosen], counted[:, chosen]
            future, counted = future[..., : model.native_horizon], counted[..., : model.native_horizon].bool()
            outputs["loss"] = model.step_losses(forecast[counted], future[counted]).mean()
        return {name: tensor if name == "loss" else tensor.detach() for name, tensor in outputs.items()}


def _turned(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.transpose(1, 2)


def _of_the_batch(model: TTM, values: Tensor, mask: Tensor | None) -> Tensor | None:
    """Mean size of each channel over the batch, which the public mean scaler takes where a row has no value."""
    if mask is None or model.settings.scaler != "mean" or model.settings.unobserved is not None:
        return None
    recent, held = values[..., -model.context_length :], mask[..., -model.context_length :]
    return (recent * held).abs().sum((0, 2))[:, None] / held.sum((0, 2)).clamp(min=1)[:, None]


def config() -> dict[str, Any]:
    """Three levels of adaptive patching and a narrower decoder."""
    return {
        "architectures": ["TinyTimeMixerForPrediction"],
        "model_type": "tinytimemixer",
        "context_length": 64,
        "patch_length": 8,
        "patch_stride": 8,
        "num_input_channels": 1,
        "prediction_length": 16,
        "d_model": 24,
        "expansion_factor": 2,
        "num_layers": 2,
        "adaptive_patching_levels": 3,
        "decoder_num_layers": 2,
        "decoder_d_model": 16,
        "decoder_adaptive_patching_levels": 0,
        "decoder_raw_residual": False,
        "decoder_mode": "common_channel",
        "mode": "common_channel",
        "gated_attn": True,
        "norm_mlp": "LayerNorm",
        "scaling": "std",
        "loss": "mse",
        "dropout": 0.0,
        "head_dropout": 0.0,
    }


def _public(context: int, horizon: int) -> dict[str, Any]:
    sizes = {"context_length": context, "prediction_length": horizon, "patch_length": 64, "patch_stride": 64}
    return config() | sizes | {"d_model": 192, "decoder_d_model": 128}


FAMILY = Family(
    config=config,
    public=[
        Public("ttm r1 512 to 96", _public(512, 96), 0.805),
        Public("ttm r1 1024 to 96", _public(1024, 96), 0.946),
    ],
    dropout={"dropout": 0.3},
    variants=[
        {"resolution_prefix_tuning": True, "frequency_token_vocab_size": 10, "decoder_raw_residual": True},
        {"adaptive_patching_levels": 0, "scaling": "mean", "loss": "mae", "gated_attn": False},
        {"decoder_adaptive_patching_levels": 2, "patch_stride": 4, "loss": "huber", "use_positional_encoding": True},
        {"use_decoder": False, "norm_mlp": "BatchNorm", "scaling": None, "loss": "pinball", "quantile": 0.7},
    ],
    bad=[
        ({"context_length": 8}, "context_length 8 must exceed patch_length 8"),
        ({"d_model": 0}, "'d_model' is 0"),
        ({"d_model": 42}, "tokens of width 42 cannot be split into 4"),
        ({"num_patches": 9}, "num_patches is 9"),
        ({"mode": "flatten"}, "mode is 'flatten'"),
        ({"prediction_filter_length": 17}, "prediction_filter_length 17 exceeds prediction_length 16"),
        ({"loss": "nll"}, "loss is 'nll'"),
        ({"loss": "pinball", "quantile": 1.0}, "quantile is 1.0"),
        ({"scaling": "minmax"}, "scaling is 'minmax'"),
        ({"self_attn": True}, "'self_attn' is True"),
        ({"enable_forecast_channel_mixing": True}, "'enable_forecast_channel_mixing' is True"),
        ({"categorical_vocab_size_list": [3]}, "'categorical_vocab_size_list'"),
        ({"multi_scale": True}, "'multi_scale' is True"),
        ({"register_tokens": 2}, "'register_tokens' is 2"),
        ({"multi_quantile_head": True}, "'multi_quantile_head' is True"),
        ({"architectures": ["TinyTimeMixerForDecomposedPrediction"]}, "TinyTimeMixerForDecomposedPrediction"),
        ({"freq_token": 1}, "has no resolution prefix"),
        ({"use_positional_encoding": True, "positional_encoding_type": "rotary"}, "'rotary'"),
    ],
)
ADAPTERS = {"ttm": TinyTimeMixer()}
