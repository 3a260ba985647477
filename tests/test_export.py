"""The command `export`: what it refuses, what it compares on, and that nothing half-written is left."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
import tsprune
from running import called, wide
from tsprune import exporting
from tsprune.errors import TspruneError
from tsprune.exports import onnx as onnx_form
from tsprune.exports._drawn import drawn_batches
from tsprune.exports._export import Export, Request
from tsprune.exports._origin import origin
from tsprune.exports._parity import GAPS, ROWS, Parity, Run, cases, lengths
from tsprune.models._forecaster import Forecaster
from tsprune.progress import Progress
from tsprune.slimming import make_plan


class Words(Export):
    """Writes one line."""

    title = "words"

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.seen: Request | None = None

    def refusal(self, model: Any) -> str:
        return "it has no words" if self.fails == "refused" else ""

    def write(self, request: Request) -> dict[str, Any]:
        self.seen = request
        (request.out / "words.txt").write_text(f"{request.horizon}", encoding="utf-8")
        if self.fails == "midway":
            raise TspruneError("the words do not fit")
        return {"files": {"words.txt": 2}}


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> Words:
    form = Words()
    monkeypatch.setattr(exporting, "form_of", lambda name: form)
    return form


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(tsprune.save(tiny.tiny_model("chronos_bolt"), tmp_path / "bolt"))


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_export_is_whole_and_replaces_an_earlier_one(
    words: Words, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "there" / "out"
    for horizon in ("8", "9"):
        code, said, _ = called(["export", model, "--out", str(out), "--horizon", horizon], capsys)
        assert code == 0
        assert (out / "words.txt").read_text() == horizon
        assert f"facts: {out / 'export.json'}" in said
    assert contents(out) == ["README.md", "export.json", "words.txt"]
    assert contents(out.parent) == ["out"]
    assert json.loads((out / "export.json").read_text())["format"] == "onnx"


def test_a_failure_leaves_what_was_there(
    words: Words, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "there" / "out"
    assert called(["export", model, "--out", str(out)], capsys)[0] == 0
    before = (out / "words.txt").read_text()
    words.fails = "midway"
    code, _, said = called(["export", model, "--out", str(out), "--horizon", "3"], capsys)
    assert code == 2 and "the words do not fit" in said
    assert (out / "words.txt").read_text() == before
    words.fails = "refused"
    code, _, said = called(["export", model, "--out", str(tmp_path / "there" / "new")], capsys)
    assert code == 2 and "--format onnx: it has no words" in said
    assert contents(tmp_path / "there") == ["out"]


def test_what_is_no_export_is_not_replaced(
    words: Words, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, said = called(["export", model, "--out", model], capsys)
    assert code == 2 and "holds config.json, model.safetensors and no export.json" in said
    (tmp_path / "file").write_text("x")
    code, _, said = called(["export", model, "--out", str(tmp_path / "file")], capsys)
    assert code == 2 and "is a file, expected a directory" in said
    (tmp_path / "empty").mkdir()
    assert called(["export", model, "--out", str(tmp_path / "empty")], capsys)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "tflite"], "--format: 'tflite' is not among the exports; known: "),
        (["--windows", "0"], "--windows 0 must be at least 1"),
        (["--bits", "8,0"], "--bits 0 must be at least 1"),
        (["--bits", "few"], "--bits is 'few', expected whole numbers separated by commas"),
        (["--device", "cuda"], "--device cuda: models are exported on the CPU"),
        (["--context", "65"], "--context 65 is more than the 64 steps"),
        (["--bits", "8"], "--bits: without effect on --format onnx"),
        (["--base", "mini"], "--base: without effect on --format onnx"),
        (["--horizon", "129"], "--horizon 129 takes 9 passes of this model"),
    ],
)
def test_wrong_options_are_said(
    arguments: list[str], message: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, said = called(["export", model, "--out", str(tmp_path / "out"), *arguments], capsys)
    assert code == 2, said
    assert message in said
    assert not (tmp_path / "out").exists()


def test_a_family_that_samples_is_refused_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tsprune.save(tiny.tiny_model("chronos_t5"), tmp_path / "t5")
    code, _, said = called(["export", str(source), "--out", str(tmp_path / "out")], capsys)
    assert code == 2
    assert "family chronos_t5 cannot be exported as a graph: it forecasts by sampling paths" in said


def test_missing_packages_are_named_with_their_extra(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_form, "NEEDED", ("json", "onnx_of_another_world"))
    code, _, said = called(["export", model, "--out", str(tmp_path / "out")], capsys)
    assert code == 2
    assert "--format onnx needs onnx_of_another_world; install tsprune[onnx]" in said


def test_forms_get_your_windows_and_options(
    words: Words, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide().to_csv(tmp_path / "wide.csv", index=False)
    more = ["--data", str(tmp_path / "wide.csv"), "--horizon", "6", "--context", "24", "--windows", "5"]
    code, _, said = called(
        ["export", model, "--out", str(tmp_path / "out"), *more, "--bits", "8,6", "--base", "mini"], capsys
    )
    assert code == 0, said
    assert words.seen is not None
    assert words.seen.options == {"bits": (8, 6), "base": "mini"}
    assert words.seen.source == model
    (batch,) = words.seen.batches
    assert 1 <= batch.rows <= 5
    assert batch.context.shape == (batch.rows, 24)
    assert batch.target is not None and batch.target.shape == (batch.rows, 6)


def test_a_tuned_model_is_exported_for_its_horizon(
    words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = tiny.tiny_model("chronos_bolt")
    tuned.config["tsprune_task"] = {"horizon": 11, "context": 32}
    source = tsprune.save(tuned, tmp_path / "tuned")
    assert called(["export", str(source), "--out", str(tmp_path / "out")], capsys)[0] == 0
    assert words.seen is not None and words.seen.horizon == 11


def test_drawn_windows_are_seeded_of_every_kind_and_finite_somewhere() -> None:
    first, again = drawn_batches(20, 64, 8, 3), drawn_batches(20, 64, 8, 3)
    assert [len(batch.context) for batch in first] == [16, 4]
    context = torch.cat([batch.context for batch in first])
    assert torch.equal(context.nan_to_num(9.0), torch.cat([batch.context for batch in again]).nan_to_num(9.0))
    gaps = torch.isnan(context)
    assert (~gaps).any(1).all()
    assert gaps[:, 0].any() and (gaps[:, 1:].any(1) & ~gaps[:, 0]).any() and (~gaps).all(1).any()
    for batch in first:
        assert batch.target is not None and torch.isfinite(batch.target).all()


def test_cases_cover_lengths_gaps_and_rows_in_pairs() -> None:
    found = list(cases(drawn_batches(8, 64, 4), 64, 8))
    assert {1, 7, 8, 17, 64, 67} <= set(lengths(64, 8))
    assert {(c.context.shape[1], c.gaps) for c in found} == {(n, g) for n in lengths(64, 8) for g in GAPS}
    assert {(len(c.context), c.gaps) for c in found} == {(r, g) for r in ROWS for g in GAPS}
    for case in found:
        whole = torch.isnan(case.context)
        assert whole.any() == (case.gaps != "none") or case.context.shape[1] < 8
        assert case.gaps != "all_missing" or whole[0].all()


def compared(model: Forecaster, steps: int, run: Run, batches: Sequence[tsprune.Batch] = ()) -> dict[str, Any]:
    """What the comparison of a model with something else finds; raises as it does."""
    parity = Parity(model, steps, run)
    for case in cases(batches or drawn_batches(8, 64, 8), model.context_length, model.patch):
        parity.check(case)
    return parity.facts()


def forecasts_of(model: Forecaster, steps: int) -> Run:
    """A model in the place of a graph."""
    return lambda context: model.forecast(tsprune.Batch(torch.from_numpy(context)), steps).numpy()


def parity(change: float, rows: slice = slice(None)) -> dict[str, Any]:
    """Compare a model with itself, the forecasts of some rows changed by a share of their deviation."""
    model = tiny.tiny_model("chronos_bolt")

    def run(context: Any) -> Any:
        found = forecasts_of(model, 8)(context)
        found[rows] += change * found[rows].std((1, 2), keepdims=True)
        return found

    return compared(model, 8, run)


def test_a_graph_that_departs_is_an_error() -> None:
    assert parity(0.0)["worst"] == 0.0
    assert 0 < parity(5e-6)["worst"] <= 1e-5
    with pytest.raises(TspruneError, match="differs from the model by .* more than 1e-05"):
        parity(1e-3)
    # However large the other rows are.
    with pytest.raises(TspruneError, match="of the standard deviation of row 3's forecasts"):
        parity(1e-4, slice(3, 4))


def test_neighbours_in_float32_are_equal_where_the_level_is_far() -> None:
    far = [tsprune.Batch(batch.context * 0.001 + 1000.0) for batch in drawn_batches(8, 64, 8)]
    model = tiny.tiny_model("chronos_bolt")
    same = forecasts_of(model, 8)
    assert compared(model, 8, lambda context: np.nextafter(same(context), np.float32(np.inf)), far)["worst"] == 0.0
    with pytest.raises(TspruneError, match="differs"):
        compared(model, 8, lambda context: same(context) * np.float32(1 + 1e-6), far)


def test_rounding_of_the_model_itself_is_told_apart() -> None:
    # The states add up to 0, so the same number added to all weights adds nothing but rounding.
    model = tiny.tiny_model("patchtst", norm_type="layernorm", pre_norm=False)
    model.head.projection.weight.data += 100.0
    exact = forecasts_of(copy.deepcopy(model).double(), 8)
    found = compared(model, 8, lambda context: exact(context).astype(np.float32))
    assert found["amplified"]
    assert all(case["graph_to_float64"] <= 4 * case["model_to_float64"] for case in found["amplified"])
    assert found["worst"] <= 1e-5
    other = copy.deepcopy(model)
    other.head.projection.bias.data[0] += 0.01
    with pytest.raises(TspruneError, match="away from float64"):
        compared(model, 8, forecasts_of(other, 8))


@pytest.mark.parametrize(
    ("family", "weight"),
    [
        ("chronos2", "input_patch_embedding.hidden_layer.weight"),
        ("chronos2", "encoder.block.0.layer.0.self_attention.q.weight"),
        ("chronos2", "output_patch_embedding.output_layer.bias"),
        ("ttm", "head.base_forecast_block.weight"),
        ("timer_xl", "blocks.attn_layers.0.layer.1.feed_forward.wi.weight"),
        ("time_moe", "model.layers.0.layer.0.self_attn.v.weight"),
    ],
)
def test_one_weight_off_by_a_thousandth_is_found_beyond_the_native_horizon(family: str, weight: str) -> None:
    model = tiny.tiny_model(family)
    steps, other = model.native_horizon + 3, copy.deepcopy(model)
    values = other.get_parameter(weight).data.view(-1)
    values[values.abs().argmax()] *= 1.001
    assert compared(model, steps, forecasts_of(model, steps))["worst"] == 0.0
    with pytest.raises(TspruneError, match="differs from the model"):
        compared(model, steps, forecasts_of(other, steps))


def test_a_roll_out_in_another_order_or_with_a_longer_memory_is_found() -> None:
    model = tiny.tiny_model("ttm")
    native = model.native_horizon

    def rolled(order: int) -> Run:
        def run(context: Any) -> Any:
            wide = torch.from_numpy(context).double()
            first = model.forecast(tsprune.Batch(wide), native)
            longer = torch.cat([wide, first[:, 0]][::order], dim=1)
            return torch.cat([first, model.forecast(tsprune.Batch(longer), native)], dim=-1).float().numpy()

        return run

    assert compared(model, 2 * native, rolled(1))["worst"] == 0.0
    with pytest.raises(TspruneError, match="differs from the model"):
        compared(model, 2 * native, rolled(-1))
    model = tiny.tiny_model("time_moe")
    other = copy.deepcopy(model)
    other.reach += native
    steps = 3 * model.native_horizon
    with pytest.raises(TspruneError, match="differs from the model"):
        compared(model, steps, forecasts_of(other, steps))


def test_the_wrong_shape_and_numbers_that_are_none_are_errors() -> None:
    model = tiny.tiny_model("chronos_bolt")
    case = next(cases(drawn_batches(8, 64, 8), 64, 8))
    for wrong in (lambda c: torch.zeros(1, 1, 1).numpy(), lambda c: torch.full((1, 5, 8), torch.nan).numpy()):
        with pytest.raises(TspruneError, match="not finite"):
            Parity(model, 8, wrong).check(case)


def test_base_model_and_licence_are_told_without_paths(tmp_path: Path) -> None:
    bolt = tiny.tiny_model("chronos_bolt")
    assert origin(bolt, "mini") == {"base_model": "mini", "licence": "Apache-2.0"}
    assert origin(bolt, "amazon/chronos-bolt-small@main")["licence"] == "Apache-2.0"
    own = origin(bolt, str(tsprune.save(bolt, tmp_path / "own")))
    assert own["base_model"] == "own" and "not known here" in own["licence"]
    plan = make_plan(bolt, {}, base_model="amazon/chronos-bolt-tiny")
    cut = tsprune.save(bolt, tmp_path / "cut", plan)
    assert origin(bolt, str(cut)) == {"base_model": "amazon/chronos-bolt-tiny", "licence": "Apache-2.0"}


def test_progress_is_quiet_on_request(words: Words, model: str, tmp_path: Path, capsys: Any) -> None:
    code, _, said = called(["export", model, "--out", str(tmp_path / "out"), "--quiet"], capsys)
    assert (code, said) == (0, "")
    assert words.seen is not None and isinstance(words.seen.progress, Progress)
