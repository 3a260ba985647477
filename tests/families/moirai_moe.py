"""Moirai-MoE: every token gives the mixture of the next patch, experts by distance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from tests.families import _packed
from tests.families._kit import Adapter, Family, Public, Tensors, seen
from torch import Tensor

from tsprune.blocks.experts import MixtureOfExperts
from tsprune.models._forecaster import Forecaster
from tsprune.models._packedwindows import PackedWindows
from tsprune.models._packing import Packed


class MoiraiExperts(Adapter):
    """Module cases give packed tokens, forecast cases what the public forecaster packs; routers are watched."""

    def forward(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        if call.get("kind") == "forecast":
            return self._forecast(model, inputs, call)
        packed = _packed.given(inputs)
        inner = {"hidden.layer0": "encoder.layers.0", "encoder_out": "encoder"}
        with seen(model, inner) as found, routed(model, packed) as routes:
            parameters, location, scale = model(packed)
        log_prob, mean = _packed.measured(model, parameters, location, scale, packed.values)
        outputs = {f"param.{name}": value for name, value in parameters.items()} | found | routes
        outputs |= {"loc": location, "scale": scale, "mean": mean, "log_prob": log_prob}
        following, seen_there, has_following = _following(packed)
        ahead, _ = _packed.measured(model, parameters, location, scale, following)
        outputs["loss"] = _packed.packed_mean(-ahead, seen_there, replace(packed, predicted=has_following))
        return outputs | self._same_token(model, log_prob, packed)

    def _forecast(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        size, width = int(call["forecaster_arguments"]["patch_size"]), max(model.config["patch_sizes"])
        windows, steps = _packed.forecaster(inputs, call, size, width, teach=False)
        packed = windows.packed
        with routed(model, packed) as routes:
            parameters, location, scale = model(packed)
        _, mean = _packed.measured(model, parameters, location, scale, packed.values)
        outputs = {f"param.{name}": value for name, value in parameters.items()} | routes | _packed.shown(packed)
        mean = windows.last(mean)[:, :steps].view(-1, windows.series, steps).transpose(1, 2).squeeze(-1)
        outputs |= {"loc": location, "scale": scale, "mean": mean}
        if "future_target" not in inputs:
            return outputs
        taught = _packed.forecaster(inputs, call, size, width, teach=True)[0].packed
        outputs["loss"] = self._next_patch(model, windows, taught, parameters, location, scale)
        known, place, spread = model(taught)
        log_prob, _ = _packed.measured(model, known, place, spread, taught.values)
        return outputs | self._same_token(model, log_prob, taught)

    def _next_patch(
        self,
        model: Forecaster,
        windows: PackedWindows,
        taught: Packed,
        parameters: Tensors,
        location: Tensor,
        scale: Tensor,
    ) -> Tensor:
        """Loss of the first horizon patch, by the last context token."""
        last = {name: windows.last(value) for name, value in parameters.items()}
        wanted, counted = windows.horizon(taught.values)[:, 0], windows.horizon(taught.observed)[:, 0]
        log_prob, _ = _packed.measured(model, last, windows.last(location), windows.last(scale), wanted)
        return (-(log_prob * counted).sum(-1) / counted.sum(-1).clamp(min=1)).mean()

    def _same_token(self, model: Forecaster, log_prob: Tensor, packed: Packed) -> Tensors:
        """The packed loss of each horizon token against its own values, and its gradients."""
        loss = _packed.packed_mean(-log_prob, packed.observed & packed.predicted[..., None], packed)
        if not torch.is_grad_enabled():
            return {"loss_same_token": loss}
        named = dict(model.named_parameters())
        found = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
        pairs = zip(named.items(), found, strict=True)
        gradients = {
            f"grad_loss_same_token.{model.names.public(name)}": torch.zeros_like(value) if part is None else part
            for (name, value), part in pairs
        }
        return {"loss_same_token": loss} | gradients


def _following(packed: Packed) -> tuple[Tensor, Tensor, Tensor]:
    """Values of the horizon patch behind each token, which of them are observed, and which tokens have such a patch."""
    series, time = packed.series, packed.time_id
    pair = (series[:, :, None] == series[:, None]) & (time[:, None] - time[:, :, None] == 1)
    pair = pair & (packed.sample_id > 0)[:, :, None] & packed.predicted[:, None]
    has, place = pair.any(-1), pair.long().argmax(-1)[..., None].expand_as(packed.values)
    return packed.values.gather(1, place), packed.observed.gather(1, place) & has[..., None], has


@contextmanager
def routed(model: Forecaster, packed: Packed) -> Iterator[Tensors]:
    """What the routers do during a forward pass; padding has no distances, and -1 for its experts."""
    found: Tensors = {}
    live = (packed.sample_id > 0).flatten()[:, None]
    mixtures = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]

    def note(number: int) -> Any:
        def keep(logits: Tensor, shares: Tensor, chosen: Tensor) -> None:
            logits, shares, chosen = (x.flatten(0, 1).detach() for x in (logits, shares, chosen))
            weights = shares.gather(-1, chosen)
            found[f"router_distance.layer{number}"] = logits * live
            found[f"selected_experts.layer{number}"] = torch.where(live, chosen, -1)
            found[f"routing_weights.layer{number}"] = weights / weights.sum(-1, keepdim=True) * live

        return keep

    for number, mixture in enumerate(mixtures):
        mixture.watch = note(number)
    try:
        yield found
    finally:
        for mixture in mixtures:
            mixture.watch = None


def config() -> dict[str, Any]:
    """Two layers of three experts. Of the components only two, which are fast to invert; `moirai` has all of them."""
    components = _packed.DISTRIBUTIONS["components"]
    return {
        "distr_output": _packed.DISTRIBUTIONS | {"components": [components[0], components[3]]},
        "d_model": 32,
        "d_ff": 8,
        "num_layers": 2,
        "num_heads": 4,
        "num_experts": 3,
        "patch_sizes": [8, 16],
        "patch_size": 16,
        "context_length": 64,
        "max_seq_len": 64,
        "attn_dropout_p": 0.0,
        "dropout_p": 0.0,
        "scaling": True,
    }


def _public(width: int, layers: int, hidden: int) -> dict[str, Any]:
    own = ("num_heads", "num_experts", "patch_size", "context_length")
    plain = {name: value for name, value in config().items() if name not in own}
    sizes = {"patch_sizes": [16], "max_seq_len": 512, "distr_output": _packed.DISTRIBUTIONS}
    return plain | sizes | {"d_model": width, "num_layers": layers, "d_ff": hidden}


FAMILY = Family(
    config=config,
    public=[
        Public("moirai moe small", _public(384, 6, 512), 117.03),
        Public("moirai moe base", _public(768, 12, 1024), 935.0, within=0.1),
    ],
    dropout={"dropout_p": 0.3, "attn_dropout_p": 0.3},
    variants=[{"scaling": False}, {"patch_size": 8}],
    bad=[
        ({"d_ff": None}, "d_ff"),
        ({"num_heads": 3}, "num_heads"),
        ({"patch_size": 12}, "patch_size"),
        ({"num_experts": 1}, "experts"),
        ({"max_seq_len": 4}, "max_seq_len"),
    ],
)
ADAPTERS = {"moirai_moe": MoiraiExperts()}
