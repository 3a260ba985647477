"""The form `onnx_int8`: the bound on its error, what stays in float32 for it, what it writes and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tsprune
from tests.graphs import STEPS, WIDTH, chain, random_weight
from tests.running import called, wide
from tests.tiny import tiny_model
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.exporting import export
from tsprune.exports._drawn import drawn_batches, drawn_calibration
from tsprune.exports._errors import forecasts, graph_errors
from tsprune.exports._export import Request
from tsprune.exports._leaving import excess, left_in_float32
from tsprune.exports.onnx import outputs
from tsprune.exports.onnx_int8 import EXPORT, KEPT, from_float32
from tsprune.models._forecaster import Forecaster
from tsprune.progress import Progress
from tsprune.stages import write_json

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)
EXAMPLE = Path(__file__).parents[1] / "examples" / "serve_onnx.py"
BOLT = {"d_model": 32, "d_ff": 64}


@settings(max_examples=100, deadline=None)
@given(
    errors=st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)), min_size=1, max_size=12),
    bound=st.integers(0, 100),
)
def test_as_few_stay_as_the_order_by_error_per_work_takes(errors: list[tuple[int, int]], bound: int) -> None:
    names = [f"p{number}" for number in range(len(errors))]
    error = {name: float(one[0]) for name, one in zip(names, errors, strict=True)}
    work = {name: one[1] for name, one in zip(names, errors, strict=True)}

    def together(chosen: Collection[str]) -> float:
        return sum(error[name] for name in chosen)

    left = left_in_float32(names, work, bound, error.__getitem__, together)
    order = sorted(names, key=lambda name: -error[name] / work[name])
    fewest = next(count for count in range(len(names) + 1) if together(order[count:]) <= bound)
    if fewest == len(names):
        assert left is None
    else:
        assert left is not None and left.names == tuple(order[:fewest])
        assert bool(left.alone) == bool(fewest)


def test_nothing_is_measured_alone_where_all_keep_the_bound() -> None:
    def never(name: str) -> float:
        raise AssertionError(name)

    left = left_in_float32(["a", "b"], {"a": 1, "b": 1}, 0.01, never, lambda chosen: 0.009)
    assert left is not None and left.names == ()


def test_luck_is_no_gain_and_what_is_no_number_keeps_no_bound() -> None:
    assert excess({"moved": 0.02, "mse_ratio": 0.9, "quantile_loss_ratio": 0.95}) == 0.02
    assert excess({"moved": 0.001, "mse_ratio": 1.03, "quantile_loss_ratio": 1.01}) == pytest.approx(0.03)
    assert excess({"moved": float("nan"), "mse_ratio": float("nan")}) == float("inf")


def test_errors_are_those_of_the_definition() -> None:
    draw = torch.Generator().manual_seed(0)
    context, target = torch.randn(5, 30, generator=draw), torch.randn(5, 8, generator=draw)
    target[0, :3] = torch.nan
    before, levels = torch.randn(5, 3, 8, generator=draw), (0.1, 0.5, 0.9)
    after = before + 0.1 * torch.randn(5, 3, 8, generator=draw)
    sides = [[(side, side[:, 1])] for side in (before, after)]
    found = graph_errors(sides[0], sides[1], [Batch(context, target)], levels)
    unit = context.double().std(1, correction=0).numpy()[:, None]
    error = (target.numpy()[:, None] - np.stack([before.numpy(), after.numpy()])) / unit[:, None]
    asked = np.array(levels)[:, None]
    losses = np.nansum(np.maximum(asked * error, (asked - 1) * error), (1, 2, 3))
    assert found["quantile_loss_ratio"] == pytest.approx(losses[1] / losses[0], rel=1e-6)
    square = np.nanmean(error[:, :, 1] ** 2, (1, 2))
    assert found["mse_ratio"] == pytest.approx(square[1] / square[0], rel=1e-6)
    changed = (((after - before).numpy() / unit[:, None]) ** 2).mean()
    assert found["moved"] == pytest.approx(changed / square[0], rel=1e-6)
    blind = Batch(context, torch.full_like(target, torch.nan))
    with pytest.raises(TspruneError, match="none of the steps to forecast is observed"):
        graph_errors(sides[0], sides[1], [blind], levels)


class Pretended:
    """What the form asks a model for."""

    context_length, patch = WIDTH, 4
    levels = (0.1, 0.5, 0.9)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {}

    tensors_to_public = state_dict


def planted(folder: Path, bound: float) -> dict[str, Any]:
    """Facts of a chain in which one input of product 2 is a thousand times as large as the others and hardly counts."""
    import onnx

    weights = [random_weight(seed) for seed in range(6)]
    weights[1][:, 4] *= 1000
    weights[2][4] /= 1e5
    for name in ("float32", "out"):
        (folder / name).mkdir(parents=True)
    onnx.save(chain(weights, any_length=True), folder / "float32" / "model.onnx")
    write_json(folder / "float32" / "model.json", {"input": {"rows": "alone"}})
    run = outputs(folder / "float32" / "model.onnx", ["quantiles"])
    draw = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(2):
        context = torch.randn(64, WIDTH, generator=draw)
        ahead = torch.from_numpy(run(context.numpy())[0])[:, 1]
        batches.append(Batch(context, ahead + ahead.std() * torch.randn(ahead.shape, generator=draw)))
    model: Any = Pretended()
    return from_float32(
        Request(
            model, "planted", folder / "out", batches[:1], STEPS, Progress(quiet=True), {"error_bound": bound},
            batches[1:],
        ),
        folder / "float32",
    )  # fmt: skip


def test_the_sensitive_product_is_found_and_left(tmp_path: Path) -> None:
    facts = planted(tmp_path, 0.01)
    left = {one["name"]: one for one in facts["products"]["float32"]}
    assert set(left) == {"product_0", "product_5", "product_2"}
    assert left["product_2"]["why"] == KEPT and left["product_2"]["alone"] > 0.01
    assert "alone" not in left["product_0"]
    assert facts["products"]["int8"] == 3 and facts["products"]["multiplications_in_int8"] == pytest.approx(0.5)
    assert facts["error"]["int8"]["excess"] <= 0.01 < facts["error"]["plain"]["excess"]
    loose = planted(tmp_path / "loose", 0.999)
    assert loose["products"]["int8"] == 4


def test_a_bound_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TspruneError, match="leaves no product in int8, so nothing would be gained: even the least"):
        planted(tmp_path, 1e-9)
    assert not any((tmp_path / "out").iterdir())


@pytest.fixture(scope="module")
def bolt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Forecaster, Path, dict[str, Any]]:
    """A model of 32 channels, as the command would write it."""
    model = tiny_model("chronos_bolt", **BOLT)
    out = tmp_path_factory.mktemp("int8") / "bolt"
    batches, calibration = drawn_batches(32, 64, 16), drawn_calibration(64, 16)
    facts = export(
        model, "onnx_int8", out, source="mini", batches=batches, horizon=16, progress=Progress(quiet=True),
        options={"error_bound": 0.05}, calibration=calibration, calibrated_on="drawn",
    )  # fmt: skip
    return model, out, facts


def test_what_is_written_keeps_its_bound_and_is_smaller(bolt: tuple[Forecaster, Path, dict[str, Any]]) -> None:
    model, out, facts = bolt
    batches = drawn_batches(32, 64, 16)
    run = outputs(out / "model.onnx", ["quantiles"])
    after = [torch.from_numpy(run(batch.context.numpy())[0]) for batch in batches]
    middle = model.levels.index(0.5)
    errors = graph_errors(
        forecasts(model, batches, 16), [(one, one[:, middle]) for one in after], batches, model.levels
    )
    assert 0 < excess(errors) <= 0.05
    assert errors["moved"] == pytest.approx(facts["error"]["int8"]["moved"], rel=0.01)
    size = (out / "model.onnx").stat().st_size
    assert facts["files"]["model.onnx"] == size
    inside = facts["products"]["weights_in_int8"]
    assert inside > 10_000 and facts["bytes_before"] - size > 2 * inside
    assert facts["products"]["multiplications_in_int8"] > 0.5
    assert facts["calibration"]["windows"] == 128
    assert {one["name"] for one in facts["products"]["float32"]} >= {
        "input_patch_embedding.hidden_layer.weight", "output_patch_embedding.output_layer.weight",
    }  # fmt: skip
    assert set(facts["time"]) == {"threads", "1", "16"} and facts["time"]["1"]["ratio"] > 0


def test_card_and_files_say_what_it_is(bolt: tuple[Forecaster, Path, dict[str, Any]]) -> None:
    import onnxruntime

    _, out, facts = bolt
    card = (out / "README.md").read_text(encoding="utf-8")
    for said in ("quantize_dynamic by default", "in float32 (gives the forecast)", "calibrated on 128 windows: drawn"):
        assert said in card, said
    assert "Compared with the model" not in card
    assert json.loads((out / "model.json").read_text())["weights"] == facts["about"]["weights"]
    made = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    assert made.get_modelmeta().custom_metadata_map["levels"] == "0.1,0.25,0.5,0.75,0.9"
    assert made.get_modelmeta().custom_metadata_map["weights"].startswith("int8 in ")


def test_the_example_serves_it_unchanged(bolt: tuple[Forecaster, Path, dict[str, Any]], tmp_path: Path) -> None:
    _, out, _ = bolt
    wide(length=90).to_csv(tmp_path / "series.csv", index=False)
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(out / "model.onnx"), str(tmp_path / "series.csv")],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 + 2 * 16


def test_too_few_windows_and_other_options_are_refused(tmp_path: Path) -> None:
    model: Any = SimpleNamespace(family="any")
    few, many = drawn_batches(7, 64, 16), drawn_batches(8, 64, 16)
    for batches, calibration, what in (
        (few, many, "comparison"),
        (many, few, "calibration"),
        (many, [], "calibration"),
    ):
        with pytest.raises(TspruneError, match=f"at least 8 windows for {what}, there are [07];"):
            EXPORT.write(Request(model, "", tmp_path, batches, 16, Progress(quiet=True), {}, calibration))
    with pytest.raises(TspruneError, match="--bits: without effect on --format onnx_int8"):
        EXPORT.write(Request(model, "", tmp_path, many, 16, Progress(quiet=True), {"bits": (8,)}, many))


def test_families_and_sizes_without_a_graph_are_refused() -> None:
    assert "by sampling paths token by token" in EXPORT.refusal(tiny_model("chronos_t5"))
    large: Any = SimpleNamespace(parameter_count=lambda: 400_000_000)
    assert "400,000,000 parameters is larger than 1.5 GB" in EXPORT.refusal(large)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "onnx", "--error-bound", "0.1"], "--error-bound: without effect on --format onnx;"),
        (["--format", "onnx_int8", "--error-bound", "1"], "--error-bound 1 must lie between 0 and 1"),
        (["--format", "onnx_int8", "--bits", "8"], "--bits: without effect on --format onnx_int8"),
        (["--format", "onnx_int8", "--windows", "5"], "needs at least 8 windows for comparison, there are 5"),
    ],
)
def test_wrong_options_are_said(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(tsprune.save(tiny_model("chronos_bolt"), tmp_path / "bolt"))
    code, _, said = called(["export", source, "--out", str(tmp_path / "out"), *arguments], capsys)
    assert code == 2 and message in said, said
    assert not (tmp_path / "out").exists()


def test_the_command_calibrates_on_training_windows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Request] = []

    def write(request: Request) -> dict[str, Any]:
        seen.append(request)
        return {"files": {}, "about": {}, "notes": []}

    monkeypatch.setattr(EXPORT, "write", write)
    monkeypatch.setattr(type(EXPORT), "usage", lambda self, facts, name: "")
    source = str(tsprune.save(tiny_model("chronos_bolt"), tmp_path / "bolt"))
    table = wide(length=400)
    table.to_csv(tmp_path / "wide.csv", index=False)
    more = ["--format", "onnx_int8", "--out", str(tmp_path / "out"), "--horizon", "6", "--context", "24"]
    assert called(["export", source, *more, "--data", str(tmp_path / "wide.csv")], capsys)[0] == 0
    code, _, said = called(["export", source, *more], capsys)
    assert code == 0 and "calibrated and compared on drawn series" in said
    own, drawn = seen
    assert own.calibrated_on == "training windows of wide.csv" and "drawn" in drawn.calibrated_on
    # Calibration ends before what it is judged on begins.
    series = [torch.tensor(table[name].to_numpy(), dtype=torch.float64) for name in "ab"]

    def shape(values: torch.Tensor) -> torch.Tensor:
        return (values - values.mean()) / values.std()

    def ends(batches: Any) -> list[int]:
        found = []
        for batch in batches:
            for row in torch.cat([batch.context, batch.target], 1).double():
                places = [
                    end
                    for values in series
                    for end in range(len(row), len(values) + 1)
                    if torch.allclose(shape(values[end - len(row) : end]), shape(row), rtol=0, atol=1e-4)
                ]
                assert len(places) == 1
                found += places
        return found

    judged = ends(own.batches)
    assert 8 <= len(judged) <= 32 and max(ends(own.calibration)) <= min(judged) - 6
    assert not torch.equal(drawn.batches[0].context.nan_to_num(), drawn.calibration[0].context.nan_to_num())
