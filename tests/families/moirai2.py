"""Moirai 2: quantiles of several patches per token, recursion over all quantile paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tests.families import _packed
from tests.families._kit import Adapter, Family, Public, Tensors, seen

from tsprune.models._forecaster import Forecaster
from tsprune.models.moirai2 import next_patch_losses


class MoiraiTwo(Adapter):
    """Module cases give packed tokens; the others what the public forecaster packs, and its recursion."""

    def forward(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        if call.get("kind") in ("forward", "predict"):
            return self._forecast(model, inputs, call)
        packed = _packed.given(inputs)
        with seen(model, {"hidden.layer0": "encoder.layers.0", "encoder_out": "encoder"}) as found:
            prediction, location, scale = model(packed)
        values = (packed.values - location) / scale
        own = prediction * scale[:, :, None, None] + location[:, :, None, None]
        series = torch.where(packed.sample_id > 0, packed.series, -1)
        losses, valid = next_patch_losses(prediction, values, packed.observed, series, packed.time_id, model.levels)
        outputs = {"preds": prediction.flatten(2), "preds_own_units": own.flatten(2), "scaled_target": values}
        return outputs | found | {"loc": location, "scale": scale, "loss": losses[valid].mean()}

    def _forecast(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        windows, steps = _packed.forecaster(inputs, call, model.patch, model.patch, teach=False)
        with torch.no_grad():
            quantiles = model.quantile_patches(windows)[..., :steps]  # type: ignore[operator]
        quantiles = quantiles.view(-1, windows.series, *quantiles.shape[1:]).permute(0, 2, 3, 1).squeeze(-1)
        packed = windows.packed
        prediction = model(packed)[0].flatten(2)
        weights = torch.linspace(0.5, 1.5, prediction.numel()).view_as(prediction)
        loss = (prediction * weights * (packed.sample_id > 0)[..., None]).mean()
        return _packed.shown(packed) | {"quantiles": quantiles, "loss": loss}


def config() -> dict[str, Any]:
    """Two layers, two patches ahead."""
    return {
        "d_model": 32,
        "d_ff": 40,
        "num_layers": 2,
        "num_heads": 4,
        "patch_size": 8,
        "num_predict_token": 2,
        "quantile_levels": _packed.LEVELS,
        "context_length": 64,
        "max_seq_len": 64,
        "attn_dropout_p": 0.0,
        "dropout_p": 0.0,
        "scaling": True,
    }


def _public() -> dict[str, Any]:
    plain = {name: value for name, value in config().items() if name not in ("num_heads", "context_length")}
    sizes = {"patch_size": 16, "num_predict_token": 4, "max_seq_len": 512}
    return plain | sizes | {"d_model": 384, "d_ff": 1024, "num_layers": 6}


FAMILY = Family(
    config=config,
    public=[Public("moirai 2 small", _public(), 11.39)],
    dropout={"dropout_p": 0.3, "attn_dropout_p": 0.3},
    variants=[{"scaling": False}, {"num_predict_token": 1, "quantile_levels": [0.1, 0.5, 0.9]}],
    bad=[
        ({"d_ff": None}, "d_ff"),
        ({"num_heads": 3}, "num_heads"),
        ({"num_predict_token": 0}, "num_predict_token"),
        ({"quantile_levels": [0.5, 0.1]}, "quantile_levels"),
        ({"quantile_levels": [0.1, 0.9]}, "quantile_levels"),
        ({"max_seq_len": 9}, "max_seq_len"),
    ],
)
ADAPTERS = {"moirai2": MoiraiTwo()}
