"""Toto 1: rows are variates of a window, ids say which of them inform each other, forecasts go patch by patch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tests.families._kit import Adapter, Family, Public, Tensors, seen
from torch import Tensor

from tsprune.blocks.across import Groups
from tsprune.errors import TspruneError
from tsprune.models import toto
from tsprune.models._forecaster import Forecaster
from tsprune.models._toto_paths import Paths


class TotoOne(Adapter):
    """Toto 1: series `[batch, variates, time]` with masks and ids of the same shape."""

    def forward(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        assert isinstance(model, toto.Toto)
        context, observed, groups = rows_of(inputs, "")
        shape = inputs["series"].shape[:2]
        count = len(model.model.layers)
        layers = {f"hidden.layer{number}": f"model.transformer.layers.{number}" for number in range(count)}
        paths = {"patch_embedding": "model.patch_embed.projection", "transformer_out": "model.transformer", **layers}
        with seen(model, paths) as found:
            outlook = model(context, observed=observed, groups=groups)
        scale, parts, normal = outlook.scale, outlook.parts, outlook.normal
        outputs = {
            **{name: value.unflatten(0, shape) for name, value in found.items()},
            "loc": steps(scale.location.expand(normal.shape).float(), shape),
            "scale": steps(scale.scale.expand(normal.shape).float(), shape),
            "mean": steps(outlook.own.mean.float(), shape),
            "mean_normalised": steps(normal.mean, shape),
            "param.df": steps(parts.df, shape),
            "param.loc": steps(parts.loc, shape),
            "param.scale": steps(parts.scale, shape),
            "param.probs": steps(outlook.logits.softmax(-1), shape),
        }
        if "target" in inputs:
            target = inputs["target"].reshape(normal.shape)
            mask = inputs.get("target_mask", torch.ones_like(inputs["target"], dtype=torch.bool))
            counted = mask.bool().reshape(normal.shape)
            outputs["log_prob"] = steps(outlook.log_density(outlook.normalised(target)), shape)
            outputs["loss"] = outlook.losses(target, counted).sum() / (counted.sum() + 1e-7)
        return outputs

    def rollout(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        length = call.get("forecast.prediction_length", call.get("prediction_length"))
        if length is None:
            return {}
        assert isinstance(model, toto.Toto)
        prefix = "forecast_" if "forecast_series" in inputs else ""
        context, observed, groups = rows_of(inputs, prefix, model.patch)
        shape = inputs[f"{prefix}series"].shape[:2]
        moving = {"forecast.mean": False, "forecast.mean_kv_cache": True}
        return {
            name: mean_path(model, context, observed, groups, int(length), moving=moves).unflatten(0, shape)
            for name, moves in moving.items()
        }

    def gradient(self, model: Forecaster, name: str) -> Tensor | None:
        assert isinstance(model, toto.Toto)
        own = {key: torch.zeros_like(p) if p.grad is None else p.grad for key, p in model.named_parameters()}
        return model.public_layout(own).get(name)


def rows_of(inputs: Tensors, prefix: str, patch: int = 1) -> tuple[Tensor, Tensor, Groups]:
    """Values `[B * V, L]`, which of them are real, and the groups, filled on the left up to whole patches."""
    series = inputs[f"{prefix}series"]
    batch, variates, length = series.shape
    real = inputs.get(f"{prefix}padding_mask", torch.ones_like(series, dtype=torch.bool)).bool()
    ids = inputs.get(f"{prefix}id_mask", torch.zeros(batch, variates, 1, dtype=torch.long))
    ids = ids.expand(batch, variates, -1)
    if not torch.equal(ids, ids[..., :1].expand_as(ids)):
        raise TspruneError("ids that change along time are not supported; a row has one group")
    _, number = torch.unique(ids[..., 0], return_inverse=True)
    groups = (number + torch.arange(batch)[:, None] * (batch * variates)).flatten()
    fill = (-length % patch, 0)
    rows = torch.nn.functional.pad(series.flatten(0, 1), fill)
    return rows, torch.nn.functional.pad(real.flatten(0, 1), fill), Groups.of(groups)


def steps(values: Tensor, shape: torch.Size) -> Tensor:
    """`[B * V, T, P, ...]` to `[B, V, T * P, ...]`."""
    return values.flatten(1, 2).unflatten(0, shape)


@torch.no_grad()
def mean_path(
    model: toto.Toto, context: Tensor, observed: Tensor, groups: Groups | None, length: int, *, moving: bool = False
) -> Tensor:
    """The public point forecast `[B, length]`: the mean of every patch is taken for what happened."""
    paths = Paths(model.model, context, observed, groups, moving=moving)
    blocks = [paths.outlook.own.mean]
    while len(blocks) * model.patch < length:
        paths.follow(blocks[-1])
        blocks.append(paths.outlook.own.mean)
    return torch.cat(blocks, dim=-1).squeeze(1)[:, :length].to(context.dtype)


def config() -> dict[str, Any]:
    """Time, series, time, series."""
    return {
        "patch_size": 16,
        "stride": 16,
        "embed_dim": 24,
        "num_layers": 4,
        "num_heads": 3,
        "mlp_hidden_dim": 20,
        "dropout": 0.0,
        "spacewise_every_n_layers": 2,
        "scaler_cls": "<class 'model.scaler.CausalPatchStdMeanScaler'>",
        "output_distribution_classes": ["<class 'model.distribution.MixtureOfStudentTsOutput'>"],
        "spacewise_first": False,
        "output_distribution_kwargs": {"k_components": 3},
        "use_memory_efficient_attention": False,
        "stabilize_with_global": True,
        "scale_factor_exponent": 10.0,
        "context_length": 64,
    }


def _public() -> dict[str, Any]:
    sizes = {"patch_size": 64, "stride": 64, "embed_dim": 768, "num_layers": 12, "num_heads": 12}
    return (
        config()
        | sizes
        | {
            "mlp_hidden_dim": 3072,
            "spacewise_every_n_layers": 12,
            "output_distribution_kwargs": {"k_components": 24},
        }
    )


FAMILY = Family(
    config=config,
    public=[Public("toto open base 1.0", _public(), 151.31)],
    dropout={"dropout": 0.3},
    variants=[{"stabilize_with_global": False}, {"spacewise_first": True}, {"spacewise_every_n_layers": -1}],
    # Every variance is raised by 0.1 in the units of the series, so small series are scaled otherwise than large ones.
    scales=False,
    bad=[
        ({"embed_dim": None}, "embed_dim"),
        ({"num_heads": 5}, "num_heads 5"),
        ({"num_heads": 8}, "even width"),
        ({"stride": 8}, "stride 8 must equal patch_size 16"),
        ({"patch_size": 0, "stride": 0}, "patch_size 0"),
        ({"spacewise_every_n_layers": 3}, "spacewise_every_n_layers is 3"),
        ({"spacewise_every_n_layers": 0}, "spacewise_every_n_layers is 0"),
        ({"scaler_cls": "<class 'model.scaler.StdMeanScaler'>"}, "scaler_cls"),
        ({"output_distribution_classes": ["StudentTOutput"]}, "output_distribution_classes"),
        ({"k_components": None}, "k_components"),
        ({"k_components": 0}, "k_components"),
        ({"context_length": 0}, "context_length"),
        ({"scale_factor_exponent": "ten"}, "scale_factor_exponent"),
    ],
)
ADAPTERS = {"toto": TotoOne()}
