"""Rewinding, tuning modes and distillation through the whole way, and the command line of fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tsprune
from running import FAST, SMALL, called, fill, no_figures, without_timings
from tsprune.budget import _seconds_per_step
from tsprune.candidates import _workshop
from tsprune.errors import TspruneError
from tsprune.finetuning import finetune
from tsprune.plan import Plan
from tsprune.preparing import Prepared, prepare
from tsprune.repair import repair
from tsprune.settings import FinetuneSettings, TaskSettings
from tsprune.slimming import slim
from tsprune.specializing import Specialist
from tsprune.stages import read_json
from tsprune.stagework import write_slim

REWOUND: dict[str, Any] = SMALL | {
    "rewind": True,
    "tuning": "head",
    "distill": 0.3,
    "dropout": 0.2,
    "learning_rates": (1e-2,),
    "adapt_rate": 3e-3,
    "repair": False,
}


def run(place: Path, out: str, **changes: Any) -> Specialist:
    with no_figures():
        return tsprune.specialize(str(place / "chronos2"), place / "wide.csv", out=place / out, **(REWOUND | changes))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("rewind"))


@pytest.fixture(scope="module")
def found(home: Path) -> Specialist:
    return run(home, "whole")


def stage(found: Specialist, name: str) -> Path:
    (folder,) = found.directory.glob(f"stages/{name}-????????????")
    return folder


def tensors(model: Any) -> dict[str, torch.Tensor]:
    return dict(model.state_dict())


def assert_equal(one: Any, other: Any) -> None:
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []


def test_when_rewound_then_the_slim_weights_are_those_before_the_tuning_cut_by_the_plan(found: Specialist) -> None:
    plan = Plan.read(stage(found, "rewind") / "plan.json")
    before = tsprune.load(stage(found, "adapt") / "model")
    slim_model = tsprune.load(stage(found, "rewind") / "model")
    assert plan.kept == Plan.read(stage(found, "prune") / "plan.json").kept
    assert slim_model.parameter_count() < before.parameter_count()
    assert_equal(slim_model, slim(before, plan.kept))


def test_when_rewound_with_repair_then_the_weights_before_the_tuning_are_the_ones_repaired(home: Path) -> None:
    found = run(home, "repaired", repair=True)
    plan = Plan.read(stage(found, "rewind") / "plan.json")
    before = tsprune.load(stage(found, "adapt") / "model")
    ready = _ready(home)
    expected = slim(repair(before, plan.kept, ready.macro_batch(0, SMALL["prune_windows"])), plan.kept)
    assert_equal(tsprune.load(stage(found, "rewind") / "model"), expected)


def test_when_rewinding_then_scores_come_from_the_fully_tuned_model_and_every_tuned_candidate_follows_one_teacher(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[Any] = []
    teachers: list[Any] = []
    pruning, tuning = _workshop.prune_by_rounds, _workshop.finetune_to

    def watch_pruning(ready: Any, settings: Any, base: Any, *more: Any) -> Any:
        scored.append(base)
        return pruning(ready, settings, base, *more)

    def watch_tuning(*given: Any, **more: Any) -> Any:
        teachers.append(more["teacher"])
        return tuning(*given, **more)

    monkeypatch.setattr(_workshop, "prune_by_rounds", watch_pruning)
    monkeypatch.setattr(_workshop, "finetune_to", watch_tuning)
    found = run(home, "watched")
    assert_equal(scored[0], tsprune.load(stage(found, "full-finetuning") / "model"))
    dense = tsprune.load(stage(found, "adapt") / "model")
    assert any(not torch.equal(value, tensors(dense)[name]) for name, value in tensors(scored[0]).items())
    assert len(teachers) == 3
    for teacher in teachers:
        assert_equal(teacher, dense)


def test_when_rewound_then_the_plan_says_so_and_the_pruned_model_is_tuned_as_long_as_the_dense_one(
    found: Specialist,
) -> None:
    schedule = read_json(found.directory / "plan.json")["schedule"]
    assert "scored after a full fine-tuning, rewound to the weights before it" in schedule
    steps = {name: sum(trial["steps"] for trial in trials) for name, trials in found.results["search"].items()}
    assert len(steps) == 3
    assert max(steps.values()) <= SMALL["steps"]
    assert "rewind" in found.results["timings"]


def test_when_a_run_is_tuned_in_a_mode_then_the_results_say_how(found: Specialist) -> None:
    told = found.results["tuning"]
    assert (told["tuning"], told["distill"], told["dropout_rates"]) == ("head", 0.3, [0.2])
    assert told["learning_rates"] == [1e-2]
    start = tensors(tsprune.load(stage(found, "adapt") / "model"))
    for name, value in tensors(tsprune.load(stage(found, "full-finetuning") / "model")).items():
        if not name.startswith("output_patch_embedding."):
            assert torch.equal(value, start[name])


HEAVY = [pytest.param(at, marks=pytest.mark.heavy) for at in ("full", "prune", "tuned")]


@pytest.mark.parametrize("at", ["rewind", *HEAVY])
def test_when_a_rewinding_run_is_killed_then_it_ends_as_if_never_killed(
    at: str, home: Path, found: Specialist, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    count = {"finetune_to": 0}
    names = {"full": "finetune_to", "prune": "prune_by_rounds", "rewind": "one_shot", "tuned": "finetune_to"}
    real: Callable[..., Any] = getattr(_workshop, names[at])

    def dying(*given: Any, **more: Any) -> Any:
        done = real(*given, **more)
        count["finetune_to"] += 1
        if count["finetune_to"] == (3 if at == "tuned" else 1):
            raise Killed
        return done

    with monkeypatch.context() as patch:
        patch.setattr(_workshop, names[at], dying)
        with pytest.raises(Killed):
            run(home, f"killed-{at}")
    again = run(home, f"killed-{at}")
    assert without_timings(again.results) == without_timings(found.results)
    assert_equal(again.model, found.model)
    assert (again.directory / "plan.json").read_bytes() == (found.directory / "plan.json").read_bytes()


@pytest.mark.parametrize("command", ["prune", "score"])
def test_when_a_command_cannot_rewind_then_it_says_who_can(
    command: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = called([command, "--data", "wide.csv", "--model", "chronos2", "--rewind"], capsys)
    assert code == 2
    assert "--rewind" in err
    assert "tsprune specialize" in err


# ---- the command for fine-tuning alone


def _ready(home: Path) -> Prepared:
    names = {name: SMALL[name] for name in ("horizon", "validation_windows")}
    return prepare(TaskSettings(data=str(home / "wide.csv"), model=str(home / "chronos2"), **names))


TUNE = ["finetune", "--quiet", "--data", "wide.csv", "--model", "chronos2", "--horizon", "8", "--steps", "4"]
TUNE += ["--search-steps", "0", "--batch", "8", "--validation-windows", "16", "--learning-rates", "1e-2"]


@pytest.mark.parametrize("tuning", ["full", "head", "lora"])
def test_when_a_mode_is_named_then_the_command_tunes_in_it(
    tuning: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if tuning == "lora":
        pytest.importorskip("peft", reason="the extra lora is not installed")
    code, out, err = called([*TUNE, "--tuning", tuning, "--dropout", "0.1"], capsys)
    assert (code, err) == (0, "")
    assert "validation loss" in out
    ready = _ready(place)
    settings = FinetuneSettings(
        tuning=tuning,  # type: ignore[arg-type]
        steps=4,
        search_steps=0,
        batch=8,
        learning_rates=(1e-2,),
        dropout=0.1,
    )
    expected = finetune(ready.model, ready.train, ready.steering, settings)
    assert_equal(tsprune.load(place / "tuned" / "model"), expected.model)


def test_when_the_command_distills_then_a_slim_model_needs_a_teacher(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tsprune.load("chronos2")
    name = next(name for name, group in model.unit_groups().items() if group.kind == "ffn_channel")
    small = slim(model, {name: [0, 1]})
    base = _ready(place)
    write_slim(base, base.model, {name: [0, 1]}, place / "small", score="random", schedule="one shot")
    arguments = [*TUNE, "--distill", "0.5", "--model", "small/model"]
    code, _, err = called(arguments, capsys)
    assert code == 2
    assert "--teacher" in err
    code, _, err = called([*arguments, "--teacher", "chronos2"], capsys)
    assert (code, err) == (0, "")
    assert tsprune.load("tuned/model").parameter_count() == small.parameter_count()
    code, _, err = called([*TUNE, "--teacher", "chronos2"], capsys)
    assert code == 2
    assert "--teacher chronos2 has no effect without --distill" in err


def test_when_a_setting_is_wrong_then_nothing_is_written(place: Path) -> None:
    with pytest.raises(TspruneError, match="--tuning"):
        run(place, "never", tuning="heads")
    assert not (place / "never").exists()


@pytest.mark.parametrize("tuning", ["full", "head"])
def test_when_a_budget_is_given_then_a_step_of_the_mode_is_what_is_timed(tuning: str, place: Path) -> None:
    settings = FinetuneSettings(tuning=tuning, batch=4, distill=0.2)  # type: ignore[arg-type]
    assert 0 < _seconds_per_step(_ready(place), settings) < 60


@pytest.mark.heavy
def test_when_minutes_are_given_with_a_mode_then_the_run_goes_through(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with no_figures():
        code, _, err = called(
            ["specialize", "--quiet", "--data", "wide.csv", "--model", "chronos2", *FAST]
            + ["--tuning", "head", "--search-steps", "0", "--minutes", "0.001", "--out", "timed"],
            capsys,
        )
    assert (code, err) == (0, "")
    assert read_json(place / "timed" / "results.json")["tuning"]["tuning"] == "head"
