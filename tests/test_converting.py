"""Files of torch.save become checkpoints that load; nothing but tensors is read from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests import golden
from tests.families.timer_xl import hub_config
from tests.tiny import shared_folder, tiny_batch, tiny_config, tiny_model
from tsprune.converting import ASSUMED, convert
from tsprune.errors import TspruneError
from tsprune.models import fingerprint, load
from tsprune.models._forecaster import Forecaster
from tsprune.models.timer_xl import Timer


def stored(model: Forecaster, file: Path, prefix: str = "") -> Path:
    """The model's tensors as its original package would store them."""
    torch.save({prefix + name: tensor for name, tensor in model.tensors_to_public().items()}, file)
    return file


def written(config: dict[str, Any], folder: Path) -> Path:
    file = folder / "given.json"
    file.write_text(json.dumps(config))
    return file


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
def test_a_timer_xl_file_converts_without_a_config_whatever_stands_before_its_names(
    prefix: str, tmp_path: Path
) -> None:
    model = tiny_model("timer_xl", seq_len=2880)
    found = convert(stored(model, tmp_path / "checkpoint.pth", prefix), tmp_path / "out")
    assert found == tmp_path / "out"
    assert sorted(entry.name for entry in found.iterdir()) == ["config.json", "model.safetensors"]
    assert load_file(found / "model.safetensors").keys() == model.tensors_to_public().keys()
    again = load(found)
    assert fingerprint(again) == fingerprint(model)
    assert torch.equal(again.forecast(tiny_batch(), 40), model.forecast(tiny_batch(), 40))


def test_sizes_come_from_the_tensors_and_the_rest_is_as_published(tmp_path: Path) -> None:
    sizes = {"input_token_len": 6, "output_token_len": 10, "d_model": 24, "n_heads": 3, "e_layers": 4, "d_ff": 20}
    file = stored(tiny_model("timer_xl", **sizes), tmp_path / "checkpoint.pth")
    config = json.loads((convert(file, tmp_path / "out") / "config.json").read_text())
    assert config == {"model_type": "timer_xl", **sizes, **ASSUMED}


def test_a_converted_reference_model_computes_the_reference_numbers(tmp_path: Path) -> None:
    case = tmp_path / "case"
    shutil.copytree(shared_folder() / "golden" / "timer_xl" / "multivariate", case)
    torch.save(load_file(case / "model.safetensors"), tmp_path / "checkpoint.pth")
    out = convert(tmp_path / "checkpoint.pth", tmp_path / "out")
    for name in ("config.json", "model.safetensors"):
        (case / name).chmod(0o644)
        shutil.copy(out / name, case / name)
    lines = golden.compare(case)
    assert len(lines) >= 10
    assert [str(line) for line in lines if not line.ok] == []


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
@pytest.mark.parametrize("family", ["chronos_bolt", "timer_xl"])
def test_with_a_config_files_of_any_family_convert(family: str, prefix: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    file = stored(model, tmp_path / "pytorch_model.bin", prefix)
    out = convert(file, tmp_path / "out", written(model.config, tmp_path))
    again = load(out)
    assert again.family == family
    assert again.config == model.config
    assert fingerprint(again) == fingerprint(model)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_prefix_that_belongs_to_the_public_names_stays(prefix: str, tmp_path: Path) -> None:
    model = Timer.from_config(hub_config())
    file = stored(model, tmp_path / "pytorch_model.bin", prefix)
    out = convert(file, tmp_path / "out", written(model.config, tmp_path))
    assert fingerprint(load(out)) == fingerprint(model)


def test_what_training_scripts_store_beside_the_tensors_is_left_behind(tmp_path: Path) -> None:
    model = tiny_model("timer_xl")
    state = {"epoch": 7, "optimizer": {"lr": 1e-3}, "model_state_dict": model.tensors_to_public()}
    torch.save(state, tmp_path / "checkpoint.pth")
    assert fingerprint(load(convert(tmp_path / "checkpoint.pth", tmp_path / "out"))) == fingerprint(model)


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ([torch.float16], torch.float16),
        ([torch.bfloat16, torch.float32], torch.float32),
        ([torch.float16, torch.bfloat16], torch.float32),
        ([torch.float32, torch.float64], torch.float64),
    ],
)
def test_weights_keep_their_type_and_mixed_ones_lose_nothing(
    types: list[torch.dtype], expected: torch.dtype, tmp_path: Path
) -> None:
    tensors = tiny_model("timer_xl").tensors_to_public()
    mixed = {name: tensor.to(types[place % len(types)]) for place, (name, tensor) in enumerate(tensors.items())}
    torch.save(mixed, tmp_path / "checkpoint.pth")
    found = load_file(convert(tmp_path / "checkpoint.pth", tmp_path / "out") / "model.safetensors")
    assert all(torch.equal(tensor.double(), mixed[name].double()) for name, tensor in found.items())
    assert {tensor.dtype for tensor in found.values()} == {expected}


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


