"""Standings on the test windows: a planted lead is found, equal models stay equal, a kill changes nothing."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import report_fixture
import tiny
import tsprune
import tsprune.proof
from rowsums import origins, rows_of, window_losses
from running import wide
from tsprune.evaluation.baselines.seasonal_naive import SeasonalNaive
from tsprune.evaluation.metrics import RowErrors
from tsprune.evaluation.standings import read_rows, standings, write_rows
from tsprune.preparing import Prepared, prepare
from tsprune.progress import Progress
from tsprune.proof import MEASURED, open_test
from tsprune.report import verdict
from tsprune.settings import TaskSettings


@pytest.fixture(scope="module")
def rows() -> dict[str, RowErrors]:
    """`pruned` leads by a third, `twin` is as good as the dense model but for chance."""
    dense, twin, late = window_losses(np.random.default_rng(4), 240, 6, models=3)
    return {"zero_shot": rows_of(1.5 * late), "full_finetuning": rows_of(dense)} | {
        "random_prune_finetune": rows_of(twin),
        "prune_then_finetune": rows_of(dense * 2 / 3),
    }


def reported(rows: dict[str, RowErrors], chosen: str, count: int = 240, horizon: int = 6) -> dict[str, Any]:
    """The made-up run of the report's tests with these errors."""
    results = report_fixture.results()
    results["candidates"] = [one for one in results["candidates"] if one["name"] in rows]
    for candidate in results["candidates"]:
        candidate["test"] = dict(rows[candidate["name"]].metrics())
    found = standings(rows, "full_finetuning", chosen, origins(count, horizon), seed=1)
    assert json.dumps(found, allow_nan=False)
    return results | {"chosen": chosen, "comparison": found}


def test_planted_lead_is_called_lower_and_equal_models_are_not(rows: dict[str, RowErrors]) -> None:
    text = verdict(reported(rows, "prune_then_finetune"))
    assert "MSE 33 % and MAE 18 % lower than full fine-tuning" in text
    assert "nothing here shows that the score mattered" not in text
    chance = verdict(reported(rows, "random_prune_finetune"))
    assert "no difference that the test windows can show from full fine-tuning (MSE ratio " in chance
    assert "than full fine-tuning" not in chance
    assert "lower than zero-shot" in chance


def test_planted_loss_is_admitted(rows: dict[str, RowErrors]) -> None:
    worse = rows | {"prune_then_finetune": rows_of(rows["full_finetuning"].squared * 1.5)}
    text = verdict(reported(worse, "prune_then_finetune"))
    assert "n accuracy pruning did not pay: on test it is worse than full fine-tuning (MSE 50 % and MAE" in text


def test_very_few_windows_give_no_verdict(rows: dict[str, RowErrors]) -> None:
    few = {
        name: RowErrors(**{f.name: getattr(one, f.name)[:6] for f in fields(RowErrors)}) for name, one in rows.items()
    }
    text = verdict(reported(few, "prune_then_finetune", 6, 6))
    assert "too few independent test windows to tell it from zero-shot" in text
    assert "lower" not in text and "higher" not in text


def test_chosen_is_compared_with_everyone_and_measures_without_targets_are_left_out(rows: dict[str, RowErrors]) -> None:
    found = standings(rows, "full_finetuning", "zero_shot", origins(240, 6))
    assert set(found["measures"]) == set(found["chosen"]) == {"mse", "mae"}
    assert {n: pair["verdict"] for n, pair in found["chosen"]["mse"].items()} == dict.fromkeys(
        ["full_finetuning", "random_prune_finetune", "prune_then_finetune"], "worse"
    )
    blind = {name: rows_of(np.ones(9), observed=0) for name in rows}
    empty = standings(blind, "full_finetuning", "zero_shot", origins(9))
    assert empty["measures"] == empty["chosen"] == {}
    assert "MSE was not compared: no target of the test windows is observed" in empty["notes"]


def test_rows_come_back_bit_for_bit(rows: dict[str, RowErrors], tmp_path: Path) -> None:
    kept = RowErrors(**{f.name: np.append(getattr(rows["zero_shot"], f.name), np.nan) for f in fields(RowErrors)})
    write_rows(tmp_path / "rows.safetensors", kept)
    back = read_rows(tmp_path / "rows.safetensors")
    for entry in fields(RowErrors):
        np.testing.assert_array_equal(getattr(back, entry.name), getattr(kept, entry.name), strict=True)


# ---- The test stage


@pytest.fixture(scope="module")
def ready() -> Prepared:
    model = tiny.tiny_model("chronos2")
    return prepare(TaskSettings(horizon=8, context=32), panel=tsprune.read(wide()), model=model)


def opened(work: Path, ready: Prepared) -> dict[str, Any]:
    """What the test stage leaves behind, for a baseline, the model as it came and one with other weights."""
    torch.manual_seed(1)
    models = {"seasonal_naive": SeasonalNaive(24), "zero_shot": ready.model, "full_finetuning": _other(ready)}
    work.mkdir(exist_ok=True)
    with Progress(quiet=True).stage("test", 4) as bar:
        open_test(work, ready, models, "zero_shot", bar)
    assert not (work / MEASURED).exists()
    return dict(json.loads((work / "test.json").read_text(encoding="utf-8")))


def _other(ready: Prepared) -> Any:
    model = tiny.tiny_model("chronos2")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    return model


def test_killed_between_candidates_the_test_stage_ends_as_if_never_killed(
    ready: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = opened(tmp_path / "whole", ready)
    assert whole["comparison"]["reference"] == "full_finetuning"
    assert len(whole["comparison"]["measures"]["mse"]["ranking"]) == 3
    real, calls = tsprune.proof.measure, []

    def mortal(model: Any, *rest: Any, **more: Any) -> Any:
        calls.append(type(model).__name__)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(model, *rest, **more)

    monkeypatch.setattr(tsprune.proof, "measure", mortal)
    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path / "cut", ready)
    # A kill between the two files of a candidate: rows without metrics.
    (tmp_path / "cut" / MEASURED / "zero_shot.json").unlink()
    resumed = opened(tmp_path / "cut", ready)
    assert calls.count("SeasonalNaive") == 1 and len(calls) == 5
    assert resumed["comparison"] == whole["comparison"]


def test_without_full_finetuning_the_untuned_model_is_the_reference(ready: Prepared, tmp_path: Path) -> None:
    models = {"seasonal_naive": SeasonalNaive(24), "zero_shot": ready.model}
    with Progress(quiet=True).stage("test", 3) as bar:
        open_test(tmp_path, ready, models, "seasonal_naive", bar)
    found = json.loads((tmp_path / "test.json").read_text(encoding="utf-8"))["comparison"]
    assert found["reference"] == "zero_shot" and set(found["chosen"]["mae"]) == {"zero_shot"}
