"""Ranking units, removing round by round, and choosing the round that stays."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.tiny import FAMILIES, tiny_batch, tiny_model
from tsprune import pruning
from tsprune.blocks.units import UnitGroup
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster
from tsprune.pruning import (
    Outcome,
    Round,
    choose,
    lowest,
    parameters_to_reach,
    prunable_parameters,
    prune,
    random_plan,
    validation_loss,
)
from tsprune.schedules.progressive import Progressive
from tsprune.scores import random
from tsprune.slimming import slim, slimmed_parameters

every_family = pytest.mark.parametrize("family", FAMILIES)
KINDS = ("head", "ffn_channel")


def group(name: str, units: int, parameters: int, floor: int = 0) -> UnitGroup:
    return UnitGroup(name, name.rsplit("/", 1)[1], units, parameters, 0, floor, ())


Problem = tuple[dict[str, UnitGroup], dict[str, list[int]], dict[str, Tensor], float, str]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """A few groups with costs, floors, units already gone, scores with ties and zeros, and an amount to remove."""
    groups, alive, scores = {}, {}, {}
    for number in range(draw(st.integers(1, 4))):
        units = draw(st.integers(1, 6))
        name = f"block.{number}/head"
        groups[name] = group(name, units, draw(st.integers(1, 9)), draw(st.integers(0, 2)))
        alive[name] = sorted(draw(st.sets(st.integers(0, units - 1))))
        values = st.one_of(st.sampled_from([0.0, 1.0, -1.0]), st.floats(-10, 10))
        scores[name] = torch.tensor(draw(st.lists(values, min_size=units, max_size=units)), dtype=torch.float64)
    total = prunable_parameters(groups, alive)
    amount = draw(st.floats(0, 1.2)) * total
    return groups, alive, scores, amount, draw(st.sampled_from(["magnitude", "signed"]))


def key(scores: dict[str, Tensor], groups: dict[str, UnitGroup], rank: str, name: str, unit: int) -> float:
    value = scores[name][unit].item()
    return (abs(value) if rank == "magnitude" else value) / groups[name].parameters


def brute(groups: Any, alive: Any, scores: Any, amount: float, rank: str) -> dict[str, list[int]]:
    """Take away the worst unit that may go, one after the other, looking at all of them each time."""
    stays = {name: list(units) for name, units in alive.items()}
    removed = 0
    while removed < amount:
        free = [(n, u) for n, units in stays.items() for u in units if len(units) > groups[n].floor]
        if not free:
            break
        worst = min(free, key=lambda entry: (key(scores, groups, rank, *entry), *entry))
        stays[worst[0]].remove(worst[1])
        removed += groups[worst[0]].parameters
    return stays


@settings(max_examples=300, deadline=None)
@given(problem=problems())
def test_lowest_equals_taking_the_worst_unit_again_and_again(problem: Problem) -> None:
    groups, alive, scores, amount, rank = problem
    before = copy.deepcopy(alive)
    assert lowest(scores, groups, alive, amount, rank) == brute(groups, alive, scores, amount, rank)
    assert alive == before


@settings(max_examples=300, deadline=None)
@given(problem=problems())
def test_lowest_removes_enough_but_by_no_more_than_one_unit_and_never_one_above_one_that_stays(
    problem: Problem,
) -> None:
    groups, alive, scores, amount, rank = problem
    kept = lowest(scores, groups, alive, amount, rank)
    gone = [(name, unit) for name, units in alive.items() for unit in units if unit not in kept[name]]
    stays = [(name, unit) for name, units in kept.items() for unit in units]
    free = [(name, unit) for name, unit in stays if len(kept[name]) > groups[name].floor]
    sizes = [groups[name].parameters for name, _ in gone]
    assert sum(sizes) >= amount or not free
    assert not sizes or sum(sizes) - max(sizes) < amount
    assert all(len(kept[name]) >= min(groups[name].floor, len(alive[name])) for name in kept)
    for worse in gone:
        for better in free:
            assert key(scores, groups, rank, *worse) <= key(scores, groups, rank, *better)


@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.floats(-5, 5), min_size=1, max_size=30), cost=st.integers(1, 1000), count=st.integers(0, 30))
def test_units_of_equal_cost_leave_in_the_plain_order_of_their_scores(
    values: list[float], cost: int, count: int
) -> None:
    half = len(values) // 2
    groups = {"a/head": group("a/head", half, cost), "b/head": group("b/head", len(values) - half, cost)}
    scores = {"a/head": torch.tensor(values[:half]).double(), "b/head": torch.tensor(values[half:]).double()}
    alive = {name: list(range(g.units)) for name, g in groups.items()}
    count = min(count, len(values))
    kept = lowest(scores, groups, alive, count * cost, "signed")
    left = sorted([float(scores[name][u]) for name, units in kept.items() for u in units])
    assert left == sorted(torch.tensor(values).double().tolist())[count:]


def test_signed_removes_what_lowers_the_loss_and_magnitude_what_does_nothing() -> None:
    groups = {"a/head": group("a/head", 3, 10)}
    scores = {"a/head": torch.tensor([-5.0, 0.1, 2.0])}
    assert lowest(scores, groups, {"a/head": [0, 1, 2]}, 1, "signed") == {"a/head": [1, 2]}
    assert lowest(scores, groups, {"a/head": [0, 1, 2]}, 1, "magnitude") == {"a/head": [0, 2]}


def test_a_large_unit_competes_by_score_per_parameter() -> None:
    groups = {"a/head": group("a/head", 1, 100), "b/ffn_channel": group("b/ffn_channel", 2, 1)}
    scores = {"a/head": torch.tensor([5.0]), "b/ffn_channel": torch.tensor([0.1, 0.01])}
    kept = lowest(scores, groups, {"a/head": [0], "b/ffn_channel": [0, 1]}, 2)
    assert kept == {"a/head": [], "b/ffn_channel": [0]}


def test_an_unknown_rank_and_scores_that_are_no_numbers_are_refused() -> None:
    groups, alive = {"a/head": group("a/head", 2, 1)}, {"a/head": [0, 1]}
    with pytest.raises(TspruneError, match="--rank 'abs' is unknown"):
        lowest({"a/head": torch.ones(2)}, groups, alive, 1, "abs")
    with pytest.raises(TspruneError, match="'a/head' are not all finite"):
        lowest({"a/head": torch.tensor([1.0, torch.nan])}, groups, alive, 1)


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
    largest = max(g.parameters for g in groups.values())
    everything = sum(g.parameters * g.units for g in groups.values())
    assert outcome.rounds[0].parameters == model.parameter_count()
    assert outcome.rounds[0].removed_share == 0
    assert outcome.rounds[0].validation_loss == validation_loss(model, VALIDATION)
    for before, after in zip(outcome.rounds, outcome.rounds[1:], strict=False):
        assert all(set(after.kept[name]) <= set(before.kept[name]) for name in before.kept)
        left = 1 - before.removed_share
        assert 0.3 * left - 1e-9 <= after.removed_share - before.removed_share < 0.3 * left + largest / everything
        small = slim(model, after.kept)
        assert after.parameters == small.parameter_count()
        assert after.validation_loss == pytest.approx(validation_loss(small, VALIDATION), rel=1e-5)


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
    schedule = Progressive(ratio=0.05, rounds=2, ema=0.25, patience=9)
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


@every_family
def test_whole_layers_and_what_is_inside_them_are_counted_once(family: str) -> None:
    model = tiny_model(family, seed=2)
    groups = model.unit_groups()
    schedule = Progressive(ratio=0.2, rounds=30, patience=99)
    outcome = pruned(
        model, schedule=schedule, score="random", kinds=("head", "ffn_channel", "attention", "ffn", "layer")
    )
    first, last = outcome.rounds[0], outcome.rounds[-1]
    assert last.removed_share == 1
    for before, after in zip(outcome.rounds, outcome.rounds[1:], strict=False):
        assert after.parameters <= before.parameters
        share = (first.parameters - after.parameters) / (first.parameters - last.parameters)
        # A branch whose last unit went is still listed with the parameters of its norm.
        assert after.removed_share == pytest.approx(share, abs=24 * 14 / first.parameters)
        for outer in (name for name, units in after.kept.items() if not units and groups[name].kind in pruning.WHOLE):
            inside = [
                units for name, units in after.kept.items() if groups[name].path.startswith(f"{groups[outer].path}.")
            ]
            assert not any(inside)


def test_a_whole_branch_costs_what_is_left_of_it() -> None:
    def unit(path: str, kind: str, units: int, parameters: int) -> UnitGroup:
        return UnitGroup(f"{path}/{kind}", kind, units, parameters, 0, 0, ())

    made = [unit("a", "layer", 1, 100), unit("a.b", "attention", 1, 50), unit("a.b.c", "head", 4, 10)]
    groups = {g.name: g for g in made}
    alive = {"a/layer": [0], "a.b/attention": [0], "a.b.c/head": [0, 1, 2, 3]}
    assert prunable_parameters(groups, alive) == 100
    assert prunable_parameters(groups, {**alive, "a.b.c/head": [1]}) == 70
    assert prunable_parameters(groups, {**alive, "a.b/attention": []}) == 50
    assert prunable_parameters(groups, {**alive, "a/layer": []}) == 0
    scores = {"a/layer": torch.tensor([9e9]), "a.b/attention": torch.tensor([100.0]), "a.b.c/head": torch.zeros(4)}
    scores["a.b.c/head"][2:] = 1e3
    # Two heads (20), then the attention with what is left of it (30): together 50.
    assert lowest(scores, groups, alive, 50) == {"a/layer": [0], "a.b/attention": [], "a.b.c/head": []}
    assert lowest(scores, groups, alive, 51)["a/layer"] == []


def test_pruning_without_windows_or_with_unknown_words_is_refused() -> None:
    model = tiny_model("chronos2")
    with pytest.raises(TspruneError, match="no validation window"):
        prune(model, windows, [])
    with pytest.raises(TspruneError, match="at least one batch of windows"):
        prune(model, lambda number: [], VALIDATION)
    with pytest.raises(TspruneError, match="known: fisher, random"):
        pruned(model, score="wanda")
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
    worst = min(((float(s[u]) / groups[n].parameters, n, u) for n, s in scores.items() for u in range(len(s))))
    gone = [(name, u) for name, units in everything.items() for u in units if u not in kept[name]]
    assert gone == [worst[1:]]


def test_a_goal_out_of_reach_removes_all_that_may_go() -> None:
    model = tiny_model("chronos2")
    assert not any(random_plan(model, 1).values())
    assert not any(random_plan(model, 1, kinds=("head",)).values())


def test_a_goal_that_floors_forbid_ends_at_the_floors(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("chronos2", num_layers=1)
    own = model.unit_groups()
    floored = {n: UnitGroup(n, g.kind, g.units, g.parameters, 0, 2, g.gates) for n, g in own.items()}
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
