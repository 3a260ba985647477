"""Folded attentions against the attentions they were made of, and what else can be done with them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.tiny import tiny_batch, tiny_model
from tsprune.blocks.across import AcrossSeriesAttention, Groups, SingleStepAttention
from tsprune.blocks.attention import Attention
from tsprune.blocks.branch import Branch
from tsprune.blocks.folded import FoldedAttention, thin
from tsprune.blocks.norms import RMSNorm
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.evaluation.cost import flops, parameters
from tsprune.folding import LEFT, ONE_MAP, TWO_MAPS, fold, folding_error
from tsprune.models import fingerprint, load, save
from tsprune.models._forecaster import Forecaster
from tsprune.models._fresh import without_memory
from tsprune.registry import find
from tsprune.slimming import meta_twin, slim

D = 6
FOLDED = ("chronos2", "chronos_bolt", "toto")
MODELS = {family: tiny_model(family, seed=3) for family in FOLDED}
foldable = pytest.mark.parametrize("family", FOLDED)


def attention(kind: type[Attention], **options: Any) -> Attention:
    """In float64, every weight and bias random."""
    torch.manual_seed(5)
    found = kind(D, 4, 3, **options).double()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.normal_()
    return found


def tokens() -> Tensor:
    return torch.randn(3, 1, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def as_double(batch: Batch) -> Batch:
    return replace(batch, context=batch.context.double(), target=None)


@st.composite
def cuts(draw: st.DrawFn, sizes: dict[str, int]) -> dict[str, list[int]]:
    """Units that stay, by kind or group; often all of them, at times none."""
    chosen = {}
    for name, size in sizes.items():
        if draw(st.booleans()):
            chosen[name] = sorted(draw(st.sets(st.integers(0, size - 1)) if size else st.just(set())))
    return chosen


@pytest.mark.parametrize("kind", [AcrossSeriesAttention, SingleStepAttention])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_the_map_is_what_the_attention_computes_whatever_was_cut(kind: type[Attention], data: st.DataObject) -> None:
    form = data.draw(
        st.sampled_from(
            [{}, {"bias": True}, {"kv_heads": 2, "bias": True}, {"kv_heads": 1, "out_bias": True}, {"out_bias": False}]
        )
    )
    whole = attention(kind, **form)
    names = {group.name.removeprefix("/"): group.units for group in whole.unit_groups("")}
    kept = data.draw(cuts(names))
    indexed = data.draw(st.sets(st.sampled_from([".v/in_channel", ".o/out_channel", ".q/in_channel"])))
    block = whole.cut(kept, indexed)
    folded = FoldedAttention.of(block, D)
    torch.testing.assert_close(folded(tokens()), block(tokens()), rtol=1e-12, atol=1e-12)
    assert (folded.map.bias is None) == (block.v.bias is None and block.o.bias is None)


def test_a_map_by_hand_with_grouped_values() -> None:
    block = attention(AcrossSeriesAttention, kv_heads=2, bias=True)
    weight, shift = torch.zeros(D, D, dtype=torch.float64), block.o.bias.detach().clone()
    for head in range(4):
        out, rows = block.o.weight[:, 3 * head : 3 * head + 3], slice(3 * (head // 2), 3 * (head // 2) + 3)
        weight += out.detach() @ block.v.weight[rows].detach()
        shift += out.detach() @ block.v.bias[rows].detach()
    folded = FoldedAttention.of(block, D)
    torch.testing.assert_close(folded.map.weight.detach(), weight, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(folded.map.bias.detach(), shift, rtol=1e-12, atol=1e-12)


def test_folding_draws_nothing_and_keeps_what_trains() -> None:
    block = attention(SingleStepAttention, bias=True).requires_grad_(False)
    before = torch.get_rng_state()
    assert not any(parameter.requires_grad for parameter in FoldedAttention.of(block, D).parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_folded_map_takes_rows_that_are_alone_and_refuses_groups() -> None:
    block = attention(AcrossSeriesAttention)
    folded = FoldedAttention.of(block, D)
    alone, pair = (Groups.of(torch.tensor(ids)) for ids in ([4, 9, 1], [4, 9, 4]))
    torch.testing.assert_close(folded(tokens(), groups=alone), block(tokens(), groups=alone), rtol=1e-12, atol=1e-12)
    with pytest.raises(TspruneError, match="folded for single series, and the batch has groups of up to 2 rows"):
        folded(tokens(), groups=pair)


def test_a_new_branch_around_a_folded_map_is_an_attention() -> None:
    branch = Branch("self_attention", FoldedAttention.of(attention(SingleStepAttention), D), RMSNorm(D, 1e-6), D)
    assert [(group.name, group.units) for group in branch.unit_groups("at")] == [("at/attention", 1)]
    assert branch.tidy() is branch


@foldable
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_folded_forecasts_equal_those_of_the_cut_model(family: str, data: st.DataObject) -> None:
    model = MODELS[family]
    kinds = ("head", "value_dim", "qk_pair", "attention", "ffn_channel")
    sizes = {name: group.units for name, group in model.unit_groups().items() if group.kind in kinds}
    small = slim(model, data.draw(cuts(sizes)))
    before = fingerprint(small)
    folded, found = fold(small, single_series=True)
    assert fingerprint(small) == before
    # Toto's draws and its inverted mixtures amplify what rounding does in float32; one patch is quicker, too.
    error = folding_error(small, folded, tiny_batch(), 16 if family == "toto" else 20)
    assert error["relative"] <= (1e-4 if family == "toto" else 1e-5)
    assert error["relative_float64"] <= 1e-12
    assert tuple(folded.folded) == found.paths
    assert [found.before, found.after] == [parameters(small), parameters(folded)]
    assert found.before - found.after == sum(place.before - place.after for place in found.places)
    assert all((place.before > place.after) == (place.form != LEFT) for place in found.places)


@foldable
def test_a_folded_model_is_smaller_and_computes_less(family: str) -> None:
    model = MODELS[family]
    folded, found = fold(model, single_series=True)
    assert [place.form for place in found.places] == [ONE_MAP, ONE_MAP]
    assert parameters(folded) == found.after < found.before == parameters(model)
    assert flops(folded, 44, 16) < flops(model, 44, 16)
    assert "2 attentions of one live key became one linear map each" in found.words()
    assert f"{found.before:,} -> {found.after:,} parameters" in found.words()
    assert fold(meta_twin(model), single_series=True)[1] == found


@foldable
def test_a_saved_folded_model_loads_from_its_own_files_bit_equal(family: str, tmp_path: Path) -> None:
    model, batch = MODELS[family], tiny_batch()
    path = next(iter(fold(model, single_series=True)[1].paths))
    name = next(iter(n for n in model.unit_groups() if n.endswith("/ffn_channel")))
    uneven = {f"{path}/head": [0, 2], f"{path}/value_dim": list(range(0, 16, 2)), name: [1, 3]}
    small = slim(model, uneven, [f"{path}.v/in_channel"])
    # Cut and folded, folded and cut again, folded alone.
    again = slim(fold(small, single_series=True)[0], {name: [1]})
    for folded in (fold(small, single_series=True)[0], again, fold(model, single_series=True)[0]):
        loaded = load(save(folded, tmp_path / "model"))
        assert fingerprint(loaded) == fingerprint(folded)
        assert list(loaded.folded) == list(folded.folded)
        assert torch.equal(loaded.forecast(batch, 20), folded.forecast(batch, 20))
        assert loaded.mixes_series == folded.mixes_series


def test_files_of_models_that_are_not_folded_do_not_mention_it(tmp_path: Path) -> None:
    model = MODELS["chronos_bolt"]
    save(slim(model, {"decoder.block.0.layer.0.SelfAttention/head": [0]}), tmp_path / "slim")
    assert "folded" not in json.loads((tmp_path / "slim" / "plan.json").read_text())
    save(model, tmp_path / "whole")
    assert not (tmp_path / "whole" / "plan.json").exists()


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (
            "decoder.block.7.layer.0.SelfAttention",
            "'decoder.block.7.layer.0.SelfAttention', which is no attention of one",
        ),
        ("decoder.block.0.layer.1.EncDecAttention", "such are: decoder.block.0.layer.0.SelfAttention"),
        (3, "folded holds 3, expected paths"),
    ],
)
def test_a_checkpoint_that_names_another_folded_attention_is_refused(path: Any, says: str, tmp_path: Path) -> None:
    place = save(fold(MODELS["chronos_bolt"], single_series=True)[0], tmp_path / "model") / "plan.json"
    plan = json.loads(place.read_text())
    place.write_text(json.dumps(plan | {"folded": [path]}))
    with pytest.raises(TspruneError, match=says):
        load(tmp_path / "model")


@foldable
def test_the_branch_of_a_folded_attention_can_go_whole(family: str, tmp_path: Path) -> None:
    folded = fold(MODELS[family], single_series=True)[0].double()
    path = next(iter(folded.folded))
    home = path.rpartition(".")[0]
    kinds = {group.kind for name, group in folded.unit_groups().items() if name.startswith((f"{path}/", f"{home}/"))}
    assert kinds == {"attention"}
    group = folded.unit_groups()[f"{home}/attention"]
    norm = folded.get_submodule(f"{home}.layer_norm")
    assert group.parameters == sum(p.numel() for p in [*folded.folded[path].parameters(), *norm.parameters()])
    kept: dict[str, list[int]] = {group.name: []}
    smaller, batch = slim(folded, kept), as_double(tiny_batch())
    assert parameters(folded) - parameters(smaller) == group.parameters
    with folded.masked(kept):
        expected = folded.forecast(batch, 16)
    torch.testing.assert_close(smaller.forecast(batch, 16), expected, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(folded.forecast(batch, 16), expected)
    assert path not in smaller.folded
    assert fingerprint(load(save(smaller, tmp_path / "model"), dtype="float64")) == fingerprint(smaller)


@pytest.mark.parametrize("score", ["magnitude", "fisher", "ablation", "send", "stable_rank", "head_norm"])
def test_scores_take_a_folded_model(score: str) -> None:
    model, module = fold(MODELS["chronos2"], single_series=True)[0], find("tsprune.scores", score)
    able = getattr(module, "KINDS", None) or ("attention",)
    kind = "attention" if "attention" in able else "head"
    values = module.scores(model, [tiny_batch()], kinds=[kind], seed=0)
    assert set(values) == {name for name, group in model.unit_groups().items() if group.kind == kind}
    assert all(bool(torch.isfinite(value).all()) for value in values.values())


@pytest.mark.parametrize("family", ["chronos2", "toto"])
def test_groups_are_refused_and_attention_across_series_is_left_where_they_may_come(family: str) -> None:
    model, ids = MODELS[family], torch.tensor([0, 0, 1, 1])
    folded = fold(model, single_series=True)[0]
    batch = replace(tiny_batch(), group_ids=ids)
    with pytest.raises(TspruneError, match="folded for single series"):
        folded.forecast(batch, 16)
    assert model.mixes_series
    assert not folded.mixes_series
    same, found = fold(model, single_series=False)
    assert [place.form for place in found.places] == [LEFT, LEFT]
    assert "several series" in found.why
    assert fingerprint(same) == fingerprint(model)
    assert torch.equal(same.forecast(batch, 16), model.forecast(batch, 16))


def test_a_decoder_of_one_step_is_folded_on_groups_as_well() -> None:
    assert len(fold(MODELS["chronos_bolt"], single_series=False)[1].paths) == 2


def test_thin_products_stay_products_without_queries_and_keys(tmp_path: Path) -> None:
    model = MODELS["chronos2"]
    paths = fold(model, single_series=True)[1].paths
    width = int(model.config["d_model"])
    # One value entry less than the limit and at it: 2 D r <= D D.
    small = slim(model, {f"{paths[0]}/value_dim": list(range(width // 2)), f"{paths[1]}/value_dim": list(range(13))})
    attentions = [small.get_submodule(path) for path in paths]
    assert [thin(a, width) for a in attentions if isinstance(a, Attention)] == [True, False]
    folded, found = fold(small, single_series=True)
    assert [place.form for place in found.places] == [TWO_MAPS, ONE_MAP]
    assert "576 weights, one map would hold 576" in found.places[0].why
    assert found.dropped == paths[:1]
    left = folded.get_submodule(paths[0])
    assert isinstance(left, Attention)
    assert left.q.weight.numel() == left.k.weight.numel() == 0
    assert torch.equal(left.v.weight, attentions[0].v.weight)  # type: ignore[union-attr]
    assert folding_error(small, folded, tiny_batch(), 20)["relative_float64"] <= 1e-12
    assert fingerprint(load(save(folded, tmp_path / "model"))) == fingerprint(folded)
    assert "1 attention of one live key became one linear map and 1 attention" in found.words()
    # What is thin and has lost its queries and keys cannot get any smaller.
    thinner = slim(
        model, {f"{path}/{kind}": kept for path in paths for kind, kept in (("value_dim", [0]), ("qk_pair", []))}
    )
    same, nothing = fold(thinner, single_series=True)
    assert fingerprint(same) == fingerprint(thinner)
    assert "no queries and keys are left" in nothing.why


def test_models_without_such_an_attention_say_so() -> None:
    for family in ("chronos_t5", "ttm"):
        model = tiny_model(family)
        same, found = fold(model, single_series=True)
        assert not found.places
        assert f"this {family} model has no attention" in found.why
        assert found.words() == f"nothing was folded: {found.why}"
        assert fingerprint(same) == fingerprint(model)
    twice = fold(fold(MODELS["chronos_bolt"], single_series=True)[0], single_series=True)[1]
    assert twice.why == "2 attentions of one live key were folded before"


@foldable
def test_a_folded_map_learns_what_its_product_would_be_told(family: str) -> None:
    """dL/dO is dL/dW V^T, plus dL/db c^T where the values have a bias c."""
    model = MODELS[family]
    model, batch = slim(model, {}).double(), tiny_batch()
    batch = replace(
        batch, context=batch.context.double(), target=None if batch.target is None else batch.target.double()
    )
    folded = fold(model, single_series=True)[0]
    for network in (model, folded):
        network.loss(batch).sum().backward()
    for path, inner in folded.folded.items():
        gradient, before = inner.map.weight.grad, model.get_submodule(path)
        assert gradient is not None
        assert float(gradient.abs().max()) > 0
        assert isinstance(before, Attention)
        assert before.o.weight.grad is not None
        told = gradient @ before.v.weight.detach().T
        if inner.map.bias is not None:
            assert inner.map.bias.grad is not None
            told += torch.outer(inner.map.bias.grad, before.v.bias.detach())
        torch.testing.assert_close(told, before.o.weight.grad, rtol=1e-6, atol=1e-8)


def test_steps_change_a_folded_map_and_adapters_find_it() -> None:
    from tsprune.adapters import adapted_paths

    model = fold(MODELS["chronos_bolt"], single_series=True)[0]
    path, inner = next(iter(model.folded.items()))
    before, batch = inner.map.weight.detach().clone(), tiny_batch()
    optimiser = torch.optim.SGD(model.parameters(), 1e-3)
    losses = []
    for _ in range(3):
        optimiser.zero_grad()
        loss = model.loss(batch).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert not torch.equal(inner.map.weight, before)
    assert f"{path}.map" in adapted_paths(model)


def test_half_precision_keeps_its_type_and_meta_models_fold_without_memory() -> None:
    half = fold(slim(MODELS["chronos2"], {}).to(torch.bfloat16), single_series=True)[0]
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    with without_memory():
        empty = type(MODELS["chronos2"]).from_config(MODELS["chronos2"].config)
    folded: Forecaster = fold(empty, single_series=True)[0]
    assert all(isinstance(a.map, nn.Linear) and a.map.weight.is_meta for a in folded.folded.values())


def test_the_lens_counts_a_folded_attention_as_one_of_one_live_key() -> None:
    from tsprune.lens.send import _mask_gradients, _names

    model = fold(MODELS["chronos2"], single_series=True)[0]
    homes = [f"{path.rpartition('.')[0]}/attention" for path in model.folded]
    seen = _mask_gradients(model, [tiny_batch(seed=1), tiny_batch(seed=2)])
    assert set(homes) < set(_names(model))
    assert {name for name, alone in seen.alone.items() if alone} == set(homes)
