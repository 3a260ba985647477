"""The list of families and public checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tsprune import registry
from tsprune.catalogue import describe
from tsprune.errors import TspruneError


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tsprune", "models", *arguments], capture_output=True, text=True)


def test_every_family_is_listed_with_sizes_and_licences(tmp_path: Path) -> None:
    done = run("--out", str(tmp_path / "models.json"))
    assert done.returncode == 0, done.stderr
    stored = json.loads((tmp_path / "models.json").read_text())["families"]
    assert [entry["family"] for entry in stored] == registry.names("tsprune.models")
    for entry in stored:
        assert entry["family"] in done.stdout
        assert entry["about"].endswith(".")
        for checkpoint in entry["checkpoints"]:
            # Long names are folded in their column.
            assert checkpoint["name"][:12] in done.stdout
            assert checkpoint["licence"]


def test_one_family_can_be_named() -> None:
    done = run("chronos2")
    assert done.returncode == 0
    assert "amazon/chronos-2" in done.stdout
    assert "119.48 M" in done.stdout
    assert "chronos_bolt" not in done.stdout


def test_an_unknown_family_lists_the_known(tmp_path: Path) -> None:
    done = run("snake")
    assert done.returncode == 2
    assert "chronos_bolt" in done.stderr
    with pytest.raises(TspruneError, match="snake"):
        describe("snake")
    assert run("--out", str(tmp_path / "models.txt")).returncode == 2
