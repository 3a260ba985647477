"""What may go: lazy steps against trying everything, controls, and steps against models that are really cut."""

from __future__ import annotations

import json
import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lens_fixture import counted, halves, ran, study_of
from tests.tiny import tiny_batch, tiny_model
from tsprune import lens
from tsprune.evaluation.timeblocks import Blocks
from tsprune.lens import _ablating as ablating
from tsprune.lens import _joint as joint
from tsprune.lens import _walk, what_may_go
from tsprune.lens._walk import Field, Walk, at_random
from tsprune.models._forecaster import Forecaster
from tsprune.ranking import Alive, Entry
from tsprune.slimming import slim


@cache
def field(family: str = "chronos2", kinds: tuple[str, ...] = ("head",)) -> Field:
    """Sizes of a model are remembered, so one field serves all examples."""
    return Field(tiny_model(family), kinds)


def gone(one: Field, left: Alive) -> list[Entry]:
    return [unit for unit in one.units if unit[1] not in left[unit[0]]]


# ---- the walk


@settings(max_examples=6, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=12, max_size=12),
    st.dictionaries(st.tuples(st.integers(0, 11), st.integers(0, 11)), st.integers(1, 9), max_size=8),
    st.sampled_from([("head",), ("head", "attention", "layer")]),
)
def test_steps_are_those_of_trying_everything_where_rises_never_fall(
    own: list[int], together: dict[tuple[int, int], int], kinds: tuple[str, ...]
) -> None:
    """Each head has a cost, and so has each pair of them; attentions and layers cost what their heads do."""
    one = field(kinds=kinds)
    heads = [unit for unit in one.units if unit[0].endswith("/head")]

    def loss(left: Alive, _: str = "") -> float:
        off = {place for place, (name, head) in enumerate(heads) if head not in left[name]}
        pairs = sum(cost for (a, b), cost in together.items() if a != b and {a, b} <= off)
        return 100.0 + sum(own[place] for place in off) + pairs

    def rates(left: Alive, now: float) -> dict[Entry, float]:
        found = {}
        for unit in one.units:
            after = one.without(left, unit)
            if after is not None and one.removed(after) > one.removed(left):
                found[unit] = (loss(after) - now) / (one.removed(after) - one.removed(left))
        return found

    alone = {unit: loss(one.without(one.everything, unit) or {}) for unit in one.units}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_walk, "FEW", 99)
        found = Walk(one, alone, 100.0, loss, 999).go(99, math.inf)
    left, now = one.everything, 100.0
    for step in found:
        tried = rates(left, now)
        assert tried[step.unit] == pytest.approx(min(tried.values()))
        left, now = step.left, step.loss
        assert now == loss(left) and step.removed == one.removed(left)
    assert not rates(left, now)


def test_units_that_stand_in_for_each_other_are_measured_again() -> None:
    one = field()
    a, b, *others = one.units

    def loss(left: Alive, _: str) -> float:
        off = set(gone(one, left))
        return 1.0 + 50 * ({a, b} <= off) + sum(unit in off for unit in others)

    alone = {unit: 1.0 + (unit in others) for unit in one.units}
    found = Walk(one, alone, 1.0, loss, 99).go(99, 1.5)
    assert [step.unit for step in found] in ([a], [b])


def test_trials_steps_and_the_loss_are_limits() -> None:
    one = field()
    calls: list[str] = []

    def loss(left: Alive, what: str) -> float:
        calls.append(what)
        return 1.0 + len(gone(one, left))

    alone = dict.fromkeys(one.units, 2.0)
    assert len(Walk(one, alone, 1.0, loss, 99).go(3, math.inf)) == 3
    assert len(Walk(one, alone, 1.0, loss, 99).go(99, 4.0)) == 3
    calls.clear()
    path = Walk(one, alone, 1.0, loss, 2)
    assert 1 <= len(path.go(99, math.inf)) <= 3 and path.taken == len(calls) == 2
    assert not Walk(one, dict.fromkeys(one.units, math.nan), 1.0, loss, 99).go(9, 99.0)


@pytest.mark.parametrize("family", ["chronos_bolt", "moirai", "time_moe"])
def test_what_is_essential_or_at_its_floor_stays_and_what_is_inside_goes_along(family: str) -> None:
    one = field(family, what_may_go.KINDS)
    path = Walk(one, dict.fromkeys(one.units, 1.0), 1.0, lambda *_: 1.0, 999)
    found = path.go(999, math.inf)
    removed = [0, *(step.removed for step in found)]
    assert all(before < after for before, after in zip(removed, removed[1:], strict=False))
    model = tiny_model(family)
    for step in found:
        assert one.prunable.spares_essential(step.left)
        taken = [other.unit for other in found[: found.index(step) + 1]]
        smaller = slim(model, joint.kept_without(model.unit_groups(), taken))
        assert smaller.parameter_count() == one.whole - step.removed
    assert not model.essential() or any(step.left[f"{path}/head"] for path in model.essential()[0] for step in found)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1), st.sampled_from(["chronos2", "chronos_bolt"]))
