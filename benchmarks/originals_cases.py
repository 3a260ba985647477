"""What originals.py compares: sizes of a public checkpoint for each family, inputs, how our forward pass is called."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster
from tsprune.models._packing import Packed, Variates, pack
from tsprune.registry import find

CONTEXT, STEPS = 512, 64
Tensors = dict[str, Tensor]
Config = dict[str, Any]
ABSENT = {
    "time_moe": "research code on GitHub and in the hub, written for transformers 4.40; there is no package",
    "timer_xl": "research code on GitHub and in the hub; there is no package",
    "itransformer": "only in a collection of research code on GitHub; there is no package",
}


@dataclass(frozen=True)
class Case:
    """One family at the sizes of one public checkpoint.

    Args:
        family: ours.
        config: public config.
        inputs: tensors for so many rows, the same for both sides.
        forward: one pass of ours, which is what is timed.
        shown: tensors of what a pass returns, to be compared, by the names of originals_worker.py.
        batches: numbers of rows.
    """

    family: str
    config: Callable[[], Config]
    inputs: Callable[[Config, int], Tensors]
    forward: Callable[[Any, Tensors], Any]
    shown: Callable[[Any, Tensors, Any], Tensors]
    batches: tuple[int, ...] = (1, 16)


def public(family: str, name: str, drop: tuple[str, ...] = (), **changes: Any) -> Callable[[], Config]:
    """The config of a public checkpoint, as the contract tests have it; sections are changed entry by entry."""

    def config() -> Config:
        known = importlib.import_module(f"tests.families.{family}").FAMILY.public
        found = next(dict(one.config) for one in known if one.name == name)
        for key, value in changes.items():
            found[key] = found[key] | value if isinstance(found.get(key), dict) else value
        return {key: value for key, value in found.items() if key not in drop}

    return config


def patchtst_64() -> Config:
    """PatchTST/64 of the paper; there is no public checkpoint of it."""
    tiny: Config = importlib.import_module("tests.families.patchtst").FAMILY.config()
    sizes = {"context_length": CONTEXT, "prediction_length": 96, "patch_length": 16, "patch_stride": 8}
    return tiny | sizes | {"d_model": 128, "num_attention_heads": 16, "num_hidden_layers": 3, "ffn_dim": 256}


def series(rows: int, steps: int) -> Tensor:
    """Daily seasons around different levels, with noise: `[rows, steps]`."""
    draw = torch.Generator().manual_seed(rows)
    level, phase = torch.randn(2, rows, 1, generator=draw)
    season = (2 * torch.pi * (torch.arange(steps) / 24 + phase)).sin()
    values: Tensor = 10 + 3 * level + season + 0.3 * torch.randn(rows, steps, generator=draw)
    return values


def context_of(config: Config, rows: int) -> Tensors:
    return {"context": series(rows, CONTEXT)}


def taught(config: Config, rows: int) -> Tensors:
    values = series(rows, CONTEXT + STEPS)
    return {"context": values[:, :CONTEXT].contiguous(), "target": values[:, CONTEXT:].contiguous()}


def packed(size: int) -> Callable[[Config, int], Tensors]:
    """One series in each row, its horizon to be forecast, in patches of that size."""

    def inputs(config: Config, rows: int) -> Tensors:
        values = series(rows, CONTEXT + STEPS)[:, None]
        past, future = values[..., :CONTEXT], torch.zeros_like(values[..., CONTEXT:])
        variates = Variates(past, past > -torch.inf, future, future > -torch.inf, predicted=True)
        tokens = pack(
            [variates], torch.zeros(rows, CONTEXT, dtype=torch.bool), size, max(config.get("patch_sizes", [size]))
        )
        found = {"target": tokens.values, "observed_mask": tokens.observed, "prediction_mask": tokens.predicted}
        found |= {name: getattr(tokens, name) for name in ("sample_id", "time_id", "variate_id", "patch_size")}
        return {name: tensor.contiguous() for name, tensor in found.items()}

    return inputs


def tokens_of(inputs: Tensors) -> Packed:
    own = ("target", "observed_mask", "sample_id", "time_id", "variate_id", "prediction_mask", "patch_size")
    return Packed(*(inputs[name] for name in own))


def variates(config: Config, rows: int) -> Tensors:
    values = series(rows, CONTEXT)[:, None].contiguous()
    ids = torch.zeros_like(values, dtype=torch.long)
    return {"series": values, "padding_mask": torch.ones_like(values, dtype=torch.bool), "id_mask": ids}


def inverted(found: tuple[Tensor, Any]) -> Tensor:
    """Prediction and scale to original units."""
    out: Tensor = found[1].invert(found[0])
    return out


def forecast_of(model: Forecaster, inputs: Tensors, found: Tensor) -> Tensors:
    return {"forecast": found}


def turned(model: Forecaster, inputs: Tensors, found: Tensor) -> Tensors:
    """`[B, entries, steps]`, where the original has steps first."""
    return {"forecast": found.transpose(1, 2)}


def greedy(model: Any, inputs: Tensors, found: Tensor) -> Tensors:
    """Sampled paths cannot be compared, the likeliest one can."""
    ids, _ = model.generate(inputs["context"], lambda logits, step: logits.argmax(-1), 1, STEPS)
    return {"tokens": ids[:, 0].float()}


def mixture(model: Any, inputs: Tensors) -> tuple[Tensors, Tensor, Tensor, Any]:
    parameters, location, scale = model(tokens_of(inputs))
    return parameters, location, scale, model.param_proj.mixture(parameters, location, scale)


def mixture_parameters(model: Any, inputs: Tensors, found: tuple[Tensors, Tensor, Tensor, Any]) -> Tensors:
    parameters, location, scale, _ = found
    weights = parameters["weights_logits"].log_softmax(-1)
    return parameters | {"weights_logits": weights, "location": location, "scale": scale}


def moirai2(model: Any, inputs: Tensors) -> Tensor:
    prediction, location, scale = model(tokens_of(inputs))
    own: Tensor = (prediction * scale[:, :, None, None] + location[:, :, None, None]).flatten(2)
    return own


def timesfm(model: Any, inputs: Tensors) -> Tensor:
    entries, _, scale = model(inputs["context"])
    out: Tensor = scale.invert(entries)
    return out


def toto_parameters(model: Any, inputs: Tensors, found: Any) -> Tensors:
    parts, scale, shape = found.parts, found.scale, found.logits.shape[:3]
    steps = {"df": parts.df, "loc": parts.loc, "scale": parts.scale, "weights": found.logits.softmax(-1)}
    steps |= {"location": scale.location.expand(shape), "spread": scale.scale.expand(shape)}
    return {name: tensor.flatten(1, 2)[:, None] for name, tensor in steps.items()}


def patchtst(model: Any, inputs: Tensors) -> Tensor:
    out, scale, _ = model(inputs["context"])
    found: Tensor = scale.invert(out[:, 0])
    return found


T5 = {"temperature": 1.0, "top_k": 50}
T5_CONFIG = public(
    "chronos_t5", "t5 small", decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, chronos_config=T5
)
CHRONOS_2 = {"context_length": 8192, "time_encoding_scale": 8192, "max_output_patches": 64}
CASES = {
    "chronos_bolt": Case(
        "chronos_bolt",
        public("chronos_bolt", "bolt small", chronos_config={"context_length": 2048}),
        context_of,
        lambda model, inputs: inverted(model(inputs["context"])),
        forecast_of,
    ),
    "chronos_t5": Case(
        "chronos_t5",
        T5_CONFIG,
        taught,
        lambda model, inputs: model(inputs["context"], inputs["target"])[0],
        lambda model, inputs, found: {"logits": found},
    ),
    "chronos_t5 sampling": Case(
        "chronos_t5",
        T5_CONFIG,
        context_of,
        lambda model, inputs: model.predict(Batch(inputs["context"]), STEPS),
        greedy,
        batches=(1,),
    ),
    "chronos2": Case(
        "chronos2",
        public("chronos2", "chronos-2", chronos_config=CHRONOS_2),
        context_of,
        lambda model, inputs: inverted(model(inputs["context"], steps=STEPS)),
        forecast_of,
    ),
    "ttm": Case(
        "ttm",
        public("ttm", "ttm r1 512 to 96"),
        context_of,
        lambda model, inputs: inverted(model(inputs["context"][:, None])),
        turned,
    ),
    "timesfm 1.0": Case("timesfm", public("timesfm", "timesfm 1.0"), context_of, timesfm, turned),
    "timesfm 2.5": Case(
        "timesfm", public("timesfm", "timesfm 2.5", context_length=CONTEXT), context_of, timesfm, turned
    ),
    "moirai": Case("moirai", public("moirai", "moirai small"), packed(32), mixture, mixture_parameters),
    "moirai2": Case("moirai2", public("moirai2", "moirai 2 small"), packed(16), moirai2, forecast_of),
    "moirai_moe": Case("moirai_moe", public("moirai_moe", "moirai moe small"), packed(16), mixture, mixture_parameters),
    "toto": Case(
        "toto",
        public("toto", "toto open base 1.0", drop=("context_length",)),
        variates,
        lambda model, inputs: model(inputs["series"].flatten(0, 1)),
        toto_parameters,
    ),
    "patchtst": Case(
        "patchtst", patchtst_64, context_of, patchtst, lambda model, inputs, found: {"forecast": found[..., None]}
    ),
}


def random_model(case: Case) -> Forecaster:
    """Fresh weights; norms and biases, which would be ones and zeros, moved a little, so that none goes unnoticed."""
    torch.manual_seed(0)
    model: Forecaster = find("tsprune.models", case.family).FAMILY.from_config(case.config())
    tables: Tensors = {}
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.ndim == 1 and tensor.is_floating_point():
                tensor += 0.1 * torch.rand_like(tensor)
            elif name.endswith(".centroids"):
                tensor.normal_()
            if name.endswith("relative_attention_bias.weight") and ".block." in name:
                # Public T5 checkpoints have one table for all blocks of a stack.
                tensor.copy_(tables.setdefault(name.partition(".block.")[0], tensor.clone()))
    return model.eval()
