"""Which units leave first, what goes along with them, and how many leave: against taking one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.tiny import tiny_model
from tests.tiny_experts import tiny_experts
from tsprune.blocks.attention import Attention
from tsprune.budgets import Sizes
from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster
from tsprune.pruning import parameters_to_reach, reach
from tsprune.ranking import Alive, Prunable, shortest
from tsprune.slimming import meta_twin, slim

# A failing case is small as it is, and every try measures a model many times.
WITHOUT_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)
MODELS = ("chronos2", "chronos_bolt", "experts")
KINDS = (
    ("head", "ffn_channel"),
    ("head", "ffn_channel", "attention", "ffn", "layer"),
    ("head", "kv_group", "qk_pair", "value_dim"),
    ("expert", "ffn_channel", "layer"),
)


@cache
def small(name: str) -> Forecaster:
    """One of few units, with two cross-attentions where there are any."""
    if name == "experts":
        return tiny_experts()
    changes: dict[str, Any] = {"num_layers": 1, "d_ff": 4, "num_heads": 2, "d_kv": 2}
    if name == "chronos_bolt":
        changes["num_decoder_layers"] = 2
    return tiny_model(name, **changes)


@cache
def sizes_of(name: str) -> Sizes:
    return Sizes.of(small(name))


def cases() -> list[tuple[str, tuple[str, ...]]]:
    """Every model with every mix of the kinds that it has."""
    found = []
    for name in MODELS:
        have = {group.kind for group in small(name).unit_groups().values()}
        mixes = {tuple(kind for kind in kinds if kind in have) for kinds in KINDS}
        found += [(name, kinds) for kinds in sorted(mixes) if kinds]
    return found


def drawn(data: st.DataObject, prunable: Prunable) -> dict[str, Tensor]:
    """Scores with ties and zeros."""
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    rough = data.draw(st.sampled_from([1.0, 4.0, 1e9]))
    return {
        name: (torch.randn(group.units, generator=draw, dtype=torch.float64) * rough).round() / rough
        for name, group in prunable.groups.items()
    }


def sees(model: Forecaster) -> bool:
    """Whether of every essential set of attentions one still has a head."""

    def heads(path: str) -> int:
        try:
            found = model.get_submodule(path)
        except AttributeError:
            return 0
        return found.heads if isinstance(found, Attention) else 0

    return all(any(heads(path) for path in paths) for paths in model.essential())


def one_after_the_other(
    model: Forecaster, scores: Mapping[str, Tensor], names: Sequence[str], goal: float, rank: str
) -> tuple[float, Alive]:
    """Take the unit of the lowest score per parameter, then the next, measuring the slim model each time."""
    groups, twin = model.unit_groups(), meta_twin(model)
    kept = {name: list(range(groups[name].units)) for name in names}
    entries = []
    for name in names:
        for unit, cost in enumerate(groups[name].costs.tolist()):
            value = scores[name][unit].item()
            entries.append(((abs(value) if rank == "magnitude" else value) / max(cost, 1), name, unit))
    size = slim(twin, kept).parameter_count()
    for _, name, unit in sorted(entries):
        if size <= goal:
            break
        rest = {**kept, name: [u for u in kept[name] if u != unit]}
        if len(rest[name]) >= groups[name].floor and sees(smaller := slim(twin, rest)):
            kept, size = rest, smaller.parameter_count()
    return size, kept


@pytest.mark.parametrize(("name", "kinds"), cases())
@settings(max_examples=2, deadline=None, phases=WITHOUT_SHRINKING)
@given(data=st.data())
def test_when_units_leave_to_a_size_then_they_are_those_that_leave_one_after_the_other(
    name: str, kinds: tuple[str, ...], data: st.DataObject
) -> None:
    model, sizes = small(name), sizes_of(name)
    names = [n for n, group in model.unit_groups().items() if group.kind in kinds]
    scores = drawn(data, Prunable(model, names))
    rank = data.draw(st.sampled_from(["magnitude", "signed"]))
    goal = data.draw(st.floats(0, 1)) * model.parameter_count()
    left, reached = reach(model, scores, sizes, goal, rank)
    size, expected = one_after_the_other(model, scores, names, goal, rank)
    assert sizes(left) == size
    assert reached == (size <= goal)
    # The same network; only what goes along with others may be named in one and not in the other.
    found, wanted = slim(model, left), slim(model, expected).state_dict()
    assert found.state_dict().keys() == wanted.keys()
    assert all(torch.equal(value, wanted[n]) for n, value in found.state_dict().items())
    assert sees(found)
    assert all(len(left[n]) >= model.unit_groups()[n].floor for n in names)


def test_when_everything_has_to_go_then_one_cross_attention_keeps_a_head() -> None:
    model = small("chronos_bolt")
    names = [n for n, g in model.unit_groups().items() if g.kind in ("head", "value_dim", "attention", "layer")]
    for seed in range(2):
        draw = torch.Generator().manual_seed(seed)
        scores = {n: torch.rand(model.unit_groups()[n].units, generator=draw) for n in names}
        left, reached = reach(model, scores, Sizes.of(model), 1)
        cut = slim(model, left)
        heads = [m.heads for m in cut.modules() if isinstance(m, Attention)]
        assert not reached
        assert heads == [1]
        assert sees(cut)


def test_when_a_model_has_lost_its_cross_attentions_then_they_no_longer_hold_anything_back() -> None:
    model = small("chronos_bolt")
    blind = slim(model, {f"{path}/head": [] for path in model.essential()[0]})
    left = parameters_to_reach(blind, {n: torch.ones(g.units) for n, g in blind.unit_groups().items()
                                       if g.kind == "head"}, 1)  # fmt: skip
    assert not any(left.values())


def plain(kind: str = "head", name: str = "chronos2") -> tuple[Prunable, Alive]:
    model = small(name)
    prunable = Prunable(model, [n for n, g in model.unit_groups().items() if g.kind == kind])
    return prunable, prunable.everything()


def test_when_ranked_by_magnitude_or_signed_then_useless_or_harmful_units_leave_first() -> None:
    prunable, alive = plain()
    scores = {name: torch.tensor([-5.0, 0.1]) for name in alive}
    assert {unit for _, unit in prunable.order(scores, alive, "magnitude")[: len(alive)]} == {1}
    assert {unit for _, unit in prunable.order(scores, alive, "signed")[: len(alive)]} == {0}


def test_when_a_unit_is_large_then_it_competes_by_score_per_parameter() -> None:
    model = small("chronos2")
    groups = {n: g for n, g in model.unit_groups().items() if g.kind in ("head", "ffn_channel")}
    prunable = Prunable(model, list(groups))
    # Half a point per parameter for heads, less for even channels, more for odd ones.
    scores = {n: 0.5 * g.costs.double() for n, g in groups.items() if g.kind == "head"}
    for n, g in groups.items():
        if g.kind == "ffn_channel":
            scores[n] = g.costs * torch.tensor([0.4, 0.6] * (g.units // 2), dtype=torch.float64)
    order = prunable.order(scores, prunable.everything(), "magnitude")
    place = {entry: number for number, entry in enumerate(order)}
    for n, g in groups.items():
        for unit in range(g.units if g.kind == "ffn_channel" else 0):
            for head in (entry for entry in order if groups[entry[0]].kind == "head"):
                assert (place[n, unit] < place[head]) == (unit % 2 == 0)


def test_when_rank_or_scores_are_impossible_then_they_are_refused() -> None:
    prunable, alive = plain()
    with pytest.raises(TspruneError, match="--rank 'abs' is unknown"):
        prunable.order({name: torch.ones(2) for name in alive}, alive, "abs")
    with pytest.raises(TspruneError, match="are not all finite"):
        prunable.order({name: torch.tensor([1.0, torch.nan]) for name in alive}, alive, "magnitude")
    with pytest.raises(TspruneError, match="no unit group 'nowhere/head'"):
        Prunable(small("chronos2"), ["nowhere/head"])


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_when_uniform_then_every_group_loses_the_same_share_and_its_lowest_units(data: st.DataObject) -> None:
    model = small("chronos_bolt")
    prunable = Prunable(model, [n for n, g in model.unit_groups().items() if g.kind in ("head", "ffn_channel")])
    scores, alive = drawn(data, prunable), prunable.everything()
    for name in alive:
        # Some have lost units before.
        alive[name] = alive[name][data.draw(st.integers(0, 1)) :]
    order = prunable.order(scores, alive, "signed", uniform=True)
    left = prunable.without(alive, order[: data.draw(st.integers(0, len(order)))])
    gone = {name: (prunable.groups[name].units - len(left[name])) / prunable.groups[name].units for name in left}
    lost = [name for name in left if len(left[name]) < len(alive[name])]
    for name in lost:
        for other in left:
            # Nobody has taken a step that would be the next one of a group behind.
            assert gone[name] <= gone[other] + 1 / prunable.groups[other].units + 1e-9
        removed = [scores[name][u].item() for u in alive[name] if u not in left[name]]
        stays = [scores[name][u].item() for u in left[name]]
        assert not stays or max(removed) <= min(stays)


def test_when_a_layer_goes_then_all_inside_it_goes_along() -> None:
    model = small("chronos_bolt")
    prunable = Prunable(
        model, [n for n, g in model.unit_groups().items() if g.kind not in ("in_channel", "out_channel")]
    )
    left = prunable.without(prunable.everything(), [("encoder.block.0/layer", 0)])
    for name, units in left.items():
        assert units == ([] if name.startswith("encoder.block.0") else list(range(prunable.groups[name].units)))


def test_when_an_expert_goes_then_its_channels_go_along_and_no_others() -> None:
    model = small("experts")
    groups = model.unit_groups()
    prunable = Prunable(model, [n for n, g in groups.items() if g.kind in ("expert", "ffn_channel")])
    (experts,) = [n for n, g in groups.items() if g.kind == "expert"]
    left = prunable.without(prunable.everything(), [(experts, 3)])
    gone = [n for n in left if not left[n]]
    assert gone == [f"{groups[experts].path}.experts.3/ffn_channel"]


def test_when_the_size_does_not_follow_the_costs_then_the_search_still_ends_at_the_shortest_prefix() -> None:
    prunable, alive = plain("ffn_channel", "experts")
    order = [(name, unit) for name, units in alive.items() for unit in units]
    total = len(order)
    steps = torch.rand(total, generator=torch.Generator().manual_seed(3)).cumsum(0) ** 3

    def size(kept: Alive) -> float:
        gone = total - sum(len(units) for units in kept.values())
        return float(steps[-1] - (steps[gone - 1] if gone else 0.0))

    for goal in torch.linspace(-1, float(steps[-1]) + 1, 40).tolist():
        left, reached = shortest(prunable, alive, order, size, goal)
        gone = total - sum(len(units) for units in left.values())
        expected = next((n for n in range(total + 1) if size(prunable.without(alive, order[:n])) <= goal), None)
        assert (gone, reached) == ((total, False) if expected is None else (expected, True))
