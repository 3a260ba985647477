"""Runs of layers off: which are tried, what they cost, and that dead layers are found."""

from __future__ import annotations

import json

import pytest
import torch

from tests.lens_fixture import counted, ran, study_of
from tests.tiny import tiny_batch, tiny_model
from tests.toy import WIDTH, Toy, attention, toy_batch
from tsprune import lens
from tsprune.blocks.feedforward import FeedForward
from tsprune.data.batch import Batch
from tsprune.lens import _ablating as ablating
from tsprune.lens.layer_sweep import Stack, Sweep, stacks, thirds
from tsprune.slimming import slim


@pytest.mark.parametrize("count", range(2, 25))
def test_as_many_runs_are_tried_as_are_said_and_all_lie_in_the_stack(count: int) -> None:
    stack = Stack("x", [{"ffn": [f"{layer}"]} for layer in range(count)], [""] * count)
    sweep = Sweep(stack, "feed-forward")
    draw = torch.Generator().manual_seed(count)
    for run in (run for length in range(1, stack.longest + 1) for run in sweep.runs(length)):
        assert run not in sweep.first and run[0] >= 0 and run[0] + run[1] <= count
        sweep.first[run] = float(torch.rand(1, generator=draw))
    assert len(sweep.first) == stack.tried()
    assert {length for _, length in sweep.first} == set(range(1, max(1, count // 2) + 1))
    assert stack.every == (count <= 8)


def deep(layers: int, dead: range) -> Toy:
    """A stack in which some layers write nothing."""
    torch.manual_seed(5)
    model = Toy([attention() for _ in range(layers)], [FeedForward(WIDTH, 6) for _ in range(layers)]).double().eval()
    with torch.no_grad():
        for layer in dead:
            for branch in model.block[layer].branches:
                getattr(branch.inner, "o" if branch.kind == "attention" else "wo").weight.zero_()
    return model


def noisy(model: Toy, seed: int = 0) -> Batch:
    """Windows that the model forecasts well but not without error."""
    batch = toy_batch()
    with torch.no_grad():
        truth = model(batch.context)
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(seed), dtype=truth.dtype)
    return Batch(batch.context, truth + 0.05 * truth.std() * noise)


@pytest.mark.parametrize(("layers", "dead"), [(6, range(2, 5)), (9, range(3, 7))])
def test_dead_layers_are_found_whether_all_runs_are_tried_or_the_best_is_made_longer(layers: int, dead: range) -> None:
    model = deep(layers, dead)
    probe, study = lens.find("layer_sweep"), study_of(model, [noisy(model)], [noisy(model, 1)])
    with counted(model, windows=True) as calls:
        found, ticks = ran(probe, study)
    assert calls["loss"] == study.first[0].rows * probe.passes(study)
    assert 0 < ticks < probe.passes(study)
    json.dumps(found.to_json(), allow_nan=False)
    best = [row for row in found.tables[0].rows if row[1] == "both" and row[2] == len(dead)]
    assert best == [["block", "both", len(dead), dead[0], dead[-1], 1.0, 1.0]]
    assert found.answer.startswith("In block the middle layers matter less than the others")
    assert len(found.measures) == 3 and [len(m.values) for m in found.measures] == [layers] * 3


def test_a_run_that_is_off_equals_the_model_without_it_in_encoder_and_decoder() -> None:
    model = tiny_model("chronos_bolt", seed=2).to(torch.float64)
    batch = tiny_batch(2)
    found = stacks(model)
    assert [stack.path for stack in found] == ["encoder.block", "decoder.block"]
    for stack in found:
        for part in stack.parts():
            kept = stack.kept((1, 1), part)
            assert all(name.startswith(f"{stack.path}.1.") for name in kept)
            off, cut = ablating.losses(model, [batch], kept), ablating.losses(slim(model, kept), [batch])
            torch.testing.assert_close(off, cut, rtol=1e-9, atol=1e-10)
    assert len(found[1].kept((0, 1), "attention")) == 2
    assert found[1].kept((0, 1), "both").keys() >= found[1].kept((0, 1), "feed-forward").keys()


def test_the_middle_third_is_compared_with_the_rest() -> None:
    assert thirds([1.0, 2.0]) is None
    assert thirds([5.0, 1.0, 7.0]) == (1.0, 6.0)
    assert thirds([4.0, 4.0, 1.0, 3.0, 8.0, 8.0]) == (2.0, 6.0)


def test_a_stack_of_mixers_has_feed_forward_parts_only() -> None:
    model = tiny_model("ttm")
    assert {part for stack in stacks(model) for part in stack.parts()} == {"feed-forward"}
    assert lens.find("layer_sweep").refusal(model) == ""
