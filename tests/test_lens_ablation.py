"""Single units off: as if they had been cut out, or replaced by hand; shapes of forecasts against scipy."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from tests.lens_fixture import counted, halves, ran, study_of
from tests.planted import cast
from tests.test_families import fitting_batch
from tests.tiny import ALL_FAMILIES, tiny_batch, tiny_model, waves
from tests.toy import toy, toy_batch
from tsprune import lens
from tsprune.blocks.branch import Branch
from tsprune.blocks.gate import Gate
from tsprune.blocks.units import UnitGroup
from tsprune.data.batch import Batch
from tsprune.lens import _ablating as ablating
from tsprune.lens import _similarity as similarity
from tsprune.models._forecaster import Forecaster
from tsprune.scores._ranks import average_ranks, rank_correlations, spearman
from tsprune.scores.ablation import scores
from tsprune.slimming import slim

KINDS = ("head", "attention", "ffn")


def units(model: Forecaster) -> list[tuple[UnitGroup, int]]:
    """The last unit of the first and of the last group of each kind: self and cross, encoder and decoder."""
    found = []
    for kind in KINDS:
        groups = list(ablating.groups_of(model, kind).values())
        found += [(group, group.units - 1) for group in dict.fromkeys([*groups[:1], *groups[-1:]])]
    return found


def of_every_sort(model: Forecaster) -> list[dict[str, list[int]]]:
    """The last unit of every sort of heads, attentions and feed-forward parts, alone and all of them at once.

    Sorts are told by their place, but for the number of the layer, and by their block: self and cross, of encoder and
    decoder, in time and across series, and before and after other branches.
    """
    sorts = {}
    for group in ablating.groups_of(model, *KINDS).values():
        sorts[re.sub(r"\d+", "#", group.name, count=1), type(model.get_submodule(group.path))] = group
    alone = [ablating.without(group, [group.units - 1]) for group in sorts.values()]
    # A branch that goes takes its heads along, so that only heads and feed-forward parts go together.
    together = {name: stays for kept in alone for name, stays in kept.items() if not name.endswith("/attention")}
    return [*alone, together]


def removed_equals_off(model: Forecaster, batch: Batch) -> None:
    for kept in of_every_sort(model):
        smaller = slim(model, kept)
        assert smaller.parameter_count() < model.parameter_count()
        off, cut = ablating.losses(model, [batch], kept), ablating.losses(smaller, [batch])
        torch.testing.assert_close(off, cut, rtol=1e-9, atol=1e-9)
        paths, shorter = ablating.medians(model, [batch], kept), ablating.medians(smaller, [batch])
        assert float((paths - shorter).abs().max()) <= 1e-8 * float(paths.std()), list(kept)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_a_unit_set_to_zero_equals_the_model_without_it(family: str) -> None:
    """Also where a norm comes last: it stays in both."""
    model = tiny_model(family, seed=2).to(torch.float64)
    removed_equals_off(model, cast(fitting_batch(model), torch.float64))


@pytest.mark.parametrize("name", ["norm last", "normed heads", "shared keys"])
def test_the_same_for_norms_behind_the_branch_and_for_shared_keys(name: str) -> None:
    model = toy(name)
    for group, unit in units(model):
        kept = ablating.without(group, [unit])
        off = ablating.losses(model, [toy_batch()], kept)
        torch.testing.assert_close(off, ablating.losses(slim(model, kept), [toy_batch()]), rtol=1e-10, atol=1e-12)


def test_all_sorts_of_attention_are_among_them() -> None:
    """Encoder and decoder, self and cross, and attention in time and across series."""
    names = {name for kept in of_every_sort(tiny_model("chronos_bolt"))[:-1] for name in kept}
    assert {name.split(".", 1)[0] + "/" + name.rsplit(".", 1)[1] for name in names if name.endswith("head")} == {
        "encoder/SelfAttention/head",
        "decoder/SelfAttention/head",
        "decoder/EncDecAttention/head",
    }
    names = {name for kept in of_every_sort(tiny_model("chronos2"))[:-1] for name in kept}
    assert {f"encoder.block.1.layer.{n}/attention" for n in (0, 1)} | {"encoder.block.1.layer.2/ffn"} <= names


@pytest.mark.parametrize("kind", ["attention", "ffn"])
@pytest.mark.parametrize("family", ["itransformer", "timer_xl", "patchtst"])
def test_where_a_norm_comes_last_a_branch_that_is_off_is_that_norm_and_not_nothing(family: str, kind: str) -> None:
    """What holds: masked and cut are both `norm(x)`, so that both keep a step that is not the identity."""
    model = tiny_model(family, **({"pre_norm": False} if family == "patchtst" else {}))
    path, branch = next((p, m) for p, m in model.named_modules() if isinstance(m, Branch) and m.kind == kind)
    assert branch.after and isinstance(branch.layer_norm, nn.Module)
    x = torch.randn(2, 3, branch.gate.width)
    with model.masked({f"{path}/{kind}": []}):
        out = branch(x)
    assert torch.equal(out, branch.layer_norm(x))
    assert not torch.allclose(out, x, atol=1e-2)
    smaller = slim(model, {f"{path}/{kind}": []})
    left = smaller.get_submodule(path)
    assert isinstance(left, Branch) and left.inner is None and torch.equal(left(x), out)
    batch = fitting_batch(model)
    kept = {f"{path}/{kind}": []}
    torch.testing.assert_close(
        ablating.losses(smaller, [batch]), ablating.losses(model, [batch], kept), rtol=1e-5, atol=1e-5
    )
    with torch.no_grad():
        left.layer_norm = None  # the whole branch skipped, as if the norm came first
    assert not torch.allclose(ablating.losses(smaller, [batch]), ablating.losses(model, [batch], kept), rtol=1e-3)


# ---- replaced by the mean


def test_a_gate_fills_units_that_are_off_and_is_nothing_without_a_mask() -> None:
    gate, x = Gate(3, 2), torch.randn(4, 5, 6)
    gate.fill = torch.arange(6.0) + 1
    assert gate(x) is x and not gate.used
    gate.mask = torch.tensor([1.0, 0.0, 1.0])
    wanted = x.clone()
    wanted[..., 2:4] = torch.tensor([3.0, 4.0])
    assert torch.equal(gate(x), wanted)
    uneven = Gate(2, owner=torch.tensor([0, 1, 0]))
    uneven.mask, uneven.fill = torch.tensor([0.0, 1.0]), torch.tensor([7.0, 8.0, 9.0])
    assert torch.equal(uneven(torch.zeros(1, 3)), torch.tensor([[7.0, 0.0, 9.0]]))


def place_of(model: Forecaster, group: UnitGroup) -> tuple[nn.Module, bool]:
    """The module whose input (heads) or output (whole branches) is the unit's activation."""
    block: Any = model.get_submodule(group.path)
    return (block.o, True) if group.kind == "head" else (block.inner, False)


