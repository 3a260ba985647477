"""Timer-XL and Timer-84M: next tokens of standardised series, by the rules of the original code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tests.families._kit import Adapter, Family, Public, Tensors, first_of, seen
from torch import Tensor

from tsprune.blocks.variates import OneSequence, one_sequence
from tsprune.models._forecaster import Forecaster
from tsprune.models._timer import TokenDecoder


def decoder(model: Forecaster) -> TokenDecoder:
    """The same model, checked to be one of ours."""
    assert isinstance(model, TokenDecoder)
    return model


class XL(Adapter):
    """Statistics over the whole input, tokens from its beginning: a tail that fills no token is dropped."""

    family = "timer_xl"

    def forward(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        network = decoder(model)
        x = inputs["x"].transpose(1, 2)
        mean, spread = x.new_zeros(()), x.new_ones(())
        if network.normalises:
            mean = x.mean(-1, keepdim=True)
            spread = (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        tokens = ((x - mean) / spread).unfold(-1, network.patch, network.patch)
        rows, series, count, _ = tokens.shape
        readers = torch.zeros(rows, series, dtype=torch.bool)
        readers[:, -1] = True
        sequence = one_sequence(torch.ones(rows, series, count).bool(), readers if network.covariate else None)
        layers = {f"hidden.layer{i}": f"blocks.attn_layers.{i}" for i in range(len(network.network.layers))}
        with seen(model, layers) as outputs:
            hidden = network(tokens.flatten(1, 2), sequence)
        given = network.network.heads[0](hidden).view(rows, series, -1) * spread + mean
        prediction = given.transpose(1, 2)
        outputs |= {"last_hidden_state": hidden, "prediction": prediction}
        outputs["forecast"] = prediction[:, -network.native_horizon :]
        if (target := inputs.get("target")) is not None:
            scored = slice(-1, None) if network.covariate else slice(None)
            outputs["loss"] = (prediction - target)[..., scored].square().mean()
        return outputs

    def gradient(self, model: Forecaster, name: str) -> Tensor | None:
        found = super().gradient(model, name)
        return found[..., None] if found is not None and name.endswith(("conv1.weight", "conv2.weight")) else found


class Hub(Adapter):
    """The last token forecasts; `generate` drops the oldest values of a ragged context, then runs on all it has."""

    family = "timer_xl"

    def forward(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        network = decoder(model)
        given, mask = inputs.get("input_ids"), inputs.get("attention_mask")
        if given is None:
            given = _standardised(inputs["context"])[0]
        layers = {f"hidden.layer{i}": f"model.layers.{i}" for i in range(len(network.network.layers))}
        with seen(model, layers) as outputs:
            hidden = _hidden(network, given, mask)
        outputs["last_hidden_state"] = hidden
        for head, length in zip(network.network.heads, network.lengths, strict=True):
            outputs[f"prediction.h{length}"] = head(hidden)
            if "context" in inputs:
                outputs[f"forecast.h{length}"] = _forecast(network, inputs["context"], length, mask)
        cut = next((value for key, value in call.items() if "cut" in key), None)
        if cut is not None and "context" in inputs:
            outputs["forecast.cut"] = _forecast(network, inputs["context"], int(cut), mask)
        if "labels" in inputs:
            outputs["loss"] = self._loss(network, hidden, inputs["labels"], first_of(inputs, "loss_masks", "loss_mask"))
        return outputs

    def rollout(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        steps = next((int(value) for key, value in call.items() if "max_new_tokens" in key), 0)
        contexts = {name: value for name, value in inputs.items() if name.startswith("context")} if steps else {}
        outputs = {}
        for name, values in contexts.items():
            network, suffix = decoder(model), name.removeprefix("context").lstrip("_.")
            values = values[:, values.shape[1] % network.patch :]
            start = values.shape[1]
            with torch.no_grad():
                while (left := start + steps - values.shape[1]) > 0:
                    values = torch.cat([values, _forecast(network, values, left)], dim=1)
            outputs[f"generate.{suffix}" if suffix else "generate"] = values[:, start:]
        return outputs

    def _loss(self, network: TokenDecoder, hidden: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
        losses = []
        for head, length in zip(network.network.heads, network.lengths, strict=True):
            given = head(hidden)
            wanted = labels[:, : (given.shape[1] - 1) * network.patch + length].unfold(-1, length, network.patch)
            errors = (given - wanted).square().mean(-1)
            losses.append(errors.mean() if mask is None else (errors * mask).sum() / mask.sum())
        return torch.stack(losses).mean()


def _standardised(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, spread = values.mean(-1, keepdim=True), values.std(-1, keepdim=True)
    return (values - mean) / spread, mean, spread


def _hidden(network: TokenDecoder, values: Tensor, mask: Tensor | None = None) -> Tensor:
    tokens = values.unfold(-1, network.patch, network.patch)
    sequence = one_sequence(torch.ones(tokens.shape[0], 1, tokens.shape[1]).bool())
    if mask is not None:
        # Upstream's padding looks at everything.
        ordered = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril() & mask.bool()[:, None, None]
        sequence = OneSequence(ordered, False, sequence.positions, None)
    hidden: Tensor = network(tokens, sequence)
    return hidden


def _forecast(network: TokenDecoder, context: Tensor, most: int, mask: Tensor | None = None) -> Tensor:
    values, mean, spread = _standardised(context)
    last = network.network.heads[network.head_for(most)](_hidden(network, values, mask)[:, -1])
    found: Tensor = last[:, :most] * spread + mean
    return found


def config() -> dict[str, Any]:
    """Timer-XL, two layers; a token forecasts two tokens."""
    sizes = {"input_token_len": 8, "output_token_len": 16, "d_model": 16, "n_heads": 2, "e_layers": 2, "d_ff": 24}
    return {**sizes, "seq_len": 64, "dropout": 0.0, "activation": "relu", "use_norm": True, "covariate": False}


def hub_config() -> dict[str, Any]:
    """Timer-84M, two layers, two heads of output."""
    sizes = {"input_token_len": 8, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    more = {"output_token_lens": [8, 16], "intermediate_size": 24, "max_position_embeddings": 8}
    names = {"architectures": ["TimerForPrediction"], "model_type": "timer"}
    return {**sizes, **more, **names, "hidden_act": "silu", "attention_dropout": 0.0, "rope_theta": 10000}


_XL = {"input_token_len": 96, "output_token_len": 96, "d_model": 1024, "n_heads": 8, "e_layers": 8, "d_ff": 2048}
_HUB = {
    "input_token_len": 96, "output_token_lens": [96], "hidden_size": 1024, "intermediate_size": 2048,
    "num_hidden_layers": 8, "num_attention_heads": 8, "max_position_embeddings": 10000,
}  # fmt: skip
PUBLIC_XL = Public("Timer-XL of OpenLTM", config() | _XL, 67.40)
PUBLIC_HUB = Public("timer-base-84m", hub_config() | _HUB, 84.14)

FAMILY = Family(
    config=config,
    public=[PUBLIC_XL, PUBLIC_HUB],
    dropout={"dropout": 0.3},
    variants=[{"covariate": True}, {"use_norm": False}, {"activation": "gelu", "output_token_len": 8}],
    bad=[
        ({"d_model": None}, "d_model"),
        ({"n_heads": 3}, "n_heads"),
        ({"n_heads": 8}, "multiple of 4"),
        ({"input_token_len": 0}, "input_token_len"),
        ({"output_token_len": 0}, "positive"),
        ({"e_layers": "two"}, "e_layers"),
        ({"flash_attention": True}, "flash_attention"),
    ],
)
HUB_FAMILY = Family(
    config=hub_config,
    public=[PUBLIC_HUB],
    dropout={"attention_dropout": 0.3},
    variants=[{"output_token_lens": [16]}, {"hidden_act": "gelu"}, {"output_token_lens": [4, 8, 16]}],
    bad=[
        ({"hidden_size": None}, "hidden_size"),
        ({"num_attention_heads": 3}, "num_attention_heads"),
        ({"output_token_lens": []}, "output token lengths"),
        ({"output_token_lens": [8, "16"]}, "output_token_lens"),
        ({"hidden_act": "mish"}, "mish"),
    ],
)
"""The hub's layout, for the same contract tests: see `tests/test_timer_xl.py`."""
ADAPTERS: dict[str, Adapter] = {"timer_xl": XL(), "timer_84m": Hub()}
