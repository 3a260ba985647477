"""What the reference cases of the Moirai generations have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tests.families._kit import Tensors, first_of
from torch import Tensor

from tsprune.models._forecaster import Forecaster
from tsprune.models._packedwindows import PackedWindows
from tsprune.models._packing import Packed, Variates, pack

LEVELS = [round(0.1 * k, 1) for k in range(1, 10)]
DISTRIBUTIONS: dict[str, Any] = {
    "_target_": "uni2ts.distribution.mixture.MixtureOutput",
    "components": [
        {"_target_": "uni2ts.distribution.student_t.StudentTOutput"},
        {"_target_": "uni2ts.distribution.normal.NormalFixedScaleOutput"},
        {"_target_": "uni2ts.distribution.negative_binomial.NegativeBinomialOutput"},
        {"_target_": "uni2ts.distribution.log_normal.LogNormalOutput"},
    ],
}


def shown(packed: Packed) -> Tensors:
    """What the cases hold of packed tokens."""
    names = {"target": "values", "observed_mask": "observed", "prediction_mask": "predicted"}
    names |= {name: name for name in ("sample_id", "time_id", "variate_id", "patch_size")}
    return {f"pack.{name}": getattr(packed, own) for name, own in names.items()}


def given(inputs: Tensors) -> Packed:
    """The packed tensors of a module case."""
    observed = inputs["observed_mask"].bool()
    sizes = inputs.get("patch_size")
    if sizes is None:
        sizes = torch.full_like(inputs["sample_id"], observed.shape[-1])
    return Packed(
        inputs["target"], observed, inputs["sample_id"], inputs["time_id"], inputs["variate_id"],
        inputs["prediction_mask"].bool(), sizes,
    )  # fmt: skip


def forecaster(
    inputs: Tensors, call: Mapping[str, Any], size: int, width: int, *, teach: bool
) -> tuple[PackedWindows, int]:
    """What the public forecaster packs, and its steps; with `teach` its horizon holds the values to come."""
    arguments = call.get("forecaster_arguments") or {}
    past = inputs["past_target"]
    steps = int(arguments["prediction_length"])
    padding = inputs.get("past_is_pad")
    padding = torch.zeros(past.shape[:2]) if padding is None else padding
    seen = inputs.get("past_observed_target")
    future, future_seen = past.new_zeros(len(past), steps, past.shape[-1]), None
    if teach and "future_target" in inputs:
        future = inputs["future_target"]
        future_seen = first_of(inputs, "future_observed_target", "future_observed_values")
    parts = [_variates(past, seen, future, future_seen, predicted=True)]
    if (known := inputs.get("feat_dynamic_real")) is not None:
        cut = past.shape[1]
        known_seen = inputs.get("observed_feat_dynamic_real")
        sides = (None, None) if known_seen is None else (known_seen[:, :cut], known_seen[:, cut:])
        parts.append(_variates(known[:, :cut], sides[0], known[:, cut:], sides[1]))
    if (other := inputs.get("past_feat_dynamic_real")) is not None:
        parts.append(_variates(other, inputs.get("past_observed_feat_dynamic_real")))
    packed = pack(parts, padding.bool(), size, width)
    rows = torch.arange(past.shape[0] * past.shape[-1])
    return PackedWindows(packed, rows, rows, past.shape[-1], -(-past.shape[1] // size), -(-steps // size)), steps


def _variates(
    past: Tensor,
    past_seen: Tensor | None,
    future: Tensor | None = None,
    future_seen: Tensor | None = None,
    *,
    predicted: bool = False,
) -> Variates:
    def turned(values: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
        observed = torch.ones_like(values, dtype=torch.bool) if seen is None else seen.bool()
        return values.transpose(1, 2), observed.transpose(1, 2)

    later = (None, None) if future is None else turned(future, future_seen)
    return Variates(*turned(past, past_seen), *later, predicted=predicted)


def measured(
    model: Forecaster, parameters: Tensors, location: Tensor, scale: Tensor, values: Tensor
) -> tuple[Tensor, Tensor]:
    """Log density of values and predictive mean, elementwise, both in own units."""
    place, spread = location.expand_as(values), scale.expand_as(values)
    mixture = model.param_proj.mixture(parameters, place, spread)  # type: ignore[operator, union-attr]
    return mixture.log_prob(values), mixture.mean


def packed_mean(values: Tensor, counted: Tensor, packed: Packed) -> Tensor:
    """Mean over the counted entries of each row, sample and series, then over those that have horizon tokens."""
    series = packed.sample_id * 1000 + packed.variate_id
    means = []
    for row in range(len(series)):
        for one in torch.unique(series[row][packed.predicted[row]]).tolist():
            own = (series[row] == one)[:, None] & counted[row]
            means.append(torch.where(own, values[row], 0.0).sum() / own.sum().clamp(min=1))
    return torch.stack(means).mean()
