"""Several processes at one command give the files of one, and only one of them writes and prints."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tsprune
from running import called, listing, wide
from tests.tiny import tiny_model
from tsprune import commands, several
from tsprune.errors import TspruneError
from tsprune.flags import Chosen

SMALL = [
    "--horizon",
    "8",
    "--context",
    "64",
    "--prune-windows",
    "160",
    "--validation-windows",
    "16",
    "--model",
    "model",
]
SMALL += ["--adapt-steps", "0", "--data", "wide.csv", "--threads", "1"]
LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"],
    "accelerate": [
        *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port"),
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("several")
    tsprune.save(tiny_model("chronos2", d_model=12, d_ff=8, num_layers=1), place / "model")
    wide(rows=2, length=300).to_csv(place / "wide.csv", index=False)
    return place


def launched(launcher: str, arguments: list[str], folder: Path) -> tuple[int, str, str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(folder / "tmp")}
    (folder / "tmp").mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    before = [sys.executable, *LAUNCHERS[launcher], port]
    done = subprocess.run(
        [*before, "-m", "tsprune", *arguments],
        cwd=folder, env=environment, text=True, capture_output=True, timeout=240, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def without_place(text: str, name: str) -> str:
    return text.replace(name, "OUT")


@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("accelerate", marks=pytest.mark.heavy)])
def test_when_two_processes_score_then_the_file_is_that_of_one(
    folder: Path, launcher: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    arguments = ["score", *SMALL, "--score", "fisher", "--out"]
    code, out, err = called([*arguments, "one.json"], capsys)
    assert code == 0, err
    name = f"{launcher}.json"
    code, both, err = launched(launcher, [*arguments, name], folder)
    assert code == 0, err
    # Printed once.
    assert without_place(both, name).splitlines()[0] == without_place(out, "one.json").splitlines()[0]
    assert both.count("units in") == 1
    assert err.count("score: fisher ...") == 1
    one, two = (json.loads((folder / file).read_text()) for file in ("one.json", name))
    assert one["windows"] == two["windows"] == 160
    assert nearly(one, two, 1e-9)
    # The others wrote nowhere that stays.
    assert not list((folder / "tmp").rglob("*.json"))


@pytest.mark.heavy
def test_when_two_processes_prune_then_plan_and_model_are_those_of_one(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    arguments = ["prune", *SMALL, "--rounds", "2", "--out"]
    code, _, err = called([*arguments, "one"], capsys)
    assert code == 0, err
    code, _, err = launched("torchrun", [*arguments, "two"], folder)
    assert code == 0, err
    assert listing(folder / "one") == listing(folder / "two")
    assert (folder / "one/plan.json").read_text() == (folder / "two/plan.json").read_text()
    assert (folder / "one/model/model.safetensors").read_bytes() == (
        folder / "two/model/model.safetensors"
    ).read_bytes()


def nearly(a: Any, b: Any, tolerance: float) -> bool:
    """Equal JSON, numbers up to a relative difference."""
    if isinstance(a, dict):
        return list(a) == list(b) and all(nearly(a[key], b[key], tolerance) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(nearly(x, y, tolerance) for x, y in zip(a, b, strict=True))
    return abs(a - b) <= tolerance * max(abs(a), abs(b)) if isinstance(a, float) else a == b


# ---- without a launcher


def test_when_several_processes_are_started_for_what_one_does_then_that_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for entry in commands.COMMANDS:
        if entry.name not in ("score", "prune"):
            with pytest.raises(
                TspruneError, match=f"2 processes were started, but 'tsprune {entry.name}' works in one"
            ):
                entry.run(Chosen({}), True)


def test_when_there_is_no_launcher_then_the_command_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    seen: list[tuple[Any, bool]] = []
    chosen = Chosen({"out": "here"})
    several.shared(lambda c, quiet: seen.append((c, quiet)))(chosen, False)
    several.alone(lambda c, quiet: seen.append((c, quiet)), "x")(chosen, True)
    assert seen == [(chosen, False), (chosen, True)]


def test_when_a_command_is_wrapped_then_its_help_stays() -> None:
    for entry in commands.COMMANDS:
        assert entry.run.__doc__
