"""Grids: every cell once, the same results however they are run, resumption cell by cell, and the recipes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
import tsprune
from running import SMALL, called, wide
from tsprune.bench import benching, work
from tsprune.bench.gathering import Gathered, chosen_of
from tsprune.bench.jobs import Done, Job, joined, packed, unpacked
from tsprune.bench.runners import processes
from tsprune.bench.spec import Spec, of
from tsprune.bench.store import Store
from tsprune.errors import TspruneError
from tsprune.evaluation.evaluate import measure
from tsprune.evaluation.metrics import MEASURES
from tsprune.evaluation.timeblocks import Blocks
from tsprune.preparing import prepare
from tsprune.settings import TaskSettings
from tsprune.stages import read_json

TUNED = ("full_finetuning", "random_prune_finetune", "prune_then_finetune")
EVERY = ("zero_shot", *TUNED, "specialist", "seasonal_naive", "drift")


@pytest.fixture(scope="module", autouse=True)
def plain_tables() -> Iterator[None]:
    """Tables and page have tests of their own; drawing takes most of a tiny grid's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tsprune.bench.pages.page.write_page", lambda path, *rest: path.write_text("page"))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models and two files."""
    place = tmp_path_factory.mktemp("bench")
    for name in ("chronos2", "chronos_bolt"):
        tsprune.save(tiny.tiny_model(name), place / name)
    wide(length=200).to_csv(place / "first.csv", index=False)
    wide(length=200, seed=5).to_csv(place / "second.csv", index=False)
    return place


