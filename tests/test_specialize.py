"""The whole way on tiny models: the results file, the choice, and the kinds of input."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import tiny
import tsprune
from running import SMALL, called, fill, no_figures, wide, without_timings
from tsprune.errors import TspruneError
from tsprune.models import fingerprint
from tsprune.preparing import prepare
from tsprune.proof import judge
from tsprune.settings import TaskSettings
from tsprune.slimming import slim
from tsprune.specializing import Specialist, kept_model

NAMES = ["seasonal_naive", "zero_shot", "full_finetuning", "random_prune_finetune", "prune_then_finetune"]
KEYS = {
    "": {"schema", "protocol", "candidates", "chosen", "verdict", "equivalence", "seed", "versions", "timings"}
    | {"pruning", "search", "tuning", "comparison"},
    "protocol": {"data", "fingerprint", "model", "horizon", "context", "frequency", "season", "split", "windows"}
    | {
        "strides",
        "scale",
        "series",
        "threads",
        "latency_batch",
        "latency_threads",
        "latency_busy",
        "machine",
        "inferred",
        "repairs",
    }
    | {"pretraining_overlap", "leakage", "words"},
    "candidate": {"name", "validation", "test", "parameters", "flops", "latency_ms", "latency_spread_ms", "notes"},
}
METRICS = {"mse", "mae", "mase", "wql"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("specialize"))


def run(place: Path, out: str, **changes: Any) -> Specialist:
    """A short run on `wide.csv` and the tiny Chronos-2, or on what is given."""
    settings = SMALL | {"data": str(place / "wide.csv")} | changes
    with nullcontext() if out == "usual" else no_figures():
        return tsprune.specialize(settings.pop("model", str(place / "chronos2")), out=place / out, **settings)


@pytest.fixture(scope="module")
def found(place: Path) -> Specialist:
    return run(place, "usual")


def candidates(results: Any) -> dict[str, Any]:
    return {entry["name"]: entry for entry in results["candidates"]}


def test_results_have_the_keys_of_schema_1(found: Specialist) -> None:
    results = found.results
    assert results["schema"] == 1
    assert set(results) == KEYS[""]
    assert set(results["protocol"]) == KEYS["protocol"]
    assert set(results["protocol"]["split"]) == {"name", "train_end", "validation_end", "test_end"}
    for name in ("windows", "strides"):
        assert set(results["protocol"][name]) == {"train", "validation", "test"}
    assert [entry["name"] for entry in results["candidates"]] == NAMES
    for entry in results["candidates"]:
        assert set(entry) == KEYS["candidate"]
        assert set(entry["validation"]) == set(entry["test"]) == METRICS
        assert all(math.isfinite(value) for part in ("validation", "test") for value in entry[part].values())
        assert entry["latency_spread_ms"][0] <= entry["latency_ms"] <= entry["latency_spread_ms"][1]
    assert set(results["search"]) == set(NAMES[2:])
    assert {"round", "removed_share", "parameters", "validation_loss"} <= set(results["pruning"]["rounds"][0])
    assert results["pruning"]["best_round"] in [entry["round"] for entry in results["pruning"]["rounds"]]


def test_comparison_is_of_the_errors_in_the_table(found: Specialist) -> None:
    comparison, entries = found.results["comparison"], candidates(found.results)
    assert comparison["reference"] == "full_finetuning"
    for measure in ("mse", "mae"):
        table = comparison["measures"][measure]
        errors = {name: entry["test"][measure] for name, entry in entries.items()}
        assert {entry["name"]: entry["value"]["estimate"] for entry in table["ranking"]} == errors
        assert [entry["name"] for entry in table["ranking"]] == sorted(errors, key=lambda name: errors[name])
        assert table["rows"] == found.results["protocol"]["windows"]["test"]
        own = errors[found.results["chosen"]]
        ratios = {name: pair["ratio"]["estimate"] for name, pair in comparison["chosen"][measure].items()}
        assert ratios == {n: pytest.approx(own / e) for n, e in errors.items() if n != found.results["chosen"]}
    words = found.results["protocol"]["words"]
    assert found.results["protocol"]["split"]["test_end"] in words
    assert words in (found.directory / "report.html").read_text(encoding="utf-8")


def test_directory_holds_what_the_results_say(found: Specialist) -> None:
    assert sorted(p.name for p in found.directory.iterdir()) == [
        "model", "plan.json", "report.html", "results.json", "stages",
    ]  # fmt: skip
    text = (found.directory / "results.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON")) == found.results
    plan = tsprune.Plan.read(found.directory / "plan.json")
    pruned = candidates(found.results)["prune_then_finetune"]
    assert plan.parameters["after"] == pruned["parameters"] < plan.parameters["before"]
    assert plan.data_fingerprint == found.results["protocol"]["fingerprint"]
    assert fingerprint(tsprune.load(found.directory / "model")) == fingerprint(found.model)


def test_masked_and_slim_are_compared_and_agree(found: Specialist) -> None:
    equivalence = found.results["equivalence"]
    assert equivalence["windows"] > 0
    assert 0 <= equivalence["relative"] <= 1e-5
    assert 0 <= equivalence["relative_float64"] <= 1e-12
    assert equivalence["max_abs_difference"] >= 0


def test_a_slim_model_that_is_wrong_stops_the_run_before_the_test_part_is_opened(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: Any, kept: Any, *rest: Any) -> Any:
        smaller = slim(model, kept, *rest)
        with torch.no_grad():
            next(p for n, p in smaller.named_parameters() if n.endswith("o.weight")).mul_(1.001)
        return smaller

    monkeypatch.setattr("tsprune.stagework.slim", wrong)
    with pytest.raises(TspruneError, match="differs from the masked one"):
        run(place, "wrong")
    assert [p.name.split("-")[0] for p in (place / "wrong" / "stages").iterdir() if p.suffix == ""] == ["adapt"]


def test_chosen_has_the_lowest_validation_error(found: Specialist) -> None:
    errors = {name: entry["validation"]["mse"] for name, entry in candidates(found.results).items()}
    assert found.results["chosen"] == min(errors, key=lambda name: errors[name])


def test_random_control_is_as_small_as_the_pruned_model(found: Specialist) -> None:
    entries = candidates(found.results)
    pruned, control = (entries[name]["parameters"] for name in ("prune_then_finetune", "random_prune_finetune"))
    assert 0.93 * pruned <= control <= pruned
    assert entries["full_finetuning"]["parameters"] == entries["zero_shot"]["parameters"] > pruned
    assert entries["seasonal_naive"]["parameters"] == 0


def test_tuned_candidates_never_validate_worse_than_they_started(found: Specialist) -> None:
    start = found.results["pruning"]["rounds"][0]["validation_loss"]
    assert min(trial["validation_loss"] for trial in found.results["search"]["full_finetuning"]) <= start
    # 4 trials each: three learning rates searched, and the full run.
    assert {len(trials) for trials in found.results["search"].values()} == {4}


def test_only_validation_decides(place: Path, found: Specialist) -> None:
    frame = wide()
    frame = frame.astype({"a": float, "b": float})
    border = int(len(frame) * 0.8)
    frame.loc[border:, ["a", "b"]] = 40 * np.random.default_rng(0).standard_normal((len(frame) - border, 2))
    frame.to_csv(place / "spoilt.csv", index=False)
    other = run(place, "spoilt", data=str(place / "spoilt.csv"))
    assert other.results["chosen"] == found.results["chosen"]
    plans = [tsprune.Plan.read(one.directory / "plan.json") for one in (found, other)]
    assert plans[0].groups == plans[1].groups
    for name in ("pruning", "search", "equivalence"):
        assert other.results[name] == found.results[name]
    for name, entry in candidates(other.results).items():
        before = candidates(found.results)[name]
        assert entry["validation"] == before["validation"]
        assert entry["test"]["mse"] > 2 * before["test"]["mse"]


def test_batch_size_changes_no_number(place: Path, found: Specialist) -> None:
    other = run(place, "batches", batch_size=3)
    for name, entry in candidates(other.results).items():
        before = candidates(found.results)[name]
        for part in ("validation", "test"):
            assert entry[part] == pytest.approx(before[part], rel=1e-6)
    for measure, table in other.results["comparison"]["measures"].items():
        usual = found.results["comparison"]["measures"][measure]
        for own, before in zip(table["ranking"], usual["ranking"], strict=True):
            assert (own["name"], own["verdict"]) == (before["name"], before["verdict"])
            for key in ("value", "ratio"):
                assert own[key] == pytest.approx(before[key], rel=1e-4)
    assert other.results["chosen"] == found.results["chosen"]


def test_same_seed_in_another_directory_gives_the_same_result(place: Path, found: Specialist) -> None:
    assert without_timings(run(place, "again").results) == without_timings(found.results)


def test_model_passed_in_is_not_changed(place: Path) -> None:
    model = tiny.tiny_model("chronos2").train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    before = fingerprint(model)
    result = run(place, "object", model=model)
    assert result.results["protocol"]["model"] == "chronos2 model in memory"
    assert fingerprint(model) == before
    assert model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert result.model is not model or result.results["chosen"] in ("zero_shot", "seasonal_naive")


def test_table_in_memory_gives_the_same_as_its_file(place: Path, found: Specialist) -> None:
    panel = tsprune.read(pd.read_csv(place / "wide.csv"))
    result = tsprune.specialize(str(place / "chronos2"), panel, out=place / "frame", **SMALL)
    for name in ("candidates", "pruning", "search", "chosen"):
        assert without_timings(result.results[name]) == without_timings(found.results[name])


def test_chronos_bolt_goes_the_whole_way(place: Path) -> None:
    result = run(place, "bolt", model=str(place / "chronos_bolt"))
    assert [entry["name"] for entry in result.results["candidates"]] == NAMES


def test_horizon_beyond_the_model_is_rolled_out_and_said(place: Path) -> None:
    result = run(place, "far", horizon=20)
    assert result.results["protocol"]["horizon"] == 20
    assert any("rolled out" in line for line in result.results["protocol"]["repairs"])
    assert all(math.isfinite(entry["test"]["mse"]) for entry in result.results["candidates"])


def test_long_table_with_series_of_unequal_length_goes_the_whole_way(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = wide(3).melt("date", var_name="shop", value_name="sales")
    long = long[~((long["shop"] == "c") & (long["date"] < "2024-01-03"))].sample(frac=1, random_state=0)
    long.to_csv(place / "long.csv", index=False)
    options = SMALL | {"data": place / "long.csv", "model": place / "chronos2", "out": place / "long"}
    flags = [text for name, value in options.items() for text in ("--" + name.replace("_", "-"), str(value))]
    code, out, err = called(["specialize", *flags], capsys)
    assert code == 0
    assert "inferred layout: long" in err
    results = json.loads((place / "long" / "results.json").read_text(encoding="utf-8"))
    assert results["protocol"]["series"] == 3
    assert results["verdict"] in out
    assert "report.html" in out and "error" not in err


@pytest.mark.parametrize("role", ["known_covariates", "past_covariates"])
def test_covariate_goes_the_whole_way(role: str, place: Path) -> None:
    frame = wide(1)
    # This column tells the target eight steps early: refused, and where that is allowed, nothing may break over it.
    frame["hint"] = frame["a"].shift(-8).bfill().ffill()
    frame.to_csv(place / f"{role}.csv", index=False)
    options = tsprune.ReadOptions(value_columns=("a",), **{role: ("hint",)})
    with pytest.raises(TspruneError, match="'hint' is exactly the target 8 steps later.*--allow-leakage"):
        run(place, role, data=str(place / f"{role}.csv"), options=options)
    assert not (place / role).exists()
    result = run(place, role, data=str(place / f"{role}.csv"), options=options, allow_leakage=True)
    assert result.results["protocol"]["series"] == 1
    assert result.results["protocol"]["leakage"][3]["verdict"] == "found"
    assert any(line.startswith("LEAKAGE: ") for line in result.results["protocol"]["repairs"])
    assert "a covariate holds the target itself" in result.results["verdict"].lower()
    assert all(math.isfinite(entry["test"]["mse"]) for entry in result.results["candidates"])
    assert result.results["equivalence"]["relative"] <= 1e-5
    bare = run(
        place, f"{role}-bare", data=str(place / f"{role}.csv"), options=tsprune.ReadOptions(value_columns=("a",))
    )
    errors = [candidates(one.results)["zero_shot"]["test"]["mse"] for one in (result, bare)]
    assert errors[0] != errors[1]


def test_series_forecast_together_go_the_whole_way(place: Path, found: Specialist) -> None:
    result = run(place, "together", together=True)
    own, alone = (candidates(one.results) for one in (result, found))
    assert own["seasonal_naive"]["test"]["mse"] == pytest.approx(alone["seasonal_naive"]["test"]["mse"], rel=1e-6)
    assert own["zero_shot"]["test"]["mse"] != pytest.approx(alone["zero_shot"]["test"]["mse"], rel=1e-4)


def test_gaps_and_missing_ends_go_the_whole_way(place: Path) -> None:
    frame = wide(length=300)
    frame.loc[40:60, "a"] = np.nan
    frame.loc[290:, "b"] = np.nan
    frame.drop(index=range(100, 110)).to_csv(place / "gaps.csv", index=False)
    result = run(place, "gaps", data=str(place / "gaps.csv"))
    assert all(math.isfinite(entry["test"]["mse"]) for entry in result.results["candidates"])


def test_nothing_is_written_when_the_task_is_impossible(place: Path) -> None:
    for change in ({"horizon": 5000}, {"score": "luck"}, {"units": ("neuron",)}, {"ratio": 2.0}, {"context": 65}):
        with pytest.raises(TspruneError):
            run(place, "impossible", **change)
        assert not (place / "impossible").exists()


def test_unknown_setting_lists_the_known(place: Path) -> None:
    with pytest.raises(TspruneError, match=r"'horizons'.*known: .*horizon"):
        run(place, "impossible", horizons=3)


def test_default_horizon_is_one_season_and_said(place: Path) -> None:
    model = tiny.tiny_model("chronos2")
    ready = prepare(TaskSettings(), panel=tsprune.read(wide()), model=model)
    assert ready.horizon == 24
    assert any(note.startswith("horizon 24") for note in ready.notes)


def test_minutes_fix_the_steps_once(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = SMALL | {"data": place / "wide.csv", "model": place / "chronos2", "out": place / "timed"}
    options |= {"minutes": 0.001, "steps": 400, "search_steps": 80}
    flags = [text for name, value in options.items() for text in ("--" + name.replace("_", "-"), str(value))]
    said = []
    for _ in range(2):
        code, _, err = called(["specialize", *flags], capsys)
        assert code == 0
        said.append(next(line for line in err.splitlines() if line.startswith("budget of 0.001 minutes")))
    assert said[0] == said[1]
    results = json.loads((place / "timed" / "results.json").read_text(encoding="utf-8"))
    assert all(trial["best_step"] <= 40 for trials in results["search"].values() for trial in trials)


@pytest.mark.parametrize(
    ("errors", "chosen", "kept"),
    [
        ({"seasonal_naive": 3.0, "zero_shot": 2.0, "full_finetuning": 1.0}, "full_finetuning", "full_finetuning"),
        ({"seasonal_naive": 1.0, "zero_shot": 2.0, "full_finetuning": 3.0}, "seasonal_naive", "zero_shot"),
        ({"seasonal_naive": None, "zero_shot": 2.0, "full_finetuning": math.nan}, "zero_shot", "zero_shot"),
        ({"seasonal_naive": 3.0, "zero_shot": 2.0, "full_finetuning": 2.0}, "zero_shot", "zero_shot"),
    ],
)
def test_lowest_error_is_chosen_and_a_network_is_kept(errors: dict[str, Any], chosen: str, kept: str) -> None:
    validation = {name: {"metrics": {"mse": error}} for name, error in errors.items()}
    assert judge(validation) == chosen
    assert kept_model(chosen, validation) == kept


def test_no_error_at_all_cannot_be_judged() -> None:
    with pytest.raises(TspruneError, match="no observed value"):
        judge({"zero_shot": {"metrics": {"mse": None}}})


def test_kept_model_forecasts_what_was_measured(place: Path, found: Specialist) -> None:
    panel = tsprune.read(place / "wide.csv")
    one = tsprune.predict(found.model, panel, 8)
    two = tsprune.predict(tsprune.load(found.directory / "model"), panel, 8)
    assert torch.equal(torch.tensor(one["0.5"].to_numpy()), torch.tensor(two["0.5"].to_numpy()))


def test_every_tuned_candidate_goes_on_from_the_same_brief_tuning(place: Path) -> None:
    result = run(place, "adapted", adapt_steps=6, adapt_rate=1e-2, tolerance=1.0, repair=False)
    stages = {folder.name.rsplit("-", 1)[0]: folder for folder in (result.directory / "stages").iterdir()}
    as_it_comes = run(place, "as-it-comes", adapt_steps=0, tolerance=1.0, repair=False)
    before, after = (r.results["pruning"]["rounds"][0]["validation_loss"] for r in (as_it_comes, result))
    assert after < before
    assert not list((as_it_comes.directory / "stages").glob("adapt-*"))
    base = tsprune.load(stages["adapt"] / "model")
    for stage in ("prune", "random-prune"):
        plan = tsprune.Plan.read(stages[stage] / "plan.json")
        assert plan.parameters["after"] < plan.parameters["before"]
        assert fingerprint(tsprune.load(stages[stage] / "model")) == fingerprint(tsprune.slim(base, plan))
    # Step 0 of full fine-tuning is the briefly tuned model, so it can only validate better.
    assert min(trial["validation_loss"] for trial in result.results["search"]["full_finetuning"]) <= after


def test_both_pruned_models_are_repaired_before_tuning(place: Path, found: Specialist) -> None:
    (adapted,) = (found.directory / "stages").glob("adapt-????????????")
    base = tsprune.load(adapted / "model")
    for stage in ("prune", "random-prune"):
        (folder,) = (found.directory / "stages").glob(f"{stage}-????????????")
        plan = tsprune.Plan.read(folder / "plan.json")
        assert "repaired by least squares" in plan.schedule
        cut, model = tsprune.slim(base, plan).state_dict(), tsprune.load(folder / "model").state_dict()
        changed = {name for name in cut if not torch.equal(cut[name], model[name])}
        assert changed and all(name.endswith((".o.weight", ".wo.weight")) for name in changed)


def test_the_model_says_what_it_was_tuned_for(found: Specialist) -> None:
    task = found.model.task
    protocol = found.results["protocol"]
    assert (task["horizon"], task["context"]) == (protocol["horizon"], protocol["context"])
    assert (task["together"], task["frequency"]) == (False, protocol["frequency"])
    assert tsprune.load(found.directory / "model").config == found.model.config


def test_series_without_a_judged_window_are_reported(place: Path) -> None:
    result = run(place, "few", validation_windows=1, test_windows=1)
    assert [line for line in result.results["protocol"]["repairs"] if "picked evenly" in line] == [
        "validation windows: 1 of 2 series were picked evenly, one window each",
        "test windows: 1 of 2 series were picked evenly, one window each",
    ]
