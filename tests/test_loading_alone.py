"""A slim checkpoint loads alone: no base model, no package it does not need, each byte of its weights once."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from tests.tiny import FAMILIES, TESTED, tiny_config, tiny_model
from tsprune import registry
from tsprune.blocks.gate import Gate
from tsprune.blocks.units import Block, Settled
from tsprune.errors import TspruneError
from tsprune.models import _loading, fingerprint, load, save
from tsprune.models._forecaster import Forecaster
from tsprune.models._recognising import family_of, likeliest
from tsprune.slimming import slim

UNNEEDED = {"pandas", "scipy", "pyarrow", "matplotlib", "yaml", "pydantic", "sympy", "jinja2", "huggingface_hub"}
SEEN = """
import json, os, sys
import torch
from tsprune.models import load

before, opened = set(sys.modules), []

def note(event, given):
    if event == "open" and isinstance(given[0], str):
        opened.append(os.path.realpath(given[0]))

sys.addaudithook(note)
model = load(sys.argv[1])
print(json.dumps({"modules": sorted(set(sys.modules) - before), "opened": opened, "family": model.family,
                  "parameters": model.parameter_count()}))
"""


def halves(model: Forecaster) -> dict[str, list[int]]:
    """The first half of every group of heads and of feed-forward channels."""
    groups = model.unit_groups()
    shared = {group.path for group in groups.values() if group.kind == "kv_group"}
    return {
        name: list(range(max(group.floor, group.units // 2)))
        for name, group in groups.items()
        if group.kind in ("kv_group", "ffn_channel") or (group.kind == "head" and group.path not in shared)
    }


@pytest.mark.parametrize("family", ["chronos_bolt", "moirai"])
def test_a_slim_checkpoint_loads_in_a_process_that_sees_nothing_else(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    slimmed = slim(model, halves(model))
    made = save(slimmed, tmp_path / "made" / "model")
    alone = tmp_path / "elsewhere" / "copy"
    shutil.copytree(made, alone)
    shutil.rmtree(tmp_path / "made")
    done = subprocess.run(
        [sys.executable, "-c", SEEN, str(alone)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path / "elsewhere",
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1] / "src"), "HF_HUB_OFFLINE": "1"},
    )
    seen = json.loads(done.stdout)
    assert (seen["family"], seen["parameters"]) == (family, slimmed.parameter_count())
    assert {name.partition(".")[0] for name in seen["modules"]} & UNNEEDED == set()
    # The plan names the family, so that no other one is imported.
    assert [name for name in TESTED if f"tsprune.models.{name}" in seen["modules"]] == [family]
    files = [Path(name) for name in seen["opened"] if not name.endswith((".py", ".pyc")) and Path(name).is_file()]
    assert {file.parent for file in files} == {alone.resolve()}
    assert {file.name for file in files} == {"config.json", "plan.json", "model.safetensors"}


class Traffic(TorchDispatchMode):
    """Bytes of new tensors in memory, and those of them that were copied from other tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.made = self.copied = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and not out.is_meta and not func.is_view:
            self.made += out.nbytes
            if func.overloadpacket.__name__ in ("_to_copy", "clone", "copy_", "_to_dtype"):
                self.copied += out.nbytes
        return out


@pytest.mark.parametrize("share", [1, 2])
def test_every_byte_of_the_weights_is_touched_once(share: int, tmp_path: Path) -> None:
    model = load("mini")
    folder = save(slim(model, halves(model)) if share > 1 else model, tmp_path / "model")
    size = (folder / "model.safetensors").stat().st_size
    with Traffic() as traffic:
        load(folder)
    # The weights once, and what counts units while they are cut.
    assert size * 0.99 < traffic.made < 1.2 * size
    assert traffic.copied < 0.02 * size
    # The measure itself: another type takes a second copy, of half the bytes.
    with Traffic() as converted:
        load(folder, dtype="bfloat16")
    assert 0.45 * size < converted.copied < 0.53 * size


def test_weights_are_the_models_own_and_not_the_files(tmp_path: Path) -> None:
    folder = save(tiny_model("chronos2"), tmp_path / "model")
    model = load(folder)
    before = fingerprint(model)
    file = folder / "model.safetensors"
    with file.open("r+b") as stream:
        stream.write(b"\xff" * file.stat().st_size)
    assert fingerprint(model) == before
    with file.open("r+b") as stream:
        stream.truncate(8)
    assert fingerprint(model) == before


@pytest.mark.parametrize("family", ["chronos_bolt", "timer_xl", "ttm"])
def test_tensors_that_share_memory_or_lie_in_another_order_are_copied(family: str) -> None:
    whole = tiny_model(family)
    names = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    room = torch.cat([tensor.flatten() for tensor in names.values()])
    place, views = 0, {}
    for number, (name, tensor) in enumerate(names.items()):
        view = room[place : place + tensor.numel()].view(tensor.shape)
        views[name] = view if number % 3 else tensor.t().contiguous().t() if tensor.ndim == 2 else tensor
        place += tensor.numel()
    kind = registry.find("tsprune.models", family).FAMILY
    empty = _loading.without_weights(kind, whole.config, Path("config.json"))
    _loading.fill(empty, empty.tensors_from_public(views), "memory", "float32", ours=True)
    assert fingerprint(empty) == fingerprint(whole)
    state = empty.state_dict()
    assert max(Counter(tensor.untyped_storage().data_ptr() for tensor in state.values()).values()) == 1
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in state.values())
    with torch.no_grad():
        room.zero_()
    assert fingerprint(empty) == fingerprint(whole)


