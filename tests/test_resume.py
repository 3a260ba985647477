"""Killed at any moment, the same command ends with the same result."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
import tsprune.specializing
from running import SMALL, called, fill, finished, no_figures, start, without_timings
from tsprune.candidates import _workshop
from tsprune.stages import Run, read_json
from tsprune.training_state import read_tensors

STAGES = (
    "adapt",
    "prune",
    "random-prune",
    "full-finetuning",
    "random-prune-finetune",
    "prune-then-finetune",
    "validate",
    "test",
)
LONGER = SMALL | {"steps": 40, "search_steps": 10, "evaluations": 20, "patience": 20, "learning_rates": "1e-4,1e-3"}


def command(folder: str = "out", settings: dict[str, Any] = LONGER, **changes: Any) -> list[str]:
    """The run of these tests, quiet, with changed options."""
    options = settings | {"data": "wide.csv", "model": "chronos2", "out": folder} | changes
    return ["specialize", "--quiet"] + [
        text for name, value in options.items() for text in ("--" + name.replace("_", "-"), str(value))
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an uninterrupted run in `whole/`."""
    folder = fill(tmp_path_factory.mktemp("resume"))
    code, _, err = finished(command("whole"), folder)
    assert (code, err) == (0, "")
    return folder


def killed_when(condition: Callable[[], bool], arguments: list[str], folder: Path) -> bool:
    """Start a process and kill it as soon as the condition holds; False if it ended before that."""
    process = start(arguments, folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            if condition():
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.001)
    finally:
        process.kill()
    return process.wait(timeout=60) == -signal.SIGKILL


def in_stage(out: Path, name: str, files: str = "") -> Callable[[], bool]:
    """Whether a stage is under way, and has written certain files."""
    return lambda: any(out.glob(f"stages/{name}-????????????.partial/{files}"))


def assert_same_result(place: Path, out: Path) -> None:
    """The run ended like the uninterrupted one: results up to timings, plan and weights to the bit, a report."""
    whole = place / "whole"
    assert without_timings(read_json(out / "results.json")) == without_timings(read_json(whole / "results.json"))
    assert (out / "plan.json").read_bytes() == (whole / "plan.json").read_bytes()
    own, other = (load_file(folder / "model" / "model.safetensors") for folder in (out, whole))
    assert own.keys() == other.keys()
    assert all(torch.equal(own[name], other[name]) for name in own)
    assert (out / "report.html").stat().st_size > 10_000
    assert set(read_json(out / "results.json")["timings"]) == set(STAGES)
    leftovers = [p.name for p in out.rglob("*") if p.name.endswith((".part", ".partial", ".old")) or "probe" in p.name]
    assert leftovers == []


def killed_in_turn(place: Path, out: Path, moments: list[tuple[str, str]]) -> None:
    """Kill at every moment in turn, then run to the end and compare."""

    def killed(stage: str, files: str) -> bool:
        return killed_when(in_stage(out, stage, files), command(out.name), place)

    # A moment can pass between two looks at the directory when the machine is busy; then all is done over.
    for _ in range(3):
        if all(killed(*moment) for moment in moments):
            break
        shutil.rmtree(out)
    else:
        pytest.fail(f"some of {moments} were missed three times")
    assert not (out / "results.json").exists()
    code, _, err = finished(command(out.name), place)
    assert (code, err) == (0, "")
    assert_same_result(place, out)


def test_run_killed_in_three_stages_ends_as_if_never_killed(place: Path) -> None:
    moments = [("prune", ""), ("full-finetuning", "training/full-*.safetensors"), ("test", "")]
    killed_in_turn(place, place / "thrice", moments)


@pytest.mark.heavy
def test_run_killed_at_the_start_of_every_stage_ends_as_if_never_killed(place: Path) -> None:
    killed_in_turn(place, place / "starts", [(stage, "") for stage in STAGES])


@pytest.mark.heavy
def test_run_killed_inside_every_long_stage_ends_as_if_never_killed(place: Path) -> None:
    tunings = ("full-finetuning", "random-prune-finetune", "prune-then-finetune")
    trainings = [(stage, f"training/{run}-*") for stage in tunings for run in ("search", "full")]
    killed_in_turn(place, place / "inside", [("prune", "rounds.json"), ("random-prune", ""), *trainings])


@pytest.mark.heavy
@pytest.mark.parametrize("seed", range(3))
def test_run_killed_at_random_times_ends_as_if_never_killed(seed: int, place: Path) -> None:
    out, draw = place / f"random-{seed}", random.Random(seed)
    for _ in range(4):
        moment = time.monotonic() + draw.uniform(1.5, 8)
        killed_when(lambda end=moment: time.monotonic() > end, command(out.name), place)  # type: ignore[misc]
    code, _, err = finished(command(out.name), place)
    assert (code, err) == (0, "")
    assert_same_result(place, out)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short finished run in `whole/`."""
    folder = fill(tmp_path_factory.mktemp("short"))
    code, _, err = finished(command("whole", SMALL), folder)
    assert (code, err) == (0, "")
    return folder


@pytest.fixture
def copied(short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The short run and its inputs, to be changed, as the current directory."""
    folder = tmp_path / "copy"
    shutil.copytree(short, folder)
    monkeypatch.chdir(folder)
    with no_figures():
        yield folder


