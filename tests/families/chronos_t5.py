"""Chronos-T5: tokens of uniform bins, decoded one by one; one public table of relative biases per stack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tests.families._kit import Family, Public, Tensors
from tests.families._t5 import T5Adapter, tables
from torch import Tensor
from torch.nn import functional as F

from tsprune.models._forecaster import Forecaster
from tsprune.models.chronos_t5 import MISSING, ChronosT5


class T5(T5Adapter):
    """Teacher-forced logits, and greedy decoding."""

    def forward(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        assert isinstance(model, ChronosT5)
        context, target = inputs["context"], inputs.get("target")
        cut = context[:, -model.context_length :]
        scale = model.bins.scale(cut)
        ids = model.bins.with_end(model.bins.encode(cut, scale))
        seen = F.pad(~torch.isnan(cut), (0, ids.shape[1] - cut.shape[1]), value=True)
        outputs = {"scale": scale[:, 0], "input_ids": ids, "attention_mask": seen}
        if target is not None:
            logits, labels = model(context, target)
            outputs |= {"logits": logits, "logits_first_step": logits[:, 0], "labels": labels}
            # The public loss is a mean over all labels of the batch, ours over those of a row.
            outputs["loss"] = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=MISSING)
        return outputs

    def rollout(self, model: Forecaster, inputs: Tensors, call: Mapping[str, Any]) -> Tensors:
        assert isinstance(model, ChronosT5)

        def likeliest(logits: Tensor, step: int) -> Tensor:
            return logits.argmax(-1)

        steps = int(call.get("prediction_length", model.native_horizon))
        with torch.no_grad():
            ids, scale = model.generate(inputs["context"], likeliest, 1, steps)
        return {"greedy_tokens": ids[:, 0], "greedy_values": model.bins.decode(ids, scale)[:, 0]}


def config() -> dict[str, Any]:
    """Two layers in each stack; bins narrow enough to tell the series of the tests apart.

    Flat probabilities: what half precision changes of sharper ones grows from token to token where weights are random.
    """
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "d_model": 24,
        "d_kv": 6,
        "d_ff": 20,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 3,
        "feed_forward_proj": "relu",
        "dropout_rate": 0.0,
        "tie_word_embeddings": True,
        "scale_decoder_outputs": True,
        "vocab_size": 100,
        "chronos_config": {
            "tokenizer_class": "MeanScaleUniformBins",
            "tokenizer_kwargs": {"low_limit": -4.0, "high_limit": 4.0},
            "model_type": "seq2seq",
            "n_tokens": 100,
            "n_special_tokens": 2,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "use_eos_token": True,
            "context_length": 64,
            "prediction_length": 16,
            "num_samples": 20,
            "temperature": 2.0,
            "top_k": 0,
            "top_p": 1.0,
        },
    }


def _public(width: int, hidden: int, layers: int, heads: int) -> dict[str, Any]:
    found = config()
    sizes = {"d_model": width, "d_ff": hidden, "d_kv": 64, "num_heads": heads, "vocab_size": 4096}
    section = found["chronos_config"] | {"n_tokens": 4096, "context_length": 512, "prediction_length": 64}
    return found | sizes | {"num_layers": layers, "num_decoder_layers": layers, "chronos_config": section}


FAMILY = Family(
    config=config,
    public=[
        Public("t5 tiny", _public(256, 1024, 4, 4), 8.39, tables),
        Public("t5 mini", _public(384, 1536, 4, 8), 20.46, tables),
        Public("t5 small", _public(512, 2048, 6, 8), 46.15, tables),
        Public("t5 base", _public(768, 3072, 12, 12), 201.37, tables),
        Public("t5 large", _public(1024, 4096, 24, 16), 708.96, tables),
    ],
    dropout={"dropout_rate": 0.3},
    variants=[
        {"feed_forward_proj": "gated-gelu", "use_eos_token": False, "top_k": 50},
        {"tie_word_embeddings": False, "scale_decoder_outputs": None, "top_p": 0.8},
        {"num_decoder_layers": 3, "scale_decoder_outputs": False},
    ],
    # Scaling by the mean absolute value leaves the level where it is.
    shifts=False,
    bad=[
        ({"d_model": None}, "d_model"),
        ({"d_kv": "six"}, "d_kv"),
        ({"feed_forward_proj": "snake"}, "snake"),
        ({"chronos_config": None}, "chronos_config"),
        ({"vocab_size": 99}, "vocab_size 99"),
        ({"decoder_start_token_id": 100}, "decoder_start_token_id 100"),
        ({"n_tokens": 4}, "n_tokens 4"),
        ({"n_special_tokens": 1}, "eos_token_id 1"),
        ({"tokenizer_class": "Letters"}, "Letters"),
        ({"tokenizer_kwargs": {"low_limit": 1.0, "high_limit": 1.0}}, "low_limit 1"),
        ({"tokenizer_kwargs": {"low_limit": 1.0}}, "high_limit"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"num_samples": 0}, "num_samples"),
        ({"prediction_length": 0}, "prediction_length"),
    ],
)
ADAPTERS = {"chronos_t5": T5()}
