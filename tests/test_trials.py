"""Fine-tuning with --trials: equal budgets in every mode, resumable at any moment, told in results and report."""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import report_fixture
import tsprune
from running import SMALL, called, fill, no_figures, wide
from tests.sines import VALIDATION, Counted, Killed, Sines, dying, same, weights
from tests.tiny import tiny_model
from tsprune.budget import fit_minutes
from tsprune.dropouts import dropout_rates
from tsprune.finetuning import Tuned, finetune
from tsprune.models._forecaster import Forecaster
from tsprune.preparing import prepare
from tsprune.progress import Progress
from tsprune.pruning import validation_loss
from tsprune.report.html import render
from tsprune.searching import Choice
from tsprune.settings import RATES, FinetuneSettings, PruneSettings, TaskSettings
from tsprune.specializing import Specialist
from tsprune.stages import Run, read_json
from tsprune.tpesearch import TpeSearch
from tsprune.training_state import read_tensors

MODES = ("full", "head", "lora")
SETTINGS = FinetuneSettings(trials=4, steps=4, search_steps=3, batch=6, evaluations=2, patience=9)


def tune(model: Forecaster, settings: FinetuneSettings = SETTINGS, train: Any = None, **more: Any) -> Tuned:
    return finetune(model, train or Sines(), VALIDATION, settings, **more)


def dropping() -> Forecaster:
    return tiny_model("chronos2", seed=1, dropout_rate=0.1)


@functools.cache
def whole(mode: str) -> tuple[Tuned, list[tuple[str, int]]]:
    """An uninterrupted tuning, and where it reported."""
    heard: list[tuple[str, int]] = []
    settings = replace(SETTINGS, tuning=mode)  # type: ignore[arg-type]
    tuned = tune(dropping(), settings, seed=1, report=lambda label, step, *_: heard.append((label, step)))
    return tuned, heard


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gets_as_many_trials_and_steps(mode: str) -> None:
    tuned, heard = whole(mode)
    *trials, full = tuned.trials
    assert len(trials) == 4
    assert [trial.learning_rate for trial in trials[:3]] == list(RATES[mode])
    assert all(trial.steps == (2 if trial.pruned else 3) for trial in trials[3:])
    assert [trial.steps for trial in trials[:3]] == [3, 3, 3] and full.steps == 4
    assert all(set(trial.searched) == {"weight_decay", "dropout"} for trial in tuned.trials)
    # As long as nothing is pruned, each of the steps of a trial is one that the pruner sees.
    assert [step for label, step in heard if label.startswith("search 1 ")] == [1, 2, 3]


@pytest.mark.parametrize("mode", MODES)
def test_the_full_run_goes_on_what_was_best_and_the_best_validated_weights_win(mode: str) -> None:
    tuned, _ = whole(mode)
    *trials, full = tuned.trials
    best = min(trials, key=lambda trial: (trial.validation_loss, trial.learning_rate))
    assert (full.learning_rate, full.searched, full.pruned) == (best.learning_rate, best.searched, False)
    assert tuned.best.validation_loss == min(trial.validation_loss for trial in tuned.trials)
    assert tuned.best.validation_loss == validation_loss(tuned.model, VALIDATION)
    assert dropout_rates(tuned.model) == dropout_rates(dropping())


def test_what_is_searched_is_what_is_trained_with() -> None:
    """A trial is the run that one gets by asking for its values."""
    tuned, _ = whole("full")
    trial = tuned.trials[3]
    assert not trial.pruned and trial.best_step
    rate, decay, dropout = trial.learning_rate, trial.searched["weight_decay"], trial.searched["dropout"]
    asked = FinetuneSettings(steps=3, search_steps=0, learning_rates=(rate,), batch=6, evaluations=3, patience=9)
    assert decay is not None
    alone = tune(dropping(), replace(asked, weight_decay=decay, dropout=dropout), seed=1)
    assert alone.best.validation_loss == trial.validation_loss
    other = tune(dropping(), replace(asked, weight_decay=decay, dropout=0.5), seed=1)
    assert other.best.validation_loss != trial.validation_loss


def test_among_the_trials_are_those_of_the_usual_rates() -> None:
    """So that validation has all to choose from that it has without optuna."""
    usual = tune(dropping(), replace(SETTINGS, trials=0), seed=1).trials[:-1]
    found = whole("full")[0].trials
    assert [trial.learning_rate for trial in usual] == [trial.learning_rate for trial in found[:3]]
    assert all(ours.validation_loss <= own.validation_loss for own, ours in zip(usual, found, strict=False))


