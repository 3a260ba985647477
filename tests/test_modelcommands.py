"""Bringing torch files in from the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

import tsprune
from tests.tiny import tiny_batch, tiny_model


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tsprune", "convert", *arguments], capture_output=True, text=True)


def test_a_converted_file_is_a_model_that_loads(tmp_path: Path) -> None:
    model = tiny_model("timer_xl")
    torch.save({f"module.{name}": tensor for name, tensor in model.tensors_to_public().items()}, tmp_path / "a.pth")
    done = run(str(tmp_path / "a.pth"), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "taken as published" in done.stdout
    assert f"model: {tmp_path / 'out'}" in done.stdout
    loaded = tsprune.load(tmp_path / "out")
    assert torch.equal(loaded.forecast(tiny_batch(), 16), model.forecast(tiny_batch(), 16))


def test_no_file_and_a_file_with_more_than_tensors_are_one_line_each(tmp_path: Path) -> None:
    torch.save({"weights": Path("x")}, tmp_path / "b.pth")
    for arguments, said in (((), "name the checkpoint file"), ((str(tmp_path / "b.pth"),), "b.pth")):
        done = run(*arguments, "--out", str(tmp_path / "out"))
        assert done.returncode == 2
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
