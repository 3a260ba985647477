"""Heads that can go: twins that stand in for each other, joint sets, and intervals of what is confirmed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.lens_fixture import counted, ran, study_of
from tests.tiny import tiny_model
from tsprune import lens
from tsprune.blocks.attention import Attention
from tsprune.data.batch import Batch
from tsprune.evaluation.intervals import ratio_interval
from tsprune.evaluation.metrics import RowErrors
from tsprune.evaluation.timeblocks import Blocks
from tsprune.lens import _ablating as ablating
from tsprune.lens import _joint as joint
from tsprune.lens._orders import INFORMED, SEEDS, Course, passes
from tsprune.lens.heads_at import PERCENT
from tsprune.models._forecaster import Forecaster
from tsprune.preparing import with_objective

HEADS, WIDTH, STEPS = 4, 16, 4


class Twins(Forecaster):
    """Two attentions side by side. Head 0 of both says the same, and the larger of the two is taken, so that one alone
    is never missed; so do heads 1 and 2 of the first. Head 3 of the first and head 1 of the second are needed, what
    the others of the second say is never read."""

    family = "twins"

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.levels, self.native_horizon, self.context_length = (0.5,), STEPS, 32
        self.embed = torch.nn.Linear(4, WIDTH)
        self.one, self.two = Attention(WIDTH, HEADS, 4), Attention(WIDTH, HEADS, 4)
        self.out = torch.nn.Linear(WIDTH, STEPS)
        with torch.no_grad():
            for block in (self.one, self.two):
                block.o.weight.copy_(torch.eye(WIDTH))
            for name in ("q", "k", "v"):
                one, two = getattr(self.one, name).weight, getattr(self.two, name).weight
                two[:4], one[8:12] = one[:4], one[4:8]

    @classmethod
    def recognises(cls, config: Mapping[str, Any]) -> bool:
        return False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        return cls()

    def row_losses(self, batch: Batch) -> Tensor:
        assert batch.target is not None
        return (self.ahead(batch.context) - batch.target).square().mean(1)

    def predict(self, batch: Batch, steps: int) -> Tensor:
        return self.ahead(batch.context)[:, None, :steps]

    def ahead(self, context: Tensor) -> Tensor:
        x = self.embed(context.view(len(context), -1, 4))
        one, two = ([part.relu() for part in block(x).split(4, -1)] for block in (self.one, self.two))
        parts = [torch.maximum(one[0], two[0]), torch.maximum(one[1], one[2]), one[3], two[1]]
        found: Tensor = self.out(torch.cat(parts, -1).mean(1))
        return found


def twins() -> Twins:
    torch.manual_seed(4)
    return Twins().double().eval()


def windows(model: Twins, seed: int) -> Batch:
    """Windows that the model forecasts well but not without error."""
    draw = torch.Generator().manual_seed(seed)
    context = 3 * torch.randn(24, 32, generator=draw, dtype=torch.float64)
    with torch.no_grad():
        truth = model.ahead(context)
    return Batch(context, truth + 0.02 * truth.std() * torch.randn(truth.shape, generator=draw, dtype=truth.dtype))


def test_heads_that_stand_in_for_each_other_are_not_both_removable() -> None:
    model = twins()
    blocks = Blocks(np.arange(24), 24, 1, "origins")
    study = study_of(model, [windows(model, 1)], [windows(model, 2)], blocks=blocks)
    probe = lens.find("heads_at")
    with counted(model, windows=True) as calls:
        found, ticks = ran(probe, study)
    json.dumps(found.to_json(), allow_nan=False)
    for verdict in found.facts["removable"].values():
        alone = {name: set(heads) for name, heads in verdict["alone"].items()}
        assert 0 in alone["one/head"] and len(alone["one/head"] & {1, 2}) == 1 and 3 not in alone["one/head"]
        assert alone["two/head"] == {0, 2, 3}
        gone = {tuple(head) for head in verdict["together"]}
        assert len(gone & {("one/head", 0), ("two/head", 0)}) == 1
        assert len(gone & {("one/head", 1), ("one/head", 2)}) == 1
        assert gone >= {("two/head", 2), ("two/head", 3)} and len(gone) == 4
        assert verdict["later"] == 1.0 and max(verdict["random"]) > 2
    row = found.tables[0].rows[1]
    assert row[:2] == ["1 %", 3] and row[2] > 1.05 and row[3:9] == [4, 1.0, 1.0, 1.0, 1.0, "confirm"]
    assert found.answer.startswith("4 of 8 heads can go together") and "(5 if" in found.answer
    spared = len(PERCENT) * joint.most_trials(ablating.groups_of(model, "head")) - sum(
        v["trials"] for v in found.facts["removable"].values()
    )
    # A backward pass counts as two, and no loss is asked for it.
    groups = list(ablating.groups_of(model, "head").values())
    spared += passes(groups) - found.facts["passes"]
    assert calls["loss"] / 24 + 2 + spared == probe.passes(study)
    assert ticks == probe.passes(study) - 1 - len(PERCENT) * (1 + SEEDS)


def test_the_model_is_left_as_it_was_and_the_same_seed_gives_the_same() -> None:
    model = twins()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    study = study_of(model, [windows(model, 1)])
    found = [lens.find("heads_at").run(study, lambda note: None).to_json() for _ in range(2)]
    assert found[0] == found[1]
    assert lens.find("heads_at").run(replace(study, seed=1), lambda note: None).to_json() != found[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert any("no intervals" in note for note in found[0]["notes"])


def test_one_head_stays_of_the_cross_attentions() -> None:
    model = tiny_model("chronos_bolt")
    groups = ablating.groups_of(model, "head")
    every = [(name, head) for name, group in groups.items() for head in range(group.units)]
    left = joint.spare_essential(model, groups, every)
    (lost,) = set(every) - set(left)
    assert lost[0].rpartition("/")[0] in model.essential()[0]
    assert joint.spare_essential(model, groups, left) == left


def test_a_model_without_heads_is_refused() -> None:
    assert "no attention heads" in lens.find("heads_at").refusal(tiny_model("ttm"))


def test_no_head_beyond_one_that_is_missed_and_no_random_order_is_chosen() -> None:
    group = next(iter(ablating.groups_of(twins(), "head").values()))
    course = Course(group, [1.0] * 4)
    course.curves = {name: [1.0, 1.005, 1.2, 1.0, 1.0] for name in INFORMED} | {"random 0": [1.0] * 5}
    course.curves[INFORMED[2]] = [1.0, 1.0, 1.0, 1.5, 1.5]
    assert course.removable(INFORMED[0], 1.01) == 1
    assert course.removable("random 0", 1.01) == 4
    assert course.chosen(1.01) == (INFORMED[2], 2)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(pairs=st.sets(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12), alone=st.sets(st.integers(0, 9)))
def test_a_joint_set_holds_and_no_head_could_join_it(pairs: set[tuple[int, int]], alone: set[int]) -> None:
    """A head cannot go if it is in `alone`, two cannot if they are a pair."""

    def holds(gone: Sequence[joint.Head]) -> bool:
        off = {head for _, head in gone}
        return not off & alone and not any(a in off and b in off and a != b for a, b in pairs)

    wanted = [("x", head) for head in range(10)]
    gone, taken = joint.largest(wanted, holds, 1000)
    assert holds(gone) and taken <= 19
    assert not any(holds([*gone, head]) for head in wanted if head not in gone)
    few, taken = joint.largest(wanted, holds, 3)
    assert holds(few) and taken <= 3
    base = gone[:2]
    again, taken = joint.largest(wanted[3:], holds, 1000, base)
    assert holds(again) and taken <= 19
    assert set(again) >= set(base) or again == wanted[3:]
    assert not any(holds([*again, head]) for head in wanted[3:] if head not in again)


# ---- intervals


def row_errors(losses: Tensor) -> RowErrors:
    values, none = losses.numpy(), np.zeros(len(losses))
    return RowErrors(np.ones(len(losses)), values, none, none, none, none, none)


def test_the_interval_of_a_loss_is_that_of_the_ratio_of_errors() -> None:
    draw = torch.Generator().manual_seed(0)
    off, intact = torch.rand(2, 36, generator=draw, dtype=torch.float64) + 1
    blocks = Blocks(np.arange(36) % 18, 18, 2, "origins")
    model = tiny_model("chronos_bolt")
    wanted = ratio_interval(row_errors(off), row_errors(intact), blocks, "mse", seed=3)
    found = joint.growth_interval(model, off, intact, blocks, 3)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), rel=1e-12)
    assert found.estimate == pytest.approx(wanted.estimate)
    assert joint.growth_interval(model, off, intact, None) is None


def test_a_log_likelihood_is_compared_by_differences() -> None:
    model = tiny_model("moirai")
    assert model.log_loss and not with_objective(model, "mse").log_loss
    assert ablating.growth(model, -1.0 + np.log(1.01), -1.0) == pytest.approx(1.01)
    assert ablating.growth(tiny_model("chronos2"), 1.01, 1.0) == pytest.approx(1.01)
    assert ablating.growth(model, float("nan"), 1.0) == float("inf")
    off = torch.linspace(-1, 1, 20, dtype=torch.float64)
    found = joint.growth_interval(model, off + 0.1, off, Blocks(np.arange(20), 20, 1, "origins"))
    assert found is not None and found.low == pytest.approx(np.exp(0.1)) == found.high


def test_windows_of_several_series_are_one_unit_if_they_share_their_origin() -> None:
    blocks = Blocks(np.array([0, 0, 1, 1, 2, 2]), 3, 1, "origins")
    found = joint.units_of_windows(blocks, 3)
    assert found is not None and found.tolist() == [0, 1, 2]
    assert joint.units_of_windows(replace(blocks, unit=np.array([0, 1, 0, 1, 0, 1]), count=2), 3) is None
    assert joint.units_of_windows(blocks, 4) is None
