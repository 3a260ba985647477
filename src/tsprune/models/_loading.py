"""Checkpoints: found in the package, a directory or on the hub, checked, and written whole or not at all."""

from __future__ import annotations

import gc
import hashlib
import importlib.resources
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tsprune.errors import TspruneError
from tsprune.folding import refolded
from tsprune.models._forecaster import OBJECTIVE, Forecaster
from tsprune.models._fresh import without_memory
from tsprune.models._quantised import ENTRY, layout_of, plain_tensors
from tsprune.models._recognising import family_of
from tsprune.models._weightfiles import (
    CONFIG,
    INDEX,
    PLAN,
    WEIGHTS,
    check_finite,
    check_tensors,
    read_json,
    read_weights,
    shards,
)
from tsprune.plan import Plan, PlanGroup
from tsprune.slimming import minimal, slim
from tsprune.stages import write_text
from tsprune.training_state import write_tensors

BUNDLED = ("mini", "mini-moe")
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def load(
    source: str | Path,
    *,
    family: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    bits: int | None = None,
) -> Forecaster:
    """Load a model.

    Args:
        source: `mini` or `mini-moe` (inside the package), a directory, or a hub id `owner/name`, optionally
            `@revision`.
        family: name of the family; None recognises it from the config.
        dtype: type of the weights in memory: float32, float64, bfloat16 or float16.
        device: where the model goes, such as `cpu` or `cuda:0`.
        bits: width at which a quantised checkpoint is read; None means its widest.

    Returns:
        The model in eval mode. Its `notes` tell when the file held another type.

    Raises:
        TspruneError: names the missing, unreadable or unfitting file, entry or tensor.
    """
    check_dtype(dtype)
    place, directory = device_of(device), locate(str(source))
    with uncollected():
        model = _on_cpu(directory, family, dtype, bits)
    return (model if place.type == "cpu" else model.to(place)).eval()


def _on_cpu(directory: Path, family: str | None, dtype: str, bits: int | None) -> Forecaster:
    config = read_config(directory / CONFIG)
    layout = layout_of(config, directory / CONFIG)
    if bits is not None and layout is None:
        raise TspruneError(f"{directory} is not quantised, so it has no width of {bits} bits; leave the bits out")
    config.pop(ENTRY, None)
    plan = Plan.read(directory / PLAN) if (directory / PLAN).exists() else None
    kind = family_of(config, family, directory / CONFIG, "" if plan is None else plan.family)
    model = without_weights(kind, config, directory / CONFIG)
    if plan is not None:
        model = refolded(slim(model, plan, spare=True), plan.folded, directory / PLAN)
    tensors, origin = read_weights(directory)
    if layout is not None:
        width = layout.width(bits, directory)
        tensors = plain_tensors(tensors, layout, width, origin)
        model.notes += (f"weights in {origin.name} are integers of {width} bits, turned into {dtype}",)
    fill(model, tensors, origin, dtype, ours=True)
    model.objective = str(config.get(OBJECTIVE, model.objective))
    if model.objective not in model.objectives:
        raise TspruneError(
            f"{directory / CONFIG}: entry {OBJECTIVE!r} is {model.objective!r}, expected one of "
            f"{', '.join(model.objectives)}"
        )
    return model


