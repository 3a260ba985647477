"""The speed ladder below its command: batches, comparisons, ratios under a fake clock, runtimes that cannot."""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tiny
import tsprune
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.evaluation.cost import flops
from tsprune.exports import onnx_int8
from tsprune.exports._export import Export, Request
from tsprune.exports._integers import in_int8
from tsprune.exports._products import Graph
from tsprune.exports._ranges import observe
from tsprune.progress import Progress
from tsprune.speed import runtimes
from tsprune.speed.alone import alone
from tsprune.speed.batches import GAIN, PATIENCE, largest_batch
from tsprune.speed.rungs import TOLERANCE, Setting, difference, rows_of, with_ratios
from tsprune.speed.runtimes import _onnxfile
from tsprune.speed.runtimes._runtime import Forecast, Runtime
from tsprune.speed.subject import Subject, short_names

CONTEXT, HORIZON = 32, 8


class FakeClock:
    """Nanoseconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


class Pretended(Runtime):
    """Forecasts of plain torch, `change` added, in so many milliseconds by model."""

    title = "pretended"

    def __init__(self, clock: FakeClock, takes: dict[str, int], change: float = 0.0, exact: bool = True) -> None:
        self.clock, self.takes, self.change = clock, takes, change
        self.exact = exact  # type: ignore[misc]

    def open(self, subject: Subject, threads: int) -> Forecast:
        def forecast(batch: Batch) -> Tensor:
            self.clock.now += self.takes[subject.name] * 1_000_000
            return subject.model.forecast(batch, HORIZON) + self.change

        return forecast


class Failing(Runtime):
    """Opens and then fails as compilers do."""

    title = "failing"

    def open(self, subject: Subject, threads: int) -> Forecast:
        def forecast(batch: Batch) -> Tensor:
            raise RuntimeError("\nno such kernel\n  at line 3")

        return forecast


@pytest.fixture
def subjects(tmp_path: Path) -> list[Subject]:
    found = []
    for seed, name in enumerate(("dense", "slim")):
        tsprune.save(tiny.tiny_model("chronos_bolt", seed), tmp_path / name)
        (tmp_path / f"work-{name}").mkdir()
        found.append(Subject(name, str(tmp_path / name), tmp_path / f"work-{name}", CONTEXT, HORIZON))
    return found


def measured(subjects: list[Subject], clock: FakeClock, **others: Runtime) -> dict[tuple[str, str], dict[str, Any]]:
    eager = Pretended(clock, {"dense": 40, "slim": 24})
    refused = {("slim", name): "has no such operation" for name in others if name == "refused"}
    rows = rows_of(subjects, {"eager": eager, **others}, refused, Setting("cpu", 2, 1), 5, clock=clock)
    return {(row["model"], row["runtime"]): row for row in rows}


def test_ratios_keep_pruning_and_runtime_apart(subjects: list[Subject]) -> None:
    clock = FakeClock()
    rows = measured(subjects, clock, fast=Pretended(clock, {"dense": 20, "slim": 10}))
    slim = rows["slim", "fast"]
    assert slim["median_ms"] == pytest.approx(10) and slim["windows_per_s"] == pytest.approx(200)
    assert slim["pruning"] == pytest.approx(10 / 20) and slim["together"] == pytest.approx(10 / 40)
    dense = rows["dense", "fast"]
    assert dense["pruning"] == 1 and dense["together"] == pytest.approx(20 / 40)
    assert rows["slim", "eager"]["pruning"] == rows["slim", "eager"]["together"] == pytest.approx(24 / 40)
    assert list(rows) == [("dense", "eager"), ("slim", "eager"), ("dense", "fast"), ("slim", "fast")]


def test_operations_are_those_of_the_whole_batch_and_bytes_those_on_disk(subjects: list[Subject]) -> None:
    row = measured(subjects, FakeClock())["dense", "eager"]
    assert row["flops"] == flops(subjects[0].model, CONTEXT, HORIZON, 2)
    folder = Path(subjects[0].source)
    assert row["bytes_on_disk"] == sum(path.stat().st_size for path in folder.iterdir())


def test_a_runtime_that_forecasts_something_else_is_not_timed(subjects: list[Subject]) -> None:
    clock = FakeClock()
    takes = {"dense": 1, "slim": 1}
    rows = measured(subjects, clock, broken=Pretended(clock, takes, change=1.0))
    for name in takes:
        row = rows[name, "broken"]
        assert row["median_ms"] is None and row["pruning"] is None and row["together"] is None
        assert "differ from eager" in row["error"] and row["difference"]["largest"] > TOLERANCE
    assert rows["slim", "eager"]["pruning"] is not None


def test_a_runtime_that_may_differ_is_timed_and_says_by_how_much(subjects: list[Subject]) -> None:
    clock = FakeClock()
    row = measured(subjects, clock, rough=Pretended(clock, {"dense": 2, "slim": 1}, change=0.5, exact=False))[
        "dense", "rough"
    ]
    batch = subjects[0].batch(2)
    spread = float(subjects[0].model.forecast(batch, HORIZON).double().std())
    assert row["error"] == "" and row["median_ms"] == pytest.approx(2)
    assert row["difference"]["largest"] == pytest.approx(0.5 / spread, rel=1e-4)
    assert row["difference"]["mean"] == pytest.approx(0.5 / spread, rel=1e-4)


def test_a_failure_and_a_refusal_are_rows_of_their_own(subjects: list[Subject]) -> None:
    clock = FakeClock()
    rows = measured(subjects, clock, failing=Failing(), refused=Pretended(clock, {"dense": 1, "slim": 1}))
    assert rows["dense", "failing"]["error"] == "RuntimeError: no such kernel"
    assert rows["slim", "refused"]["error"] == "has no such operation"
    assert rows["slim", "refused"]["difference"] is None
    assert rows["dense", "refused"]["error"] == ""


def test_without_the_dense_model_on_a_runtime_there_is_no_share_of_pruning() -> None:
    rows = [
        {"model": "dense", "runtime": "eager", "median_ms": 8.0, "cpu_ms": 6.0},
        {"model": "dense", "runtime": "onnx", "median_ms": None, "cpu_ms": None},
        {"model": "slim", "runtime": "onnx", "median_ms": 2.0, "cpu_ms": 3.0},
    ]
    slim = with_ratios(rows, "dense")[2]
    assert (slim["pruning"], slim["together"]) == (None, 0.25)
    assert (slim["pruning_cpu"], slim["together_cpu"]) == (None, 0.5)


def test_difference_is_in_standard_deviations_of_what_was_expected() -> None:
    expected = torch.tensor([[[0.0, 2.0, 4.0]]])
    assert difference(expected + torch.tensor([0.0, 0.0, 1.0]), expected) == pytest.approx((0.5, 1 / 6))
    assert difference(expected, torch.full_like(expected, 2.0)) == pytest.approx((2.0, 4 / 3))
    with pytest.raises(TspruneError, match=r"\[1, 1, 2\], expected \[1, 1, 3\]"):
        difference(expected[..., :2], expected)
    with pytest.raises(TspruneError, match="not finite"):
        difference(expected * math.nan, expected)


@settings(max_examples=60, deadline=None)
@given(
    fixed=st.integers(0, 10**6), each=st.integers(1, 10**5), kilobytes=st.integers(1, 100), budget=st.integers(1, 10**5)
)
def test_largest_batch_is_the_one_that_a_walk_over_all_batches_finds(
    fixed: int, each: int, kilobytes: int, budget: int
) -> None:
    clock, seen = FakeClock(), [0]

    def run(windows: int) -> None:
        clock.now += fixed + each * windows
        seen[0] = max(seen[0], windows)

    found = largest_batch(run, lambda: float(kilobytes * seen[0]), float(budget), most=64, clock=clock)
    speed = {windows: windows / (fixed + each * windows) for windows in (1, 2, 4, 8, 16, 32, 64)}
    assert found.tried == pytest.approx({windows: 1e9 * speed[windows] for windows in found.tried})
    # Throughput of such a machine only ever rises, by less and less.
    last = max(found.tried)
    stalled = "more windows a second" in found.why
    assert stalled == (found.windows < last)
    if stalled:
        assert last == found.windows * 2**PATIENCE
        assert all(speed[w] < GAIN * speed[found.windows] for w in (found.windows * 2, last))
    else:
        assert 2 * kilobytes * last > budget or last == 64
        assert ("free memory" in found.why) == (2 * kilobytes * last > budget)
    assert all(2 * kilobytes * windows <= budget for windows in found.tried if windows != last)


def test_one_slow_turn_does_not_end_the_search() -> None:
    clock = FakeClock()
    slow = {4: 4 * 1000}

    def run(windows: int) -> None:
        clock.now += slow.get(windows, 1000)

    assert largest_batch(run, lambda: 0.0, 1.0, most=32, clock=clock).windows == 32


def test_names_are_what_directories_differ_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("runs/a/model", "runs/b/model", "runs/b", "c", "mini"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path)
    whole = str(tmp_path / "runs")
    for sources, names in {
        ("runs/a/model", "runs/b/model"): ["a", "b"],
        (f"{whole}/a/model", f"{whole}/b/model"): ["a", "b"],
        ("owner/model", f"{whole}/a/model"): ["owner/model", "model"],
        ("runs/b", "runs/b/model"): ["b", "b/model"],
        ("runs/a/model", "c"): ["runs/a/model", "c"],
        (f"{whole}/a", "a"): [f"{whole}/a", "a"],
        ("owner/name", "other"): ["owner/name", "other"],
    }.items():
        assert short_names(sources) == names
        assert len(set(short_names(sources))) == len(sources)


def test_plain_torch_comes_first_and_all_runtimes_say_what_they_are() -> None:
    assert runtimes.names()[0] == "eager"
    assert {"eager", "compile", "onnx", "onnx_int8"} <= set(runtimes.names())
    titles = [runtimes.find(name).title for name in runtimes.names()]
    assert len(set(titles)) == len(titles)
    assert [name for name in runtimes.names() if not runtimes.find(name).exact] == ["onnx_int8"]
    with pytest.raises(TspruneError, match="known: compile, eager"):
        runtimes.find("tensorrt")


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("onnx", "onnx_int8"):
        assert runtimes.find(name).missing() == (
            "needs onnx and onnxscript and onnxruntime, not installed here; pip install 'tsprune[onnx]'"
        )
    assert runtimes.find("eager").missing() == ""


def test_compile_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "C++ compiler" in runtimes.find("compile").missing()
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/it" if name == "clang++" else None)
    assert runtimes.find("compile").missing() == ""


def test_int8_stays_on_cpus(tmp_path: Path) -> None:
    subject = Subject("a", "a", tmp_path, CONTEXT, HORIZON, "cuda")
    assert "CPUs only" in runtimes.find("onnx_int8").refusal(subject)


class Line(Export):
    """Writes a forecast that is one matrix product of the context."""

    def __init__(self, input_name: str = "context", why: str = "") -> None:
        self.input_name, self.why, self.count = input_name, why, 0

    def refusal(self, model: Any) -> str:
        return self.why

    def write(self, request: Request) -> dict[str, Any]:
        import onnx

        self.count += 1
        assert [batch.rows for batch in request.batches] == list(_onnxfile.COMPARED)
        helper, kind = onnx.helper, onnx.TensorProto
        weight = onnx.numpy_helper.from_array(line(), "weight")
        shape = onnx.numpy_helper.from_array(np.array([-1, 2, HORIZON], np.int64), "shape")
        nodes = [
            helper.make_node("MatMul", [self.input_name, "weight"], ["flat"], "product"),
            helper.make_node("Reshape", ["flat", "shape"], ["quantiles"]),
        ]
        given_ = helper.make_tensor_value_info(self.input_name, kind.FLOAT, ["batch", CONTEXT])
        out = helper.make_tensor_value_info("quantiles", kind.FLOAT, ["batch", 2, HORIZON])
        graph = helper.make_graph(nodes, "line", [given_], [out], [weight, shape])
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        onnx.save(made, request.out / "model.onnx")
        return {}


def line() -> Any:
    return np.random.default_rng(0).standard_normal((CONTEXT, 2 * HORIZON)).astype(np.float32)


@pytest.fixture
def exporting(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Line]:
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package)

    def put(*arguments: str) -> Line:
        export = Line(*arguments)
        monkeypatch.setattr(_onnxfile, "export_of", lambda: export)
        return export

    return put


def line_in_int8(request: Request, folder: Path) -> dict[str, Any]:
    """The line's one product in int8, though it reads raw values."""
    import onnx

    counts = [sum(batch.rows for batch in part) for part in (request.batches, request.calibration)]
    assert counts == [32, 128] and request.calibrated_on.startswith("series that were drawn")
    graph = Graph(onnx.load(folder / "model.onnx"))
    observed = observe(graph, [np.random.default_rng(1).standard_normal((128, CONTEXT)).astype(np.float32)])
    onnx.save(in_int8(graph, [one.name for one in graph.products], observed.grids), request.out / "model.onnx")
    return {}