def test_tensors_that_somebody_else_holds_are_copied() -> None:
    whole = tiny_model("chronos2")
    given = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    kind = registry.find("tsprune.models", "chronos2").FAMILY
    empty = _loading.without_weights(kind, whole.config, Path("config.json"))
    _loading.fill(empty, given, "memory", "float32")
    for tensor in given.values():
        tensor.zero_()
    assert fingerprint(empty) == fingerprint(whole)


def test_files_of_every_type_are_read_as_the_library_reads_them(tmp_path: Path) -> None:
    from tsprune.models._weightfiles import TYPES, read_weights

    draw = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 256, (24,), generator=draw, dtype=torch.uint8)
    types = [dtype for dtype in TYPES.values() if dtype is not torch.bool]
    tensors = {str(dtype): bits.clone().view(dtype).view(-1, 1) for dtype in (*types, torch.float8_e4m3fn)}
    tensors |= {"bool": bits > 100, "empty": torch.zeros(0, 3), "number": torch.tensor(2.5)}
    save_file(tensors, tmp_path / "model.safetensors")
    found, _ = read_weights(tmp_path)
    expected = load_file(tmp_path / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name].view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8))


def test_weights_go_where_they_are_sent_whatever_torchs_default_device_is(tmp_path: Path) -> None:
    model = tiny_model("chronos_bolt")
    folder = save(slim(model, halves(model)), tmp_path / "model")
    with torch.device("meta"):
        assert load(folder).device.type == "cpu"


@pytest.mark.parametrize("collecting", [True, False])
def test_the_garbage_collector_is_left_as_it_was(collecting: bool, tmp_path: Path) -> None:
    folder = save(tiny_model("chronos2"), tmp_path / "model")
    was = gc.isenabled()
    try:
        (gc.enable if collecting else gc.disable)()
        load(folder)
        assert gc.isenabled() is collecting
        (folder / "model.safetensors").write_bytes(b"short")
        with pytest.raises(TspruneError, match="damaged"):
            load(folder)
        assert gc.isenabled() is collecting
    finally:
        (gc.enable if was else gc.disable)()


@pytest.mark.parametrize("family", TESTED)
def test_exactly_one_family_claims_a_config_whoever_is_asked_first(family: str) -> None:
    config, kinds = tiny_config(family), {name: registry.find("tsprune.models", name).FAMILY for name in TESTED}
    assert [name for name, kind in kinds.items() if kind.recognises(config)] == [family]
    for told in ("", family, "nobody", *TESTED):
        assert family_of(config, None, Path("config.json"), told) is kinds[family]


def test_who_is_asked_first() -> None:
    assert likeliest({"architectures": ["ChronosBoltModelForForecasting"]}, TESTED) == ["chronos_bolt"]
    assert likeliest({"model_type": "time-moe", "architectures": None}, TESTED, "ttm") == ["ttm", "time_moe"]
    assert likeliest({"architectures": ["TimesFM2_5ModelForPrediction"], "d_model": 4}, TESTED, "x") == ["timesfm"]
    assert likeliest({"architectures": [3, None], "model_type": 7}, TESTED) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_is_spared_no_copy_becomes_the_same_slim_model(family: str) -> None:
    kind, config = registry.find("tsprune.models", family).FAMILY, tiny_config(family)
    first, second = (_loading.without_weights(kind, config, Path("config.json")) for _ in range(2))
    kept = halves(first)
    kept[next(name for name, group in first.unit_groups().items() if group.kind == "ffn_channel")] = []
    copied, taken = slim(first, kept), slim(second, kept, spare=True)
    assert first.parameter_count() > copied.parameter_count()
    assert copied.kept == taken.kept
    assert described(copied) == described(taken)


def described(model: Forecaster) -> list[Any]:
    """Modules, sizes, units and gates, in order."""
    parts = [(path, type(part).__name__, part.extra_repr()) for path, part in model.named_modules()]
    shapes = [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]
    units = [(name, group.units, group.costs.tolist()) for name, group in model.unit_groups().items()]
    owners = [(path, gate.owners.tolist()) for path, gate in model.named_modules() if isinstance(gate, Gate)]
    return [parts, shapes, units, owners]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_settled_choice_is_cut_as_if_it_were_settled_again(family: str) -> None:
    model = tiny_model(family)
    for path, block in model.named_modules():
        if not isinstance(block, Block) or not block.groups(path):
            continue
        kind = next(iter(block.settled({})))
        chosen = {kind: list(range(max(block.groups(path)[0].floor, block.groups(path)[0].units // 2)))}
        twice, once = block.cut(chosen), block.cut(Settled(block.settled(chosen)))
        assert twice.state_dict().keys() == once.state_dict().keys()
        assert all(
            torch.equal(a, b) for a, b in zip(twice.state_dict().values(), once.state_dict().values(), strict=True)
        )