@contextmanager
def uncollected() -> Iterator[None]:
    """Python's garbage collector waits meanwhile: the many small parts of a network would make it walk all of torch."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def check_dtype(dtype: str) -> None:
    """Refuse a type that weights cannot have."""
    if dtype not in DTYPES:
        raise TspruneError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")


def fill(model: Forecaster, tensors: dict[str, Tensor], origin: Path | str, dtype: str, *, ours: bool = False) -> None:
    """Give a model without memory its tensors, in their public names and layout.

    Args:
        model: of the sizes that the tensors have.
        tensors: copied, left as they are, unless they are `ours`.
        origin: named in errors.
        dtype: of the weights in memory, one of `DTYPES`.
        ours: whether nobody else holds the tensors: those that need no change become the model's.

    Raises:
        TspruneError: a tensor is missing, unknown, of another shape or not finite.
    """
    tensors = model.tensors_from_public(tensors)
    check_tensors(tensors, dict(model.state_dict()), Path(origin))
    check_finite(tensors, DTYPES[dtype], Path(origin))
    floating = {name for name, tensor in tensors.items() if tensor.is_floating_point()}
    found = sorted({str(tensors[name].dtype).removeprefix("torch.") for name in floating} - {dtype})
    alone = _alone(tensors) if ours else set()
    cast = {
        name: tensor.to(DTYPES[dtype] if name in floating else tensor.dtype, copy=name not in alone)
        for name, tensor in tensors.items()
    }
    model.load_state_dict(cast, assign=True)
    if found:
        model.notes += (f"weights in {Path(origin).name} are {', '.join(found)}, converted to {dtype}",)
    if isinstance(corpora := model.config.get("pretraining_corpora"), list):
        model.pretraining_corpora = tuple(str(name) for name in corpora)


def _alone(tensors: Mapping[str, Tensor]) -> set[str]:
    """Tensors that have their memory to themselves, all of it and in order."""
    users = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors.values())
    return {
        name
        for name, tensor in tensors.items()
        if users[tensor.untyped_storage().data_ptr()] == 1
        and tensor.is_contiguous()
        and tensor.untyped_storage().nbytes() == tensor.nbytes
    }


def save(model: Forecaster, directory: str | Path, plan: Plan | None = None) -> Path:
    """Write `config.json`, `model.safetensors` and, for a slim or folded model, `plan.json`; all of them or none.

    A directory that holds an earlier checkpoint is replaced; one that holds anything else is refused.

    Args:
        model: any model; the type of its weights is kept.
        directory: the checkpoint's directory.
        plan: the plan that made a slim model. What the checkpoint stores always counts from the model that
            `config.json` describes, also when the plan was the second one applied.

    Returns:
        The directory.
    """
    target = Path(directory)
    ours = {CONFIG, WEIGHTS, PLAN}
    if target.exists():
        if not target.is_dir():
            raise TspruneError(f"{target} is a file, expected a directory for the checkpoint")
        if foreign := sorted(entry.name for entry in target.iterdir() if entry.name not in ours):
            raise TspruneError(
                f"{target} holds {', '.join(foreign[:5])}; choose a directory of its own for the checkpoint"
            )
    partial, old = (target.with_name(f".{target.name}.{end}") for end in ("part", "old"))
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        chosen = {} if model.objective == "own" else {OBJECTIVE: model.objective}
        write_text(partial / CONFIG, json.dumps({**model.config, **chosen}, indent=2) + "\n")
        write_tensors(partial / WEIGHTS, model.tensors_to_public(), {"format": "pt"})
        if model.kept or model.folded or plan is not None:
            write_text(partial / PLAN, whole_plan(model, plan).to_json())
        exchange(partial, target, old)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def exchange(new: Path, target: Path, old: Path) -> None:
    """Put a directory in another's place; when that fails, the earlier one is back."""
    if not target.exists():
        os.rename(new, target)
        return
    os.rename(target, old)
    try:
        os.rename(new, target)
    except OSError:
        os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def whole_plan(model: Forecaster, plan: Plan | None) -> Plan:
    """The plan that leads from the model which the config describes to this one."""
    with without_memory():
        before = type(model).from_config(model.config)
    groups = before.unit_groups()
    chosen = minimal(before, model.kept, () if plan is None else plan.groups)
    kept = {name: PlanGroup(groups[name].kind, groups[name].units, units) for name, units in chosen.items()}
    # Groups that the plan lists as whole are kept in it: they do no harm and were reviewed.
    # What was planned for a block that is gone altogether is moot.
    left = model.unit_groups()
    listed = (
        {} if plan is None else {n: g for n, g in plan.groups.items() if n in groups and n in left and n not in kept}
    )
    for name, group in listed.items():
        if len(group.kept) != groups[name].units:
            raise TspruneError(
                f"the plan to be saved removes units of {name} that the model still has; save the slim model"
            )
        kept[name] = group
    ordered = {name: kept[name] for name in groups if name in kept}
    sizes = {"before": before.parameter_count(), "after": model.parameter_count()}
    facts = plan or Plan("", "", model.family, "", "", "", 0, sizes, {"before": 0, "after": 0})
    return Plan(
        facts.base_model, facts.base_fingerprint, model.family, facts.score, facts.schedule,
        facts.data_fingerprint, facts.seed, sizes, facts.flops, ordered,
        tuple(name for name in model.indexed if name in ordered), tuple(model.folded),
    )  # fmt: skip


