"""Training checkpoints: what goes in comes out, and a file is whole or not there."""

from __future__ import annotations

import copy
import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tsprune import training_state
from tsprune.errors import TspruneError
from tsprune.training_state import load_training, read_tensors, save_training, write_tensors


def network(width: int = 6) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, width), nn.Dropout(0.3), nn.LayerNorm(width), nn.Linear(width, 3))


def optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for the vectors, as pretraining does."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim != 2]
    muon = torch.optim.Muon([{"params": matrices, "weight_decay": 0.1}], lr=0.02, adjust_lr_fn="match_rms_adamw")
    return [torch.optim.AdamW(vectors, lr=0.02, betas=(0.9, 0.98)), muon]


def train(model: nn.Module, steppers: list[torch.optim.Optimizer], steps: int) -> None:
    for _ in range(steps):
        for stepper in steppers:
            stepper.zero_grad()
        model(torch.randn(8, 5)).square().mean().backward()
        for stepper in steppers:
            stepper.step()


def flat(stepper: torch.optim.Optimizer) -> dict[str, Any]:
    states = stepper.state_dict()["state"]
    return {f"{index}.{key}": value for index, state in states.items() for key, value in state.items()}


def test_a_restored_training_goes_on_bit_equal(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        model = network()
        steppers = optimizers(model)
        torch.manual_seed(1)
        train(model, steppers, 3)
        extra = {"average": torch.full((2, 2), 0.1), "count": torch.tensor(4)}
        save_training(tmp_path / "c.safetensors", model, steppers, {"step": 3, "best": 0.1}, extra)
        stored = [copy.deepcopy(flat(stepper)) for stepper in steppers]
        train(model, steppers, 3)

        twin = network()
        others = optimizers(twin)
        torch.manual_seed(99)
        facts, found = load_training(tmp_path / "c.safetensors", twin, others)
        for stepper, state in zip(others, stored, strict=True):
            restored = flat(stepper)
            assert restored.keys() == state.keys() != set()
            assert all(torch.equal(torch.as_tensor(restored[k]), torch.as_tensor(v)) for k, v in state.items())
        train(twin, others, 3)
    assert facts == {"step": 3, "best": 0.1}
    assert found.keys() == extra.keys()
    assert all(torch.equal(found[name], value) for name, value in extra.items())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_parameters_that_never_had_a_gradient_have_no_state_and_survive(tmp_path: Path) -> None:
    model = network()
    stepper = torch.optim.AdamW(model.parameters(), lr=0.1)
    model[0](torch.ones(2, 5)).sum().backward()
    stepper.step()
    save_training(tmp_path / "c.safetensors", model, [stepper], {}, {})
    twin = network()
    other = torch.optim.AdamW(twin.parameters(), lr=0.1)
    with torch.random.fork_rng():
        load_training(tmp_path / "c.safetensors", twin, [other])
    assert sorted(other.state_dict()["state"]) == [0, 1]
    for name in ("exp_avg", "exp_avg_sq", "step"):
        assert torch.equal(other.state_dict()["state"][1][name], stepper.state_dict()["state"][1][name])


def test_the_learning_rate_in_force_is_not_overwritten(tmp_path: Path) -> None:
    model = network()
    save_training(tmp_path / "c.safetensors", model, optimizers(model), {}, {})
    others = optimizers(model)
    others[0].param_groups[0]["lr"] = 0.5
    with torch.random.fork_rng():
        load_training(tmp_path / "c.safetensors", model, others)
    assert others[0].param_groups[0]["lr"] == 0.5


def test_a_checkpoint_is_json_and_tensors_alone(tmp_path: Path) -> None:
    model = network()
    save_training(tmp_path / "c.safetensors", model, optimizers(model), {"step": 1, "rate": 1e-4}, {})
    tensors, metadata = read_tensors(tmp_path / "c.safetensors")
    assert json.loads(metadata["facts"]) == {"step": 1, "rate": 1e-4}
    assert all(isinstance(value, Tensor) for value in tensors.values())


def test_tensors_that_share_memory_are_written_whole(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    views = {"a": base, "b": base[1:], "c": base.T}
    write_tensors(tmp_path / "deep" / "t.safetensors", views, {"format": "pt"})
    found, metadata = read_tensors(tmp_path / "deep" / "t.safetensors")
    assert metadata == {"format": "pt"}
    assert all(torch.equal(found[name], value) for name, value in views.items())


def test_a_file_of_tensors_is_as_readable_as_any_other(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", {"one": torch.ones(2)})
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("moment", ["while writing", "before renaming"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"a": torch.ones(3)})
    before = path.read_bytes()

    def half(tensors: dict[str, Tensor], partial: Path, metadata: dict[str, str]) -> None:
        Path(partial).write_bytes(b"half a file")
        raise OSError("no space left on device")

    def killed(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment == "while writing":
            patch.setattr(training_state, "save_file", half)
        else:
            patch.setattr(training_state.os, "replace", killed)
        with pytest.raises((TspruneError, KeyboardInterrupt)):
            write_tensors(path, {"a": torch.zeros(3)})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    write_tensors(path, {"a": torch.zeros(3)})
    assert read_tensors(path)[0]["a"].tolist() == [0, 0, 0]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_training(path, network(), [], {}, {})
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TspruneError, match=r"c\.safetensors: not a readable safetensors file"):
        load_training(path, network(), [])


def test_another_file_or_another_models_checkpoint_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    save_file({"a": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(TspruneError, match="not a training checkpoint"):
        load_training(tmp_path / "other.safetensors", model, [])
    save_training(tmp_path / "wide.safetensors", network(7), [], {}, {})
    with pytest.raises(TspruneError, match="a model of other sizes"):
        load_training(tmp_path / "wide.safetensors", model, [])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_a_disk_that_takes_no_more_is_one_line_with_the_files_name(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"a": torch.ones(3)})
    before, hard = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(TspruneError) as caught:
            write_tensors(path, {"a": torch.ones(3000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert str(caught.value).startswith(f"{path}: cannot be written (File too large); make room")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TspruneError, match="cannot be written"):
        write_tensors(tmp_path / "file" / "t.safetensors", {"a": torch.ones(3)})