def by_hand(model: Forecaster, batches: list[Batch], group: UnitGroup, unit: int) -> Tensor:
    """Losses with the unit's activation replaced by its mean over all tokens, by hooks."""
    module, on_input = place_of(model, group)
    seen: list[Tensor] = []
    width = (module.in_features if on_input else group.gates[0].width) // group.units
    part = slice(unit * width, (unit + 1) * width)

    def look(_: nn.Module, given: Any, *out: Any) -> None:
        seen.append((given[0] if on_input else out[0]).flatten(0, -2)[:, part])

    def swap(_: nn.Module, given: Any, *out: Any) -> Any:
        changed = (given[0] if on_input else out[0]).clone()
        changed[..., part] = torch.cat(seen_first).mean(0)
        return (changed, *given[1:]) if on_input else changed

    found = []
    for hook in (look, swap):
        seen_first = list(seen)
        handle = module.register_forward_pre_hook(hook) if on_input else module.register_forward_hook(hook)
        with torch.no_grad():
            found = [model.loss(batch) for batch in batches]
        handle.remove()
    return torch.cat(found)


@pytest.mark.parametrize("family", ["chronos2", "chronos_bolt", "timer_xl"])
def test_a_unit_replaced_by_its_mean_equals_the_same_by_hand(family: str) -> None:
    model = tiny_model(family, seed=2).to(torch.float64)
    values = waves(5, 64 + 16).double()
    whole = Batch(values[:, :64], values[:, 64:])
    batches = [Batch(whole.context[:3], whole.target[:3]), Batch(whole.context[3:], whole.target[3:])]  # type: ignore[index]
    for group, unit in units(model):
        means = ablating.dataset_means(model, batches, [group])
        off = ablating.losses(model, batches, ablating.without(group, [unit]), means)
        torch.testing.assert_close(off, by_hand(model, batches, group, unit), rtol=1e-9, atol=1e-10)
        assert not torch.allclose(off, ablating.losses(model, batches, ablating.without(group, [unit])))
    assert all(not gate.used and gate.fill is None for gate in model.modules() if isinstance(gate, Gate))


