"""Time-MoE: standardised values as they come, upstream's masks, losses over the whole batch at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tests.families._kit import Adapter, Family, Public, Tensors, seen
from torch import Tensor
from torch.nn import functional as F

from tsprune.blocks.experts import Routing, balance_loss, routings
from tsprune.models._forecaster import Forecaster
from tsprune.models.time_moe import TimeMoe, huber_sums


def network(model: Forecaster) -> TimeMoe:
    """The same model, checked to be one of ours."""
    assert isinstance(model, TimeMoe)
    return model


class Values(Adapter):
    """Positions count from the first slot, padding looks at everything, and the loss is one number for the batch."""

    def forward(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        moe, values, attention = network(model), _standardised(inputs), _attention(inputs)
        mask = None
        if attention is not None:
            length = attention.shape[1]
            mask = torch.ones(length, length, dtype=torch.bool).tril() & attention[:, None, None]
        layers = {f"hidden.layer{i}": f"model.layers.{i}" for i in range(len(moe.model.layers))}
        with seen(moe, layers) as outputs, routings(moe.model) as routed:
            states = moe(values, mask=mask)
        outputs["last_hidden_state"] = states
        for head, horizon in zip(moe.lm_heads, moe.horizons, strict=True):
            outputs[f"prediction.h{horizon}"] = head(states)
        cut = next((int(value) for key, value in call.items() if "cut" in key), None)
        if cut is not None:
            outputs["prediction.cut"] = moe.lm_heads[moe.head_for(cut)](states)[..., :cut]
        if attention is not None:
            outputs = {name: output * attention[..., None] for name, output in outputs.items()}
        for number, routing in enumerate(routed):
            outputs |= _routed(number, routing, attention)
        if "labels" in inputs:
            outputs["loss"] = _loss(moe, states, inputs["labels"], inputs.get("loss_masks"))
            if moe.balance and routed:
                outputs["loss"] = outputs["loss"] + moe.balance * balance_loss(routed, moe.model.experts, attention)
        return outputs

    def rollout(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        steps = next((int(value) for key, value in call.items() if "max_new_tokens" in key), 0)
        if not steps:
            return {}
        with torch.no_grad():
            found = network(model).continued(_standardised(inputs), steps, seen=_attention(inputs))
        outputs = {"generate.normalised": found}
        if "mean" in inputs and "std" in inputs:
            outputs["generate.denormalised"] = found * inputs["std"] + inputs["mean"]
        return outputs


def _standardised(inputs: Tensors) -> Tensor:
    """What upstream is given: by the caller, or of a context the caller would have standardised."""
    if "input_ids" in inputs:
        return inputs["input_ids"]
    context, attention = inputs["context_raw"], _attention(inputs)
    observed = context if attention is None else context.masked_fill(~attention, torch.nan)
    mean = observed.nanmean(-1, keepdim=True)
    count = (~torch.isnan(observed)).sum(-1, keepdim=True)
    spread = ((observed - mean).square().nansum(-1, keepdim=True) / (count - 1)).sqrt()
    return torch.nan_to_num(((observed - inputs.get("mean", mean)) / inputs.get("std", spread)), nan=0.0)


def _attention(inputs: Tensors) -> Tensor | None:
    found = inputs.get("attention_mask")
    return None if found is None else found.bool()


def _routed(number: int, routing: Routing, attention: Tensor | None) -> Tensors:
    """Logits, weights and experts of the tokens of all rows behind each other, blank at padding."""
    weights, chosen, logits = routing.shares.gather(-1, routing.chosen), routing.chosen, routing.logits
    if attention is not None:
        weights, logits = weights * attention[..., None], logits * attention[..., None]
        chosen = torch.where(attention[..., None], chosen, -1)
    names = {"router_logits": logits, "routing_weights": weights, "selected_experts": chosen}
    return {f"{name}.layer{number}": value.flatten(0, 1) for name, value in names.items()}


def _loss(moe: TimeMoe, states: Tensor, labels: Tensor, masks: Tensor | None) -> Tensor:
    """Mean over the heads of weighted means over the batch; without weights even what lies beyond the end counts."""
    if masks is None:
        beyond = (0, moe.native_horizon - 1)
        labels, masks = F.pad(labels, beyond), torch.ones_like(F.pad(labels, beyond))
    losses = []
    for head in moe.lm_heads:
        errors, weight = huber_sums(head(states), labels, masks.to(labels.dtype))
        losses.append(errors.sum() / weight.sum())
    return torch.stack(losses).mean()


def config() -> dict[str, Any]:
    """Two layers, three experts (each gets tokens of the batches in the tests), two key/value heads."""
    return {
        "architectures": ["TimeMoeForPrediction"],
        "model_type": "time_moe",
        "input_size": 1,
        "hidden_size": 24,
        "intermediate_size": 20,
        "horizon_lengths": [1, 4, 16],
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 80,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000,
        "attention_dropout": 0.0,
        "use_dense": False,
        "apply_aux_loss": True,
        "router_aux_loss_factor": 0.02,
    }


def _public(width: int) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 12, "num_attention_heads": 12}
    more = {"num_key_value_heads": 12, "num_experts": 8, "horizon_lengths": [1, 8, 32, 64]}
    return config() | sizes | more | {"max_position_embeddings": 4096}


FAMILY = Family(
    config=config,
    public=[Public("time_moe 50M", _public(384), 113.35), Public("time_moe 200M", _public(768), 453.20)],
    dropout={"attention_dropout": 0.3},
    variants=[
        {"use_dense": True, "apply_aux_loss": False},
        {"num_key_value_heads": 4, "num_experts": 6, "num_experts_per_tok": 3},
    ],
    bad=[
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": 20}, "hidden_size 20"),
        ({"num_attention_heads": 5}, "num_attention_heads 5"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
        ({"intermediate_size": "wide"}, "intermediate_size"),
        ({"horizon_lengths": []}, "horizon_lengths"),
        ({"horizon_lengths": [1, 8, 8]}, "horizon_lengths"),
        ({"horizon_lengths": [1, 0]}, "horizon_lengths"),
        ({"max_position_embeddings": 16}, "max_position_embeddings 16"),
        ({"num_experts": 1}, "num_experts_per_tok 2"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok 0"),
        ({"use_dense": True}, "apply_aux_loss"),
        ({"hidden_act": "snake"}, "snake"),
        ({"input_size": 2}, "input_size is 2"),
    ],
)
ADAPTERS = {"time_moe": Values()}
