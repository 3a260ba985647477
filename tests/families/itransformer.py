"""iTransformer: windows of several series, standardised, all at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.families._kit import Adapter, Family, Tensors, first_of, seen
from torch import Tensor

from tsprune.models._forecaster import Forecaster


class Inverted(Adapter):
    """One forward pass over given windows; the public loss is in the series' own units."""

    def forward(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        marks = first_of(inputs, "x_mark", "x_mark_enc")
        layers = {f"hidden.layer{i}": f"encoder.attn_layers.{i}" for i in range(int(model.config["e_layers"]))}
        with seen(model, layers | {"encoder_out": "encoder.norm"}) as outputs:
            found = model(inputs["x"].transpose(1, 2), marks=None if marks is None else marks.transpose(1, 2))
        outputs["forecast"] = found.transpose(1, 2)
        if (target := inputs.get("target")) is not None:
            outputs["loss"] = (outputs["forecast"] - target).square().mean()
        return outputs

    def gradient(self, model: Forecaster, name: str) -> Tensor | None:
        found = super().gradient(model, name)
        return found[..., None] if found is not None and name.endswith(("conv1.weight", "conv2.weight")) else found


def config() -> dict[str, Any]:
    """Two layers."""
    sizes = {"seq_len": 64, "pred_len": 16, "d_model": 24, "n_heads": 3, "e_layers": 2, "d_ff": 20}
    return {**sizes, "task_name": "long_term_forecast", "dropout": 0.0, "activation": "gelu", "use_norm": True}


FAMILY = Family(
    config=config,
    dropout={"dropout": 0.3},
    variants=[{"use_norm": False}, {"activation": "relu", "n_heads": 5, "d_ff": None}],
    bad=[
        ({"d_model": None}, "d_model"),
        ({"seq_len": 0}, "seq_len"),
        ({"pred_len": "ten"}, "pred_len"),
        ({"n_heads": 25}, "n_heads 25"),
        ({"task_name": "imputation"}, "imputation"),
        ({"use_norm": "yes"}, "use_norm"),
    ],
)
ADAPTERS: dict[str, Adapter] = {"itransformer": Inverted()}
