"""Chronos-2: whole output patches, groups, known futures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tests.families import _chronos
from tests.families._kit import Adapter, Family, Public, Tensors, first_of, hidden_where

from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster


class ChronosTwo(Adapter):
    """Chronos-2: whole output patches, groups, known futures."""

    def forward(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        mask = first_of(inputs, "mask", "context_mask")
        steps = int(call.get("num_output_patches", 1)) * int(model.config["chronos_config"]["input_patch_size"])
        batch = self._batch(inputs)
        with torch.no_grad():
            prediction, scale = model(
                batch.context, steps=steps, mask=mask, group_ids=batch.group_ids, future=batch.future
            )
        outputs = {"quantile_preds": scale.invert(prediction)}
        if batch.target is not None:
            outputs["loss"] = model.row_losses(batch, mask=mask, steps=steps).mean()  # type: ignore[call-arg]
        return outputs

    def rollout(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        if "rollout_length" not in call:
            return {}
        return {"rollout_quantiles": model.forecast(self._batch(inputs), int(call["rollout_length"]))}

    def _batch(self, inputs: Tensors) -> Batch:
        future = hidden_where(inputs.get("future_covariates"), inputs.get("future_covariates_mask"))
        target = first_of(inputs, "target", "future_target")
        target = hidden_where(target, first_of(inputs, "target_mask", "future_target_mask"))
        return Batch(inputs["context"], target, inputs.get("group_ids"), future)


def config() -> dict[str, Any]:
    """Two layers."""
    tiny = _chronos.tiny()
    tiny["chronos_config"] |= {"output_patch_size": 8, "max_output_patches": 2, "use_arcsinh": True}
    return tiny | {"architectures": ["Chronos2Model"], "chronos_pipeline_class": "Chronos2Pipeline"}


def _public() -> dict[str, Any]:
    levels = [0.01, *[round(0.05 * k, 2) for k in range(1, 20)], 0.99]
    found = _chronos.sized(config(), levels, d_model=768, d_ff=3072, num_layers=12, num_heads=12)
    found["chronos_config"]["output_patch_size"] = 16
    return found


FAMILY = Family(
    config=config,
    public=[Public("chronos-2", _public(), 119.48)],
    dropout={"dropout_rate": 0.3},
    variants=[{"use_reg_token": False}],
    bad=_chronos.BAD,
)
ADAPTERS = {"chronos2": ChronosTwo()}
