"""Files written whole or not at all, and stages that are made once."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsprune.errors import TspruneError
from tsprune.stages import LOCK, Run, digest, read_json, release, writable, writable_file, write_json, write_text

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=JSON)
def test_json_comes_back_as_it_was(value: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("json") / "deep" / "value.json"
    write_json(path, value)
    assert read_json(path) == value
    assert [p.name for p in path.parent.iterdir()] == ["value.json"]


@pytest.mark.parametrize("value", [math.nan, {"a": [math.inf]}])
def test_what_json_cannot_hold_is_not_written(value: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", value)
    assert list(tmp_path.iterdir()) == []


def test_failed_write_keeps_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "earlier")

    def fail(*arguments: Any) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(TspruneError, match=r"a\.txt: cannot be written \(power cut\)"):
        write_text(path, "later")
    assert path.read_text() == "earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_disk_that_takes_no_more_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "earlier")
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(TspruneError, match=r"a\.txt: cannot be written \(File too large\); make room"):
            write_text(path, "later" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert path.read_text() == "earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_full_device_is_named_and_a_closed_pipe_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TspruneError, match=r"/dev/full: cannot be written \(No space left on device\)"):
        write_text(Path("/dev/full"), "x" * 100_000)

    def closed(*arguments: Any, **more: Any) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(Path, "write_text", closed)
    with pytest.raises(BrokenPipeError):
        write_text(Path("/dev/null"), "x")


@pytest.mark.parametrize(
    ("content", "says"), [(None, "no such file"), (b"{", "not valid JSON"), (b"\xff\xfe", "not valid JSON")]
)
def test_unreadable_json_is_named(content: bytes | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TspruneError, match=f"x.json: {says}"):
        read_json(path)


def test_directory_instead_of_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(TspruneError, match="cannot be read"):
        read_json(tmp_path)


@given(
    one=st.dictionaries(st.text(max_size=3), st.integers(0, 3), max_size=3),
    two=st.dictionaries(st.text(max_size=3), st.integers(0, 3), max_size=3),
)
def test_inputs_have_equal_hashes_exactly_when_they_are_equal(one: dict[str, int], two: dict[str, int]) -> None:
    assert (digest(one) == digest(two)) == (one == two)
    assert digest(dict(reversed(one.items()))) == digest(one)


def test_place_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    assert writable(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    writable(tmp_path)
    assert writable_file(tmp_path / "c" / "d.csv") == tmp_path / "c" / "d.csv"
    assert list(tmp_path.iterdir()) == []


def test_existing_empty_directory_is_not_taken_away(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    writable(tmp_path / "empty" / "below")
    assert (tmp_path / "empty").is_dir()


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/none/x", "n" * 300])
def test_place_that_cannot_be_written_is_refused_with_its_flag(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(TspruneError, match="--there .*cannot write there"):
        writable(tmp_path / place, "--there")
    with pytest.raises(TspruneError, match="--there"):
        writable_file(tmp_path / place / "file.csv", "--there")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(TspruneError, match="is a directory"):
        writable_file(tmp_path)


def test_stage_is_made_once_for_the_same_inputs(tmp_path: Path) -> None:
    calls: list[Path] = []

    def make(work: Path) -> None:
        calls.append(work)
        write_text(work / "number.txt", str(len(calls)))

    run = Run(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    one = run.stage("work", {"a": 1, "b": (1, 2)}, make)
    assert run.stage("work", {"b": (1, 2), "a": 1}, make) == one
    assert Run(tmp_path / "run").stage("work", {"a": 1, "b": [1, 2]}, make) == one
    two = run.stage("work", {"a": 2, "b": (1, 2)}, make)
    assert two != one and len(calls) == 2
    assert (one / "number.txt").read_text() == "1"
    mark = json.loads((one / "done.json").read_text())
    assert mark["inputs"] == {"a": 1, "b": [1, 2]}
    assert run.seconds["work"] == json.loads((two / "done.json").read_text())["seconds"]


def test_failed_stage_keeps_its_work_for_the_next_try(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def make(work: Path) -> None:
        seen.append(sorted(p.name for p in work.iterdir()))
        write_text(work / "checkpoint", "half")
        if len(seen) == 1:
            raise TspruneError("no more")

    run = Run(tmp_path)
    with pytest.raises(TspruneError, match="no more"):
        run.stage("work", {}, make)
    folder = run.stage("work", {}, make)
    assert seen == [[], ["checkpoint"]]
    assert sorted(p.name for p in folder.parent.iterdir()) == [folder.name]


WORKING = """
import sys, time
from pathlib import Path
from tsprune.stages import Run
run = Run(Path(sys.argv[1]))
run.stage("other", {}, lambda work: None)
print("works", flush=True)
time.sleep(60)
"""


@contextmanager
def other_run(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that works in a run directory."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKING, str(directory)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1] / "src")},
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "works\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def nothing(work: Path) -> None:
    """A stage that writes nothing."""


def test_second_process_in_a_run_directory_is_refused_until_the_first_has_died(tmp_path: Path) -> None:
    with other_run(tmp_path / "run") as process:
        before = sorted(tmp_path.rglob("*"))
        run = Run(tmp_path / "run")
        expected = rf"another tsprune run \(pid {process.pid}\) is working in {tmp_path / 'run'}; .*another --out"
        with pytest.raises(TspruneError, match=expected):
            run.stage("work", {}, nothing)
        assert sorted(tmp_path.rglob("*")) == before
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / "run" / LOCK).exists()
        run.stage("work", {}, nothing)
    run.close()
    assert not (tmp_path / "run" / LOCK).exists()


def test_process_may_open_its_directory_twice_and_gives_it_back_after_the_last(tmp_path: Path) -> None:
    one, two = Run(tmp_path), Run(tmp_path / ".." / tmp_path.name)
    one.stage("a", {}, nothing)
    two.stage("b", {}, nothing)
    assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"
    one.close()
    assert (tmp_path / LOCK).exists()
    del two
    assert not (tmp_path / LOCK).exists()
    one.stage("a", {}, nothing)
    assert (tmp_path / LOCK).exists()
    release()
    assert not (tmp_path / LOCK).exists()
    three = Run(tmp_path)
    three.stage("a", {}, nothing)
    one.close()
    assert (tmp_path / LOCK).exists()
    three.close()


def test_directory_that_was_removed_meanwhile_is_locked_anew(tmp_path: Path) -> None:
    old, new = Run(tmp_path / "run"), Run(tmp_path / "run")
    old.stage("a", {}, nothing)
    shutil.rmtree(tmp_path / "run")
    new.stage("a", {}, nothing)
    old.close()
    assert (tmp_path / "run" / LOCK).exists()
    new.close()


def _finished(directory: Path) -> tuple[Path, list[str]]:
    """A finished stage with two files, and what later runs say."""

    def make(work: Path) -> None:
        write_json(work / "deep" / "a.json", {"b": 1})
        (work / "weights.bin").write_bytes(bytes(100))

    said: list[str] = []
    folder = Run(directory, warn=said.append).stage("work", {}, make)
    Run(directory, warn=said.append).stage("work", {}, make)
    assert said == []
    return folder, said


DAMAGE = {
    "cut": (lambda f: (f / "weights.bin").write_bytes(bytes(50)), "weights.bin has changed"),
    "empty": (lambda f: (f / "weights.bin").write_bytes(b""), "weights.bin has changed"),
    "other": (lambda f: (f / "deep" / "a.json").write_text('{\n  "b": 2\n}\n'), "deep/a.json has changed"),
    "missing": (lambda f: (f / "deep" / "a.json").unlink(), "deep/a.json is missing"),
    "folder missing": (lambda f: shutil.rmtree(f / "deep"), "deep/a.json is missing"),
    "no mark": (lambda f: (f / "done.json").unlink(), "done.json is missing"),
    "mark cut": (lambda f: (f / "done.json").write_text("{"), "done.json is missing or cannot be read"),
    "mark of other things": (lambda f: (f / "done.json").write_text("[1]"), "done.json is missing or cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_stage_is_made_again_aloud(name: str, tmp_path: Path) -> None:
    damage, says = DAMAGE[name]
    folder, _ = _finished(tmp_path)
    damage(folder)
    again: list[str] = []

    def make(work: Path) -> None:
        write_text(work / "new", "x")

    for _ in range(2):
        assert Run(tmp_path, warn=again.append).stage("work", {}, make) == folder
    assert len(again) == 1 and again[0].startswith(f"stage work is made again: {folder} is damaged, {says}")
    assert sorted(p.name for p in folder.iterdir()) == ["done.json", "new"]
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_damage_is_said_on_the_error_stream_by_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = _finished(tmp_path)
    (folder / "weights.bin").unlink()
    Run(tmp_path).stage("work", {}, nothing)
    out, err = capsys.readouterr()
    assert out == "" and "weights.bin is missing" in err and err.count("\n") == 1


def test_stage_of_an_older_version_and_files_added_later_are_no_damage(tmp_path: Path) -> None:
    folder, said = _finished(tmp_path)
    (folder / "notes.txt").write_text("mine")
    Run(tmp_path, warn=said.append).stage("work", {}, nothing)
    (folder / "weights.bin").unlink()
    write_json(folder / "done.json", {"inputs": {}, "seconds": 2.5})
    run = Run(tmp_path, warn=said.append)
    run.stage("work", {}, nothing)
    assert run.seconds == {"work": 2.5}
    assert said == []


def test_what_a_kill_left_of_a_file_does_not_stay_in_the_stage(tmp_path: Path) -> None:
    def make(work: Path) -> None:
        for name in (".tmpA1b2C3", ".a.json.12.part", "kept.tmp"):
            (work / name).touch()

    folder = Run(tmp_path).stage("work", {}, make)
    assert sorted(p.name for p in folder.iterdir()) == ["done.json", "kept.tmp"]
    assert set(read_json(folder / "done.json")["files"]) == {"kept.tmp"}


def test_replaced_results_are_said_once(tmp_path: Path) -> None:
    notes: list[str] = []
    for inputs in ({"a": 1}, {"a": 1}):
        Run(tmp_path, notes.append).stage("work", inputs, nothing)
        write_json(tmp_path / "results.json", {})
    Run(tmp_path, notes.append).stage("work-too", {}, nothing)
    assert notes == []
    run = Run(tmp_path, notes.append)
    for inputs in ({"a": 2}, {"a": 3}):
        run.stage("work", inputs, nothing)
    assert notes == [f"note: {tmp_path} holds the results of an earlier run with other inputs; replacing them"]
