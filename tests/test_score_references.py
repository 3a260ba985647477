"""Every score by gradient or by weights against an independent slow reference, for every kind of unit."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.planted import (
    BUILDERS,
    agree,
    built,
    kinds_of,
    multiplied,
    planted,
    rows_of,
    slow_gradients,
    window_loss,
    window_rows,
    windows_of,
)
from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster
from tsprune.scores import ablation, fisher, hybrid, magnitude, printed, taylor, taylor_abs, wanda
from tsprune.slimming import slim

BY_GRADIENT: dict[str, tuple[ModuleType, Callable[[Tensor], Tensor]]] = {
    "fisher": (fisher, lambda g: (-g + g.square() / 2).mean(0)),
    "printed": (printed, lambda g: (g.mean(0) + g.mean(0).square() / 2).abs()),
    "taylor": (taylor, lambda g: g.mean(0).abs()),
    "taylor_abs": (taylor_abs, lambda g: g.abs().mean(0)),
}
BY_DATA = {name: module for name, (module, _) in BY_GRADIENT.items()} | {
    "wanda": wanda,
    "ablation": ablation,
    "hybrid": hybrid,
}
cases = pytest.mark.parametrize("case", BUILDERS)


@functools.cache
def slow(case: str) -> dict[str, Tensor]:
    """Gate gradients `[N, U]` of every group, by explicit gates, window by window."""
    model, batch = built(case)
    return {name: slow_gradients(model, batch, name, group.units) for name, group in model.unit_groups().items()}


# ---- scores by gradient


@cases
@pytest.mark.parametrize("score", BY_GRADIENT)
def test_when_gates_are_multiplied_in_window_by_window_then_scores_by_gradient_agree(case: str, score: str) -> None:
    model, batch = built(case)
    module, expected = BY_GRADIENT[score]
    found = module.scores(model, [batch], kinds=kinds_of(model))
    assert list(found) == list(slow(case))
    for name, g in slow(case).items():
        assert found[name].dtype == torch.float64
        assert agree(found[name], expected(g), 1e-9), name
    # Not the trivial agreement of zeros.
    kinds = {name.rsplit("/", 1)[1] for name, values in found.items() if float(values.abs().max()) > 1e-6}
    assert kinds == set(kinds_of(model))


@pytest.mark.parametrize("case", ["chronos2", "mixed"])
def test_when_the_model_is_in_bfloat16_then_scores_are_float64_and_near_those_of_float32(case: str) -> None:
    low, batch = built(case, torch.bfloat16)
    high = copy.deepcopy(low).float()
    for score, module in BY_DATA.items():
        if score in ("ablation", "hybrid"):  # A difference of losses, and ranks, amplify rounding.
            continue
        found = module.scores(low, [batch], kinds=("ffn_channel",))
        expected = module.scores(high, [batch], kinds=("ffn_channel",))
        both = [torch.cat([values[name] for name in expected]) for values in (found, expected)]
        assert both[0].dtype == torch.float64
        assert float((both[0] - both[1]).norm() / both[1].norm()) < 0.1, score


def test_when_many_windows_are_summed_in_bfloat16_then_nothing_is_lost_in_the_sum() -> None:
    model, batch = built("chronos2", torch.bfloat16)
    once = taylor_abs.scores(model, [batch], kinds=("head",))
    often = taylor_abs.scores(model, [batch] * 40, kinds=("head",))
    assert all(agree(often[name], values, 1e-12) for name, values in once.items())


# ---- magnitude


@cases
def test_when_a_unit_is_cut_out_then_magnitude_is_the_sum_of_squares_that_leaves(case: str) -> None:
    model, _ = built(case)
    groups = model.unit_groups()
    # Channels of single maps take others with them when cut; they are counted below.
    found = magnitude.scores(model, kinds=[kind for kind in kinds_of(model) if not kind.endswith("_channel")])
    whole = squares(model)
    for name, values in found.items():
        for unit in {0, groups[name].units - 1}:
            if groups[name].units <= groups[name].floor:
                continue
            kept = {name: [other for other in range(groups[name].units) if other != unit]}
            assert float(values[unit]) == pytest.approx(whole - squares(slim(model, kept)), rel=1e-9), (name, unit)


@cases
def test_when_units_are_channels_then_magnitude_is_the_sum_of_squares_of_rows_or_columns(case: str) -> None:
    model = built(case)[0].requires_grad_(False)
    for name, values in magnitude.scores(model, kinds=("in_channel", "out_channel", "ffn_channel")).items():
        path, kind = name.rsplit("/", 1)
        block: Any = model.get_submodule(path)
        maps = [(m, m is not getattr(block, "wo", None)) for m in block.children() if isinstance(m, nn.Linear)]
        for layer, rows in maps if kind == "ffn_channel" else [(block, kind == "out_channel")]:
            for unit in range(len(values)):
                values[unit] -= (layer.weight[unit] if rows else layer.weight[:, unit]).square().sum()
                values[unit] -= layer.bias[unit].square() if rows and layer.bias is not None else 0.0
        assert float(values.abs().max()) < 1e-9, name


def squares(model: nn.Module) -> float:
    return float(sum(parameter.detach().double().square().sum() for parameter in model.parameters()))


# ---- wanda


@cases
def test_when_inputs_are_recorded_window_by_window_then_wanda_is_weights_times_their_norms(case: str) -> None:
    model, batch = built(case)
    found = wanda.scores(model, [batch], kinds=("head", "ffn_channel", "value_dim", "in_channel", "out_channel"))
    norms = input_norms(model, batch)
    for name, values in found.items():
        path, kind = name.rsplit("/", 1)
        block: Any = model.get_submodule(path)
        layer = {"head": "o", "value_dim": "o", "ffn_channel": "wo"}.get(kind)
        layer = block if layer is None else getattr(block, layer)
        # A map that the network never calls, such as the queries of a single step, carries nothing.
        weighed = layer.weight.detach().abs() * norms.get(layer, torch.zeros(layer.in_features))
        if kind == "out_channel":
            expected = weighed.sum(1)
        elif kind in ("head", "ffn_channel", "in_channel"):
            expected = weighed.sum(0).view(len(values), -1).sum(1)
        else:
            heads, share = block.heads, block.heads * block.head_width // len(values)
            columns = weighed.sum(0).view(heads // share, share, block.head_width).sum(1)
            expected = columns.reshape(-1)
        assert agree(values, expected, 1e-9), name


def test_when_a_unit_is_whole_then_its_wanda_is_that_of_what_leaves_it() -> None:
    model, batch = built("mixed")
    found = wanda.scores(model, [batch], kinds=kinds_of(model))
    total = {kind: {name: float(v.sum()) for name, v in found.items() if name.endswith("/" + kind)} for kind in KINDS}
    heads, channels = sum(total["head"].values()), sum(total["ffn_channel"].values())
    assert sum(total["attention"].values()) == pytest.approx(heads)
    assert sum(total["ffn"].values()) == pytest.approx(channels)
    assert sum(total["layer"].values()) == pytest.approx(heads + channels)
    experts = sum(v for name, v in total["ffn_channel"].items() if ".experts." in name)
    assert sum(total["expert"].values()) == pytest.approx(experts)
    assert sum(total["kv_group"].values()) == pytest.approx(total["head"]["block.0.layer.0.attention/head"])


KINDS = ("head", "kv_group", "ffn_channel", "expert", "attention", "ffn", "layer")


@pytest.mark.parametrize("case", ["chronos2", "mixed"])
def test_when_units_are_query_key_pairs_then_wanda_is_the_geometric_mean_of_both_sides(case: str) -> None:
    model, batch = built(case)
    norms = input_norms(model, batch)
    for name, values in wanda.scores(model, [batch], kinds=("qk_pair",)).items():
        block: Any = model.get_submodule(name.rsplit("/", 1)[0]).requires_grad_(False)
        width, members = block.head_width, block.k.out_features // len(values)
        zeros = torch.zeros(block.q.in_features, dtype=torch.float64)
        share = block.q.out_features // block.k.out_features
        for pair in range(len(values)):
            group, place = divmod(pair, width // members)
            inside = [place + member * (width // members) for member in range(members)]
            sides = []
            for layer, heads in ((block.q, range(group * share, (group + 1) * share)), (block.k, [group])):
                rows = [head * width + entry for head in heads for entry in inside]
                sides.append(float((layer.weight[rows].abs() * norms.get(layer, zeros)).sum()))
            assert float(values[pair]) == pytest.approx(2 * math.sqrt(sides[0] * sides[1]), rel=1e-9)


def input_norms(model: Forecaster, batch: Batch) -> dict[nn.Module, Tensor]:
    """Root of the sum over tokens of squared inputs, as a mean over windows, of every linear map that is called."""
    seen: dict[nn.Module, list[Tensor]] = {}
    handles = [
        layer.register_forward_pre_hook(lambda m, given: seen.setdefault(m, []).append(given[0].detach()))
        for layer in model.modules()
        if isinstance(layer, nn.Linear)
    ]
    windows = windows_of(batch)
    for window in windows:
        model.loss(window)
    for handle in handles:
        handle.remove()
    found = {}
    for layer, inputs in seen.items():
        total = torch.zeros(inputs[0].shape[-1], dtype=torch.float64)
        for x in inputs:
            for token in x.reshape(-1, x.shape[-1]):
                total += token * token
        found[layer] = (total / len(windows)).sqrt()
    return found


# ---- ablation


@cases
def test_when_units_are_switched_off_one_by_one_then_ablation_is_the_change_of_the_mean_loss(case: str) -> None:
    model, batch = built(case)
    windows = windows_of(batch)
    groups = model.unit_groups()
    chosen = {name: [group.units - 1] for name, group in groups.items()}
    found = ablation.loss_changes(model, [batch], chosen)
    with torch.no_grad():
        base = sum(float(window_loss(model, window)) for window in windows) / len(windows)
        for name, values in found.items():
            for place, unit in enumerate(chosen[name]):
                off = torch.ones(groups[name].units, dtype=torch.float64)
                off[unit] = 0
                if groups[name].kind == "expert":
                    without = losses_without_expert(model, windows, name, unit)
                else:
                    with multiplied(model, name, off):
                        without = [float(window_loss(model, window)) for window in windows]
                expected = sum(without) / len(windows) - base
                assert float(values[place]) == pytest.approx(expected, rel=1e-7, abs=1e-11), (name, unit)


def losses_without_expert(model: Forecaster, windows: list[Batch], name: str, unit: int) -> list[float]:
    """An expert is out where the router cannot choose it: its logit is minus infinity."""
    router = model.get_submodule(name.rsplit("/", 1)[0]).gate

    def hide(_: nn.Module, __: Any, logits: Tensor) -> Tensor:
        logits = logits.clone()
        logits[..., unit] = -math.inf
        return logits

    handle = router.register_forward_hook(hide)
    found = [float(window_loss(model, window)) for window in windows]
    handle.remove()
    return found


def test_when_only_some_units_are_asked_for_then_ablation_tries_only_these() -> None:
    model, batch = built("chronos2")
    every = ablation.scores(model, [batch], kinds=("head",))
    name = next(iter(every))
    found = ablation.loss_changes(model, [batch], {name: [2, 0]})
    assert list(found) == [name]
    assert agree(found[name], every[name][[2, 0]], 1e-12)


@pytest.mark.parametrize("case", ["chronos2", "mixed"])
def test_when_units_are_masked_then_ablation_keeps_them_off_and_gives_them_nothing(case: str) -> None:
    model, batch = built(case)
    name = next(n for n, g in model.unit_groups().items() if g.kind == "ffn_channel")
    count = model.unit_groups()[name].units
    with model.masked({name: list(range(2, count))}):
        found = ablation.scores(model, [batch], kinds=("ffn_channel",))[name]
        base = float(model.loss(batch).detach().mean())
    assert found[:2].tolist() == [0.0, 0.0]
    with model.masked({name: list(range(3, count))}):
        assert float(found[2]) == pytest.approx(float(model.loss(batch).detach().mean()) - base, rel=1e-8, abs=1e-12)


def test_when_no_expert_can_be_spared_then_ablation_gives_nothing() -> None:
    model, batch = built("mixed")
    name = next(n for n, g in model.unit_groups().items() if g.kind == "expert")
    with model.masked({name: [1, 3]}):
        assert ablation.scores(model, [batch], kinds=("expert",))[name].tolist() == [0.0] * 4


# ---- hybrid


@cases
def test_when_units_are_ranked_by_hand_then_hybrid_is_the_mean_of_both_ranks(case: str) -> None:
    model, batch = built(case)
    kinds = kinds_of(model)
    found = hybrid.scores(model, [batch], kinds=kinds)
    costs = {name: group.costs.clamp(min=1).double() for name, group in model.unit_groups().items()}
    expected = 0.0
    for module in (fisher, wanda):
        scores = module.scores(model, [batch], kinds=kinds)
        values = torch.cat([scores[name].abs() / costs[name] for name in found])
        below = (values[None, :] < values[:, None]).sum(1).double()
        equal = (values[None, :] == values[:, None]).sum(1).double()
        expected = expected + (below + (equal - 1) / 2) / (len(values) - 1) / 2
    ranks = torch.cat([found[name] / costs[name] for name in found])
    # Sums in another order may swap two units that all but tie.
    assert float((ranks - expected).abs().max()) < 2.5 / len(ranks)
    assert float((ranks - expected).abs().median()) < 1e-12


# ---- what every score by data must do


@cases
@pytest.mark.parametrize("score", BY_DATA)
def test_when_a_unit_is_dead_then_it_ranks_last(case: str, score: str) -> None:
    model, batch = built(case)
    dead = planted(model)
    if score == "ablation":  # One pass for each unit: only the groups with a dead one.
        sizes = {name: group.units if name in dead else 1 for name, group in model.unit_groups().items()}
        units = {name: list(range(size)) for name, size in sizes.items()}
        found = ablation.loss_changes(model, [batch], units)
    else:
        found = BY_DATA[score].scores(model, [batch], kinds=kinds_of(model))
    for name, unit in dead.items():
        kind = name.rsplit("/", 1)[1]
        if kind == "expert" and score == "ablation":  # Removed, it frees its share of the routing for others.
            continue
        values = found[name].abs()
        assert float(values[unit]) <= float(values.min()) + 1e-14, (name, values)
        alive = torch.cat([v.abs() for n, v in found.items() if n.endswith("/" + kind)])
        assert float(values[unit]) < 1e-6 * float(alive.max()) or score == "hybrid", (name, values)


@settings(max_examples=8, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("case", ["chronos2 groups", "chronos_bolt", "mixed"])
def test_when_windows_are_batched_otherwise_then_scores_are_the_same(case: str, data: st.DataObject) -> None:
    model, batch = cached(case)
    rows = window_rows(batch)
    order = data.draw(st.permutations(range(len(rows))))
    cuts = data.draw(st.lists(st.integers(0, len(rows)), max_size=3).map(sorted))
    pieces = [order[a:b] for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True) if a < b]
    batches = [rows_of(batch, [row for window in piece for row in rows[window]]) for piece in pieces]
    for score, module in BY_DATA.items():
        if score in ("ablation", "hybrid"):  # One is slow and sums as the others; the other is their ranks.
            continue
        whole = expected_scores(case, score)
        for name, values in module.scores(model, batches, kinds=inner_kinds(model)).items():
            assert agree(values, whole[name], 1e-9), (score, name)


@pytest.mark.parametrize("score", ["ablation", "hybrid"])
def test_when_windows_come_one_by_one_then_the_slower_scores_are_the_same(score: str) -> None:
    model, batch = built("chronos2 groups")
    whole = BY_DATA[score].scores(model, [batch])
    for name, values in BY_DATA[score].scores(model, windows_of(batch)).items():
        assert agree(values, whole[name], 1e-9), name


@functools.cache
def cached(case: str) -> tuple[Forecaster, Batch]:
    return built(case)


@functools.cache
def expected_scores(case: str, score: str) -> dict[str, Tensor]:
    model, batch = cached(case)
    found: dict[str, Tensor] = BY_DATA[score].scores(model, [batch], kinds=inner_kinds(model))
    return found


def inner_kinds(model: Forecaster) -> list[str]:
    """Kinds with a gate of their own, without the many channels of single maps."""
    return [kind for kind in kinds_of(model) if kind not in ("in_channel", "out_channel", "layer")]