def grid(folder: Path, **changes: Any) -> Spec:
    settings = {key: value for key, value in SMALL.items() if key != "horizon"} | {"context": 32}
    content: dict[str, Any] = {
        "models": [{"name": "two", "path": str(folder / "chronos2")}],
        "data": [{"name": "first", "file": str(folder / "first.csv")}],
        "protocol": "backtest", "protocol_settings": {"folds": 2, "validation": 20}, "horizons": [8],
        "candidates": list(TUNED), "baselines": ["seasonal_naive", "drift"], "seeds": [0, 1], "latency": False,
    }  # fmt: skip
    return of(content | settings | changes)


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def done(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Spec, Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("done") / "grid"
    spec = grid(folder)
    return spec, out, benching.bench(spec, out)


def test_one_row_for_every_cell(done: tuple[Spec, Path, dict[str, Any]]) -> None:
    _, out, summary = done
    rows = rows_of(out)
    places = [(row["model"], row["data"], row["horizon"], row["share"], row["candidate"], row["seed"]) for row in rows]
    own = [("two", "first", 8, 1.0, name, seed) for seed in (0, 1) for name in EVERY[:5]]
    rivals = [(None, "first", 8, 1.0, name, None) for name in EVERY[5:]]
    assert sorted(places, key=str) == sorted([*own, *rivals], key=str)
    for row in rows:
        assert set(row["test"]) == set(MEASURES) and all(math.isfinite(value) for value in row["test"].values())
        assert not any(key.endswith(("_ms", "seconds")) for key in row)
    pruned = [row for row in rows if row["candidate"] == "prune_then_finetune"]
    dense = [row for row in rows if row["candidate"] == "full_finetuning"]
    assert all(few["parameters"] < all_["parameters"] for few, all_ in zip(pruned, dense, strict=True))
    assert {fold["trials"] for row in rows if row["kind"] == "tuned" for fold in row["training"]} == {4}
    assert summary["missing"] == [] and summary["seeds"] == [0, 1]
    assert not (out / "work").exists()


def test_what_validation_chose_is_a_row_of_its_own(done: tuple[Spec, Path, dict[str, Any]]) -> None:
    _, out, _ = done
    for seed in (0, 1):
        rows = [row for row in rows_of(out) if row["seed"] == seed]
        (special,) = (row for row in rows if row["candidate"] == "specialist")
        others = [row for row in rows if row["candidate"] != "specialist"]
        best = min(others, key=lambda row: row["validation"]["mse"])
        assert special["chosen"] == best["candidate"] == chosen_of(others)
        assert special["test"] == best["test"]


def test_errors_are_those_of_the_protocol(done: tuple[Spec, Path, dict[str, Any]], folder: Path) -> None:
    """The row of the model as it came, measured again by hand over both folds."""
    spec, out, _ = done
    protocol = spec.protocol_of(spec.data[0], 8)
    panel = protocol.read(spec.data[0].file)
    model = tsprune.load(folder / "chronos2")
    total, count = 0.0, 0.0
    for split in protocol.splits(panel, 32):
        found = protocol.measure(model, split).rows
        total, count = total + found.squared.sum(), count + found.observed.sum()
    rows = [row for row in rows_of(out) if row["candidate"] == "zero_shot"]
    assert all(row["test"]["mse"] == pytest.approx(total / count, rel=1e-12) for row in rows)
    assert rows[0]["windows"]["test"] == 4


def test_seeds_are_compared_together(done: tuple[Spec, Path, dict[str, Any]]) -> None:
    _, out, summary = done
    (found,) = read_json(out / "comparisons.json")
    assert (found["model"], found["data"], found["horizon"], found["seeds"]) == ("two", "first", 8, [0, 1])
    ranking = {one["name"]: one["value"]["estimate"] for one in found["compared"]["ranking"]}
    rows = rows_of(out)
    measure_ = summary["measure"]
    for name in EVERY:
        values = [row["test"][measure_] for row in rows if row["candidate"] == name]
        # Over the same windows with each seed, the measure of all rows is the mean of the seeds'.
        assert ranking[name] == pytest.approx(sum(values) / len(values), rel=1e-9)
    overall = summary["overall"][measure_]["two"]["models"]
    by = {one["name"]: one["ratio"] for one in overall}
    dense = ranking["full_finetuning"]
    assert by["prune_then_finetune"] == pytest.approx(ranking["prune_then_finetune"] / dense, rel=1e-9)


def test_finished_cells_are_not_done_again(
    done: tuple[Spec, Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, out, _ = done
    before = (out / "results.jsonl").read_bytes()

    def never(*arguments: Any) -> Done:
        raise AssertionError("a finished cell was computed again")

    monkeypatch.setattr(processes, "run_job", never)
    (out / "results.jsonl").unlink()
    benching.bench(spec, out)
    assert (out / "results.jsonl").read_bytes() == before


def test_only_what_is_new_is_done(
    done: tuple[Spec, Path, dict[str, Any]], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    _, out, _ = done
    shutil.copytree(out, tmp_path / "grid")
    asked: list[tuple[str, tuple[str, ...]]] = []
    true = work.run_job

    def watched(content: Any, job: Job, place: str) -> Done:
        asked.append((job.kind, job.wanted))
        return true(content, job, place)

    monkeypatch.setattr(processes, "run_job", watched)
    more = grid(folder, candidates=[*TUNED, "head_only"], baselines=["seasonal_naive", "drift", "nlinear"], seeds=[0])
    benching.bench(more, tmp_path / "grid")
    assert sorted(asked) == [("baselines", ("nlinear",)), ("tuned", ("head_only",))]
    old = {row["candidate"]: row for row in rows_of(out) if row["seed"] == 0}
    new = {row["candidate"]: row for row in rows_of(tmp_path / "grid") if row["seed"] == 0}
    assert {name: new[name] for name in TUNED} == {name: old[name] for name in TUNED}
    # The whole model tuned by the head alone: with the cells of an earlier grid or without, it is the same.
    benching.bench(more, tmp_path / "fresh")
    assert rows_of(tmp_path / "fresh") == rows_of(tmp_path / "grid")


def test_killed_in_the_middle_of_a_job_it_goes_on(
    done: tuple[Spec, Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every training is made once: what was finished when the process died is taken as it stands."""
    from tsprune.candidates import _workshop

    spec, out, _ = done
    true, calls = _workshop.finetune_to, []

    def dying(*arguments: Any, **named: Any) -> Any:
        if len(calls) in (2, 5):
            calls.append("died")
            raise KeyboardInterrupt
        calls.append(named["label"])
        return true(*arguments, **named)

    monkeypatch.setattr(_workshop, "finetune_to", dying)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            benching.bench(spec, tmp_path / "grid")
    benching.bench(spec, tmp_path / "grid")
    trained = [label for label in calls if label != "died"]
    assert len(trained) == 3 * 2 * 2  # candidates, folds, seeds
    assert rows_of(tmp_path / "grid") == rows_of(out)
    assert (tmp_path / "grid" / "comparisons.json").read_bytes() == (out / "comparisons.json").read_bytes()


def test_two_processes_give_the_same_files(done: tuple[Spec, Path, dict[str, Any]], tmp_path: Path) -> None:
    spec, out, _ = done
    benching.bench(spec, tmp_path / "grid", workers=2)
    for name in (benching.ROWS, benching.COMPARISONS):
        assert (tmp_path / "grid" / name).read_bytes() == (out / name).read_bytes()


def test_two_workers_of_ray_give_the_same_files(
    done: tuple[Spec, Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray's workers stand back behind other programs, here the other tests.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    spec, out, _ = done
    benching.bench(spec, tmp_path / "grid", workers=2, ray="local")
    for name in (benching.ROWS, benching.COMPARISONS):
        assert (tmp_path / "grid" / name).read_bytes() == (out / name).read_bytes()


def test_job_that_fails_stops_no_other(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = work.run_job

    def failing(content: Any, job: Job, place: str) -> Done:
        if job.seed == 0 and job.kind == "tuned":
            raise ValueError("something odd")
        return true(content, job, place)

    monkeypatch.setattr(processes, "run_job", failing)
    spec = grid(folder, protocol_settings={"folds": 1}, validation_windows=4)
    with pytest.raises(TspruneError, match="1 of 3 jobs failed, the first is two, first, horizon 8, seed 0: something"):
        benching.bench(spec, tmp_path)
    (text,) = (tmp_path / "failed").glob("*.txt")
    assert "ValueError: something odd" in text.read_text()
    summary = read_json(tmp_path / "summary.json")
    assert summary["missing"] == ["two, first, horizon 8, seed 0: all 4 not done"]
    assert {row["seed"] for row in rows_of(tmp_path)} == {None, 1}
    monkeypatch.setattr(processes, "run_job", true)
    assert benching.bench(spec, tmp_path)["missing"] == []
    assert not list((tmp_path / "failed").glob("*.txt"))


def test_data_that_have_changed_are_judged_anew(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    wide(length=200).to_csv(path, index=False)
    spec = grid(folder, data=[{"name": "mine", "file": str(path)}], seeds=[0], protocol_settings={"folds": 1})
    benching.bench(spec, tmp_path / "out")
    before = rows_of(tmp_path / "out")
    wide(length=200, seed=3).to_csv(path, index=False)
    benching.bench(spec, tmp_path / "out")
    after = rows_of(tmp_path / "out")
    assert all(one["test"] != other["test"] for one, other in zip(before, after, strict=True))


def test_what_a_model_does_not_allow_is_said_and_the_rest_is_done(folder: Path, tmp_path: Path) -> None:
    spec = grid(
        folder, protocol_settings={"folds": 1}, seeds=[0], candidates=[*TUNED, "itransformer_scratch"],
        data=[{"name": "first", "file": str(folder / "first.csv")}],
    )  # fmt: skip
    summary = benching.bench(spec, tmp_path)
    (said,) = summary["missing"]
    assert "itransformer_scratch" in said and "add --together" in said
    assert {row["candidate"] for row in rows_of(tmp_path)} == set(EVERY)


def test_networks_from_scratch_belong_to_no_model_and_may_be_cut_short(folder: Path, tmp_path: Path) -> None:
    spec = grid(
        folder, protocol_settings={"folds": 1}, seeds=[0], candidates=["full_finetuning", "prune_then_finetune",
        "patchtst_scratch"], scratch={"context": 40, "steps": 3, "small": True},
        models=[{"name": name, "path": str(folder / name)} for name in ("chronos2", "chronos_bolt")],
    )  # fmt: skip
    summary = benching.bench(spec, tmp_path)
    (fresh,) = (row for row in rows_of(tmp_path) if row["kind"] == "scratch")
    assert (fresh["model"], fresh["context"], fresh["training"]["steps"]) == (None, 40, 3)
    assert "cut short to 3 steps, at ten times the published rate" in fresh["training"]["budget"]
    assert set(summary["against"]) == {"patchtst_scratch"}
    against = summary["against"]["patchtst_scratch"][summary["measure"]]
    assert set(against) == {"chronos2", "chronos_bolt", "all"}
    assert against["all"]["models"][0]["tasks"] == 2
    assert len(read_json(tmp_path / "comparisons.json")) == 2


def test_latencies_are_measured_once_and_stand_apart(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tsprune.bench import latencies

    spec = grid(folder, protocol_settings={"folds": 1}, latency=True)
    summary = benching.bench(spec, tmp_path)
    timed = [json.loads(line) for line in (tmp_path / "latency.jsonl").read_text().splitlines()]
    by = {row["candidate"]: row["latency_ms"] for row in timed}
    assert set(by) == {"zero_shot", *TUNED, "specialist"}
    assert by["zero_shot"] == by["full_finetuning"]  # the same shape
    assert summary["sizes"]["two"]["full_finetuning"]["latency"] == 1
    assert summary["sizes"]["two"]["prune_then_finetune"]["parameters"] < 1

    def never(*arguments: Any, **named: Any) -> None:
        raise AssertionError("timed again")

    monkeypatch.setattr(latencies, "latency", never)
    benching.bench(spec, tmp_path)


def test_few_shot_curves_use_the_latest_windows(folder: Path, tmp_path: Path) -> None:
    spec = grid(folder, recipe="few_shot", shares=[0.25, 1.0], seeds=[0], protocol_settings={"folds": 1},
                baselines=["nlinear"])  # fmt: skip
    benching.bench(spec, tmp_path)
    rows = [row for row in rows_of(tmp_path) if row["candidate"] in ("prune_then_finetune", "nlinear")]
    trained = {(row["candidate"], row["share"]): row["windows"]["train"] for row in rows}
    assert trained["nlinear", 0.25] == trained["prune_then_finetune", 0.25] < trained["prune_then_finetune", 1.0] / 3
    assert {row["share"] for row in rows} == {0.25, 1.0}
    errors = {(row["candidate"], row["share"]): row["test"]["mse"] for row in rows}
    assert errors["nlinear", 0.25] != errors["nlinear", 1.0]


def test_transfer_matrix_applies_plans_elsewhere(folder: Path, tmp_path: Path) -> None:
    data = [{"name": name, "file": str(folder / f"{name}.csv")} for name in ("first", "second")]
    spec = grid(folder, recipe="transfer", data=data, seeds=[0], protocol_settings={"folds": 1})
    summary = benching.bench(spec, tmp_path)
    matrix = summary["transfer"]["two"]
    assert matrix["sources"] == matrix["targets"] == ["first", "second"]
    rows = {(row["data"], row["candidate"]): row for row in rows_of(tmp_path)}
    moved = rows["second", "plan_of_first"]["test"]["mse"]
    assert matrix["over_own_plan"][0][1] == pytest.approx(moved / rows["second", "prune_then_finetune"]["test"]["mse"])
    assert matrix["over_own_plan"][0][0] == 1.0
    assert rows["second", "plan_of_first"]["parameters"] == rows["first", "prune_then_finetune"]["parameters"]
    with pytest.raises(TspruneError, match="at least two data sets"):
        benching.bench(grid(folder, recipe="transfer"), tmp_path / "one")


def test_stability_compares_draws_and_data(folder: Path, tmp_path: Path) -> None:
    data = [{"name": name, "file": str(folder / f"{name}.csv")} for name in ("first", "second")]
    spec = grid(folder, recipe="stability", data=data, protocol_settings={"folds": 1}, prune_windows=32, adapt_steps=0)
    found = benching.bench(spec, tmp_path)["stability"]
    within = [one for one in found["within"] if one["candidate"] == "fisher"]
    assert len(within) == 2 * 2 * 2  # data, seeds, kinds of unit
    assert all(-1 <= one["halves"] <= 1 for one in within)
    fisher = [one for one in found["pairs"] if one["score"] == "fisher" and one["unit"] == "ffn_channel"]
    assert sorted(one["between"] for one in fisher) == ["data", "data", "seed", "seed"]
    weights = [one for one in found["pairs"] if one["score"] == "stable_rank" and one["between"] == "data"]
    assert weights and all(one["spearman"] == pytest.approx(1) for one in weights)  # the same weights, untuned
    with pytest.raises(TspruneError, match="at least two seeds"):
        benching.bench(grid(folder, recipe="stability", seeds=[0]), tmp_path / "one")


def test_arrays_survive_packing() -> None:
    ready = prepare(
        TaskSettings(horizon=8, context=32), panel=tsprune.read(wide(length=200)), model=tiny.tiny_model("chronos2")
    )
    rows = measure(ready.model, ready.test[0], ready.split).rows
    blocks = Blocks.of(ready.test[0])
    again, same = unpacked(packed(rows, blocks))
    assert all(np.array_equal(vars(again)[name], value, equal_nan=True) for name, value in vars(rows).items())
    assert np.array_equal(same.unit, blocks.unit) and same.describe() == blocks.describe()
    twice, both = joined([packed(rows, blocks)] * 2)
    assert len(twice) == 2 * len(rows) and both.describe() == blocks.describe()
    assert twice.value("mse") == pytest.approx(rows.value("mse"), rel=1e-12)


def test_damaged_cell_is_named(done: tuple[Spec, Path, dict[str, Any]], tmp_path: Path) -> None:
    import shutil

    spec, out, _ = done
    shutil.copytree(out, tmp_path / "grid")
    path = next((tmp_path / "grid" / "cells").rglob("drift.safetensors"))
    path.write_bytes(b"nothing")
    keyed = [(Job("baselines", None, "first", 8, 1.0, None, ("seasonal_naive", "drift")), path.parent.name)]
    keyed += [(Job("tuned", "two", "first", 8, 1.0, 0, ("zero_shot", *TUNED)), _key_of_seed(spec, 0))]
    with pytest.raises(TspruneError, match="drift.safetensors.*remove the folder"):
        Gathered(spec, keyed, Store(tmp_path / "grid")).comparisons("mse")


def _key_of_seed(spec: Spec, seed: int) -> str:
    return work.key_of(spec, Job("tuned", "two", "first", 8, 1.0, seed, ("zero_shot", *TUNED)))


def test_command_says_what_is_missing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    monkeypatch.chdir(tmp_path)
    content = {"models": [str(folder / "chronos2")], "data": [{"name": "mine", "file": str(folder / "first.csv")}]}
    content |= {"protocol": "backtest", "protocol_settings": {"folds": 1}, "horizons": [8], "seeds": [0]}
    content |= {key: value for key, value in SMALL.items() if key != "horizon"} | {"context": 32, "latency": False}
    Path("g.yaml").write_text(yaml.safe_dump(content))
    code, out, err = called(["bench", "g.yaml", "--only", "tables", "--quiet"], capsys)
    assert code == 0 and "missing: chronos2, mine, horizon 8, seed 0: all 4 not done" in out and not err
    code, out, _ = called(["bench", "g.yaml", "--quiet"], capsys)
    assert code == 0 and "missing" not in out and "page: tsprune-bench/bench.html" in out
    for arguments, says in (
        ([], "no grid is given"),
        (["none.yaml"], "none.yaml: cannot be read"),
        (["g.yaml", "--jobs", "0"], "--jobs 0 must be at least 1"),
        (["g.yaml", "--only", "x"], "--only 'x' is unknown"),
    ):
        code, _, err = called(["bench", *arguments, "--quiet"], capsys)
        assert code == 2 and says in err
    content["data"] = [{"name": "mine", "file": "nowhere.csv"}]
    Path("g.yaml").write_text(yaml.safe_dump(content))
    code, _, err = called(["bench", "g.yaml", "--out", "new"], capsys)
    assert code == 2 and "nowhere.csv" in err and not Path("new/results.jsonl").exists()
