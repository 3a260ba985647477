"""The command line from outside: every command on tiny models, streams, exit codes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import tsprune
from running import FAST, called, finished, start
from tsprune import cli, commands
from tsprune.evaluation.cost import parameters
from tsprune.models import fingerprint
from tsprune.progress import Progress
from tsprune.stages import read_json

TASK = ["--data", "wide.csv", "--model", "chronos2", "--horizon", "8", "--validation-windows", "16"]


def test_version_is_the_packages(tmp_path: Path) -> None:
    code, out, err = finished(["--version"], tmp_path)
    assert (code, out, err) == (0, f"tsprune {tsprune.__version__}\n", "")


def test_installed_program_and_module_are_the_same(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("tsprune")
    if not program.exists():
        pytest.skip(f"{program} is not installed")
    done = subprocess.run([program, "--version"], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout == finished(["--version"], tmp_path)[1]


def test_program_without_arguments_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = called([], capsys)
    assert (code, err) == (0, "")
    for entry in commands.COMMANDS:
        assert entry.name in out


def test_specialize_prints_table_verdict_and_places(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = called(["specialize", *FAST, *TASK, "--out", "run"], capsys)
    assert code == 0
    results = read_json(Path("run/results.json"))
    assert results["verdict"] in out
    for word in ("seasonal naive", "zero-shot", "run/report.html", "run/model"):
        assert word in out
    for word in ("2 series of 240 steps", "inferred frequency: h", "split ratio 70/10/20", "prune: ", "test: "):
        assert word in err
    assert "  " not in err.replace("\n", "") and not any(line != line.strip() for line in err.splitlines())


def test_quiet_leaves_the_error_stream_empty(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["evaluate", *TASK], ["prune", *TASK, "--rounds", "1"], ["predict", "chronos2", *TASK[:2]]):
        code, out, err = called([*command, "--quiet"], capsys)
        assert (code, err) == (0, "")
        assert out.strip()


def test_scores_are_written_and_prune_in_one_shot(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = called(
        ["score", *TASK, "--prune-windows", "16", "--adapt-steps", "2", "--out", "deep/er/scores.json"], capsys
    )
    assert code == 0
    stored = read_json(Path("deep/er/scores.json"))
    model = tsprune.load("chronos2")
    groups = {name: group for name, group in model.unit_groups().items() if group.kind in ("head", "ffn_channel")}
    assert {name: len(entry["scores"]) for name, entry in stored["groups"].items()} == {
        name: group.units for name, group in groups.items()
    }
    assert stored["base_fingerprint"] == fingerprint(model)
    assert f"{sum(group.units for group in groups.values())} units in {len(groups)} groups" in out
    code, out, _ = called(["prune", *TASK, "--scores", "deep/er/scores.json", "--keep", "0.8"], capsys)
    assert code == 0
    slim = tsprune.load("pruned/model")
    assert 0.75 * model.parameter_count() <= slim.parameter_count() <= 0.8 * model.parameter_count()
    assert f"{parameters(slim):,} parameters" in out
    plan = tsprune.Plan.read("pruned/plan.json")
    assert (plan.score, plan.schedule) == ("fisher", "one shot keep 0.8, repaired by least squares")
    code, out, _ = called(["prune", *TASK, "--scores", "deep/er/scores.json", "--keep", "0.01"], capsys)
    assert code == 0 and "--keep 0.01 is out of reach" in out


def test_prune_then_finetune_then_evaluate_then_predict(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = called(["prune", *TASK, "--rounds", "2", "--prune-windows", "16", "--adapt-steps", "2"], capsys)
    assert code == 0 and "pruned/plan.json" in out
    rounds = read_json(Path("pruned/rounds.json"))
    assert [entry["round"] for entry in rounds["rounds"]] == [0, 1, 2]
    slim = ["--data", "wide.csv", "--model", "pruned/model", "--horizon", "8", "--validation-windows", "16"]
    code, out, _ = called(["finetune", *slim, "--steps", "6", "--search-steps", "2", "--batch", "8"], capsys)
    assert code == 0 and "validation loss" in out
    assert sorted(p.name for p in Path("tuned").iterdir()) == ["model", "trials.json"]
    tuned = ["--data", "wide.csv", "--model", "tuned/model", "--horizon", "8"]
    code, out, _ = called(["evaluate", *tuned, "--out", "metrics.json"], capsys)
    assert code == 0
    stored = read_json(Path("metrics.json"))
    assert set(stored["models"]) == {"seasonal_naive", "tuned/model"}
    assert f"MSE {stored['models']['tuned/model']['metrics']['mse']:.4f}" in out
    code, out, err = called(["predict", "tuned/model", "--data", "wide.csv"], capsys)
    assert code == 0 and "2 series, 8 steps each" in out and "forecast.csv" in out
    assert "what the model was tuned for" in err and "--together" not in err
    code, _, err = called(["predict", "tuned/model", "--data", "wide.csv", "--together"], capsys)
    assert code == 0 and "the model was tuned without --together" in err


def test_tuning_that_does_not_help_says_so(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--steps", "2", "--learning-rates", "50", "--search-steps", "0", "--batch", "8"]
    code, out, _ = called(["finetune", *TASK, *flags], capsys)
    assert code == 0
    assert "handed back as it came" in out
    assert fingerprint(tsprune.load("tuned/model")) == fingerprint(tsprune.load("chronos2"))


def test_evaluate_knows_both_parts(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = [called(["evaluate", *TASK, "--part", part], capsys)[1] for part in ("test", "validation")]
    assert said[0].startswith("test part") and said[1].startswith("validation part")
    assert said[0].splitlines()[1:] != said[1].splitlines()[1:]


def test_options_come_from_a_file(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("options.yaml").write_text("data: wide.csv\nmodel: chronos2\nhorizon: 4\nlevels: [0.5]\n", encoding="utf-8")
    code, out, _ = called(["predict", "--config", "options.yaml"], capsys)
    assert code == 0
    assert "2 series, 4 steps each, one value" in out
    code, out, _ = called(["predict", "--config", "options.yaml", "--horizon", "5"], capsys)
    assert "5 steps each" in out


def test_interrupted_run_says_that_it_continues(place: Path) -> None:
    # What a shell starts in the background ignores the signal, and hands that on to us and our children.
    heard: dict[str, Any] = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    long = ["--steps", "2000", "--patience", "2000"]
    process = start(["specialize", *FAST, *TASK, *long, "--out", "run"], place, **heard)
    end = time.monotonic() + 60
    while not (place / "run" / "stages").exists() and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.3)
    err = ""
    for _ in range(12):
        # As a user would, once more where the first was lost inside an import.
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            _, err = process.communicate(timeout=10)
            break
    # Python dies of the signal itself where it came inside an exec(), as in some imports; a shell says 130 to both.
    assert process.returncode in (130, -signal.SIGINT)
    assert err.splitlines()[-1] == "stopped; the same command continues where it was"
    assert "Traceback" not in err


def test_reader_that_goes_away_is_no_error(place: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    process = start(["predict", "chronos2", "--data", "wide.csv", "--out", "-", "--quiet"], place, stdout=write)
    os.close(write)
    _, err = process.communicate(timeout=60)
    # 1 where the CLI library notices, 141 as in a shell where the interpreter does on its last flush.
    assert process.returncode in (1, 141)
    assert err == ""


def test_full_disk_is_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "forecast.csv")

    monkeypatch.setattr("tsprune.stages.os.replace", full)
    code, _, err = called(["predict", "chronos2", "--data", "wide.csv", "--quiet"], capsys)
    assert code == 2 and len(err.splitlines()) == 1
    assert "forecast.csv: cannot be written (No space left on device)" in err


def test_defect_of_ours_keeps_its_traceback(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: Any, **more: Any) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("tsprune.predicting.predict", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        cli.main(["predict", "chronos2", "--data", "wide.csv", "--quiet"])


@pytest.mark.parametrize("out", ["/dev/null", "link.csv"])
def test_forecast_goes_through_devices_and_links(out: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("link.csv").symlink_to("target.csv")
    code, _, _ = called(["predict", "chronos2", "--data", "wide.csv", "--out", out], capsys)
    assert code == 0
    assert not Path("/dev/null").is_file()
    assert Path("link.csv").is_symlink()
    assert Path("target.csv").exists() == (out == "link.csv")


def test_progress_in_plain_lines_names_stage_time_and_note(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(terminal=False)
    with progress.stage("prune", 3) as bar:
        bar.advance("first")
        bar.advance()
        assert (bar.done, bar.note) == (2, "first")
        bar.said -= 11
        bar.update(2)
        bar.advance("")
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == "prune ..."
    assert lines[1].startswith("prune: 2/3, about ") and lines[1].endswith(" s left; first")
    assert lines[2].startswith("prune: ") and lines[2].endswith(" s")


def test_progress_on_a_terminal_draws_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(terminal=True).stage("prune", 2) as bar:
        bar.advance("note")
        bar.advance()
    out, err = capsys.readouterr()
    assert out == ""
    assert "prune" in err and "100%" in err


def test_quiet_progress_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(quiet=True, terminal=True)
    progress.say("words")
    with progress.stage("prune", 2) as bar:
        bar.advance()
    assert capsys.readouterr() == ("", "")


def test_error_inside_a_stage_closes_its_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="inside"), Progress(terminal=True).stage("prune", 2) as bar:
        raise ValueError("inside")
    assert bar.drawn.finished is False
    assert not bar.drawn.live.is_started


@pytest.mark.heavy
def test_bundled_model_and_sample_go_the_whole_way(tmp_path: Path) -> None:
    """`tsprune specialize` with nothing else, but for its length."""
    short = [
        "--rounds",
        "1",
        "--steps",
        "2",
        "--search-steps",
        "0",
        "--validation-windows",
        "16",
        "--test-windows",
        "16",
    ]
    code, out, _ = finished(
        ["specialize", *short, "--prune-windows", "16", "--adapt-steps", "2", "--batch", "4"], tmp_path
    )
    assert code == 0
    assert (tmp_path / "tsprune-run" / "report.html").exists()
    assert "tsprune-run/model" in out
    assert json.loads((tmp_path / "tsprune-run" / "results.json").read_text())["protocol"]["model"] == "mini"
