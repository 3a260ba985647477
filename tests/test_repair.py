"""Repair after a cut: the closed form against brute force, and what it must leave alone."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.tiny import FAMILIES, grouped_batch, tiny_batch, tiny_model
from tsprune.blocks.units import Block
from tsprune.errors import TspruneError
from tsprune.models import fingerprint
from tsprune.models._forecaster import Forecaster
from tsprune.pruning import prune, validation_loss
from tsprune.repair import refitted, repair, repair_masked
from tsprune.schedules.progressive import Progressive
from tsprune.slimming import slim

every_family = pytest.mark.parametrize("family", FAMILIES)
BATCHES = [tiny_batch(6, seed=seed) for seed in range(3)]


def spread(kept: list[int], width: int) -> torch.Tensor:
    """Entry indices of units that are each `width` entries wide."""
    return torch.tensor([unit * width + place for unit in kept for place in range(width)], dtype=torch.long)


def activations(model: Forecaster, path: str) -> Tensor:
    """Inputs of a block's output projection over all tokens of the batches `[tokens, E]`."""
    found: list[Tensor] = []
    block = model.get_submodule(path)
    assert isinstance(block, Block) and block.output is not None
    handle = block.output.register_forward_pre_hook(lambda _, given: found.append(given[0].detach().flatten(0, -2)))
    with torch.no_grad():
        for batch in BATCHES:
            model.loss(batch)
    handle.remove()
    return torch.cat(found).double()


