"""PatchTST: channels as rows, missing values as zeros under a mask, batch norms with statistics."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from tests.families._kit import Adapter, Family, Tensors
from torch import Tensor

from tsprune.models._forecaster import Forecaster
from tsprune.models.patchtst import PatchTST

TABLE = "model.encoder.positional_encoder.position_enc"


class Patch(Adapter):
    """PatchTST: `[B, L, C]` windows in original units, the loss in original units."""

    def forward(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        assert isinstance(model, PatchTST)
        # The public class stores the sinusoids as a parameter; the cases hold their gradient too.
        model.get_submodule("model.encoder.positional_encoder").position_enc.requires_grad_(True)
        outputs = self._outputs(model, inputs)
        if call.get("train_mode"):
            twin = copy.deepcopy(model).train()
            with torch.no_grad():
                found = self._outputs(twin, inputs)
            outputs |= {f"train_mode.{name}": value for name, value in found.items()}
        return outputs

    def gradient(self, model: Forecaster, name: str) -> Tensor | None:
        if name != TABLE:
            return super().gradient(model, name)
        return model.get_submodule("model.encoder.positional_encoder").position_enc.grad

    def _outputs(self, model: PatchTST, inputs: Tensors) -> Tensors:
        values = inputs["past_values"]
        rows, length, channels = values.shape
        flat = values.transpose(1, 2).reshape(rows * channels, length)
        mask = inputs.get("past_observed_mask", torch.ones_like(values)).transpose(1, 2)
        seen = mask.reshape(rows * channels, length) > 0
        # Rows without any value are scaled by the mean over the batch of their channel.
        sizes = (values.transpose(1, 2) * mask).abs().sum(-1).sum(0) / mask.sum(-1).sum(0).clamp(min=1)
        default = None if model.unobserved is not None else sizes.repeat(rows)[:, None]
        scale = model.scale_of(flat, seen, default)
        out = model.network(scale.apply(flat))

        def windows(x: Tensor) -> Tensor:
            return x.view(rows, channels, -1).transpose(1, 2)

        outputs = {"loc": windows(scale.location), "scale": windows(scale.scale)}
        target = inputs.get("future_values")
        if model.distribution_name:
            distribution = model.distribution(out, scale.location, scale.scale)
            values = [value for value in vars(distribution.components[0]).values() if value is not None]
            outputs |= {f"prediction_outputs.{number}": windows(value) for number, value in enumerate(values)}
            if target is not None:
                density = distribution.log_prob(target.transpose(1, 2).reshape(rows * channels, -1))
                # The public class takes the channels of a step for one event.
                outputs["loss"] = -windows(density).sum(-1).mean()
            return outputs
        outputs["prediction_outputs"] = windows(scale.invert(out[:, 0]))
        if target is not None:
            outputs["loss"] = (outputs["prediction_outputs"] - target).square().mean()
        return outputs


def config() -> dict[str, Any]:
    """Two layers, batch norm first, all patches read by the head."""
    return {
        "architectures": ["PatchTSTForPrediction"],
        "model_type": "patchtst",
        "context_length": 64,
        "prediction_length": 16,
        "patch_length": 8,
        "patch_stride": 8,
        "d_model": 24,
        "num_attention_heads": 3,
        "num_hidden_layers": 2,
        "ffn_dim": 20,
        "norm_type": "batchnorm",
        "pooling_type": None,
        "positional_encoding_type": "sincos",
        "scaling": "std",
        "loss": "mse",
        "use_cls_token": False,
        "pre_norm": True,
    }


FAMILY = Family(
    config=config,
    dropout={"attention_dropout": 0.2, "ff_dropout": 0.2, "path_dropout": 0.2, "head_dropout": 0.2},
    variants=[
        {"norm_type": "layernorm", "pre_norm": False, "use_cls_token": True, "patch_length": 10, "patch_stride": 6},
        {"pre_norm": False, "pooling_type": "mean", "positional_encoding_type": "random", "scaling": "mean"},
        {"pooling_type": "max", "scaling": None, "bias": False, "activation_function": "relu", "context_length": 61},
        {"loss": "nll", "distribution_output": "student_t"},
        {"loss": "nll", "distribution_output": "normal", "use_cls_token": True},
    ],
    bad=[
        ({"d_model": None}, "d_model"),
        ({"d_model": 26}, "multiple of num_attention_heads"),
        ({"d_model": 27}, "even d_model"),
        ({"patch_length": 64}, "greater than patch_length"),
        ({"patch_stride": 0}, "patch_stride"),
        ({"norm_type": "groupnorm"}, "groupnorm"),
        ({"positional_encoding_type": "rotary"}, "rotary"),
        ({"scaling": "median"}, "median"),
        ({"pooling_type": "sum"}, "pooling_type"),
        ({"activation_function": "snake"}, "snake"),
        ({"channel_attention": True}, "channel_attention"),
        ({"share_embedding": False}, "share_embedding"),
        ({"share_projection": False}, "share_projection"),
        ({"loss": "nll", "distribution_output": "negative_binomial"}, "negative_binomial"),
    ],
)
ADAPTERS = {"patchtst": Patch()}
