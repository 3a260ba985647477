"""Models as ONNX files, run by onnxruntime; an export takes seconds, so most of them are heavy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
import tsprune
from running import wide
from tests.tiny import ALL_FAMILIES, family_facts, tiny_model
from tsprune.data.batch import Batch
from tsprune.exporting import export
from tsprune.exports._drawn import drawn_batches
from tsprune.exports._graph import TRACED, untraceable
from tsprune.exports.onnx import session
from tsprune.models._forecaster import Forecaster
from tsprune.progress import Progress
from tsprune.slimming import slim

EXAMPLE = Path(__file__).parents[1] / "examples" / "serve_onnx.py"
BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "tsprune", "pandas"):
            raise ImportError(f"{name} is out of reach here")
sys.meta_path.insert(0, Blocked())
"""


def written(model: Forecaster, out: Path, horizon: int, source: str = "mini") -> dict[str, Any]:
    """Facts of an export that was compared on drawn series."""
    batches = drawn_batches(16, model.context_length, horizon)
    progress = Progress(quiet=True)
    return export(model, "onnx", out, source=source, batches=batches, horizon=horizon, progress=progress)


def halved(model: Forecaster, kinds: Mapping[str, int]) -> dict[str, Sequence[int]]:
    """Of every group of these kinds the units that stay: all but each n-th, from another one on in each group."""
    kept: dict[str, Sequence[int]] = {}
    for number, group in enumerate(model.unit_groups().values()):
        if every := kinds.get(group.kind):
            kept[group.name] = [unit for unit in range(group.units) if (unit + number) % every]
    return kept


def check_parity(facts: Mapping[str, Any]) -> None:
    """Nearly all comparisons keep the plain rule, and the others are no more than rounding."""
    found = facts["parity"]
    amplified = found.get("amplified", [])
    assert found["cases"] >= 20
    assert found["worst"] <= 1e-5
    assert len(amplified) <= found["cases"] // 4
    assert all(case["graph_to_float64"] <= 4 * case["model_to_float64"] for case in amplified)


