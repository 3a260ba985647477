"""The other side of originals.py: the original implementations, in an environment that has them and not tsprune.

Started by originals.py. It reads one JSON object per line from standard input and answers with one:

    {"do": "load", "name": NAME, "directory": DIR}         -> {"parameters": N, "original": CLASS}
    {"do": "forward", "inputs": FILE, "outputs": FILE}     -> {}; outputs as safetensors, by the names of our side
    {"do": "time", "passes": N}                            -> {"wall": [...], "cpu": [...]} seconds of each pass
    {"do": "processor"}                                    -> {"seconds": S} that this process has used

A package that is not there answers {"missing": REASON}. Whatever the packages print goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Tensors = dict[str, Tensor]
STEPS = 64
"""Steps that Chronos-T5 decodes."""
PACKAGES = (
    "torch", "transformers", "chronos-forecasting", "granite-tsfm", "uni2ts", "gluonts", "toto-ts",
    "rotary-embedding-torch",
)  # fmt: skip


@dataclass(frozen=True)
class Original:
    """One original implementation.

    Args:
        load: makes it from a checkpoint's directory.
        forward: one pass, which is what is timed.
        shown: tensors of what a pass returns, to be compared; here may be what need not be timed.
    """

    load: Callable[[Path], Any]
    forward: Callable[[Any, Tensors], Any]
    shown: Callable[[Any, Tensors, Any], Tensors]


def class_of(package: str, name: str) -> Any:
    """Imports a class; releases without it count as missing, like packages that are not there."""
    found = getattr(importlib.import_module(package), name, None)
    if found is None:
        raise ImportError(f"{package} has no {name}")
    return found


def pretrained(package: str, name: str) -> Callable[[Path], nn.Module]:
    """Loads a transformers class and refuses a checkpoint that does not fill it."""

    def load(directory: Path) -> nn.Module:
        kind = class_of(package, name)
        model, told = kind.from_pretrained(directory, output_loading_info=True)
        # Releases differ in the container.
        if faults := {key: list(told[key]) for key in told if told[key]}:
            raise ValueError(f"{name} was not filled by the checkpoint: {faults}")
        return model

    return load


def t5_pipeline(directory: Path) -> Any:
    from chronos import BaseChronosPipeline

    return BaseChronosPipeline.from_pretrained(str(directory), device_map="cpu")


def t5_forward(pipeline: Any, inputs: Tensors) -> Tensor:
    """Tokens of context and target in, logits of the target's tokens out; without labels there is no loss."""
    ids, seen, scale = pipeline.tokenizer.context_input_transform(inputs["context"])
    labels, _ = pipeline.tokenizer.label_input_transform(inputs["target"], scale)
    network = pipeline.model.model
    before = network._shift_right(labels)
    return network(input_ids=ids, attention_mask=seen, decoder_input_ids=before, use_cache=False).logits


def t5_greedy(pipeline: Any, inputs: Tensors, _: Any) -> Tensors:
    """Sampled paths cannot be compared, the likeliest one can."""
    ids, seen, _ = pipeline.tokenizer.context_input_transform(inputs["context"])
    found = pipeline.model.model.generate(
        input_ids=ids, attention_mask=seen, do_sample=False, min_new_tokens=STEPS, max_new_tokens=STEPS,
        eos_token_id=pipeline.model.config.eos_token_id, pad_token_id=pipeline.model.config.pad_token_id,
    )  # fmt: skip
    return {"tokens": found[:, 1:].float()}


def moirai_class(module: str, name: str) -> Callable[[Path], nn.Module]:
    def load(directory: Path) -> nn.Module:
        kind = class_of(f"uni2ts.model.{module}", name)
        return kind.from_pretrained(str(directory), strict=True)

    return load


def packed(inputs: Tensors, *names: str) -> Tensors:
    wanted = ("target", "observed_mask", "sample_id", "time_id", "variate_id", "prediction_mask", *names)
    return {name: inputs[name] for name in wanted}


def moirai_parameters(model: Any, inputs: Tensors, found: Any) -> Tensors:
    mixture = found.base_dist
    shown = {"weights_logits": mixture.weights.logits, "location": found.loc, "scale": found.scale}
    names = (("df", "loc", "scale"), ("loc",), ("total_count", "logits"), ("loc", "scale"))
    for number, (component, own) in enumerate(zip(mixture.components, names, strict=True)):
        shown |= {f"components.{number}.{name}": getattr(component, name) for name in own}
    return shown


def toto_load(directory: Path) -> nn.Module:
    from toto.model.toto import Toto

    return Toto.load_from_checkpoint(str(directory)).model


