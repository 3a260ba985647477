"""Our families against numbers made with the original implementations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import golden
from tests.tiny import shared_folder, shared_path


def stored() -> list[str]:
    """All cases, or the two that name the skip where there are none."""
    folder = shared_path() / "golden"
    found = sorted(str(path.parent.relative_to(folder)) for path in folder.glob("*/*/case.json"))
    return found or ["chronos_bolt/gaps_and_padding"]


CASES = stored()
BOLT = "chronos_bolt/gaps_and_padding"


@pytest.mark.parametrize("case", CASES)
def test_every_reference_tensor_is_met_within_its_tolerance(case: str) -> None:
    lines = golden.compare(shared_folder() / "golden" / case)
    assert len(lines) >= 10
    assert [str(line) for line in lines if not line.ok] == []


@pytest.mark.parametrize("case", CASES)
def test_gradient_norm_of_every_parameter_is_met(case: str) -> None:
    folder = shared_folder() / "golden" / case
    facts = json.loads((folder / "case.json").read_text())
    inputs = load_file(folder / "inputs.safetensors")
    adapter = golden.adapters()[facts["family"]]
    model = golden.load(folder, family=adapter.family or facts["family"])
    norms = {name: norm for name, norm in facts["grad_norms"].items() if norm is not None}
    ours = golden.compute(model, adapter, {**facts, "masks": []}, inputs, list(norms))
    largest = max(norms.values())
    for name, norm in norms.items():
        found = float(ours[f"grad.{name}"].norm()) if f"grad.{name}" in ours else float("nan")
        assert found == pytest.approx(norm, rel=1e-4, abs=1e-6 * largest), name


def altered(case: str, folder: Path) -> Path:
    twin = folder / "case"
    shutil.copytree(shared_folder() / "golden" / case, twin)
    return twin


def test_a_reference_value_beyond_tolerance_fails_with_exit_code_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = altered(BOLT, tmp_path)
    outputs = load_file(twin / "outputs.safetensors")
    outputs["masked_ffn.loss"] = outputs["masked_ffn.loss"] + 1e-3
    save_file(outputs, twin / "outputs.safetensors")
    assert golden.main([str(twin)]) == 1
    assert "masked_ffn.loss" in next(x for x in capsys.readouterr().out.splitlines() if "FAIL" in x)


def test_a_reference_tensor_we_cannot_compute_fails(tmp_path: Path) -> None:
    twin = altered(BOLT, tmp_path)
    outputs = load_file(twin / "outputs.safetensors")
    save_file(outputs | {"unheard_of": torch.zeros(2)}, twin / "outputs.safetensors")
    (line,) = [line for line in golden.compare(twin) if not line.ok]
    assert line.name == "unheard_of"


def test_a_family_we_do_not_have_gives_exit_code_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "case.json").write_text(json.dumps({"family": "unheard_of"}))
    assert golden.main([str(tmp_path)]) == 2
    assert "chronos_bolt" in capsys.readouterr().err