def test_onnx_runs_what_was_exported_once(
    subjects: list[Subject], exporting: Callable[..., Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    export, subject = exporting(), subjects[0]
    monkeypatch.setattr(onnx_int8, "from_float32", line_in_int8)
    plain, int8 = runtimes.find("onnx"), runtimes.find("onnx_int8")
    for runtime in (plain, int8, plain):
        assert runtime.refusal(subject) == ""
        runtime.prepare(subject, Progress(quiet=True))
    assert export.count == 1
    assert sorted(path.name for path in subject.folder.iterdir()) == ["onnx", "onnx_int8"]
    batch = subject.batch(3)
    expected = (batch.context @ torch.from_numpy(line())).view(3, 2, HORIZON)
    torch.testing.assert_close(plain.open(subject, 1)(batch), expected)
    largest, mean = difference(int8.open(subject, 2)(batch), expected)
    assert TOLERANCE < mean <= largest < 0.1
    assert int8.bytes_on_disk(subject) < plain.bytes_on_disk(subject)


def test_onnx_refuses_what_the_export_refuses_and_devices_it_has_not(
    subjects: list[Subject], exporting: Callable[..., Line]
) -> None:
    exporting("context", "family x samples")
    for name in ("onnx", "onnx_int8"):
        assert runtimes.find(name).refusal(subjects[0]) == "family x samples"
    subjects[0].device = "cuda"
    assert "no CUDAExecutionProvider here; it has " in runtimes.find("onnx").refusal(subjects[0])


@pytest.mark.parametrize(("name", "says"), [("prompt", "wants an input 'prompt'"), ("future", "which windows of this")])
def test_onnx_says_which_input_is_lacking(
    name: str, says: str, subjects: list[Subject], exporting: Callable[..., Line]
) -> None:
    exporting(name)
    runtime = runtimes.find("onnx")
    runtime.prepare(subjects[0], Progress(quiet=True))
    with pytest.raises(TspruneError, match=says):
        runtime.open(subjects[0], 1)(subjects[0].batch(1))


def test_a_process_of_its_own_counts_its_own_memory(subjects: list[Subject]) -> None:
    ballast = np.ones(40_000_000)
    subject = subjects[0]
    found = alone("eager", subject.source, subject.folder, context=CONTEXT, horizon=HORIZON, windows=1, threads=1)
    assert found.first_s > 0 and found.imports_s > 0
    if Path("/proc/self/status").exists():
        assert found.peak_mib is not None and found.imports_mib is not None
        # What the parent holds does not count.
        assert found.peak_mib < ballast.nbytes / 2**20 / 2
        assert found.imports_mib > 50


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(TspruneError, match=r"only loads nowhere/x and forecasts failed: .*nowhere/x"):
        alone("eager", "nowhere/x", tmp_path, context=CONTEXT, horizon=HORIZON, windows=1, threads=1)


@pytest.mark.heavy
def test_the_exported_file_forecasts_as_plain_torch_does(subjects: list[Subject]) -> None:
    for package in _onnxfile.PACKAGES:
        pytest.importorskip(package)
    chosen = {name: runtimes.find(name) for name in ("eager", "onnx", "onnx_int8")}
    for runtime in chosen.values():
        assert runtime.refusal(subjects[0]) == ""
        runtime.prepare(subjects[0], Progress(quiet=True))
    rows = rows_of(subjects[:1], chosen, {}, Setting("cpu", 3, 1), 3)
    assert [row["error"] for row in rows] == ["", "", ""]
    assert rows[1]["difference"]["largest"] < TOLERANCE < rows[2]["difference"]["largest"] < 1
    found = alone(
        "onnx", "is not read", subjects[0].folder, context=CONTEXT, horizon=HORIZON, windows=1, threads=1
    )  # fmt: skip
    assert found.first_s > 0
