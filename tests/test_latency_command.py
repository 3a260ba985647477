"""`tsprune bench latency` from outside: what it writes, what it says, wrong input, and the grid beside it."""

from __future__ import annotations

import re
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import tiny
import tsprune
from running import called
from tsprune.errors import TspruneError
from tsprune.evaluation.cost import flops, parameters
from tsprune.flags import flag_of
from tsprune.latencycommand import LatencySettings
from tsprune.slimming import slim
from tsprune.speed import ladder, runtimes
from tsprune.speed.alone import Alone
from tsprune.speed.page import write_latency_page
from tsprune.speed.rungs import with_ratios
from tsprune.speed.tables import HEAD, LOADS, fastest, legend, line, load_lines, sentences, show, texts
from tsprune.stages import read_json

NAMES = ("eager", "onnx", "onnx_int8")
QUICK = ["--batches", "1,2", "--threads", "1", "--runtimes", "eager", "--repeats", "3", "--no-alone"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    model = tiny.tiny_model("chronos_bolt")
    tsprune.save(model, "dense")
    groups = {name: group for name, group in model.unit_groups().items() if group.kind in ("head", "ffn_channel")}
    tsprune.save(slim(model, {name: list(range(group.units // 2)) for name, group in groups.items()}), "half")
    return tmp_path


def row(model: str, runtime: str, median: float | None, **more: Any) -> dict[str, Any]:
    times = dict.fromkeys(("median_ms", "q1_ms", "q3_ms", "minimum_ms", "cpu_ms"), median)
    rest = {"busy": False, "windows_per_s": 1.0, "flops": 2_000_000_000, "bytes_on_disk": 3_000_000, "peak_mib": 7.0}
    difference = {"largest": 0.25, "mean": 0.125} if runtime == "onnx_int8" else {"largest": 2e-6, "mean": 1e-7}
    return {"model": model, "runtime": runtime, **times, **rest, "difference": difference, "error": "", **more}


@pytest.fixture
def content() -> dict[str, Any]:
    """One table of two models on three runtimes, one of which fails for the second model."""
    rows = [
        row("dense", "eager", 40.0),
        row("half", "eager", 24.0),
        row("dense", "onnx", 20.0),
        row("half", "onnx", 10.0),
    ]
    rows += [row("dense", "onnx_int8", 8.0), row("half", "onnx_int8", None, error="no <such> kernel", difference=None)]
    table = {"device": "cpu", "windows": 16, "threads": 1, "why": "32 are no faster", "busy": True}
    model = {"family": "chronos_bolt", "flops": 10**9, "checkpoint_bytes": 3_000_000, "cut": False}
    loads = [
        {"model": name, "runtime": "eager", "device": "cpu", "first_s": first, "spread_s": [first, first + 1]}
        | {"imports_s": 1.0, "first_cpu_s": first / 2, "bytes_on_disk": 10}
        for name, first in (("dense", 0.5), ("half", 0.2))
    ]
    return {
        "schema": 1, "reference": "dense", "context": 512, "horizon": 64, "repeats": 20, "tolerance": 1e-4,
        "models": [{"name": "dense", "parameters": 100, **model}, {"name": "half", "parameters": 40, **model}],
        "runtimes": {n: {"title": runtimes.find(n).title, "exact": n != "onnx_int8"} for n in NAMES},
        "tables": [table | {"rows": with_ratios(rows, "dense")}], "loads": loads, "busy": True, "notes": ["a note."],
        "machine": "a machine", "versions": {"python": "3"},
    }  # fmt: skip


def test_every_model_has_a_row_per_batch_with_its_own_facts(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "work").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place / "work"))
    code, out, err = called(["bench", "latency", "dense", "half/", *QUICK, "--horizon", "8"], capsys)
    assert code == 0, err
    found = read_json(place / "tsprune-latency" / "latency.json")
    assert [(table["windows"], table["threads"], table["device"]) for table in found["tables"]] == [
        (1, 1, "cpu"),
        (2, 1, "cpu"),
    ]
    assert found["reference"] == "dense" and found["horizon"] == 8
    for table in found["tables"]:
        assert [one["model"] for one in table["rows"]] == ["dense", "half"]
        for one in table["rows"]:
            model = tsprune.load(one["model"])
            assert one["flops"] == flops(model, found["context"], 8, table["windows"])
            assert one["q1_ms"] <= one["median_ms"] <= one["q3_ms"]
            assert one["runtime"] == "eager" and not one["error"]
            assert one["bytes_on_disk"] == sum(path.stat().st_size for path in Path(one["model"]).iterdir())
        dense, half = table["rows"]
        assert half["pruning"] == half["together"] == pytest.approx(half["median_ms"] / dense["median_ms"])
    sizes = {model["name"]: model["parameters"] for model in found["models"]}
    assert sizes == {name: parameters(tsprune.load(name)) for name in ("dense", "half")}
    assert [model["cut"] for model in found["models"]] == [False, True]
    assert found["loads"] == []
    assert "eager torch" in out and "pruning: time over that of dense on the same runtime" in out
    assert sorted(path.name for path in (place / "tsprune-latency").iterdir()) == ["latency.html", "latency.json"]
    assert not list((place / "work").glob("tsprune-*"))


def test_memory_and_loading_come_from_processes_of_their_own(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, int]] = []

    def alone(runtime: str, source: str, folder: Path, **more: Any) -> Alone:
        asked.append((source, more["windows"]))
        return Alone(1.0, float(len(asked)), 0.5, 9.0, 5.0 + more["windows"])

    monkeypatch.setattr(ladder, "alone", alone)
    code, _, _ = called(["bench", "latency", "dense", *QUICK[:-1], "--quiet"], capsys)
    assert code == 0
    found = read_json(Path("tsprune-latency/latency.json"))
    assert asked == [("dense", 1), ("dense", 2), *[("dense", 1)] * ladder.LOADS]
    assert [table["rows"][0]["peak_mib"] for table in found["tables"]] == [6.0, 7.0]
    (load,) = found["loads"]
    assert (load["first_s"], load["spread_s"]) == (4.0, [3.0, 5.0])


def test_what_is_left_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(runtimes.find("onnx")), "missing", lambda self: "needs much")
    found, notes = ladder._runtimes(())
    assert "onnx" not in found and "compile" not in found and next(iter(found)) == "eager"
    assert any("ONNX Runtime is left out: it needs much." in note for note in notes)
    with pytest.raises(TspruneError, match="--runtimes onnx: needs much; leave it out"):
        ladder._runtimes(("onnx",))
    found, notes = ladder._runtimes(("onnx_int8",))
    assert list(found) == ["eager", "onnx_int8"] and "always timed" in notes[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no model is given"),
        (["dense", "dense/"], "MODEL 'dense' is given twice"),
        (["nowhere"], "nowhere"),
        (
            ["dense", "--runtimes", "tensorrt"],
            "--runtimes: 'tensorrt' is not among the runtimes; known: compile, eager",
        ),
        (["dense", "--batches", "1,many"], "--batches 'many' is neither max nor a whole number"),
        (["dense", "--batches", "0"], "--batches '0'"),
        (["dense", "--threads", "max"], "--threads 'max' is neither all nor"),
        (["dense", "--threads", "2.5"], "--threads '2.5'"),
        (["dense", "--repeats", "2"], "--repeats 2 must be at least 3"),
        (["dense", "--context", "99999"], "--context 99999 is longer than"),
        (["dense", "--horizon", "-1"], "--context and --horizon must not be negative"),
        (["dense", "--device", "gpu"], "device 'gpu' is not available"),
        (["dense", "--grid", "x"], "--grid"),
    ],
)
def test_wrong_input_is_one_line_that_names_it(
    arguments: list[str], says: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = called(["bench", "latency", *arguments, "--no-alone"], capsys)
    assert code == 2 and out == "" and says in err.splitlines()[-1]
    assert not Path("tsprune-latency").exists()


def test_help_is_of_the_command_that_was_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 160)
    code, text, _ = called(["bench", "latency", "--help"], capsys)
    assert code == 0 and "bench latency [OPTIONS] [MODEL]..." in text
    for field in fields(LatencySettings):
        assert (flag_of(field) in text) != (field.name == "models")
    code, text, _ = called(["bench", "--help"], capsys)
    assert code == 0 and "GRID" in text and "--ray" in text and "tsprune bench latency MODEL" in text


def test_grids_are_read_as_before(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["bench", "grid.yaml"], ["bench", "--jobs", "1", "grid.yaml"], ["bench", "./latency"]):
        code, _, err = called(arguments, capsys)
        assert code == 2 and f"{arguments[-1].removeprefix('./')}: cannot be read" in err
    assert called(["bench"], capsys)[2].startswith("error: no grid is given")


def test_settings_may_come_from_a_file(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("o.yaml").write_text("models: [dense, half]\nrepeats: 2\n", encoding="utf-8")
    assert "--repeats 2 must" in called(["bench", "latency", "--config", "o.yaml"], capsys)[2]
    assert LatencySettings(models=("a,b",)).models == ("a,b",)


def test_tables_name_the_runtime_in_every_row_and_both_ratios(content: dict[str, Any]) -> None:
    table = content["tables"][0]
    cells = [dict(zip(HEAD, line(one, content), strict=True)) for one in table["rows"]]
    assert [cell["runtime"] for cell in cells[:4]] == ["eager torch"] * 2 + ["ONNX Runtime"] * 2
    assert [(cell["pruning"], cell["with runtime"]) for cell in cells[:4]] == [
        ("1.00", "1.00"), ("0.60", "0.60"), ("1.00", "0.50"), ("0.50", "0.25"),
    ]  # fmt: skip
    assert cells[0]["differs by"] == "reference" and cells[2]["differs by"] == "2e-06"
    assert cells[4]["differs by"] == "0.25 (0.12)"
    assert cells[0]["GFLOP"] == "2" and cells[0]["MB on disk"] == "3" and cells[0]["peak MiB"] == "7"
    first, loading = texts(content)
    assert "BUSY" in first and "ONNX Runtime, int8, half: not timed: no <such> kernel" in first
    assert loading.startswith("loading in a fresh process")
    half = dict(zip(LOADS[:6], load_lines(content)[1][:6], strict=True))
    assert half["first forecast s"] == "0.200" and half["cpu s"] == "0.100" and half["over dense"] == "0.40"
    assert load_lines(content)[1][-1] == "0.40"


def test_terminal_gets_the_same_cells_whatever_its_width(
    content: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "160")
    show(content)
    wide = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert all(text in wide for text in (*HEAD, "not timed: no <such> kernel", "quartiles", "0.25 (0.12)"))
    monkeypatch.setenv("COLUMNS", "90")
    show(content)
    narrow = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert max(map(len, narrow.splitlines())) <= 90


def test_sentences_part_pruning_from_the_runtime(content: dict[str, Any]) -> None:
    assert sentences(content) == [
        "16 windows per forecast, 1 thread, cpu: half takes 0.60 of dense on eager torch",
        "16 windows per forecast, 1 thread, cpu: half takes 0.50 of dense on ONNX Runtime; together with the runtime "
        "0.25 of dense on eager torch",
    ]
    best = fastest(content)
    assert best is not None and (best["model"], best["runtime"]) == ("half", "onnx")
    rough = next(
        row for row in content["tables"][0]["rows"] if row["runtime"] == "onnx_int8" and row["model"] == "half"
    )
    rough |= {"median_ms": 1.0, "pruning": 0.1, "together": 0.1}
    assert fastest(content) == best
    assert "The batch of 16 windows: 32 are no faster." in legend(content)
    content["models"] = content["models"][:1]
    content["tables"][0]["rows"] = content["tables"][0]["rows"][:1]
    assert sentences(content) == ["One model alone: there is no pruning to measure, only runtimes."]


def test_page_stands_alone_and_escapes(content: dict[str, Any], tmp_path: Path) -> None:
    page = write_latency_page(tmp_path / "latency.html", content).read_text(encoding="utf-8")
    assert "<script" not in page and not re.findall(r"(?:src|href)=\"(?!#|data:)", page)
    assert "no &lt;such&gt; kernel" in page and "<such>" not in page
    assert page.count("<figure>") == 1 and "Other programs ran" in page
    assert "of the time of dense on the same runtime (ONNX Runtime): pruning" in page
    assert f'<p class="verdict">{sentences(content)[1]}</p>' in page
    assert page == write_latency_page(tmp_path / "again.html", content).read_text(encoding="utf-8")
