"""Removing round by round, to a budget or as far as validation allows, and going on after a kill."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.tiny import FAMILIES, tiny_batch, tiny_model
from tsprune import pruning
from tsprune.blocks.units import UnitGroup
from tsprune.budgets import keep_budget
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster
from tsprune.pruning import (
    Outcome,
    Round,
    choose,
    parameters_to_reach,
    prune,
    random_plan,
    validation_loss,
)
from tsprune.repair import repair
from tsprune.schedules.ema_online import EmaOnline
from tsprune.schedules.progressive import Progressive
from tsprune.scores import random
from tsprune.slimming import slim, slimmed_parameters

every_family = pytest.mark.parametrize("family", FAMILIES)
KINDS = ("head", "ffn_channel")


# ---- choosing


def made(*pairs: tuple[int, float]) -> list[Round]:
    return [Round(number, {}, size, 0.0, loss) for number, (size, loss) in enumerate(pairs)]


def test_choose_takes_the_smallest_round_within_the_tolerance_of_the_best() -> None:
    rounds = made((100, 1.0), (90, 0.95), (80, 0.958), (70, 0.97), (60, 2.0))
    assert choose(rounds, 0.01).round == 2
    assert choose(rounds, 0.0).round == 1
    assert choose(rounds, 0.03).round == 3
    assert choose(rounds, 5.0).round == 4


def test_choose_keeps_the_unpruned_model_when_all_others_are_worse() -> None:
    assert choose(made((100, 1.0), (90, 1.02), (80, 1.5)), 0.01).round == 0


def test_choose_takes_the_better_of_two_of_one_size() -> None:
    assert choose(made((100, 1.0), (90, 0.99), (90, 0.985)), 0.01).round == 2


def test_choose_never_takes_a_round_whose_loss_is_no_number() -> None:
    nan, inf = float("nan"), float("inf")
    assert choose(made((100, 1.0), (90, nan), (80, inf)), 0.5).round == 0
    assert choose(made((100, nan), (90, 1.0), (80, 9.0)), 0.5).round == 1
    assert choose(made((100, nan), (90, nan)), 0.5).round == 0


@given(losses=st.lists(st.floats(-3, 3), min_size=1, max_size=10), tolerance=st.floats(0, 0.5))
def test_choose_is_always_within_the_tolerance_also_of_a_negative_loss(losses: list[float], tolerance: float) -> None:
    found = choose(made(*[(100 - n, loss) for n, loss in enumerate(losses)]), tolerance)
    best = min(losses)
    assert found.validation_loss <= best + tolerance * abs(best)
    assert all(loss > best + tolerance * abs(best) for loss in losses[found.round + 1 :])


# ---- pruning


def windows(number: int) -> list[Batch]:
    return [tiny_batch(6, seed=100 + number)]


VALIDATION = [tiny_batch(5, seed=1), tiny_batch(3, seed=2)]


def pruned(model: Forecaster, seed: int = 0, **changes: Any) -> Outcome:
    rounds = {"schedule": Progressive(ratio=0.3, rounds=4), "seed": seed, **changes}
    return prune(model, windows, VALIDATION, **rounds)


def given_losses(monkeypatch: pytest.MonkeyPatch, losses: Sequence[float]) -> None:
    """Validation says these numbers, whatever the model."""
    told: Iterator[float] = iter(losses)
    monkeypatch.setattr(pruning, "validation_loss", lambda model, batches: next(told))


@every_family
def test_rounds_are_what_the_schedule_asks_and_what_slimming_gives(family: str) -> None:
    model = tiny_model(family, seed=2)
    told: list[Round] = []
    outcome = pruned(model, report=told.append)
    assert list(outcome.rounds) == told
    groups = {name: g for name, g in model.unit_groups().items() if g.kind in KINDS}
    assert outcome.rounds[0].parameters == model.parameter_count()
    assert outcome.rounds[0].removed_share == 0
    assert outcome.rounds[0].validation_loss == validation_loss(model, VALIDATION)
    bare = slim(model, {name: [] for name in groups}).parameter_count()
    # One cross-attention keeps a head, and its norm; one unit and the norm of its branch go beyond what is asked for.
    spared = 0 if family == "chronos2" else groups["decoder.block.0.layer.1.EncDecAttention/head"].parameters + 24
    step = max(g.parameters for g in groups.values()) + 24
    for before, after in zip(outcome.rounds, outcome.rounds[1:], strict=False):
        assert all(set(after.kept[name]) <= set(before.kept[name]) for name in before.kept)
        asked = (1 - 0.7**after.round) * (model.parameter_count() - bare - spared)
        assert asked <= model.parameter_count() - after.parameters < asked + step
        small = slim(model, after.kept)
        assert after.parameters == small.parameter_count()
        assert after.validation_loss == pytest.approx(validation_loss(small, VALIDATION), rel=1e-5)
        gone = (model.parameter_count() - after.parameters) / (model.parameter_count() - bare - spared)
        assert after.removed_share == pytest.approx(gone, rel=1e-12)


@every_family
@pytest.mark.parametrize("score", ["fisher", "random"])
def test_pruning_does_not_change_the_model_and_follows_from_the_seed(family: str, score: str) -> None:
    model = tiny_model(family, seed=2).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, again, other = (pruned(model, seed, score=score) for seed in (1, 1, 2))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(g.mask is None and g.tap is None for u in model.unit_groups().values() for g in u.gates)
    assert first == again
    # Fisher draws nothing.
    assert (first == other) is (score == "fisher")


def test_scores_of_a_round_are_smoothed_with_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("chronos2", num_layers=1)
    name = "encoder.block.0.layer.2.mlp/ffn_channel"
    rounds = [torch.arange(20.0), torch.arange(20.0).flip(0) * 10]
    monkeypatch.setattr(pruning, "find", lambda package, score: Fixed([{name: s.double()} for s in rounds]))
    # Of 20 * 48 weights and a norm of 24.
    schedule = Progressive(ratio=0.045, rounds=2, ema=0.25, patience=9)
    outcome = prune(model, windows, VALIDATION, schedule=schedule, kinds=("ffn_channel",))
    assert outcome.rounds[1].kept[name] == list(range(1, 20))
    # 0.25 * 10 * (19 - u) + 0.75 * u falls in u: the last one goes, as it would not by the first scores.
    assert outcome.rounds[2].kept[name] == list(range(1, 19))


class Fixed:
    """A score that tells given numbers, round by round."""

    def __init__(self, told: list[dict[str, Tensor]]) -> None:
        self.told = iter(told)

    def scores(self, *_: Any, **__: Any) -> dict[str, Tensor]:
        return next(self.told)


def test_the_unpruned_model_is_kept_when_every_removal_hurts(monkeypatch: pytest.MonkeyPatch) -> None:
    given_losses(monkeypatch, [1.0, 1.2, 1.3, 1.4, 1.5])
    outcome = pruned(tiny_model("chronos2"))
    assert outcome.best is outcome.rounds[0]
    assert outcome.best.removed_share == 0
    assert len(outcome.rounds) == 5


@pytest.mark.parametrize(
    ("losses", "patience", "rounds"),
    [
        ([1.0, 1.2, 1.2, 1.2, 1.2], 2, 3),
        ([1.0, 1.2, 1.005, 1.2, 1.2], 2, 5),
        ([1.0, float("nan"), float("nan"), 1.0, 1.0], 2, 3),
        ([1.0, 0.9, 0.95, 0.8, 0.8], 1, 3),
        ([1.0, 0.99, 0.98, 0.97, 0.96], 1, 5),
    ],
)
def test_pruning_stops_after_so_many_rounds_in_a_row_outside_the_tolerance(
    monkeypatch: pytest.MonkeyPatch, losses: list[float], patience: int, rounds: int
) -> None:
    given_losses(monkeypatch, losses)
    schedule = Progressive(ratio=0.2, rounds=4, patience=patience)
    assert len(pruned(tiny_model("chronos2"), schedule=schedule).rounds) == rounds


def test_pruning_ends_when_nothing_is_left() -> None:
    schedule = Progressive(ratio=0.9, rounds=50, patience=50)
    outcome = pruned(tiny_model("chronos2"), schedule=schedule)
    assert outcome.rounds[-1].removed_share == 1
    assert len(outcome.rounds) < 10
    assert not any(outcome.rounds[-1].kept.values())


def test_only_the_named_kinds_lose_units() -> None:
    outcome = pruned(tiny_model("chronos2"), kinds=("head",))
    assert {name.rsplit("/", 1)[1] for name in outcome.rounds[-1].kept} == {"head"}


def test_pruning_without_windows_or_with_unknown_words_is_refused() -> None:
    model = tiny_model("chronos2")
    with pytest.raises(TspruneError, match="no validation window"):
        prune(model, windows, [])
    with pytest.raises(TspruneError, match="at least one batch of windows"):
        prune(model, lambda number: [], VALIDATION)
    with pytest.raises(TspruneError, match="known: .*fisher, .*random"):
        pruned(model, score="nonsense")
    with pytest.raises(TspruneError, match="no units of kind 'expert'"):
        pruned(model, kinds=("expert",))


def test_validation_loss_is_the_mean_over_windows_however_they_are_batched() -> None:
    model = tiny_model("chronos_bolt").train()
    whole = Batch(*(torch.cat([getattr(b, n) for b in VALIDATION]) for n in ("context", "target")))
    assert validation_loss(model, VALIDATION) == pytest.approx(validation_loss(model, [whole]), rel=1e-6)
    assert model.training


# ---- one shot


@every_family
@pytest.mark.parametrize("keep", [0.95, 0.7, 0.5])
def test_a_random_plan_reaches_its_size_and_stays_close_to_it(family: str, keep: float) -> None:
    model = tiny_model(family)
    goal = int(keep * model.parameter_count())
    plan = random_plan(model, goal, seed=3)
    slack = max(g.parameters for g in model.unit_groups().values() if g.kind in KINDS)
    # The norm of a branch goes with its last unit.
    norms = sum(24 for name, units in plan.items() if not units)
    assert goal - slack - norms <= slimmed_parameters(model, plan) <= goal
    assert plan == random_plan(model, goal, seed=3) != random_plan(model, goal, seed=4)


def test_parameters_to_reach_follows_the_scores_and_removes_nothing_where_nothing_must_go() -> None:
    model = tiny_model("chronos2")
    groups = model.unit_groups()
    scores = random.scores(model, (), seed=1)
    everything = {name: list(range(groups[name].units)) for name in scores}
    assert parameters_to_reach(model, scores, model.parameter_count()) == everything
    kept = parameters_to_reach(model, scores, model.parameter_count() - 1)
    worst = min(((float(s[u]) / int(groups[n].costs[u]), n, u) for n, s in scores.items() for u in range(len(s))))
    gone = [(name, u) for name, units in everything.items() for u in units if u not in kept[name]]
    assert gone == [worst[1:]]


def test_a_goal_out_of_reach_removes_all_that_may_go() -> None:
    model = tiny_model("chronos2")
    assert not any(random_plan(model, 1).values())
    assert not any(random_plan(model, 1, kinds=("head",)).values())


def test_a_goal_that_floors_forbid_ends_at_the_floors(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("chronos2", num_layers=1)
    own = model.unit_groups()
    floored = {n: UnitGroup(n, g.kind, g.units, 2, g.gates, g.parts) for n, g in own.items()}
    monkeypatch.setattr(model, "unit_groups", lambda: floored)
    scores = random.scores(model, (), seed=1)
    assert {len(units) for units in parameters_to_reach(model, scores, 1).values()} == {2}


def test_scores_of_another_model_are_refused() -> None:
    model = tiny_model("chronos2")
    scores = random.scores(tiny_model("chronos2", d_ff=30), (), seed=1)
    with pytest.raises(TspruneError, match="do not fit the model"):
        parameters_to_reach(model, scores, 1000)
    with pytest.raises(TspruneError, match="do not fit the model"):
        parameters_to_reach(model, {"nowhere/head": torch.ones(3)}, 1000)


# ---- budgets, growth and resuming


@pytest.mark.parametrize("regrow", [False, True])
def test_when_a_score_recovers_then_only_regrowth_brings_the_unit_back(
    monkeypatch: pytest.MonkeyPatch, regrow: bool
) -> None:
    model = tiny_model("chronos2", num_layers=1)
    name = "encoder.block.0.layer.2.mlp/ffn_channel"
    low, recovered = torch.arange(1.0, 21.0).double(), torch.arange(1.0, 21.0).double()
    recovered[:2] = torch.tensor([99.0, 0.5])
    monkeypatch.setattr(pruning, "find", lambda *_: Fixed([{name: low}, {name: recovered}]))
    schedule = Progressive(ema=1.0, rounds=2, patience=9)
    budget = keep_budget(model, 1 - 4 * 2 * 24 / model.parameter_count())
    outcome = prune(model, windows, VALIDATION, schedule=schedule, kinds=("ffn_channel",), budget=budget, regrow=regrow)
    assert outcome.rounds[1].kept[name] == list(range(3, 20))
    # Four have to go: units 0 to 3, unless unit 0 is back, and then unit 4 goes instead.
    assert outcome.rounds[2].kept[name] == ([0, *range(5, 20)] if regrow else list(range(4, 20)))


def test_when_units_grow_back_then_repairs_start_from_the_uncut_model() -> None:
    model = tiny_model("chronos2", seed=2)
    outcome = pruned(model, refit=True, regrow=True, tolerance=10.0)
    expected = slim(repair(model, outcome.best.kept, windows(outcome.best.round)), outcome.best.kept)
    found = slim(outcome.model, outcome.best.kept)
    assert outcome.best.round == 4
    for name, value in found.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name])


class Killed(Exception):
    """The power is cut."""


SETTINGS: dict[str, dict[str, Any]] = {
    "repaired": {"refit": True},
    "regrowth": {"refit": True, "regrow": True},
    "online": {"schedule": EmaOnline(ratio=0.4, rounds=3, steps=2), "score": "random", "tolerance": 9.0},
    "budget": {"keep": 0.7, "refit": True},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_when_killed_after_any_round_then_it_goes_on_to_the_same_bits(name: str, tmp_path: Path) -> None:
    model, changes = tiny_model("chronos_bolt", num_layers=1), dict(SETTINGS[name])
    if keep := changes.pop("keep", None):
        changes["budget"] = keep_budget(model, keep)

    def run(directory: Path | None, last: int) -> Outcome:
        def report(done: Round) -> None:
            if done.round == last:
                raise Killed

        return pruned(model, directory=directory, report=report, **changes)

    whole = run(None, -1)
    for last in range(len(whole.rounds) - 1):
        with pytest.raises(Killed):
            run(tmp_path / "work", last)
    scored: list[int] = []
    changes["report"] = None
    again = prune(
        model,
        lambda number: scored.append(number) or windows(number),
        VALIDATION,
        **{"schedule": Progressive(ratio=0.3, rounds=4), "directory": tmp_path / "work", **changes},
    )
    assert again.rounds == whole.rounds
    assert again.best == whole.best
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key])
    # All but the last round were there already; the first window set is drawn to know the data again.
    steps = changes["schedule"].steps if "schedule" in changes else 1
    assert len(scored) <= 1 + 2 * steps


def test_when_settings_data_or_weights_differ_then_a_stored_state_is_not_continued(tmp_path: Path) -> None:
    model = tiny_model("chronos2", num_layers=1)
    pruned(model, directory=tmp_path / "first")
    for number, changes in enumerate(({"seed": 1}, {"tolerance": 0.5}, {"score": "random"}, {"kinds": ("head",)}, {})):
        place = tmp_path / str(number)
        shutil.copytree(tmp_path / "first", place)
        other = tiny_model("chronos2", seed=0 if changes else 7, num_layers=1)
        assert pruned(other, directory=place, **changes) == pruned(other, **changes)
    shutil.copytree(tmp_path / "first", tmp_path / "data")
    fewer = VALIDATION[:1]
    found = prune(model, windows, fewer, schedule=Progressive(ratio=0.3, rounds=4), directory=tmp_path / "data")
    assert found.rounds[0].validation_loss == validation_loss(model, fewer)


def test_when_the_stored_state_is_damaged_then_it_is_made_anew(tmp_path: Path) -> None:
    model = tiny_model("chronos2", num_layers=1)
    whole = pruned(model, directory=tmp_path)
    for text in ("{", "{}", "[]"):
        (tmp_path / "state.json").write_text(text)
        assert pruned(model, directory=tmp_path) == whole
    for file in tmp_path.glob("*.safetensors"):
        file.write_bytes(b"")
    assert pruned(model, directory=tmp_path) == whole