def toto_parameters(model: Any, inputs: Tensors, found: Any) -> Tensors:
    parts, weights = found.distribution.component_distribution, found.distribution.mixture_distribution
    shown = {"df": parts.df, "loc": parts.loc, "scale": parts.scale, "weights": weights.probs}
    return shown | {"location": found.loc, "spread": found.scale}


def rows(x: Tensor) -> list[Tensor]:
    return list(x.unbind(0))


def only(name: str) -> Callable[[Any, Tensors, Any], Tensors]:
    """The one tensor that is compared, by its name in the output."""
    return lambda model, inputs, found: {"forecast": getattr(found, name)}


TIMESFM_SHOWN = only("full_predictions")
ORIGINALS = {
    "chronos_bolt": Original(
        pretrained("chronos.chronos_bolt", "ChronosBoltModelForForecasting"),
        lambda model, inputs: model(context=inputs["context"]),
        only("quantile_preds"),
    ),
    "chronos_t5": Original(t5_pipeline, t5_forward, lambda model, inputs, found: {"logits": found}),
    "chronos_t5 sampling": Original(
        t5_pipeline,
        lambda model, inputs: model.predict(inputs["context"], prediction_length=STEPS, num_samples=20),
        t5_greedy,
    ),
    "chronos2": Original(
        pretrained("chronos.chronos2.model", "Chronos2Model"),
        lambda model, inputs: model(context=inputs["context"], num_output_patches=4),
        only("quantile_preds"),
    ),
    "ttm": Original(
        pretrained("tsfm_public.models.tinytimemixer", "TinyTimeMixerForPrediction"),
        lambda model, inputs: model(past_values=inputs["context"][..., None], return_loss=False),
        only("prediction_outputs"),
    ),
    "timesfm 1.0": Original(
        pretrained("transformers", "TimesFmModelForPrediction"),
        lambda model, inputs: model(past_values=rows(inputs["context"]), freq=[0] * len(inputs["context"])),
        TIMESFM_SHOWN,
    ),
    "timesfm 2.5": Original(
        pretrained("transformers", "TimesFm2_5ModelForPrediction"),
        lambda model, inputs: model(past_values=rows(inputs["context"])),
        TIMESFM_SHOWN,
    ),
    "moirai": Original(
        moirai_class("moirai", "MoiraiModule"),
        lambda model, inputs: model(**packed(inputs, "patch_size")),
        moirai_parameters,
    ),
    "moirai2": Original(
        moirai_class("moirai2", "Moirai2Module"),
        lambda model, inputs: model(**packed(inputs), training_mode=False),
        lambda model, inputs, found: {"forecast": found},
    ),
    "moirai_moe": Original(
        moirai_class("moirai_moe", "MoiraiMoEModule"),
        lambda model, inputs: model(**packed(inputs, "patch_size")),
        moirai_parameters,
    ),
    "toto": Original(
        toto_load,
        lambda model, inputs: model(inputs["series"], inputs["padding_mask"], inputs["id_mask"]),
        toto_parameters,
    ),
    "patchtst": Original(
        pretrained("transformers", "PatchTSTForPrediction"),
        lambda model, inputs: model(past_values=inputs["context"][..., None]),
        only("prediction_outputs"),
    ),
}


class Worker:
    """What is loaded, and the inputs it was last run on."""

    def __init__(self) -> None:
        self.original: Original | None = None
        self.model: Any = None
        self.inputs: Tensors = {}

    def load(self, name: str, directory: str) -> dict[str, Any]:
        self.model = None
        self.original = ORIGINALS[name]
        try:
            self.model = self.original.load(Path(directory))
        except ImportError as error:
            return {"missing": str(error)}
        network = getattr(self.model, "inner_model", self.model)
        network.eval()
        return {"parameters": sum(p.numel() for p in network.parameters()), "original": type(network).__name__}

    def forward(self, inputs: str, outputs: str) -> dict[str, Any]:
        self.inputs = load_file(inputs)
        found = self.original.forward(self.model, self.inputs)
        shown = self.original.shown(self.model, self.inputs, found)
        save_file({name: tensor.float().contiguous().clone() for name, tensor in shown.items()}, outputs)
        return {}

    def time(self, passes: int) -> dict[str, Any]:
        wall, cpu = [], []
        for _ in range(passes):
            processor, started = time.process_time(), time.perf_counter()
            self.original.forward(self.model, self.inputs)
            wall.append(time.perf_counter() - started)
            cpu.append(time.process_time() - processor)
        return {"wall": wall, "cpu": cpu}

    def processor(self) -> dict[str, Any]:
        return {"seconds": time.process_time()}


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    torch.set_num_threads(1)
    # Answers keep the real standard output for themselves.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker()
    print(json.dumps({"versions": versions()}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            with torch.no_grad():
                answer = getattr(worker, asked.pop("do"))(**asked)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
