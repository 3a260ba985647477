"""Nothing before the final evaluation sees the test part, and no measure sees the size of a batch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
import tsprune
from running import SMALL, no_figures, wide, without_timings
from tests.tiny import ALL_FAMILIES
from tsprune.data.panel import Panel
from tsprune.data.split import Split
from tsprune.evaluation import baselines
from tsprune.evaluation.evaluate import evaluate
from tsprune.specializing import Specialist

LENGTH = 240
CUT = LENGTH - LENGTH * 20 // 100


def panel(spoilt: bool) -> Panel:
    """Two series; spoilt, everything from the test part on is garbage, then missing."""
    frame = wide(length=LENGTH)
    if spoilt:
        draw = np.random.default_rng(0)
        frame.loc[CUT:, ["a", "b"]] = (1e4 * draw.standard_normal((LENGTH - CUT, 2))).astype(np.float32)
        frame.loc[LENGTH - 15 :, ["a", "b"]] = np.nan
        frame.loc[CUT, "a"] = np.nan
    return tsprune.read(frame)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[Specialist]:
    """The same run on the series as they are and on spoilt ones."""
    place = tmp_path_factory.mktemp("blind")
    made = []
    for name, spoilt in (("clean", False), ("spoilt", True)):
        with no_figures():
            settings = SMALL | {"split": "ratio 70/10/20"}
            made.append(tsprune.specialize(tiny.tiny_model("chronos2"), panel(spoilt), out=place / name, **settings))
    return made


def stages(found: Specialist) -> dict[str, Path]:
    """Finished stages by name; the hash in a folder's name holds the fingerprint of the data."""
    return {
        folder.name.rpartition("-")[0]: folder for folder in (found.directory / "stages").iterdir() if folder.is_dir()
    }


def without(content: Any, *keys: str) -> Any:
    if isinstance(content, dict):
        return {key: without(value, *keys) for key, value in content.items() if key not in keys}
    return [without(value, *keys) for value in content] if isinstance(content, list) else content


def content(path: Path) -> Any:
    """A file as bytes; JSON without the fingerprint of the data."""
    if path.suffix != ".json":
        return path.read_bytes()
    plain = json.loads(path.read_text(encoding="utf-8"))
    return without(plain, "data_fingerprint")


def test_spoiling_the_test_part_changes_no_stage_before_the_final_one(both: list[Specialist]) -> None:
    clean, spoilt = (stages(found) for found in both)
    assert set(clean) == set(spoilt) and "validate" in clean and "test" in clean
    compared = set()
    for name in set(clean) - {"test"}:
        files = sorted(str(path.relative_to(clean[name])) for path in clean[name].rglob("*") if path.is_file())
        assert files == sorted(str(p.relative_to(spoilt[name])) for p in spoilt[name].rglob("*") if p.is_file())
        for file in files:
            if Path(file).name == "done.json":  # Inputs, times and hashes of the files compared here.
                continue
            compared.add(Path(file).name)
            assert content(clean[name] / file) == content(spoilt[name] / file), f"{name}/{file}"
    assert {"plan.json", "model.safetensors", "validation.json", "trials.json", "rounds.json"} <= compared


def test_the_choice_and_the_plan_are_the_same_and_the_test_errors_are_not(both: list[Specialist]) -> None:
    clean, spoilt = (dict(found.results) for found in both)
    assert clean["chosen"] == spoilt["chosen"]
    plans = [content(found.directory / "plan.json") for found in both]
    assert plans[0] == plans[1]
    for one, other in zip(clean["candidates"], spoilt["candidates"], strict=True):
        assert without_timings(one["validation"]) == without_timings(other["validation"])
        assert other["test"]["mse"] > 100 * one["test"]["mse"]


def state(thing: Any) -> Any:
    """What a fitted baseline holds, as plain data; the split and its panel aside."""
    if isinstance(thing, torch.nn.Module):
        return {name: value.numpy().tobytes() for name, value in thing.state_dict().items()}
    if isinstance(thing, torch.Tensor):
        return thing.numpy().tobytes()
    if isinstance(thing, np.ndarray):
        return thing.tobytes()
    if isinstance(thing, Mapping):
        return {key: state(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [state(value) for value in thing]
    if isinstance(thing, str | int | float | bool | type(None)):
        return thing
    return {key: state(value) for key, value in vars(thing).items()} if hasattr(thing, "__dict__") else repr(thing)


@pytest.mark.parametrize("name", baselines.names())
def test_no_baseline_sees_the_test_part(name: str) -> None:
    try:
        baselines.check([name])
    except tsprune.TspruneError as error:
        pytest.skip(str(error))
    fitted, forecasts = [], []
    for spoilt in (False, True):
        split = Split.make(panel(spoilt), 8, 48, "ratio 70/10/20")
        model = baselines.fit([name], split, 24, steering=16)[name]
        fitted.append(state(model))
        windows = split.validation().thin(2)[0]
        forecasts.append(model.forecast(windows.batch(range(len(windows))), 8, [0.1, 0.5, 0.9]))
    assert fitted[0] == fitted[1]
    assert torch.equal(*forecasts)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_no_measure_depends_on_the_size_of_a_batch(family: str) -> None:
    model = tiny.tiny_model(family)
    frame = wide(length=LENGTH)
    frame.loc[200:206, "a"] = np.nan
    frame.loc[:190, "b"] = np.nan
    data = tsprune.read(frame.fillna(0) if not model.capabilities.missing_values else frame)
    horizon = min(8, model.native_horizon)
    split = Split.make(data, horizon, min(64, model.context_length), "ratio 70/10/20", pad=True)
    windows = split.test().thin(19)[0]
    alone, some, all_at_once = (evaluate(model, windows, split, batch_size=size) for size in (1, 7, 256))
    assert all(value is not None for value in alone.values())
    assert some == pytest.approx(alone, rel=2e-5)
    assert all_at_once == pytest.approx(alone, rel=2e-5)
