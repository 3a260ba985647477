"""Moirai 1: packed tokens, a mixture for every step, several patch sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tests.families import _packed
from tests.families._kit import Adapter, Family, Public, Tensors, seen

from tsprune.models._forecaster import Forecaster


class MoiraiOne(Adapter):
    """Module cases give packed tokens, forecast cases what the public forecaster packs."""

    def forward(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        if call.get("kind") == "forecast":
            return self._forecast(model, inputs, call)
        packed = _packed.given(inputs)
        with seen(model, {"hidden.layer0": "encoder.layers.0", "encoder_out": "encoder"}) as found:
            parameters, location, scale = model(packed)
        log_prob, mean = _packed.measured(model, parameters, location, scale, packed.values)
        outputs = {f"param.{name}": value for name, value in parameters.items()} | found
        outputs |= {"loc": location, "scale": scale, "mean": mean, "log_prob": log_prob}
        counted = packed.observed & packed.predicted[..., None]
        return outputs | {"loss": _packed.packed_mean(-log_prob, counted, packed)}

    def _forecast(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        size, width = int(call["forecaster_arguments"]["patch_size"]), max(model.config["patch_sizes"])
        windows, steps = _packed.forecaster(inputs, call, size, width, teach=False)
        with torch.no_grad():
            parameters, location, scale = model(windows.packed)
        _, mean = _packed.measured(model, parameters, location, scale, windows.packed.values)
        outputs = {f"param.{name}": value for name, value in parameters.items()} | _packed.shown(windows.packed)
        mean = windows.horizon(mean)[..., :size].flatten(1)[:, :steps]
        mean = mean.view(-1, windows.series, steps).transpose(1, 2).squeeze(-1)
        outputs |= {"loc": location, "scale": scale, "mean": mean}
        if "future_target" in inputs:
            taught = _packed.forecaster(inputs, call, size, width, teach=True)[0].packed
            log_prob, _ = _packed.measured(model, *model(taught), taught.values)
            outputs["loss"] = _packed.packed_mean(-log_prob, taught.observed & taught.predicted[..., None], taught)
        return outputs


def config() -> dict[str, Any]:
    """Two layers, two patch sizes."""
    return {
        "distr_output": _packed.DISTRIBUTIONS,
        "d_model": 32,
        "num_layers": 2,
        "num_heads": 4,
        "patch_sizes": [8, 16],
        "patch_size": 8,
        "context_length": 64,
        "prediction_length": 16,
        "max_seq_len": 64,
        "attn_dropout_p": 0.0,
        "dropout_p": 0.0,
        "scaling": True,
    }


def _public(width: int, layers: int) -> dict[str, Any]:
    own = ("num_heads", "patch_size", "context_length", "prediction_length")
    plain = {name: value for name, value in config().items() if name not in own}
    sizes = {"patch_sizes": [8, 16, 32, 64, 128], "max_seq_len": 512}
    return plain | sizes | {"d_model": width, "num_layers": layers}


FAMILY = Family(
    config=config,
    public=[
        Public("moirai small", _public(384, 6), 13.83),
        Public("moirai base", _public(768, 12), 91.36),
        Public("moirai large", _public(1024, 24), 311.0, within=0.1),
    ],
    dropout={"dropout_p": 0.3, "attn_dropout_p": 0.3},
    variants=[{"patch_size": "auto"}, {"scaling": False}],
    bad=[
        ({"num_layers": None}, "num_layers"),
        ({"num_heads": 3}, "num_heads"),
        ({"patch_size": 12}, "patch_size"),
        ({"patch_sizes": [8, 0]}, "patch_sizes"),
        ({"max_seq_len": 9}, "max_seq_len"),
        ({"context_length": 60}, "context_length"),
        ({"distr_output": {"_target_": "uni2ts.distribution.student_t.StudentTOutput"}}, "distr_output"),
    ],
)
ADAPTERS = {"moirai": MoiraiOne()}
