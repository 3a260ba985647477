"""TimesFM: two generations, forecasts of the mean and the deciles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tests.families._kit import Adapter, Family, Public, Tensors
from torch import Tensor

from tsprune.blocks.patching import pinball
from tsprune.blocks.rowscale import RowScale
from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster
from tsprune.models._timesfm2 import TimesFM2
from tsprune.models._timesfm2_5 import TimesFM25

DECILES = [round(0.1 * k, 1) for k in range(1, 10)]


class _TimesFM(Adapter):
    """Both generations: series of different length, rules that look at the whole batch."""

    family = "timesfm"
    unsupported = ("return_forecast_on_context",)

    def _context(self, model: Forecaster, inputs: Tensors, options: Mapping[str, Any]) -> Tensor:
        """The series cut to the context, filled in front with NaN."""
        for name in self.unsupported:
            if options.get(name):
                raise TspruneError(f"option {name} has no counterpart here")
        count = sum(name.startswith("past_values.") for name in inputs)
        length = int(options.get("forecast_context_len") or model.config["context_length"])
        series = [inputs[f"past_values.{number}"][-length:] for number in range(count)]
        return torch.stack([torch.nn.functional.pad(x, (length - len(x), 0), value=torch.nan) for x in series])

    def _clamped(self, forecast: Tensor, context: Tensor) -> Tensor:
        """Where no value of the whole batch is negative, no forecast is."""
        return forecast.clamp(min=0.0) if float(context.nan_to_num(0.0).min()) >= 0 else forecast


class Two(_TimesFM):
    """TimesFM 1.0 and 2.0: the loss in original units, after the clamp."""

    def forward(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        assert isinstance(model, TimesFM2)
        options = call.get("kwargs") or {}
        context = self._context(model, inputs, options)
        model.frequency = inputs.get("freq", 0)
        model.window_size = int(options.get("window_size") or 0)
        entries, _, scale = model(context)
        found = scale.invert(entries)
        found = self._clamped(found, context) if options.get("truncate_negative") else found
        outputs = {"mean_predictions": found[:, 0], "full_predictions": found.transpose(1, 2)}
        if (target := inputs.get("future_values")) is not None:
            levels = torch.tensor(model.levels)
            outputs["loss"] = (found[:, 0] - target).square().mean() + pinball(found[:, 1:], target, levels).mean() / 2
        return outputs


class TwoFive(_TimesFM):
    """TimesFM 2.5: the loss on the scale of the padded row, entries paired with levels by their order."""

    def forward(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        assert isinstance(model, TimesFM25)
        options = call.get("kwargs") or {}
        context = self._context(model, inputs, options)
        # Here the option may widen the context too; 2.0 cuts it to that of the config all the same.
        model.context_length = context.shape[1]
        flip, clamp = options.get("force_flip_invariance"), options.get("truncate_negative")
        model.flip = bool(model.config["force_flip_invariance"] if flip is None else flip)
        model.window_size = int(options.get("window_size") or 0)
        padded = context.nan_to_num(0.0)
        spread = padded.std(1, keepdim=True)
        scale = RowScale(padded.mean(1, keepdim=True), torch.where(spread < 1e-6, 1.0, spread))
        entries, _, scale = model(context, scale=scale)
        found = scale.invert(entries)
        found = self._clamped(found, context) if (model.positive if clamp is None else clamp) else found
        outputs = {"mean_predictions": found[:, model.point], "full_predictions": found.transpose(1, 2)}
        target = inputs.get("future_values")
        if target is not None and not model.window_size:
            target = scale.apply(target)
            near = entries[..., : target.shape[1]]
            others = [number for number in range(near.shape[1]) if number != model.point]
            levels = torch.tensor(model.levels)
            quantiles = pinball(near[:, others], target, levels[: len(others)]).mean() / 2
            outputs["loss"] = (near[:, model.point] - target).square().mean() + quantiles
        return outputs


def config() -> dict[str, Any]:
    """The older generation, two layers."""
    return {
        "architectures": ["TimesFmModelForPrediction"],
        "model_type": "timesfm",
        "patch_length": 8,
        "context_length": 64,
        "horizon_length": 16,
        "hidden_size": 24,
        "intermediate_size": 20,
        "head_dim": 6,
        "num_attention_heads": 3,
        "num_hidden_layers": 2,
        "quantiles": DECILES,
        "attention_dropout": 0.0,
        "use_positional_embedding": False,
    }


def newer() -> dict[str, Any]:
    """The newer generation, two layers."""
    return config() | {
        "architectures": ["TimesFm2_5ModelForPrediction"],
        "model_type": "timesfm2_5",
        "num_key_value_heads": 3,
        "output_quantile_len": 40,
        "decode_index": 5,
        "force_flip_invariance": True,
        "infer_is_positive": False,
        "use_continuous_quantile_head": True,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    }


def _sized(base: dict[str, Any], layers: int, **changes: Any) -> dict[str, Any]:
    sizes = {"patch_length": 32, "horizon_length": 128, "hidden_size": 1280, "intermediate_size": 1280, "head_dim": 80}
    return base | sizes | {"num_attention_heads": 16, "num_hidden_layers": layers} | changes


FAMILY = Family(
    config=config,
    public=[
        Public(
            "timesfm 1.0", _sized(config(), 20, use_positional_embedding=True, context_length=512), 203.6, within=0.05
        ),
        Public("timesfm 2.0", _sized(config(), 50, context_length=2048), 498.8, within=0.05),
        Public(
            "timesfm 2.5",
            _sized(newer(), 20, num_key_value_heads=16, output_quantile_len=1024, context_length=16384),
            231.3,
            within=0.05,
        ),
    ],
    dropout={"attention_dropout": 0.3},
    variants=[
        newer(),
        newer() | {"num_attention_heads": 4, "num_key_value_heads": 2, "infer_is_positive": True, "window_size": 5},
        {"use_positional_embedding": True, "truncate_negative": True},
        {"window_size": 7, "transformers_version": "4.56.0", "frequency": 2},
    ],
    bad=[
        ({"hidden_size": None}, "hidden_size"),
        ({"head_dim": "six"}, "head_dim"),
        ({"quantiles": [0.5, 0.1]}, "quantiles"),
        ({"patch_length": 0}, "patch_length"),
        ({"frequency": 3}, "frequency 3"),
        ({"hidden_size": 23, "use_positional_embedding": True}, "even hidden_size"),
        (newer() | {"activation": "snake"}, "snake"),
        (newer() | {"rope_parameters": {"rope_type": "yarn"}}, "yarn"),
        (newer() | {"output_quantile_len": 0}, "output_quantile_len"),
        (newer() | {"num_key_value_heads": 2}, "key/value heads"),
    ],
)
ADAPTERS = {"timesfm2": Two(), "timesfm2_5": TwoFive()}
