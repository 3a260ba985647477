"""Training checkpoints: JSON and safetensors only, never pickle."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from tsprune.errors import TspruneError
from tsprune.stages import unwritable


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write safetensors whole or not at all; tensors may share memory.

    Raises:
        TspruneError: the file cannot be written, such as on a full disk; what was there before is unchanged.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    copies = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The library makes files that only their owner may read; others get what the user's mask grants them.
        partial.touch()
        mode = partial.stat().st_mode
        save_file(copies, partial, dict(metadata or {}))
        partial.chmod(mode)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        TspruneError: the file cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise TspruneError(f"{path}: not a readable safetensors file ({error}); delete it to start anew") from error


def save_training(
    path: Path, model: nn.Module, optimizers: list[Optimizer], facts: Mapping[str, Any], extra: Mapping[str, Tensor]
) -> None:
    """Everything needed to go on as if nothing had happened.

    Args:
        path: one safetensors file.
        model: its state dict is stored.
        optimizers: their per-parameter tensors are stored by position.
        facts: JSON-able progress (step, best loss, ...).
        extra: further tensors, such as averaged weights.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"extra.{name}": value for name, value in extra.items()}
    tensors["rng.torch"] = torch.get_rng_state()
    scalars: dict[str, float] = {}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                name = f"optimizer.{number}.{index}.{key}"
                if isinstance(value, Tensor):
                    tensors[name] = value
                else:
                    scalars[name] = float(value)
    write_tensors(path, tensors, {"facts": json.dumps(dict(facts)), "scalars": json.dumps(scalars)})


def load_training(
    path: Path, model: nn.Module, optimizers: list[Optimizer]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Restore what `save_training` stored.

    Returns:
        The facts and the extra tensors.

    Raises:
        TspruneError: the file cannot be read, is no training checkpoint, or belongs to a model of other sizes.
    """
    tensors, metadata = read_tensors(path)
    if not {"facts", "scalars"} <= set(metadata) or "rng.torch" not in tensors:
        raise TspruneError(f"{path}: not a training checkpoint of tsprune; delete it to start anew")
    weights = {name[6:]: value for name, value in tensors.items() if name.startswith("model.")}
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if own != {name: tuple(value.shape) for name, value in weights.items()}:
        raise TspruneError(f"{path}: the checkpoint belongs to a model of other sizes; delete it to start anew")
    model.load_state_dict(weights)
    scalars = json.loads(metadata["scalars"])
    for number, optimizer in enumerate(optimizers):
        prefix = f"optimizer.{number}."
        state: dict[int, dict[str, Any]] = {}
        for name, value in [*tensors.items(), *scalars.items()]:
            if name.startswith(prefix):
                index, key = name[len(prefix) :].split(".", 1)
                state.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["rng.torch"])
    extra = {name[6:]: value for name, value in tensors.items() if name.startswith("extra.")}
    return json.loads(metadata["facts"]), extra