def test_tokens_that_the_model_hides_are_not_in_the_mean() -> None:
    model = tiny_model("chronos2").to(torch.float64)
    values = waves(2, 64 + 16).double()
    context = values[:, :64].clone()
    context[:, :40] = torch.nan  # patches of 8 steps, hidden since nothing in them was observed
    group = next(iter(ablating.groups_of(model, "ffn").values()))
    whole = ablating.dataset_means(model, [Batch(context, values[:, 64:])], [group])
    short = ablating.dataset_means(model, [Batch(context[:, 40:], values[:, 64:])], [group])
    torch.testing.assert_close(whole[group.gates[0]], short[group.gates[0]], rtol=1e-6, atol=1e-6)


# ---- the probe


def test_the_probe_costs_what_it_says_and_agrees_with_the_score_and_with_slim_models() -> None:
    model = tiny_model("chronos_bolt", seed=2)
    batch = tiny_batch(4)
    study, probe = study_of(model, halves(batch)), lens.find("ablation")
    with counted(model, windows=True) as calls:
        found, ticks = ran(probe, study)
    assert sum(calls.values()) == batch.rows * probe.passes(study) == batch.rows * ticks
    json.dumps(found.to_json(), allow_nan=False)
    assert {measure.unit for measure in found.measures} == set(KINDS)
    score = scores(model, study.first, kinds=KINDS)
    for name, values in score.items():
        assert found.facts["zero"]["loss"][name] == pytest.approx(values.tolist(), abs=1e-5)
    name = "decoder.block.1.layer.2/ffn"
    truth, smaller = ablating.truth([batch]), slim(model, {name: []})
    whole, cut = ablating.medians(model, [batch]), ablating.medians(smaller, [batch])
    seen = ~truth.isnan()
    error = [float((paths - truth)[seen].square().mean()) for paths in (cut, whole)]
    assert found.facts["zero"]["error"][name] == [pytest.approx(error[0] / error[1], rel=1e-4)]
    order = [1 - stats.spearmanr(a, b).statistic for a, b in zip(whole.numpy(), cut.numpy(), strict=True)]
    assert found.facts["zero"]["order"][name] == [pytest.approx(sum(order) / 4, abs=0.02)]
    assert found.facts["mean"]["loss"][name] != found.facts["zero"]["loss"][name]


def test_a_model_without_attention_has_only_its_feed_forward_parts_off() -> None:
    model = tiny_model("ttm")
    found, _ = ran(lens.find("ablation"), study_of(model, [tiny_batch(2, length=64)]))
    assert {measure.unit for measure in found.measures} == {"ffn"}
    assert lens.find("ablation").refusal(model) == ""


# ---- shapes of forecasts

ROWS = st.lists(st.integers(0, 4), min_size=7, max_size=7)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(first=ROWS, second=ROWS)
def test_distances_equal_scipy_with_ties(first: list[int], second: list[int]) -> None:
    a, b = torch.tensor([first]).double(), torch.tensor([second]).double()
    assert average_ranks(a)[0].tolist() == stats.rankdata(first).tolist()
    found = float(similarity.spearman_distance(a, b))
    flat = [len(set(row)) == 1 for row in (first, second)]
    if any(flat):
        assert found == (0 if all(flat) else 1)
    else:
        assert found == pytest.approx(1 - stats.spearmanr(first, second).statistic, abs=1e-12)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(rows=st.lists(st.tuples(ROWS, ROWS), min_size=1, max_size=4))
def test_rank_correlations_row_by_row_and_of_one_vector_equal_scipy(rows: list[tuple[list[int], list[int]]]) -> None:
    a, b = (torch.tensor([pair[side] for pair in rows]).double() for side in (0, 1))
    for found, (first, second) in zip(rank_correlations(a, b).tolist(), rows, strict=True):
        alone = spearman(torch.tensor(first), torch.tensor(second))
        if len(set(first)) == 1 or len(set(second)) == 1:
            assert alone is None and found != found
        else:
            assert alone == found == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)


def test_a_forecast_that_collapsed_to_a_line_is_at_distance_one_even_with_rounding() -> None:
    wave = torch.sin(torch.arange(12.0))[None]
    line = 1000 + torch.rand(1, 12) * 1e-5
    assert float(similarity.spearman_distance(wave, line)) == 1
    assert float(similarity.spearman_distance(line, line + 5)) == 0
    assert float(similarity.spearman_distance(wave, 3 * wave + 1)) == 0
    assert float(similarity.spearman_distance(wave, -wave)) == 2
    assert float(similarity.spearman_distance(wave, wave.clone().fill_(torch.nan))) == 1