def stages(out: Path) -> dict[str, int]:
    """Finished stages with the time at which they ended."""
    return {mark.parent.name: mark.stat().st_mtime_ns for mark in (out / "stages").glob("*/done.json")}


def _refuse(*arguments: Any, **more: Any) -> None:
    raise AssertionError("a finished stage was made again")


def test_finished_run_started_again_takes_everything_from_its_stages(
    copied: Path, short: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stages(copied / "whole")
    for name in ("adapt_to", "prune_by_rounds", "finetune_to", "one_shot"):
        monkeypatch.setattr(_workshop, name, _refuse)
    for name in ("measured", "open_test"):
        monkeypatch.setattr(tsprune.specializing, name, _refuse)
    assert called(command("whole", SMALL), capsys)[0] == 0
    assert stages(copied / "whole") == before
    assert read_json(copied / "whole" / "results.json") == read_json(short / "whole" / "results.json")


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"seed": 1}, set()),
        ({"horizon": 6}, set()),
        ({"steps": 6}, {"adapt", "prune", "random-prune"}),
        ({"rounds": 1}, {"adapt", "full-finetuning"}),
        ({"test_windows": 10}, set(STAGES) - {"test"}),
        ({"latency_batch": 2}, set(STAGES) - {"test"}),
        ({"batch_size": 5}, set(STAGES)),
    ],
    ids=("seed", "horizon", "steps", "rounds", "test-windows", "latency-batch", "batch-size"),
)
def test_changed_option_makes_again_what_depends_on_it_and_nothing_else(
    change: dict[str, Any], kept: set[str], copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stages(copied / "whole")
    assert called(command("whole", SMALL, **change), capsys)[0] == 0
    after = stages(copied / "whole")
    assert {name: after[name] for name in before} == before
    assert {name.rsplit("-", 1)[0] for name in set(after) - set(before)} == set(STAGES) - kept


def test_changed_option_in_a_used_directory_gives_the_result_of_a_fresh_one(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("whole", "fresh"):
        assert called(command(folder, SMALL, steps=6), capsys)[0] == 0
    used, fresh = (without_timings(read_json(copied / folder / "results.json")) for folder in ("whole", "fresh"))
    assert used == fresh


def test_changed_data_make_everything_again(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = (copied / "wide.csv").read_text(encoding="utf-8").splitlines()
    (copied / "wide.csv").write_text("\n".join([*content[:-1], content[-1].rsplit(",", 1)[0] + ",9"]) + "\n")
    assert called(command("whole", SMALL), capsys)[0] == 0
    assert len(stages(copied / "whole")) == 2 * len(STAGES)


def test_stage_killed_before_its_mark_is_made_again(tmp_path: Path) -> None:
    calls = []

    def make(work: Path) -> None:
        (work / "result.txt").write_text("whole")
        calls.append(sorted(p.name for p in work.iterdir()))
        if len(calls) == 1:
            (work / ".result.txt.1.part").write_text("half")
            raise KeyboardInterrupt

    run = Run(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run.stage("one", {"a": 1}, make)
    assert not list(run.directory.rglob("done.json"))
    folder = run.stage("one", {"a": 1}, make)
    assert sorted(p.name for p in folder.iterdir()) == ["done.json", "result.txt"]
    assert len(calls) == 2
    assert run.stage("one", {"a": 1}, _refuse) == folder


PRETRAIN = ["--steps", "50", "--decay-steps", "20", "--warmup-steps", "5", "--batch", "8", "--checkpoint-every", "5"]


def pretrain(out: str) -> list[str]:
    """A short pretraining of a tiny model in float32."""
    return ["pretrain", "--quiet", "--size", "size.json", "--precision", "float32", *PRETRAIN, "--out", out]


def test_pretraining_killed_midway_ends_with_the_same_weights(tmp_path: Path) -> None:
    (tmp_path / "size.json").write_text(json.dumps(tiny.tiny_config("chronos2")), encoding="utf-8")
    code, _, err = finished(pretrain("whole"), tmp_path)
    assert (code, err) == (0, "")
    mark = tmp_path / "cut" / "checkpoint.safetensors"

    def reached(step: int) -> Callable[[], bool]:
        return lambda: mark.exists() and json.loads(read_tensors(mark)[1]["facts"])["step"] >= step

    assert killed_when(reached(20), pretrain("cut"), tmp_path)
    assert not (tmp_path / "cut" / "model").exists()
    code, _, err = finished(pretrain("cut"), tmp_path)
    assert (code, err) == (0, "")
    for file in ("model/model.safetensors", "checkpoint.safetensors"):
        own, other = (load_file(tmp_path / folder / file) for folder in ("cut", "whole"))
        assert own.keys() == other.keys()
        assert all(torch.equal(own[name], other[name]) for name in own)
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut" / "log.jsonl").read_text().splitlines()]
    assert steps == [50]