@pytest.mark.parametrize("place", ["alone", "beside", "inside"])
def test_a_file_with_code_in_it_is_refused_and_nothing_runs(place: str, tmp_path: Path) -> None:
    trap = Trap(tmp_path / "sprung")
    tensors: dict[str, Any] = dict(tiny_model("timer_xl").tensors_to_public())
    content = {"alone": trap, "beside": {"state_dict": tensors, "extra": trap}, "inside": tensors | {"extra": trap}}
    torch.save(content[place], tmp_path / "checkpoint.pth")
    with pytest.raises(TspruneError, match=r"checkpoint.pth: refused.*more than tensors \(\S*(touch|getattr)\)"):
        convert(tmp_path / "checkpoint.pth", tmp_path / "out")
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "out").exists()


def test_a_whole_pickled_module_is_refused_by_name(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(TspruneError, match=r"model.pt: refused.*Linear.*state_dict"):
        convert(tmp_path / "model.pt", tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([torch.zeros(2)], "is of type list"),
        (torch.zeros(2), "is of type Tensor"),
        ({}, "an empty dictionary"),
        ({"embedding.weight": torch.zeros(2, 2), "steps": 5}, "'steps' is of type int"),
        ({3: torch.zeros(2)}, "entry 3 is of type Tensor"),
        ({"embedding.weight": torch.eye(3).to_sparse()}, "sparse"),
    ],
)
def test_what_is_not_named_tensors_is_refused(content: Any, said: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "checkpoint.pth")
    with pytest.raises(TspruneError, match=said):
        convert(tmp_path / "checkpoint.pth", tmp_path / "out")


def test_a_file_of_another_model_without_a_config_says_what_is_missing(tmp_path: Path) -> None:
    file = stored(tiny_model("chronos_bolt"), tmp_path / "pytorch_model.bin")
    with pytest.raises(TspruneError, match=r"no matrix 'embedding.weight'.*give its config.json"):
        convert(file, tmp_path / "out")


def test_tensors_that_do_not_fit_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    tensors = tiny_model("timer_xl").tensors_to_public()
    del tensors["blocks.norm.bias"]
    torch.save(tensors, tmp_path / "checkpoint.pth")
    with pytest.raises(TspruneError, match=r"checkpoint.pth.*1 missing: blocks.norm.bias"):
        convert(tmp_path / "checkpoint.pth", tmp_path / "out")
    config = written(tiny_config("timer_xl", d_ff=12), tmp_path)
    file = stored(tiny_model("timer_xl"), tmp_path / "checkpoint.pth")
    with pytest.raises(TspruneError, match="of the wrong shape"):
        convert(file, tmp_path / "out", config)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["checkpoint.pth", "given.json"]


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    tensors = tiny_model("timer_xl").tensors_to_public()
    tensors["head.bias"] = torch.full_like(tensors["head.bias"], torch.nan)
    torch.save(tensors, tmp_path / "checkpoint.pth")
    with pytest.raises(TspruneError, match=r"head.bias.*not finite"):
        convert(tmp_path / "checkpoint.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_an_error_that_names_it(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pth").write_bytes(content)
    with pytest.raises(TspruneError, match=r"checkpoint.pth: (refused|cannot be read)"):
        convert(tmp_path / "checkpoint.pth", tmp_path / "out")


def test_a_file_that_is_cut_off_is_an_error_that_names_it(tmp_path: Path) -> None:
    file = stored(tiny_model("timer_xl"), tmp_path / "checkpoint.pth")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(TspruneError, match=r"checkpoint.pth: (refused|cannot be read)"):
        convert(file, tmp_path / "out")


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.pth"):
        with pytest.raises(TspruneError, match="is not a file"):
            convert(path, tmp_path / "out")
    file = stored(tiny_model("timer_xl"), tmp_path / "checkpoint.pth")
    with pytest.raises(TspruneError, match=r"nothing.json: not valid JSON"):
        convert(file, tmp_path / "out", tmp_path / "nothing.json")


def test_a_directory_with_other_files_stays_as_it_is_and_an_earlier_checkpoint_is_replaced(tmp_path: Path) -> None:
    file = stored(tiny_model("timer_xl"), tmp_path / "checkpoint.pth")
    with pytest.raises(TspruneError, match=r"holds checkpoint.pth"):
        convert(file, tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pth"]
    convert(stored(tiny_model("timer_xl", 1, e_layers=1), tmp_path / "first.pth"), tmp_path / "out")
    convert(file, tmp_path / "out")
    assert fingerprint(load(tmp_path / "out")) == fingerprint(tiny_model("timer_xl"))
