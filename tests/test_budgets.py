"""Budgets: operations against those counted, predicted latency against its table, and the command line's flags."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import tsprune
from tests.running import called
from tests.tiny import tiny_model
from tests.tiny_experts import tiny_experts
from tsprune.budgets import Budget, Flops, PredictedLatency, Sizes, keep_budget, speed_budget
from tsprune.errors import TspruneError
from tsprune.evaluation.cost import flops
from tsprune.evaluation.costtable import CostTable, measure_table
from tsprune.models._forecaster import Forecaster
from tsprune.slimming import meta_twin, slim
from tsprune.stages import read_json

CONTEXT = 44
MODELS = ("chronos2", "chronos_bolt", "experts")
# A failing case is small as it is, and every try takes a forecast.
WITHOUT_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)
INNER = ("head", "kv_group", "qk_pair", "value_dim", "ffn_channel")


@cache
def model_of(name: str) -> Forecaster:
    return tiny_experts() if name == "experts" else tiny_model(name, num_layers=1)


@cache
def flops_of(name: str, horizon: int) -> Flops:
    return Flops(model_of(name), CONTEXT, horizon)


# ---- operations


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=6, deadline=None, phases=WITHOUT_SHRINKING)
@given(data=st.data())
def test_when_a_model_is_cut_then_its_operations_are_those_counted_in_a_forecast(
    name: str, data: st.DataObject
) -> None:
    model = model_of(name)
    # Two passes and a roll-out with every path, where the family rolls out.
    horizon = 16 if name == "experts" else data.draw(st.sampled_from([5, 16, 20]))
    kept = {}
    for group, units in model.unit_groups().items():
        # Experts of several sizes see tokens in other shares than on average, so their channels stay equal.
        if units.kind in INNER and ".experts." not in group and data.draw(st.booleans()):
            kept[group] = sorted(data.draw(st.sets(st.integers(0, units.units - 1))))
        if units.kind == "expert" and data.draw(st.booleans()):
            kept[group] = [0, 2, 3]
    counted = flops(slim(model, kept), CONTEXT, horizon)
    measure = flops_of(name, horizon)
    assert measure(slim(meta_twin(model), kept)) == pytest.approx(counted, rel=1e-12)
    assert measure(model) == flops(model, CONTEXT, horizon)


def test_when_a_share_is_to_stay_then_the_goal_is_that_share_of_what_is_measured() -> None:
    model = model_of("chronos2")
    assert keep_budget(model, 0.6).goal == int(0.6 * model.parameter_count())
    measure = flops_of("chronos2", 16)
    assert keep_budget(model, 0.5, measure, "flops").goal == int(0.5 * flops(model, CONTEXT, 16))
    assert keep_budget(model, 0.5, measure, "flops").words == "--keep 0.5 of flops"


@pytest.mark.parametrize("keep", [0.0, 1.0, -1.0, float("nan")])
def test_when_the_share_is_impossible_then_it_is_refused(keep: float) -> None:
    with pytest.raises(TspruneError, match="--keep .* must lie between 0 and 1"):
        keep_budget(model_of("chronos2"), keep)


def test_when_the_same_cut_is_asked_for_again_then_it_is_measured_once() -> None:
    asked: list[int] = []
    sizes = Sizes.of(model_of("chronos2"), lambda model: float(len(asked)) or asked.append(1) or 0.0)
    group = "encoder.block.0.layer.2.mlp/ffn_channel"
    assert sizes({group: [1]}) == sizes({group: [1]}) == 0.0
    assert sizes({group: [2]}) == 1.0


# ---- latency


def by_hand(model: Forecaster) -> tuple[CostTable, Flops]:
    """Every branch takes 2 ms when small, 4 ms at half its operations and 10 ms whole; 5 ms are outside."""
    counter = Flops(model, CONTEXT, 16)
    found = measure_table(model, counter.of_modules, CONTEXT, 16, repeats=1)
    times = {call: [[0.0, 0.5, 1.0], [2.0, 4.0, 10.0]] for call in found.times}
    calls = sum(len(own) for own in found.calls.values())
    return CostTable(5.0 + 10.0 * calls, 5.0, found.operations, found.calls, times), counter


def test_when_branches_shrink_or_go_then_the_prediction_follows_the_table() -> None:
    model = model_of("chronos2")
    table, counter = by_hand(model)
    latency = PredictedLatency(table, counter)
    assert latency(model) == pytest.approx(table.dense_ms) == 35.0
    ffn = "encoder.block.0.layer.2.mlp/ffn_channel"
    for channels, ms in ((20, 10.0), (15, 7.0), (10, 4.0), (5, 3.0)):
        assert latency(slim(meta_twin(model), {ffn: list(range(channels))})) == pytest.approx(25.0 + ms)
    # Without a channel the branch is gone, and its norm and addition with it.
    assert latency(slim(meta_twin(model), {ffn: []})) == pytest.approx(25.0)
    assert latency(slim(meta_twin(model), {"encoder.block.0/layer": []})) == pytest.approx(5.0)
    assert CostTable.from_json(json.loads(json.dumps(table.to_json()))) == table
    assert speed_budget(2.0, latency).goal == pytest.approx(17.5)
    with pytest.raises(TspruneError, match="--speedup 1.0 must be above 1"):
        speed_budget(1.0, latency)


@pytest.mark.parametrize("name", MODELS)
def test_when_a_table_is_measured_then_the_uncut_model_is_predicted_as_measured_and_less_never_takes_longer(
    name: str,
) -> None:
    model, counter = model_of(name), flops_of(name, 16)
    before = torch.get_num_threads()
    table = measure_table(model, counter.of_modules, CONTEXT, 16, repeats=3)
    latency = PredictedLatency(table, counter)
    assert torch.get_num_threads() == before
    assert latency(model) == pytest.approx(table.dense_ms, rel=1e-9)
    assert table.rest_ms >= 0
    for shares, times in table.times.values():
        assert shares == sorted(shares) and shares[0] < 0.5 and shares[-1] == pytest.approx(1.0)
        assert times == sorted(times) and times[0] > 0
    groups = {n: g for n, g in model.unit_groups().items() if g.kind in ("head", "ffn_channel")}
    left = [
        latency(slim(meta_twin(model), {n: list(range(round(share * g.units))) for n, g in groups.items()}))
        for share in (1.0, 0.7, 0.4, 0.0)
    ]
    assert left == sorted(left, reverse=True) and left[-1] < left[0]


def test_when_branches_timed_alone_take_longer_than_the_forecast_then_they_share_it() -> None:
    model, ticks = model_of("chronos2"), iter(range(10**9))
    # Every reading of this clock is 1 ms later than the one before: a branch seems to take as long as a forecast.
    table = measure_table(
        model, flops_of("chronos2", 16).of_modules, CONTEXT, 16, repeats=3, clock=lambda: next(ticks) * 1_000_000
    )
    assert (table.dense_ms, table.rest_ms) == (1.0, 0.0)
    assert PredictedLatency(table, flops_of("chronos2", 16))(model) == pytest.approx(1.0)
    with pytest.raises(TspruneError, match="repeats is 0"):
        measure_table(model, flops_of("chronos2", 16).of_modules, CONTEXT, 16, repeats=0)


def test_when_identities_are_compared_then_another_goal_or_table_is_another_budget() -> None:
    table, counter = by_hand(model_of("chronos2"))
    one, two = (speed_budget(s, PredictedLatency(table, counter)) for s in (2.0, 3.0))
    assert isinstance(one, Budget) and one.identity != two.identity
    json.dumps(one.identity)


# ---- the command line

TASK = ["--data", "wide.csv", "--horizon", "8", "--validation-windows", "16", "--prune-windows", "16"]
SHORT = [*TASK, "--rounds", "2", "--adapt-steps", "0", "--epoch-batches", "1", "--ratio", "0.3"]


@pytest.mark.parametrize("schedule", ["progressive", "one_shot", "cubic", "ema_online"])
def test_when_a_share_is_given_then_the_command_ends_on_it(
    schedule: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", "chronos_bolt", "--keep", "0.7", "--schedule", schedule]
    code, _, _ = called(["prune", *SHORT, *flags], capsys)
    model, small = tsprune.load("chronos_bolt"), tsprune.load("pruned/model")
    largest = max(int(g.costs.max()) for g in model.unit_groups().values() if g.kind in ("head", "ffn_channel"))
    goal = int(0.7 * model.parameter_count())
    assert code == 0 and goal - largest - 24 < small.parameter_count() <= goal
    assert f"{schedule}" in tsprune.Plan.read("pruned/plan.json").schedule
    assert "to --keep 0.7" in tsprune.Plan.read("pruned/plan.json").schedule
    rounds = read_json(Path("pruned/rounds.json"))
    assert rounds["best_round"] == rounds["rounds"][-1]["round"]
    assert not Path("pruned/rounds").exists()
    assert read_json(Path("pruned/budget.json"))["reached"] == small.parameter_count()


def test_when_a_speedup_is_given_then_the_prediction_is_said_before_and_the_measurement_after(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = called(["prune", *SHORT, "--model", "chronos2", "--speedup", "1.05"], capsys)
    assert code == 0
    lines = err.splitlines()
    (before,) = [n for n, line in enumerate(lines) if "predicted after pruning:" in line and "--speedup 1.05" in line]
    (after,) = [n for n, line in enumerate(lines) if line.startswith("predicted ") and "measured " in line]
    (started,) = [n for n, line in enumerate(lines) if line == "prune ..."]
    assert before < started < after
    facts = read_json(Path("pruned/budget.json"))
    assert facts["goal"] == pytest.approx(facts["whole"] / 1.05)
    assert facts["reached"] <= facts["goal"] and set(facts["measured_ms"]) == {"whole", "slim"}
    code, out, err = called(["prune", *SHORT, "--model", "chronos2", "--speedup", "1000"], capsys)
    assert code == 0 and "--speedup 1000 is out of reach" in out


def test_when_stored_scores_meet_a_budget_of_operations_then_it_is_reached(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = [*TASK, "--model", "chronos2"]
    assert called(["score", *task, "--adapt-steps", "0", "--out", "s.json"], capsys)[0] == 0
    code, _, _ = called(["prune", *task, "--scores", "s.json", "--keep", "0.8", "--keep-of", "flops"], capsys)
    facts, plan = read_json(Path("pruned/budget.json")), tsprune.Plan.read("pruned/plan.json")
    assert code == 0
    assert (facts["whole"], facts["reached"]) == (plan.flops["before"], plan.flops["after"])
    assert facts["reached"] <= int(0.8 * plan.flops["before"]) < facts["reached"] + 0.02 * plan.flops["before"]
