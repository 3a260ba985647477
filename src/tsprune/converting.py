"""Checkpoints that `torch.save` wrote, such as `checkpoint.pth`, to the form that is loaded here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster
from tsprune.models._loading import DTYPES, fill, read_config, save, without_weights
from tsprune.models._recognising import family_of

PREFIXES = ("module.", "model.")
"""What wrappers for training put before every tensor's name."""
NESTED = ("state_dict", "model_state_dict", "model", "module")
"""Where training scripts keep the tensors beside the state of their optimizer."""
ASSUMED = {"dropout": 0.1, "activation": "relu", "use_norm": True, "covariate": False, "flash_attention": False}
"""Entries that the tensors of a Timer-XL checkpoint do not tell, as in the published one."""
LAYER = re.compile(r"blocks\.attn_layers\.(\d+)\.")
SIZES = (
    "embedding.weight",
    "head.weight",
    "blocks.attn_layers.0.attention.inner_attention.attn_bias.emb.weight",
    "blocks.attn_layers.0.conv1.weight",
)


def convert(checkpoint: str | Path, out: str | Path, config: str | Path | None = None) -> Path:
    """Write the directory of `config.json` and `model.safetensors` that `load` reads.

    Of the file nothing but tensors is unpickled: whatever else it holds is refused, not executed.

    Args:
        checkpoint: a file of named tensors that `torch.save` wrote. All names may begin with `module.` or `model.`;
            the tensors may be an entry of a dictionary, such as `state_dict`.
        out: the directory; an earlier checkpoint in it is replaced, anything else there is refused.
        config: the model's public `config.json`. None is for Timer-XL of OpenLTM, whose files carry none: its sizes
            are those of the tensors, the other entries are `ASSUMED`.

    Returns:
        The directory.

    Raises:
        TspruneError: a file cannot be read, holds more than tensors, or the tensors do not fit the config; nothing is
            written then.
    """
    file = Path(checkpoint)
    tensors = _tensors(_unpickled(file), file)
    if config is None:
        *_, tensors = _without_prefixes(tensors)
        told, where = _openltm_config(tensors, file), file
    else:
        told, where = read_config(Path(config)), Path(config)
    model = without_weights(family_of(told, None, where), told, where)
    fill(model, _fitting(model, tensors), file, _type_name(tensors))
    return save(model, out)


def _unpickled(file: Path) -> Any:
    if not file.is_file():
        raise TspruneError(f"{file} is not a file; give one that torch.save wrote, such as checkpoint.pth")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({named[1]})" if named else ""
        raise TspruneError(
            f"{file}: refused, it is damaged or holds more than tensors{what}, which could run code when read; with "
            "the package that wrote it, save model.state_dict() alone"
        ) from error
    # A file that is cut off or of another kind fails in many unrelated ways.
    except Exception as error:
        said = re.split(r"\n|\. ", str(error).strip())[0] or type(error).__name__
        raise TspruneError(f"{file}: cannot be read as a file that torch.save wrote ({said})") from error


def _tensors(found: Any, file: Path) -> dict[str, Tensor]:
    """The named tensors of what was read."""
    if isinstance(found, Mapping):
        found = next((found[name] for name in NESTED if isinstance(found.get(name), Mapping)), found)
    if not isinstance(found, Mapping) or not found:
        raise TspruneError(f"{file}: is {_kind(found)}, expected tensors by their names: a model's state_dict()")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise TspruneError(f"{file}: entry {name!r} is {_kind(value)}, expected nothing but tensors by their names")
        if value.layout is not torch.strided or value.is_quantized:
            raise TspruneError(f"{file}: tensor {name!r} is sparse or quantized, expected plain values")
    return dict(found)


def _kind(found: Any) -> str:
    return "an empty dictionary" if isinstance(found, Mapping) and not found else f"of type {type(found).__name__}"


def _without_prefixes(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The tensors as they are named, then without each prefix that all of them share."""
    yield tensors
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        yield tensors


def _fitting(model: Forecaster, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of which the model knows most: some public names begin with `model.` themselves."""
    known = {model.names.public(name) for name in model.state_dict()}
    return max(_without_prefixes(tensors), key=lambda named: len(known & named.keys()))


def _openltm_config(tensors: Mapping[str, Tensor], file: Path) -> dict[str, Any]:
    """Sizes of a Timer-XL model from the shapes of its tensors."""
    missing = [name for name in SIZES if name not in tensors or tensors[name].ndim < 2]
    if missing:
        raise TspruneError(
            f"{file}: has no matrix {missing[0]!r}, so this is not a Timer-XL checkpoint of OpenLTM; for any other "
            "model give its config.json too"
        )
    embedding, head, table, hidden = (tensors[name].shape for name in SIZES)
    return {
        "model_type": "timer_xl",
        "input_token_len": embedding[1],
        "output_token_len": head[0],
        "d_model": embedding[0],
        "n_heads": table[1],
        "e_layers": 1 + max(int(found[1]) for name in tensors if (found := LAYER.match(name))),
        "d_ff": hidden[0],
        **ASSUMED,
    }


def _type_name(tensors: Mapping[str, Tensor]) -> str:
    """The narrowest type that holds all weights as they are."""
    found = [tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()]
    widest = reduce(torch.promote_types, found) if found else torch.float32
    return next((name for name, dtype in DTYPES.items() if dtype is widest), "float32")