def some(model: Forecaster, seed: int = 0) -> dict[str, list[int]]:
    """About half of the units of every group of heads and channels."""
    draw = torch.Generator().manual_seed(seed)
    groups = {n: g for n, g in model.unit_groups().items() if g.kind in ("head", "ffn_channel")}
    kept = {n: torch.randperm(g.units, generator=draw)[: max(1, g.units // 2)].tolist() for n, g in groups.items()}
    return {name: sorted(units) for name, units in kept.items()}


@every_family
def test_the_refit_is_the_ridge_regression_of_what_stays_on_the_uncut_output(family: str) -> None:
    model = tiny_model(family)
    kept = some(model)
    repaired = repair(model, kept, BATCHES, ridge=0.05)
    changed = 0
    for name, units in kept.items():
        path = name.rsplit("/", 1)[0]
        whole, own = model.get_submodule(path).output, repaired.get_submodule(path).output
        assert isinstance(whole, nn.Linear) and isinstance(own, nn.Linear)
        x, entries = activations(model, path), spread(units, whole.in_features // model.unit_groups()[name].units)
        weight, kept_x = whole.weight.detach().double(), x[:, entries]
        pull = (0.05 * kept_x.square().sum(0).mean()).sqrt() * torch.eye(len(entries), dtype=torch.float64)
        left = torch.cat([kept_x, pull])
        right = torch.cat([x @ weight.T, pull @ weight[:, entries].T])
        expected = torch.linalg.lstsq(left, right).solution.T
        torch.testing.assert_close(own.weight[:, entries].detach().double(), expected, rtol=1e-3, atol=1e-4)
        changed += not torch.allclose(own.weight, whole.weight)
    assert changed > len(kept) / 2


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    kept=st.sets(st.integers(0, 6), min_size=1).map(sorted),
    dead=st.sets(st.integers(0, 6)),
    ridge=st.sampled_from([1e-6, 1e-2, 1.0, 100.0]),
)
def test_the_refit_never_makes_the_output_worse(seed: int, kept: list[int], dead: set[int], ridge: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(30, 7, generator=draw, dtype=torch.float64) @ torch.randn(7, 7, generator=draw).double()
    x[:, sorted(dead)] = 0
    weight = torch.randn(4, 7, generator=draw, dtype=torch.float64)
    entries = torch.tensor(kept)
    new = refitted(weight, x.T @ x, entries, ridge)

    def error(columns: Tensor) -> float:
        return float((x[:, entries] @ columns.T - x @ weight.T).square().sum())

    assert new.shape == (4, len(kept))
    assert error(new) <= error(weight[:, entries]) * (1 + 1e-9) + 1e-9


def test_a_unit_that_another_one_repeats_is_made_up_for_entirely() -> None:
    model = tiny_model("chronos2")
    feed = model.get_submodule("encoder.block.1.layer.2.mlp")
    with torch.no_grad():
        feed.wi.weight[3] = 2 * feed.wi.weight[5]  # type: ignore[union-attr, index]
    kept = {"encoder.block.1.layer.2.mlp/ffn_channel": [unit for unit in range(20) if unit != 3]}
    smaller = slim(model, kept)
    batch, expected = tiny_batch(), model.forecast(tiny_batch(), 16)
    repaired = slim(repair(model, kept, BATCHES, ridge=1e-9), kept)
    before = float((smaller.forecast(batch, 16) - expected).abs().max())
    after = float((repaired.forecast(batch, 16) - expected).abs().max())
    assert before > 1e-2
    assert after < 1e-2 * before


@every_family
def test_nothing_else_is_touched(family: str) -> None:
    model = tiny_model(family).train()
    heads = next(name for name, group in model.unit_groups().items() if group.kind == "head")
    mark = fingerprint(model)
    repaired = repair(model, {heads: [0, 2]}, BATCHES)
    assert fingerprint(model) == mark
    assert model.training
    own, other = repaired.state_dict(), model.state_dict()
    different = [name for name in own if not torch.equal(own[name], other[name])]
    assert different == [f"{heads.rsplit('/', 1)[0]}.o.weight"]
    columns = (own[different[0]] != other[different[0]]).any(0).nonzero().flatten() // model.unit_groups()[heads].gates[
        0
    ].width
    assert set(columns.tolist()) == {0, 2}


@every_family
def test_blocks_that_lost_nothing_or_everything_are_left_as_they_are(family: str) -> None:
    model = tiny_model(family)
    groups = {n: g for n, g in model.unit_groups().items() if g.kind in ("head", "ffn_channel")}
    whole = {name: list(range(group.units)) for name, group in groups.items()}
    assert fingerprint(repair(model, whole, BATCHES)) == fingerprint(model)
    empty: dict[str, list[int]] = {name: [] for name in groups}
    assert fingerprint(repair(model, empty, BATCHES)) == fingerprint(model)


def test_groups_and_covariates_are_calibrated_as_they_are_used() -> None:
    model = tiny_model("chronos2")
    kept = some(model)
    grouped, alone = (repair(model, kept, batches) for batches in ([grouped_batch()], BATCHES))
    assert fingerprint(grouped) != fingerprint(alone)


@every_family
def test_a_masked_model_is_repaired_like_the_model_cut_that_far(family: str) -> None:
    model = tiny_model(family)
    first = some(model)
    second = {name: units[: max(1, len(units) // 2)] for name, units in first.items()}
    masked = copy.deepcopy(model)
    repair_masked(masked, first, second, BATCHES)
    places = {name: [first[name].index(unit) for unit in units] for name, units in second.items()}
    cut = repair(slim(model, first), places, BATCHES)
    expected, found = slim(cut, places).state_dict(), slim(masked, second).state_dict()
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


@every_family
def test_pruning_with_repair_hands_back_the_weights_of_the_round_it_kept(family: str) -> None:
    model = tiny_model(family)
    mark = fingerprint(model)
    schedule = Progressive(0.2, 4, 0.5, 9)
    for tolerance in (0.0, 10.0):
        outcome = prune(
            model, lambda _: BATCHES, [tiny_batch(8, seed=9)], schedule=schedule, tolerance=tolerance, refit=True
        )
        smaller = slim(outcome.model, outcome.best.kept)
        assert validation_loss(smaller, [tiny_batch(8, seed=9)]) == pytest.approx(
            outcome.best.validation_loss, rel=1e-4
        )
        assert outcome.best.round == (4 if tolerance else min(outcome.rounds, key=lambda r: r.validation_loss).round)
    assert fingerprint(model) == mark


def test_impossible_calls_are_refused() -> None:
    model = tiny_model("chronos2")
    kept = some(model)
    with pytest.raises(TspruneError, match="above 0"):
        repair(model, kept, BATCHES, ridge=0.0)
    with pytest.raises(TspruneError, match="at least one batch"):
        repair(model, kept, [])
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.get_submodule("encoder.block.0.layer.2.mlp").wi.weight[0] = torch.inf  # type: ignore[union-attr, index]
    with pytest.raises(TspruneError, match="not finite"):
        repair(broken, kept, BATCHES)


def test_experts_that_are_gone_or_get_no_token_are_left_as_they_are() -> None:
    model = tiny_model("time_moe")
    path = next(name for name, group in model.unit_groups().items() if group.kind == "expert").rsplit("/", 1)[0]
    count = model.unit_groups()[f"{path}/expert"].units
    before = {f"{path}/expert": [0, 1]}
    after = before | {f"{path}.experts.{one}/ffn_channel": [0, 2, 3] for one in range(count)}
    was = copy.deepcopy(model.state_dict())
    repair_masked(model, before, after, BATCHES)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, was[name])}
    assert changed == {f"{path}.experts.{one}.wo.weight" for one in (0, 1)}