def check_run(model: Forecaster, out: Path, horizon: int) -> None:
    run = session(out / "model.onnx")
    for rows, length in ((1, 1), (4, model.context_length // 2 + 1), (7, model.context_length + 9)):
        context = tiny.waves(rows, length, seed=rows)
        context[0, 1::4] = torch.nan
        wanted = model.forecast(Batch(context), horizon).numpy()
        np.testing.assert_allclose(run(context.numpy()), wanted, rtol=0, atol=2e-5 * max(1.0, np.abs(wanted).max()))


@pytest.fixture(scope="module")
def bolt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Forecaster, Path, dict[str, Any]]:
    """A slim model with heads of uneven width, as a graph."""
    model = tiny_model("chronos_bolt")
    kept = halved(model, {"head": 3, "ffn_channel": 2, "qk_pair": 4, "value_dim": 5})
    slimmed = slim(model, kept)
    out = tmp_path_factory.mktemp("onnx") / "bolt"
    return slimmed, out, written(slimmed, out, 16)


def test_a_slim_model_with_uneven_heads_is_reproduced(bolt: tuple[Forecaster, Path, dict[str, Any]]) -> None:
    model, out, facts = bolt
    widths = {tuple(m.shape.values) for m in model.modules() if hasattr(m, "shape") and hasattr(m, "o")}
    assert any(len(set(values)) > 1 for values in widths)
    check_parity(facts)
    check_run(model, out, 16)


def test_the_file_says_what_goes_in_and_out_and_nothing_of_this_machine(
    bolt: tuple[Forecaster, Path, dict[str, Any]],
) -> None:
    import onnxruntime

    model, out, facts = bolt
    made = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    (taken,), (given,) = made.get_inputs(), made.get_outputs()
    assert (taken.name, taken.shape, taken.type) == ("context", ["batch", "length"], "tensor(float)")
    assert (given.name, given.shape, given.type) == ("quantiles", ["batch", 5, 16], "tensor(float)")
    about = json.loads((out / "model.json").read_text())
    inside = made.get_modelmeta().custom_metadata_map
    assert inside["levels"] == "0.1,0.25,0.5,0.75,0.9" and about["levels"] == list(model.levels)
    assert inside["horizon"] == "16" and about["horizon"] == 16
    assert inside["context_limit"] == "64" and about["context_limit"] == 64
    assert inside["licence"] == about["licence"] == "Apache-2.0"
    assert inside["base_model"] == about["base_model"] == "mini"
    assert about["output"]["shape"] == ["batch", 5, 16]
    assert facts["files"].keys() == {"model.json", "model.onnx"}
    content = (out / "model.onnx").read_bytes() + (out / "model.json").read_bytes() + (out / "export.json").read_bytes()
    for path in (Path(tsprune.__file__).parent, Path(torch.__file__).parent, Path.home(), out):
        assert str(path).encode() not in content
    assert len((out / "model.onnx").read_bytes()) < 4 * model.parameter_count() + 200_000


def test_the_example_serves_without_torch_and_without_us(
    bolt: tuple[Forecaster, Path, dict[str, Any]], tmp_path: Path
) -> None:
    model, out, _ = bolt
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 40
    table = wide(length=90)
    table.loc[20:30, "b"] = np.nan
    table.to_csv(tmp_path / "series.csv", index=False)
    (tmp_path / "sitecustomize.py").write_text(BLOCKED)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(out / "model.onnx"), str(tmp_path / "series.csv")],
        env=environment | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    head, *lines = done.stdout.splitlines()
    assert head == "series,step,0.1,0.25,0.5,0.75,0.9"
    assert [line.split(",")[:2] for line in lines] == [[name, str(step)] for name in "ab" for step in range(1, 17)]
    found = np.array([[float(cell) for cell in line.split(",")[2:]] for line in lines])
    wanted = tsprune.predict(model, table, 16, context=64, levels=list(model.levels))
    np.testing.assert_allclose(found, wanted[["0.1", "0.25", "0.5", "0.75", "0.9"]].to_numpy(), rtol=1e-4, atol=1e-4)
    blocked = subprocess.run(
        [sys.executable, "-c", "import torch"], env=environment | {"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "torch is out of reach here" in blocked.stderr


def test_a_model_without_branches_and_with_indexed_channels_is_reproduced(tmp_path: Path) -> None:
    model = tiny_model("chronos2")
    kept = halved(model, {"in_channel": 2, "layer": 2, "ffn_channel": 3}) | {
        name: [] for name in model.unit_groups() if name.endswith("block.0.layer.2.mlp/branch")
    }
    indexed = [name for name in kept if name.endswith("/in_channel")]
    slimmed = slim(model, kept, indexed)
    assert slimmed.parameter_count() < model.parameter_count()
    assert slimmed.indexed
    facts = written(slimmed, tmp_path / "out", 11)
    check_parity(facts)
    check_run(slimmed, tmp_path / "out", 11)


def test_experts_run_on_their_own_tokens_and_what_is_out_of_reach_is_forgotten(tmp_path: Path) -> None:
    import onnx

    # With a whole context the third pass no longer reaches its beginning.
    model = tiny_model("time_moe")
    horizon = 2 * model.native_horizon + 1
    facts = written(model, tmp_path / "out", horizon)
    check_parity(facts)
    check_run(model, tmp_path / "out", horizon)
    kinds = {node.op_type for node in onnx.load(str(tmp_path / "out" / "model.onnx")).graph.node}
    assert "NonZero" in kinds


TRIED = [
    (family, changes) for family in ALL_FAMILIES if family in TRACED for changes in ({}, *family_facts(family).variants)
]


@pytest.mark.heavy
@pytest.mark.parametrize(("family", "changes"), TRIED)
@pytest.mark.parametrize("cut", [False, True])
def test_every_variant_of_every_family_is_reproduced_dense_slim_and_rolled_out(
    family: str, changes: dict[str, Any], cut: bool, tmp_path: Path
) -> None:
    model = tiny_model(family, **changes)
    if reason := untraceable(model):
        assert "distribution" in reason or "mixes exactly" in reason
        return
    horizon = model.native_horizon
    if cut:
        model = slim(model, halved(model, {"head": 3, "ffn_channel": 2, "expert": 3, "out_channel": 4}))
        horizon = 2 * horizon + 3
    facts = written(model, tmp_path / "out", horizon)
    check_parity(facts)
    check_run(model, tmp_path / "out", horizon)
