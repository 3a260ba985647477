"""One file per family of time-series foundation models. The file name is the family's name."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsprune.errors import TspruneError

if TYPE_CHECKING:
    from tsprune.models._forecaster import Forecaster
    from tsprune.plan import Plan


def load(
    source: str | Path | Any,
    *,
    family: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    config: Mapping[str, Any] | None = None,
    bits: int | None = None,
) -> Forecaster:
    """Load a model from the package (`mini`, `mini-moe`), a directory, the hub, or an original model in memory.

    Args:
        source: `mini`, `mini-moe`, a local directory, a hub id `owner/name`, optionally `@revision`, or a model or
            pipeline object of the original package, of which only config and tensors are read.
        family: name of the family; None recognises it from the config.
        dtype: type of the weights in memory: float32, float64, bfloat16 or float16.
        device: where the model goes, such as `cpu` or `cuda:0`.
        config: public config of a model in memory that does not carry it.
        bits: width at which a quantised checkpoint is read; None means its widest.

    Returns:
        The model in eval mode; `model.notes` tells what was converted.

    Raises:
        TspruneError: names the missing, unreadable or unfitting file, entry or tensor.
    """
    from tsprune.models import _loading

    if not isinstance(source, str | PathLike):
        if bits is not None:
            raise TspruneError("bits=... belongs to a quantised checkpoint in a directory, not to a model in memory")
        from tsprune.models._memory import from_memory

        return from_memory(source, config=config, family=family, dtype=dtype, device=device)
    if config is not None:
        raise TspruneError("config=... belongs to a model in memory; a directory or a hub id has its own config.json")
    return _loading.load(
        Path(source) if isinstance(source, PathLike) else source,
        family=family,
        dtype=dtype,
        device=device,
        bits=bits,
    )


def save(model: Forecaster, directory: str | Path, plan: Plan | None = None) -> Path:
    """Write a checkpoint that loads alone: `config.json`, `model.safetensors`, for a slim model `plan.json`.

    Args:
        model: any model; the type of its weights is kept.
        directory: the checkpoint's directory; an earlier checkpoint in it is replaced.
        plan: the plan that made a slim model, for its facts.

    Raises:
        TspruneError: the directory holds something else, or the plan does not belong to the model.
    """
    from tsprune.models import _loading

    return _loading.save(model, directory, plan)


def fingerprint(model: Forecaster) -> str:
    """SHA-256 over the names, types, shapes and bytes of the model's tensors."""
    from tsprune.models import _loading

    return _loading.fingerprint(model)


__all__ = ["fingerprint", "load", "save"]