def test_as_many_at_random_take_no_more_parameters_and_nothing_essential(seed: int, share: float, family: str) -> None:
    one = field(family, what_may_go.KINDS)
    costs = {}
    for unit in one.units:
        after = one.without(one.everything, unit)
        costs[unit] = 0 if after is None else one.removed(after)
    goal = int(share * one.whole)
    left = at_random(one, costs, goal, np.random.default_rng(seed))
    assert one.removed(left) <= goal and one.prunable.spares_essential(left)
    # Whatever of the smallest units is left alone would have been too much.
    whole = [unit for unit in one.units if costs[unit] and one.without(left, unit) is not None]
    assert all(one.removed(left) + costs[unit] > goal for unit in whole if _untouched(one, left, unit))


def _untouched(one: Field, left: Alive, unit: Entry) -> bool:
    """Whether a unit loses as much now as alone, so that its cost is known."""
    after = one.without(left, unit)
    first = one.without(one.everything, unit)
    assert after is not None and first is not None
    return one.removed(after) - one.removed(left) == one.removed(first)


# ---- the probe


def test_every_step_is_the_loss_of_a_model_that_is_really_cut_and_costs_what_was_said() -> None:
    model = tiny_model("chronos2").double()
    batch = tiny_batch(12)
    study = study_of(
        model, halves(batch), halves(tiny_batch(12, seed=3)), blocks=Blocks(np.arange(12), 12, 1, "origins")
    )
    probe = lens.find("what_may_go")
    said = round(probe.passes(study))
    with counted(model) as calls:
        found, ticks = ran(probe, study)
    json.dumps(found.to_json(), allow_nan=False)
    assert found.facts["steps"] and calls["loss"] <= 2 * said and ticks <= said and calls["forecast"] == 0
    whole = float(ablating.losses(model, study.first).mean())
    later = float(ablating.losses(model, study.later).mean())
    taken: list[Entry] = []
    for step in found.facts["steps"]:
        taken.append((step["group"], step["unit"]))
        smaller = slim(model, joint.kept_without(model.unit_groups(), taken))
        assert smaller.parameter_count() == model.parameter_count() - step["removed"]
        for name, batches, intact in (("first", study.first, whole), ("later", study.later, later)):
            assert step[name] == pytest.approx(float(ablating.losses(smaller, batches).mean()) / intact, rel=1e-9)
        assert step["low"] <= step["later"] <= step["high"]
    for percent, count in found.facts["within"].items():
        growth = [step["first"] for step in found.facts["steps"]]
        assert count == 0 or growth[count - 1] <= 1 + float(percent) / 100
        assert all(one > 1 + float(percent) / 100 for one in growth[count:])
    for control in found.facts["control"]:
        assert len(control["removed"]) == len(control["growth"]) == what_may_go.ORDERS
        assert max(control["removed"]) <= found.facts["steps"][control["step"] - 1]["removed"]


def test_what_another_probe_has_measured_is_not_measured_again() -> None:
    model = tiny_model("chronos2")
    probe = lens.find("what_may_go")
    first, second = (study_of(model, [tiny_batch()]) for _ in range(2))
    ran(lens.find("ablation"), first)
    units = sum(group.units for group in ablating.groups_of(model, "head", "attention", "ffn").values())
    assert len(first.alone) == units and probe.passes(second) - probe.passes(first) == units
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert ran(probe, first)[0].to_json() == ran(probe, second)[0].to_json()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(gate.mask is None for group in model.unit_groups().values() for gate in group.gates)


def test_where_nothing_may_go_the_answer_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model, probe = tiny_model("chronos2"), lens.find("what_may_go")
    monkeypatch.setattr(what_may_go, "MOST", 0.0)
    found, _ = ran(probe, study_of(model, [tiny_batch()]))
    assert found.answer.startswith("Nothing may go") and not found.facts["steps"] and not found.curves
    assert set(found.facts["within"].values()) == {0}


def test_a_model_of_mixers_has_parts_and_layers_and_one_with_nothing_left_is_refused() -> None:
    probe = lens.find("what_may_go")
    found, _ = ran(probe, study_of(tiny_model("ttm"), [tiny_batch()]))
    assert {step["group"].rpartition("/")[2] for step in found.facts["steps"]} <= {"ffn", "layer"}
    assert "no head, part or layer" in probe.refusal(Bare())


class Bare(Forecaster):
    """A model of which nothing is left."""

    family = "bare"


def test_the_limit_of_a_log_likelihood_is_a_difference() -> None:
    class Log(Bare):
        @property
        def log_loss(self) -> bool:
            return True

    model = Log()
    assert ablating.growth(model, what_may_go._limit(model, -3.0, 1.5), -3.0) == pytest.approx(1.5)
    assert what_may_go._limit(Bare(), 2.0, 1.5) == 3.0