def fingerprint(model: Forecaster) -> str:
    """SHA-256 over names, types, shapes and bytes of the model's tensors, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def locate(source: str) -> Path:
    """The directory of a source: bundled, local, in the hub's cache, or fetched from the hub."""
    if source in BUNDLED:
        bundled = Path(str(importlib.resources.files("tsprune"))) / "bundled" / source
        if not (bundled / CONFIG).is_file():
            raise TspruneError(
                f"the bundled model {source!r} is missing: {bundled} has no {CONFIG}; install tsprune again"
            )
        return bundled
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise TspruneError(f"{path} has no {CONFIG}; a model directory holds {CONFIG} and {WEIGHTS}")
        return path
    if path.exists():
        raise TspruneError(f"{path} is a file; a model is a directory with {CONFIG} and {WEIGHTS}")
    if not HUB_ID.fullmatch(source) or source.startswith("."):
        raise TspruneError(
            f"model {source!r} is not a directory, not a hub id (owner/name), not bundled ({', '.join(BUNDLED)})"
        )
    return _from_hub(source)


def _from_hub(source: str) -> Path:
    from huggingface_hub import snapshot_download

    repository, _, revision = source.partition("@")
    wanted = [CONFIG, PLAN, WEIGHTS, INDEX, "model-*-of-*.safetensors"]
    reason = ""
    for offline in (True, False):
        try:
            found = snapshot_download(
                repository, revision=revision or None, allow_patterns=wanted, local_files_only=offline
            )
        except Exception as error:  # The hub raises many unrelated classes: network, access, names, disk.
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            continue
        directory = Path(found)
        missing = _missing(directory)
        if not missing:
            return directory
        if not offline:
            raise TspruneError(f"{source} on the hub has no {missing}; only models stored as safetensors can be loaded")
        reason = f"the local cache lacks {missing}"
    extra = f" --revision {revision}" if revision else ""
    raise TspruneError(
        f"{source}: no such directory, and as a hub id {CONFIG} and {WEIGHTS} are not in the local cache and could "
        f"not be fetched ({reason}); "
        f"with a connection, run: hf download {repository} {CONFIG} {WEIGHTS}{extra}"
    )


def _missing(directory: Path) -> str:
    """The first file that a checkpoint directory lacks, or nothing."""
    if not (directory / CONFIG).is_file():
        return CONFIG
    if (directory / WEIGHTS).is_file():
        return ""
    if not (directory / INDEX).is_file():
        return WEIGHTS
    return next((name for name in shards(directory) if not (directory / name).is_file()), "")


def read_config(path: Path) -> dict[str, Any]:
    """A config file as a dictionary."""
    config = read_json(path)
    if not isinstance(config, dict):
        raise TspruneError(f"{path}: is a JSON {type(config).__name__}, expected an object")
    return config


def without_weights(kind: type[Forecaster], config: Mapping[str, Any], where: Path) -> Forecaster:
    """A model without memory; an entry that is missing or impossible is named with the whole path of its file."""
    try:
        with without_memory():
            return kind.from_config(config)
    except TspruneError as error:
        raise TspruneError(f"{where}: {str(error).removeprefix(CONFIG).removeprefix(': ').lstrip()}") from None
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        said = str(error).strip().split("\n")[0]
        raise TspruneError(f"{where}: no {kind.family} model has these sizes ({said}); restore the file") from error


def device_of(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise TspruneError(f"device {name!r} is not available here ({str(error).splitlines()[0]})") from error
    return device
