"""Weights as integers: packing, rounding, correction, the file and what is loaded from it."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

import tsprune
from tests.running import called, wide
from tests.tiny import ALL_FAMILIES, tiny_batch, tiny_model
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.exports._calibration import as_rows, mean_inputs
from tsprune.exports._export import Request
from tsprune.exports._rounding import chosen, corrected, plain, rounded, shift
from tsprune.exports.quantised import EXPORT, Source, bytes_alone
from tsprune.models import fingerprint, load
from tsprune.models._forecaster import Forecaster
from tsprune.models._packedbits import FEWEST, MOST, largest, pack, packed_size, unpack
from tsprune.models._quantised import narrowed
from tsprune.progress import Progress
from tsprune.slimming import make_plan, slim

WIDTHS = range(FEWEST, MOST + 1)
ALL = (8, 6, 5, 4, 3)


def gaussian(rows: int, columns: int, seed: int = 0, mean: float = 0.1) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return mean + torch.randn(rows, columns, generator=draw) * torch.rand(rows, 1, generator=draw)


def request(model: Forecaster, out: Path, batch: Batch | None = None, **options: Any) -> Request:
    out.mkdir(parents=True)
    return Request(model, "tiny", out, [batch or tiny_batch()], 16, Progress(quiet=True), options)


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(FEWEST, MOST), data=st.data())
def test_packed_codes_come_back(bits: int, data: st.DataObject) -> None:
    most = largest(bits)
    codes = data.draw(st.lists(st.integers(-most, most), max_size=70))
    stream = pack(torch.tensor(codes, dtype=torch.int32), bits)
    assert stream.dtype == torch.uint8
    assert len(stream) == packed_size(len(codes), bits)
    assert unpack(stream, bits, len(codes)).tolist() == codes
    written = "".join(f"{code + most:0{bits}b}" for code in codes)
    read = "".join(f"{byte:08b}" for byte in stream.tolist())
    assert read[: len(written)] == written
    assert set(read[len(written) :]) <= {"0"}


def test_codes_and_streams_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TspruneError, match=r"4 bits hold \+-7"):
        pack(torch.tensor([8]), 4)
    with pytest.raises(TspruneError, match="expected 3 for 5 codes of 4 bits"):
        unpack(torch.zeros(2, dtype=torch.uint8), 4, 5)
    with pytest.raises(TspruneError, match="expected 2 to 16"):
        largest(1)


@settings(max_examples=40, deadline=None)
@given(
    bits=st.integers(FEWEST, 10),
    row=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=12),
)
@example(bits=9, row=[2.5900199516115594e-41])
def test_rounding_takes_the_nearest_value_of_the_grid(bits: int, row: list[float]) -> None:
    weight = torch.tensor([row])
    width = plain(weight, rounded(weight, bits), bits)
    most = largest(bits)
    assert int(width.codes.abs().max()) <= most
    grid = np.arange(-most, most + 1) * float(width.scale)
    nearest = np.abs(np.array(row)[:, None] - grid).min(1)
    off = (width.weights()[0].double() - weight[0].double()).abs().numpy()
    np.testing.assert_allclose(off, nearest, atol=1e-5 * max(1e-30, float(weight.abs().max())))


def test_rows_of_zeros_and_of_one_value_stay_what_they_are() -> None:
    weight = torch.stack([torch.zeros(20), torch.full((20,), 0.7), torch.full((20,), -0.3)])
    for bits in WIDTHS:
        width = corrected(weight, plain(weight, rounded(weight, bits), bits))
        assert not width.corrected.any()
        torch.testing.assert_close(width.weights(), weight, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_a_correction_restores_mean_and_variance_of_every_channel(bits: int) -> None:
    weight = gaussian(30, 64)
    width = corrected(weight, plain(weight, rounded(weight, bits), bits))
    assert width.corrected.all()
    found, wanted = width.weights().double(), weight.double()
    deviation = wanted.std(1, correction=0)
    assert float(((found.mean(1) - wanted.mean(1)) / deviation).abs().max()) <= 1e-6
    assert float((found.std(1, correction=0) / deviation - 1).abs().max()) <= 1e-6


def test_a_correction_brings_no_removed_input_back() -> None:
    weight = gaussian(5, 32)
    weight[:, 7] = 0
    rough = plain(weight, rounded(weight, 4), 4)
    assert corrected(weight, rough) is rough


@settings(max_examples=25, deadline=None)
@given(bits=st.integers(2, 8), seed=st.integers(0, 10**6))
def test_no_channel_moves_its_mean_output_further_than_without_correction(bits: int, seed: int) -> None:
    weight = gaussian(12, 24, seed)
    inputs = gaussian(1, 24, seed + 1, mean=0.5).expand(12, -1)
    rough = plain(weight, rounded(weight, bits), bits)
    width = chosen(weight, inputs, rounded(weight, bits), bits, "where_better")
    assert bool((shift(weight, width, inputs) <= shift(weight, rough, inputs)).all())
    better = shift(weight, corrected(weight, rough), inputs) < shift(weight, rough, inputs)
    assert torch.equal(width.corrected, better)


def test_without_evidence_nothing_is_corrected() -> None:
    weight = gaussian(6, 20)
    assert not chosen(weight, torch.zeros(6, 20), rounded(weight, 3), 3, "where_better").corrected.any()


def test_the_error_of_weights_falls_with_every_bit_and_16_bits_are_nearly_exact() -> None:
    weight = gaussian(40, 50)
    codes = rounded(weight, 16)
    errors = []
    for bits in WIDTHS:
        width = plain(weight, narrowed(codes, 16, bits), bits)
        errors.append(float((width.weights() - weight).norm() / weight.norm()))
        # The bound of half a step, and as much as the wide codes were off.
        bound = weight.abs().amax(1) * (0.5 / largest(bits) + 0.5 / largest(16)) * 1.0001
        assert bool(((width.weights() - weight).abs().amax(1) <= bound).all())
    assert all(wide < narrow for narrow, wide in zip(errors, errors[1:], strict=False))
    assert errors[-1] < 3e-5


@pytest.mark.parametrize("family", ["chronos2", "toto", "timer_xl"])
def test_mean_inputs_stand_beside_their_weights(family: str) -> None:
    model = tiny_model(family)
    inputs = mean_inputs(model, [tiny_batch()], 16)
    public = model.tensors_to_public()
    assert inputs
    outputs: dict[str, Tensor] = {}
    path, map_ = next(
        (path, part)
        for path, part in model.named_modules()
        if isinstance(part, torch.nn.Linear) and part.in_features >= 16 and path.endswith((".wi", ".wi_1"))
    )

    def note(_: Any, given: Any, found: Tensor) -> None:
        flat = found.detach().reshape(-1, found.shape[-1]).double()
        outputs["sum"] = outputs.get("sum", torch.zeros(())) + flat.sum(0)
        outputs["count"] = outputs.get("count", torch.zeros(())) + len(flat)

    with torch.no_grad():
        handle = map_.register_forward_hook(note)
        model.forecast(tiny_batch(), 16)
        handle.remove()
    mean = outputs["sum"] / outputs["count"]
    found = []
    for name, mean_input in inputs.items():
        found.append((as_rows(public[name]).double() * as_rows(mean_input)).sum(1))
    bias = map_.bias.double() if map_.bias is not None else torch.zeros(map_.out_features)
    wanted = (mean - bias).detach()
    # The layout may hold several maps in one tensor, or a convolution: the rows are somewhere in it, side by side.
    places = [part.unfold(0, len(wanted), 1) for part in found if len(part) >= len(wanted)]
    assert any(bool(torch.isclose(part, wanted, rtol=1e-4, atol=1e-5).all(1).any()) for part in places), path


def test_routers_norms_biases_and_small_tables_stay_as_they_are() -> None:
    experts = tiny_model("time_moe")
    inputs = mean_inputs(experts, [tiny_batch()], 16)
    assert [name for name in inputs if ".experts.0.gate_proj" in name]
    floating = [name for name in experts.tensors_to_public() if name not in inputs]
    for end in ("ffn_layer.gate.weight", "shared_expert_gate.weight", "norm.weight", "emb_layer.weight", ".bias"):
        assert [name for name in floating if name.endswith(end)], end
    bolt = mean_inputs(tiny_model("chronos_bolt"), [tiny_batch()], 16)
    assert not [name for name in bolt if "relative_attention_bias" in name or name.startswith("shared")]
    assert [name for name in bolt if name.endswith("SelfAttention.q.weight")]


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_every_family_comes_back_at_every_width(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    found = EXPORT.write(request(model, tmp_path / "out", bits=(8, 4)))
    batch = tiny_batch()
    exact = model.forecast(batch, 16)
    wide, narrow = (load(tmp_path / "out", bits=bits) for bits in (8, 4))
    assert wide.config == model.config
    assert wide.family == family
    assert "8 bits" in " ".join(wide.notes)
    assert torch.equal(load(tmp_path / "out").forecast(batch, 16), wide.forecast(batch, 16))
    assert not torch.equal(narrow.forecast(batch, 16), exact)
    errors = [found["widths"][bits]["written"]["weight_error"] for bits in ("8", "4")]
    assert 0 < errors[0] < 0.02 < errors[1] < 0.3
    assert found["widths"]["8"]["written"]["relative_difference"] < 0.2
    assert found["widths"]["8"]["written"]["mse_ratio"] > 0


def cut_model() -> tuple[Forecaster, dict[str, list[int]]]:
    """A slim Chronos-2 with uneven heads, an empty branch and channels zeroed in place and cut by an index."""
    model = tiny_model("chronos2")
    groups = model.unit_groups()
    kept: dict[str, list[int]] = {n: [0, 2] for n, g in groups.items() if g.kind == "head" and ".0.layer.0" in n}
    kept |= {n: list(range(5, g.units)) for n, g in groups.items() if g.kind == "ffn_channel"}
    kept |= {n: list(range(2, g.units)) for n, g in groups.items() if n.endswith("wo/out_channel")}
    kept[next(n for n in groups if n.endswith("block.1.layer.1/attention"))] = []
    return model, kept


def test_a_slim_model_keeps_its_plan_and_its_zeros(tmp_path: Path) -> None:
    model, kept = cut_model()
    smaller = slim(model, kept)
    EXPORT.write(request(smaller, tmp_path / "out", correction="everywhere"))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors", "plan.json"]
    again = load(tmp_path / "out", bits=3)
    assert again.kept == smaller.kept
    dead = [n for n, t in smaller.state_dict().items() if n.endswith("wo.weight") and bool((t[:2] == 0).all())]
    assert dead
    assert all(bool((again.state_dict()[name][:2] == 0).all()) for name in dead)


FRESH = """
import sys, tsprune.models
from safetensors.torch import save_file
from tests.tiny import tiny_batch
model = tsprune.models.load(sys.argv[1], bits=int(sys.argv[2]))
save_file({"forecast": model.forecast(tiny_batch(), 40).contiguous()}, sys.argv[3])
"""


def test_one_file_serves_every_width_in_a_fresh_process_without_the_full_precision_one(tmp_path: Path) -> None:
    model, kept = cut_model()
    plan = make_plan(model, kept, base_model="tiny")
    smaller = slim(model, kept)
    full = tsprune.save(smaller, tmp_path / "full", plan)
    EXPORT.write(request(load(full), tmp_path / "a" / "out"))
    for path in full.iterdir():
        path.unlink()
    (tmp_path / "a" / "out").rename(tmp_path / "moved")
    root = Path(__file__).resolve().parents[1]
    code = f"import sys; sys.path[:0] = [{str(root)!r}, {str(root / 'src')!r}]\n{FRESH}"
    subprocess.run([sys.executable, "-c", code, tmp_path / "moved", "4", tmp_path / "result"], check=True)
    expected = load(tmp_path / "moved", bits=4).forecast(tiny_batch(), 40)
    assert torch.equal(load_file(tmp_path / "result")["forecast"], expected)


@pytest.mark.parametrize("bits", [3, 4, 5, 6, 8, 16])
def test_one_width_alone_takes_that_many_bits_on_disk(bits: int, tmp_path: Path) -> None:
    model = tiny_model("ttm")
    asked = request(model, tmp_path / "out", bits=bits)
    found = EXPORT.write(asked)
    path = tmp_path / "out" / "model.safetensors"
    stored = load_file(path)
    expected = 0
    source = Source.of(asked)
    for name, tensor in source.tensors.items():
        if name not in source.inputs:
            expected += tensor.numel() * tensor.element_size()
            continue
        offsets = f"{name}.offset.{bits}" in stored
        expected += packed_size(tensor.numel(), bits) + 4 * len(as_rows(tensor)) * (1 + offsets)
    (header,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert path.stat().st_size == 8 + header + expected
    assert found["files"]["model.safetensors"] == path.stat().st_size
    assert found["widths"][str(bits)]["bytes_alone"] == path.stat().st_size == bytes_alone(source, bits, "where_better")


def test_a_file_of_several_widths_takes_the_bits_of_the_widest(tmp_path: Path) -> None:
    model = tiny_model("chronos2")
    found = EXPORT.write(request(model, tmp_path / "out", bits=ALL))
    stored = load_file(tmp_path / "out" / "model.safetensors")
    codes = {name: t for name, t in stored.items() if name.endswith(".codes")}
    assert sum(len(t) for t in codes.values()) == found["quantised"]["weights"]
    alone = [found["widths"][str(bits)]["bytes_alone"] for bits in ALL]
    assert [note.split(" bits")[0] for note in found["notes"]] == [str(bits) for bits in ALL]
    assert f"{alone[0]:,} bytes" in found["notes"][0]
    assert alone == sorted(alone, reverse=True)
    assert found["files"]["model.safetensors"] > alone[0]
    assert found["bytes_before"] == len(safe_bytes(model))
    shifts = {bits: found["widths"][str(bits)] for bits in ALL}
    assert all(one["written"]["mean_shift"] <= one["plain"]["mean_shift"] for one in shifts.values())
    assert all(0 < one["written"]["corrected"] < 1 for one in shifts.values())
    assert all(one["plain"]["corrected"] == 0 for one in shifts.values())


def safe_bytes(model: Forecaster) -> bytes:
    from safetensors.torch import save

    return save({n: t.contiguous() for n, t in model.tensors_to_public().items()}, {"format": "pt"})


def test_16_bits_forecast_what_the_model_forecasts(tmp_path: Path) -> None:
    model = tiny_model("chronos2")
    found = EXPORT.write(request(model, tmp_path / "out", bits=16, correction="none"))
    told = found["widths"]["16"]["written"]
    assert told["relative_difference"] < 1e-3
    assert told["mse_ratio"] == pytest.approx(1, abs=1e-3)


def test_the_model_is_left_as_it_was_and_no_target_is_no_error(tmp_path: Path) -> None:
    model = tiny_model("chronos_bolt")
    before = fingerprint(model)
    batch = Batch(tiny_batch().context)
    found = EXPORT.write(request(model, tmp_path / "out", batch, bits=(4,)))
    assert fingerprint(model) == before
    assert not [m for m in model.modules() if m._forward_pre_hooks]
    assert "mse_ratio" not in found["widths"]["4"]["written"]
    assert found["widths"]["4"]["written"]["relative_difference"] > 0


def test_evaluate_and_predict_read_the_width_they_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    EXPORT.write(request(tiny_model("chronos2"), tmp_path / "out", bits=(8, 3)))
    monkeypatch.chdir(tmp_path)
    wide().to_csv("wide.csv", index=False)
    tables, errors = {}, {}
    for bits in ("0", "8", "3"):
        told = ["--bits", bits, "--horizon", "4", "--quiet"]
        assert called(["predict", "out", "--data", "wide.csv", "--out", f"{bits}.csv", *told], capsys)[0] == 0
        tables[bits] = Path(f"{bits}.csv").read_text()
        judged = ["evaluate", "--model", "out", "--data", "wide.csv", "--out", f"{bits}.json", "--baselines", "drift"]
        assert called([*judged, *told], capsys)[0] == 0
        errors[bits] = json.loads(Path(f"{bits}.json").read_text())["models"]["out"]["metrics"]["mse"]
    assert tables["0"] == tables["8"] != tables["3"]
    assert errors["0"] == errors["8"] != errors["3"]
    code, _, said = called(["predict", "out", "--data", "wide.csv", "--bits", "4"], capsys)
    assert code == 2
    assert "bits is 4" in said


def test_wrong_choices_are_refused_by_name(tmp_path: Path) -> None:
    model = tiny_model("chronos2")
    for number, (options, said) in enumerate(
        [({"bits": (1,)}, "--bits: bits is 1"), ({"bits": (17,)}, "--bits"), ({"bits": ("4",)}, "--bits: '4'"),
         ({"correction": "twice"}, "'twice'")]
    ):  # fmt: skip
        with pytest.raises(TspruneError, match=said):
            EXPORT.write(request(model, tmp_path / str(number), **options))
    assert "half" in (EXPORT.refusal(model.half()) or "") or "float16" in EXPORT.refusal(model.half())
    path = tsprune.save(tiny_model("chronos2"), tmp_path / "whole")
    with pytest.raises(TspruneError, match="not quantised"):
        load(path, bits=4)
    with pytest.raises(TspruneError, match="model in memory"):
        load(model, bits=4)


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    EXPORT.write(request(tiny_model("chronos2"), tmp_path / "out", bits=(8, 4)))
    with pytest.raises(TspruneError, match="bits is 5, this model can be read at 8 4 bits"):
        load(tmp_path / "out", bits=5)
    path = tmp_path / "out" / "config.json"
    good = json.loads(path.read_text())
    name = next(iter(good["tsprune_quantised"]["shapes"]))
    for change, said in (
        ({"bits": []}, "bits is"),
        ({"bits": [40]}, "bits is"),
        ({"shapes": 3}, "shapes must map"),
        ({"correction": None}, "correction is"),
        ({"shapes": {name: [3, 5]}}, f"{name}.*does not fit"),
        ({"shapes": {"nothing.weight": [3, 5]}}, "nothing.weight lacks .codes"),
    ):
        path.write_text(json.dumps(good | {"tsprune_quantised": good["tsprune_quantised"] | change}))
        with pytest.raises(TspruneError, match=said):
            load(tmp_path / "out")