def test_without_trials_checkpoints_hold_what_they_held(tmp_path: Path) -> None:
    tuned = tune(dropping(), replace(SETTINGS, trials=0), directory=tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {f"search-{rate:g}.safetensors" for rate in RATES["full"]} < names and len(names) == 4
    facts = json.loads(read_tensors(tmp_path / "search-0.0001.safetensors")[1]["facts"])
    assert set(facts) == {"step", "best", "best_step", "late", "done", "settings"}
    assert "trials" not in facts["settings"]
    assert set(tuned.best.facts()) == {"learning_rate", "best_step", "validation_loss", "steps"}


# ---- pruning


def diverging(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Whatever the sampler draws for a trial of this number, it is trained at a rate of 50."""
    asked: list[Choice] = []
    ask = TpeSearch.ask

    def planted(search: TpeSearch) -> Choice:
        asked.append(ask(search))
        return replace(asked[-1], learning_rate=50.0) if len(asked) == number else asked[-1]

    monkeypatch.setattr(TpeSearch, "ask", planted)


def test_a_planted_diverging_trial_is_ended_half_way_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    diverging(monkeypatch, 4)
    tuned = tune(dropping(), replace(SETTINGS, search_steps=8), seed=1)
    assert len(tuned.trials) == 5
    spoilt = tuned.trials[3]
    assert (spoilt.learning_rate, spoilt.pruned, spoilt.steps, spoilt.best_step) == (50.0, True, 4, 0)
    assert spoilt.facts()["pruned"] is True
    assert tuned.trials[4].learning_rate != 50.0


def test_a_pruned_trial_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diverging(monkeypatch, 4)
    with pytest.raises(Killed):
        tune(dropping(), seed=1, directory=tmp_path, report=dying(12))
    monkeypatch.undo()
    diverging(monkeypatch, 4)
    rest: list[str] = []
    tuned = tune(dropping(), seed=1, directory=tmp_path, report=lambda label, *_: rest.append(label))
    assert tuned.trials[3].pruned and not any(label.endswith(" 50") for label in rest)


# ---- kills


@pytest.mark.parametrize(("mode", "every"), [("full", 2), ("head", 5), ("lora", 5)])
def test_killed_at_any_validation_it_continues_to_the_same_trials_and_weights(
    mode: str, every: int, tmp_path: Path
) -> None:
    expected, heard = whole(mode)
    settings = replace(SETTINGS, tuning=mode)  # type: ignore[arg-type]
    for at in range(1, len(heard) + 1, every):
        directory = tmp_path / str(at)
        with pytest.raises(Killed):
            tune(dropping(), settings, seed=1, directory=directory, report=dying(at))
        rest: list[tuple[str, int]] = []
        tuned = tune(
            dropping(),
            settings,
            seed=1,
            directory=directory,
            report=lambda label, step, *_, told=rest: told.append((label, step)),  # type: ignore[misc]
        )
        assert same(weights(tuned.model), weights(expected.model))
        assert tuned.trials == expected.trials
        # It went on where it stood: nothing that was reported before is done again.
        assert rest == heard[at:]


@pytest.mark.parametrize("at", [3, 14, 22])
def test_killed_between_validations_it_continues_to_the_same(at: int, tmp_path: Path) -> None:
    settings = replace(SETTINGS, search_steps=8)
    expected = tune(dropping(), settings, seed=1)
    with pytest.raises(Killed):
        tune(dropping(), settings, Counted(at), seed=1, directory=tmp_path)
    tuned = tune(dropping(), settings, seed=1, directory=tmp_path)
    assert same(weights(tuned.model), weights(expected.model))
    assert tuned.trials == expected.trials


def test_killed_after_every_single_validation_it_ends_the_same(tmp_path: Path) -> None:
    expected, heard = whole("full")
    for _ in heard:
        with pytest.raises(Killed):
            tune(dropping(), seed=1, directory=tmp_path, report=dying(1))
    tuned = tune(dropping(), seed=1, directory=tmp_path)
    assert tuned.trials == expected.trials
    assert len(list(tmp_path.iterdir())) == 5


def test_seeds_draw_other_trials_and_another_number_is_another_search(tmp_path: Path) -> None:
    expected = whole("full")[0]
    other = tune(dropping(), seed=2, directory=tmp_path)
    assert other.trials[3].learning_rate != expected.trials[3].learning_rate
    assert tune(dropping(), seed=1, directory=tmp_path).trials == expected.trials
    fewer = replace(SETTINGS, trials=2)
    assert tune(dropping(), fewer, seed=1, directory=tmp_path).trials == tune(dropping(), fewer, seed=1).trials


def test_a_model_without_a_finite_loss_comes_back_as_it_was() -> None:
    model = dropping()
    model.get_parameter("shared.weight").data[1, 0] = math.nan
    tuned = tune(model)
    assert tuned.best.best_step == 0 and math.isnan(tuned.best.validation_loss)
    assert len(tuned.trials) == 5 and tuned.trials[-1].learning_rate == min(t.learning_rate for t in tuned.trials)


# ---- the whole way


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Specialist:
    chosen = ("full_finetuning", "head_only", "lora", "prune_then_finetune")
    small = SMALL | {"trials": 4, "search_steps": 4, "candidates": chosen}
    with no_figures():
        return tsprune.specialize(
            dropping(), tsprune.read(wide()), out=tmp_path_factory.mktemp("trials") / "out", **small
        )


def test_every_candidate_gets_as_many_trials_and_steps(found: Specialist) -> None:
    search, trained = found.results["search"], found.results["trained"]
    assert len(search) == 4 and {len(trials) for trials in search.values()} == {5}
    for trials in search.values():
        assert all(trial["steps"] == 4 or trial["pruned"] for trial in trials)
        assert {"weight_decay", "dropout", "pruned"} < set(trials[0])
    assert {one["budget"] for one in trained.values()} == {
        "4 trials by optuna of at most 4 steps each, then 4 steps of 8 windows at most"
    }
    assert trained["full_finetuning"]["search"]["learning_rate"] == [1e-5, 1e-2]
    assert trained["lora"]["search"]["learning_rate"] == [1e-4, 1e-1]
    told = found.results["tuning"]
    assert told["trials"] == 4 and told["search"] == trained["full_finetuning"]["search"]
    assert told["search"]["sampler"].startswith("TPE of optuna ") and told["search"]["dropout"] == [None, 0.0, 0.2]
    assert told["learning_rates"] == list(RATES["full"])


def test_the_report_says_what_was_tried() -> None:
    results = report_fixture.results()
    plain = render(results, None, [], None)
    assert "weight decay" not in plain and "optuna" not in plain
    first, second, third = results["search"]["full_finetuning"]
    first |= {"weight_decay": 0.01, "dropout": None, "pruned": False}
    second |= {"weight_decay": 0.1, "dropout": 0.2, "pruned": False}
    third |= {"weight_decay": 0.0, "dropout": 0.0, "pruned": True, "steps": 20}
    text = render(results, None, [], None)
    assert "What optuna tried" in text and text.count('<th scope="col">weight decay</th>') == 1
    rows = re.findall(r'<tr[^>]*><th scope="row">(?:1|5|2)\.0e-0[45].*?</tr>', text)[:3]
    cells = [re.findall(r"<td>(.*?)</td>", row)[:3] for row in rows]
    assert cells == [["0.01", "own", "200"], ["0.1", "0.2", "200"], ["0", "0", "20 (stopped)"]]


def test_a_time_budget_counts_the_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsprune.budget._seconds_per_step", lambda ready, tuning: 0.01)
    task = TaskSettings(horizon=8, validation_windows=16)
    ready, quiet = prepare(task, panel=tsprune.read(wide()), model=dropping()), Progress(quiet=True)

    def fitted(**changes: Any) -> FinetuneSettings:
        return fit_minutes(1, ready, PruneSettings(), FinetuneSettings(**changes), Run(tmp_path), quiet)

    usual, same_number, more = fitted(), fitted(trials=3), fitted(trials=15)
    assert (same_number.steps, same_number.search_steps) == (usual.steps, usual.search_steps)
    # A trial takes a fifth of the steps of a full run: 3 + 5 parts against 15 + 5.
    assert more.steps == pytest.approx(usual.steps * 8 / 20, abs=1) and more.search_steps == round(more.steps / 5)
    assert more.trials == 15


def test_the_command_line_tunes_and_refuses_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    task = ["finetune", "--data", "wide.csv", "--model", "chronos2", "--horizon", "8", "--validation-windows", "16"]
    task += ["--steps", "4", "--search-steps", "2", "--batch", "8"]
    code, out, err = called([*task, "--trials", "4", "--quiet"], capsys)
    assert (code, err) == (0, "")
    assert re.search(r"\(learning rate \S+, weight decay \S+, dropout (the model's own|\S+), step \d\)", out)
    trials = read_json(Path("tuned/trials.json"))
    assert len(trials) == 5 and set(trials[0]) >= {"learning_rate", "weight_decay", "dropout", "pruned"}
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "optuna" else there(name))
    code, out, err = called([*task, "--trials", "4", "--out", "other"], capsys)
    assert (code, out) == (2, "") and "pip install 'tsprune[tune]'" in err and err.count("\n") == 1
    assert not Path("other").exists()
