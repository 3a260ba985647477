"""Plans and slimming: what is cut computes what was masked, and nothing else changes."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.tiny import FAMILIES, grouped_batch, tiny_batch, tiny_config, tiny_model
from tsprune import registry
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models import fingerprint, load, save
from tsprune.models._forecaster import Forecaster
from tsprune.plan import Plan, PlanGroup
from tsprune.slimming import compose, equivalence, make_plan, slim, slimmed_parameters

every_family = pytest.mark.parametrize("family", FAMILIES)
MODELS = {family: tiny_model(family, seed=3) for family in FAMILIES}
GATED = tiny_model("chronos_bolt", seed=4, feed_forward_proj="gated-gelu")


@st.composite
def plans(draw: st.DrawFn, model: Forecaster) -> dict[str, list[int]]:
    """Random plans in which empty heads, empty networks and whole branches and layers are common."""
    kept = {}
    for name, group in model.unit_groups().items():
        choice = draw(
            st.sampled_from(["whole", "whole", "some", "none"] if group.units > 1 else ["whole"] * 4 + ["none"])
        )
        if choice == "none":
            kept[name] = []
        elif choice == "some":
            kept[name] = sorted(draw(st.sets(st.integers(0, group.units - 1))))
        elif draw(st.booleans()):
            kept[name] = list(range(group.units))
    return kept


def check_equal(model: Forecaster, kept: dict[str, list[int]], batch: Batch) -> Forecaster:
    slimmed = slim(model, kept)
    found = equivalence(model, slimmed, kept, batch, 20)
    assert found["relative"] <= 1e-5, found
    assert slimmed.parameter_count() == slimmed_parameters(model, kept)
    return slimmed


@every_family
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_masked_equals_slim_for_random_plans(family: str, data: st.DataObject) -> None:
    model = MODELS[family]
    batch = grouped_batch() if model.capabilities.known_covariates else tiny_batch()
    check_equal(model, data.draw(plans(model)), batch)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_masked_equals_slim_for_gated_networks(data: st.DataObject) -> None:
    check_equal(GATED, data.draw(plans(GATED)), tiny_batch())


@every_family
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_slim_model_slimmed_again_equals_slimming_once_by_the_composed_plan(family: str, data: st.DataObject) -> None:
    model = MODELS[family]
    first = data.draw(plans(model))
    once = slim(model, first)
    second = data.draw(plans(once))
    twice = check_equal(once, second, tiny_batch())
    direct = slim(model, twice.kept)
    assert twice.kept == direct.kept
    assert fingerprint(twice) == fingerprint(direct)


@every_family
def test_masked_loss_and_gradients_equal_the_slim_ones(family: str) -> None:
    model, batch = tiny_model(family), tiny_batch()
    groups = model.unit_groups()
    kept = {name: list(range(1, group.units)) for name, group in groups.items() if group.units > 1}
    slimmed = slim(model, kept)
    with model.masked(kept):
        expected = model.loss(batch)
    expected.sum().backward()
    found = slimmed.loss(batch)
    found.sum().backward()
    torch.testing.assert_close(found, expected)
    for path in ("input_patch_embedding.hidden_layer", "output_patch_embedding.output_layer"):
        ours, theirs = (m.get_submodule(path).weight.grad for m in (slimmed, model))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@every_family
@pytest.mark.parametrize("explicit", [False, True])
def test_keeping_everything_gives_a_bit_equal_copy(family: str, explicit: bool) -> None:
    model, batch = tiny_model(family), tiny_batch()
    kept = {name: range(group.units) for name, group in model.unit_groups().items()} if explicit else {}
    twin = slim(model, kept)
    assert twin.kept == {}
    assert fingerprint(twin) == fingerprint(model)
    assert torch.equal(twin.forecast(batch, 40), model.forecast(batch, 40))


@every_family
def test_removing_everything_leaves_a_model_that_still_forecasts(family: str) -> None:
    model = tiny_model(family)
    kept: dict[str, list[int]] = {name: [] for name in model.unit_groups()}
    slimmed = check_equal(model, kept, tiny_batch())
    assert slimmed.unit_groups() == {}
    assert not [name for name in slimmed.state_dict() if ".layer." in name]
    assert slim(slimmed, {}).parameter_count() == slimmed.parameter_count()


@every_family
def test_branches_with_nothing_left_vanish_with_their_norm(family: str) -> None:
    model = tiny_model(family)
    groups = model.unit_groups()
    heads = next(name for name, group in groups.items() if group.kind == "head")
    branch = heads.rsplit(".", 1)[0]
    slimmed = slim(model, {heads: []})
    gone = set(model.state_dict()) - set(slimmed.state_dict())
    assert gone == {name for name in model.state_dict() if name.startswith(branch + ".")}
    assert f"{branch}.layer_norm.weight" in gone


@every_family
def test_slimming_leaves_the_model_and_shares_no_memory_with_it(family: str) -> None:
    model, batch = tiny_model(family), tiny_batch()
    before, plain = fingerprint(model), model.forecast(batch, 16)
    heads = next(name for name, group in model.unit_groups().items() if group.kind == "head")
    slimmed = slim(model, {heads: [1]})
    with torch.no_grad():
        for parameter in slimmed.parameters():
            parameter.fill_(9.0)
    slimmed.config["chronos_config"]["context_length"] = 1
    assert fingerprint(model) == before
    assert model.config["chronos_config"]["context_length"] == 64
    assert torch.equal(model.forecast(batch, 16), plain)
    assert model.kept == {}


@every_family
def test_slimming_leaves_the_random_state_alone(family: str) -> None:
    model = tiny_model(family)
    before = torch.get_rng_state()
    slim(model, {name: [] for name in model.unit_groups()})
    assert torch.equal(torch.get_rng_state(), before)


@every_family
def test_deep_copies_are_independent(family: str) -> None:
    model, batch = tiny_model(family), tiny_batch()
    plain = model.forecast(batch, 16)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        next(twin.parameters()).fill_(9.0)
    name = next(iter(twin.unit_groups()))
    with twin.masked({name: []}):
        assert torch.equal(model.forecast(batch, 16), plain)


@every_family
def test_masks_taps_and_frozen_weights_of_the_input_are_handled(family: str) -> None:
    model = tiny_model(family)
    frozen = next(iter(model.parameters())).requires_grad_(False)
    heads = next(name for name, group in model.unit_groups().items() if group.kind == "head")
    with model.masked({heads: [0]}):
        slimmed = slim(model, {})
        assert model.unit_groups()[heads].gates[0].mask is not None
        assert all(gate.mask is None for group in slimmed.unit_groups().values() for gate in group.gates)
    assert [p.requires_grad for p in slimmed.parameters()] == [p.requires_grad for p in model.parameters()]
    assert not frozen.requires_grad


def test_slimming_48_million_parameters_takes_less_than_a_second() -> None:
    sizes = {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_decoder_layers": 6, "num_heads": 8}
    with torch.device("meta"):
        model = registry.find("tsprune.models", "chronos_bolt").FAMILY.from_config(
            tiny_config("chronos_bolt", **sizes, input_patch_size=16, prediction_length=64)
        )
    model = model.to_empty(device="cpu")
    assert model.parameter_count() > 44e6
    groups = model.unit_groups()
    kept = {n: range(g.units // 2) for n, g in groups.items() if g.kind in ("head", "ffn_channel")}
    started = time.process_time()
    slimmed = slim(model, kept)
    assert time.process_time() - started < 1.0
    assert slimmed.parameter_count() < 0.6 * model.parameter_count()


@every_family
def test_units_and_groups_that_do_not_exist_are_refused_by_name(family: str) -> None:
    model = tiny_model(family)
    heads = next(name for name, group in model.unit_groups().items() if group.kind == "head")
    with pytest.raises(TspruneError, match="nowhere/head"):
        slim(model, {"nowhere/head": [0]})
    with pytest.raises(TspruneError, match="unit 3 does not exist"):
        slim(model, {heads: [0, 3]})


@every_family
def test_equivalence_notices_a_slim_model_that_is_wrong(family: str) -> None:
    model = tiny_model(family)
    heads = next(name for name, group in model.unit_groups().items() if group.kind == "head")
    found = equivalence(model, slim(model, {heads: [0]}), {heads: [1]}, tiny_batch(), 16)
    assert found["relative"] > 1e-3
    assert found["windows"] == 4


def some_plan(model: Forecaster) -> Plan:
    groups = model.unit_groups()
    kept: dict[str, list[int]] = {n: list(range(0, g.units, 2)) for n, g in groups.items() if g.units > 1}
    first = next(n for n, g in groups.items() if g.kind == "head")
    kept[first] = []
    kept[next(n for n, g in reversed(groups.items()) if g.kind == "ffn")] = []
    return make_plan(model, kept, base_model="tiny", score="random", schedule="oneshot", seed=5)


@every_family
def test_a_plan_predicts_the_parameters_of_the_slim_model(family: str) -> None:
    model = tiny_model(family)
    plan = some_plan(model)
    slimmed = slim(model, plan)
    assert plan.parameters == {"before": model.parameter_count(), "after": slimmed.parameter_count()}
    assert plan.flops["after"] < plan.flops["before"]


@every_family
def test_a_plan_survives_writing_and_reading(family: str, tmp_path: Path) -> None:
    plan = some_plan(tiny_model(family))
    plan.write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json") == plan
    assert json.loads(plan.to_json())["schema"] == 1
    empty = make_plan(tiny_model(family), {}, base_model="tiny")
    assert Plan.from_json(empty.to_json()) == empty


@every_family
def test_a_plan_for_other_sizes_lists_the_groups_that_do_not_fit(family: str) -> None:
    plan = some_plan(tiny_model(family, num_heads=4))
    with pytest.raises(TspruneError, match=r"head \(4 units, the model has 3\)"):
        slim(tiny_model(family), plan)
    deeper = some_plan(tiny_model(family, num_layers=3))
    with pytest.raises(TspruneError, match=r"block\.2.*no such group"):
        deeper.check(tiny_model(family))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"schema": 2}, "schema"),
        ({"seed": "x"}, "seed"),
        ({"family": None}, "family"),
        ({"parameters": {"before": 3}}, "after"),
        ({"groups": []}, "groups"),
        ({"groups": {"a/head": {"kind": "head", "units": 2, "kept": [2]}}}, "a/head.*0 to 1"),
        ({"groups": {"a/head": {"kind": "head", "units": 2, "kept": [1, 0]}}}, "a/head.*increasing"),
        ({"groups": {"a/head": {"kind": "head", "units": 2, "kept": [True]}}}, "a/head.*True"),
        ({"groups": {"a/head": {"kind": "ffn", "units": 2, "kept": []}}}, "a/head.*kind"),
        ({"groups": {"a/head": {"kind": "head", "units": 0, "kept": []}}}, "a/head.*units"),
        ({"groups": {"a/head": 3}}, "a/head"),
    ],
)
def test_a_damaged_plan_names_the_entry(change: dict[str, Any], named: str) -> None:
    good = json.loads(make_plan(tiny_model("chronos2"), {}, base_model="tiny").to_json())
    with pytest.raises(TspruneError, match=f"my.json.*{named}"):
        Plan.from_json(json.dumps(good | change), "my.json")


def test_a_plan_that_is_not_json_or_not_there_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(TspruneError, match="not valid JSON"):
        Plan.from_json("{")
    with pytest.raises(TspruneError, match="nowhere"):
        Plan.read(tmp_path / "nowhere.json")


def test_composed_plans_count_in_units_of_the_first_model() -> None:
    assert compose({"a": [1, 3, 5]}, {"a": [0, 2], "b": [4]}) == {"a": (1, 5), "b": (4,)}


FRESH = """
import sys, tsprune.models
from safetensors.torch import save_file
from tests.tiny import tiny_batch
save_file({"forecast": tsprune.models.load(sys.argv[1]).forecast(tiny_batch(), 40).contiguous()}, sys.argv[2])
"""


@every_family
def test_a_slim_checkpoint_gives_bit_equal_forecasts_in_a_fresh_process(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    plan = some_plan(model)
    slimmed = slim(model, plan)
    save(slimmed, tmp_path / "slim", plan)
    assert sorted(p.name for p in (tmp_path / "slim").iterdir()) == ["config.json", "model.safetensors", "plan.json"]
    root = Path(__file__).resolve().parents[1]
    code = f"import sys; sys.path[:0] = [{str(root)!r}, {str(root / 'src')!r}]\n{FRESH}"
    subprocess.run([sys.executable, "-c", code, tmp_path / "slim", tmp_path / "out"], check=True)
    assert torch.equal(load_file(tmp_path / "out")["forecast"], slimmed.forecast(tiny_batch(), 40))


@every_family
def test_a_checkpoint_slimmed_twice_reloads_alone_and_keeps_the_facts_of_its_plan(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    save(slim(model, some_plan(model)), tmp_path / "one")
    once = load(tmp_path / "one")
    plan = some_plan(once)
    twice = slim(once, plan)
    save(twice, tmp_path / "two", plan)
    again = load(tmp_path / "two")
    assert fingerprint(again) == fingerprint(twice)
    assert again.kept == twice.kept
    written = Plan.read(tmp_path / "two" / "plan.json")
    assert (written.score, written.seed) == ("random", 5)
    assert written.parameters == {"before": model.parameter_count(), "after": twice.parameter_count()}


@every_family
def test_saving_a_whole_model_with_a_plan_that_cuts_it_is_refused(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    with pytest.raises(TspruneError, match="save the slim model"):
        save(model, tmp_path / "wrong", some_plan(model))
    assert list(tmp_path.iterdir()) == []


def test_plan_groups_compare_by_value() -> None:
    assert PlanGroup("head", 3, (0, 2)) == PlanGroup("head", 3, (0, 2))
