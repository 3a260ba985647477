"""Chronos-Bolt: the native horizon in one block; one public table of relative biases per stack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tests.families import _chronos
from tests.families._kit import Family, Public, Tensors, first_of, hidden_where
from tests.families._t5 import T5Adapter, tables

from tsprune.blocks.across import SingleStepAttention
from tsprune.blocks.units import UnitGroup
from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster


class Bolt(T5Adapter):
    """The native horizon in one block."""

    def forward(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        mask = first_of(inputs, "mask", "context_mask")
        with torch.no_grad():
            prediction, scale = model(inputs["context"], mask=mask)
        outputs = {"quantile_preds": scale.invert(prediction)}
        target = hidden_where(inputs.get("target"), inputs.get("target_mask"))
        if target is not None:
            outputs["loss"] = model.row_losses(Batch(inputs["context"], target), mask=mask).mean()  # type: ignore[call-arg]
        return outputs

    def rollout(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        if "rollout_length" not in call:
            return {}
        return {"rollout_quantiles": model.forecast(Batch(inputs["context"]), int(call["rollout_length"]))}


def config() -> dict[str, Any]:
    """Two layers in each stack."""
    tiny = _chronos.tiny()
    tiny["chronos_config"]["prediction_length"] = 16
    names = {"architectures": ["ChronosBoltModelForForecasting"], "chronos_pipeline_class": "ChronosBoltPipeline"}
    return tiny | names | {"num_decoder_layers": 2, "decoder_start_token_id": 0}


def _public(width: int, hidden: int, layers: int, heads: int) -> dict[str, Any]:
    levels = [round(0.1 * k, 1) for k in range(1, 10)]
    found = _chronos.sized(
        config(), levels, d_model=width, d_ff=hidden, num_layers=layers, num_decoder_layers=layers, num_heads=heads
    )
    found["chronos_config"]["prediction_length"] = 64
    return found


def _idle(model: Forecaster, group: UnitGroup) -> bool:
    """A softmax over one entry is 1 whatever query and key, so these alone cannot matter."""
    single = isinstance(model.get_submodule(group.path.removesuffix(".q").removesuffix(".k")), SingleStepAttention)
    return single and (group.kind == "qk_pair" or group.path.endswith((".q", ".k")))


FAMILY = Family(
    config=config,
    public=[
        Public("bolt tiny", _public(256, 1024, 4, 4), 8.65, tables),
        Public("bolt mini", _public(384, 1536, 4, 8), 21.24, tables),
        Public("bolt small", _public(512, 2048, 6, 8), 47.72, tables),
        Public("bolt base", _public(768, 3072, 12, 12), 205.29, tables),
    ],
    dropout={"dropout_rate": 0.3},
    variants=[{"use_reg_token": False}, {"feed_forward_proj": "gated-gelu"}],
    idle=_idle,
    bad=_chronos.BAD,
)
ADAPTERS = {"chronos_bolt": Bolt()}
