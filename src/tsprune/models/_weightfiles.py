"""The files of a checkpoint: tensors read whole and checked against what a model expects. Pickle is never read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tsprune.errors import TspruneError

WEIGHTS, INDEX, CONFIG, PLAN = "model.safetensors", "model.safetensors.index.json", "config.json", "plan.json"
TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types as the header of a safetensors file names them; others are left to the library."""


def read_weights(directory: Path) -> tuple[dict[str, Tensor], Path]:
    """All tensors of a checkpoint, and the file that errors should name."""
    single = directory / WEIGHTS
    if single.is_file():
        return _read_file(single), single
    index = directory / INDEX
    if not index.is_file():
        pickled = sorted(p.name for p in directory.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        if pickled:
            raise TspruneError(f"{directory} has only {pickled[0]}: pickle is never read; convert it to {WEIGHTS}")
        raise TspruneError(f"{directory} has no {WEIGHTS}; a model directory holds {CONFIG} and {WEIGHTS}")
    tensors: dict[str, Tensor] = {}
    for name in shards(directory):
        if not (directory / name).is_file():
            raise TspruneError(f"{index}: names {name}, which is not in {directory}; download it again")
        tensors |= _read_file(directory / name)
    return tensors, index


def shards(directory: Path) -> list[str]:
    """Names of the weight files that the index beside them lists."""
    index = directory / INDEX
    content = read_json(index)
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise TspruneError(f"{index}: entry 'weight_map' must map tensor names to files")
    names = sorted(set(files.values()))
    if wrong := [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]:
        raise TspruneError(f"{index}: {wrong[0]!r} is not the name of a safetensors file beside it")
    return names


def _read_file(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, each in memory of its own.

    The library judges the file, and we read it: what the library gives are views of the mapped file, which somebody may
    replace, and a copy of them is a second pass over all bytes, a page at a time.
    """
    try:
        with safe_open(path, framework="pt") as file, path.open("rb", buffering=0) as raw:
            size = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(size))
            found = {}
            for name in file.keys():
                told = header[name]
                if (dtype := TYPES.get(told["dtype"])) is None:
                    found[name] = file.get_tensor(name).clone()
                    continue
                found[name] = tensor = torch.empty(told["shape"], dtype=dtype, device="cpu")
                raw.seek(8 + size + told["data_offsets"][0])
                _read_into(raw, tensor)
            return found
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise TspruneError(
            f"{path}: cannot be read as safetensors ({error}); the file is cut off or damaged"
        ) from error


def _read_into(file: BinaryIO, tensor: Tensor) -> None:
    """Fill a tensor with the next bytes; a system call may give fewer than are asked for."""
    room = tensor.view(-1).view(torch.uint8).numpy().data
    while len(room):
        got = file.readinto(room)  # type: ignore[attr-defined]
        if not got:
            raise OSError(f"{len(room)} bytes are missing")
        room = room[got:]


def read_json(path: Path) -> Any:
    """The content of a JSON file; raises TspruneError that names it where it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TspruneError(f"{path}: not valid JSON ({error})") from error


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], origin: Path) -> None:
    """Refuse tensors that are missing, unknown or of another shape, with what may have gone wrong."""
    missing = [name for name in expected if name not in tensors]
    extra = [name for name in tensors if name not in expected]
    pairs = {name: (tensors[name].shape, tensor.shape) for name, tensor in expected.items() if name in tensors}
    wrong = {name: (found, wanted) for name, (found, wanted) in pairs.items() if found != wanted}
    shapes = [f"{name} {list(found)} instead of {list(wanted)}" for name, (found, wanted) in wrong.items()]
    faults = (("missing", missing), ("unknown", extra), ("of the wrong shape", shapes))
    said = [f"{len(names)} {what}: {', '.join(names[:5])}" for what, names in faults if names]
    if not said:
        return
    hint = ""
    # Every unit that was pruned makes at least two tensors smaller, and none larger or new.
    smaller = all(len(f) == len(w) and all(map(int.__le__, f, w)) for f, w in wrong.values())
    if len(wrong) > 1 and smaller and not extra and not (origin.parent / PLAN).exists():
        hint = f"; all of these are smaller: if this model was pruned, {PLAN} is missing beside {CONFIG}"
    raise TspruneError(f"{origin}: the tensors do not fit {CONFIG}: {'; '.join(said)}{hint}")


def check_finite(tensors: Mapping[str, Tensor], dtype: torch.dtype, origin: Path) -> None:
    """Refuse weights that are not finite: every forecast would be none, and the data would take the blame."""
    limit = torch.finfo(dtype).max
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        # One pass without a temporary tensor; a value that is not a number makes both ends one.
        low, high = (float(end) for end in torch.aminmax(tensor))
        if not math.isfinite(low) or not math.isfinite(high):
            raise TspruneError(
                f"{origin}: tensor {name!r} holds values that are not finite; restore or retrain the model"
            )
        if max(-low, high) > limit:
            raise TspruneError(
                f"{origin}: tensor {name!r} reaches {max(-low, high):.3g}, which {str(dtype).removeprefix('torch.')} "
                "cannot hold; load the model as float32"
            )
