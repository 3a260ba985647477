"""The masked form: uncut sizes that forecast what the slim model forecasts."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import tsprune
from tests.tiny import ALL_FAMILIES, grouped_batch, tiny_batch, tiny_model
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.exports._export import Request
from tsprune.exports._uncut import uncut
from tsprune.exports.masked import EXPORT
from tsprune.models import fingerprint
from tsprune.models._forecaster import Forecaster
from tsprune.progress import Progress
from tsprune.slimming import equivalence, slim

every_family = pytest.mark.parametrize("family", ALL_FAMILIES)
WHOLE = ("attention", "ffn", "layer")


def as_published(family: str, seed: int = 7) -> Forecaster:
    """A tiny model in which tensors that public checkpoints hold once are equal."""
    model = tiny_model(family, seed)
    state = model.state_dict()
    for names in model.stored_once():
        for name in names[1:]:
            state[name].copy_(state[names[0]])
    return model


APART = {family: tiny_model(family, seed=8) for family in ("chronos_bolt", "chronos_t5")}
MODELS = {family: as_published(family) for family in ALL_FAMILIES}


def fitting(model: Forecaster) -> Batch:
    """Windows of several series where the family takes them."""
    if not model.capabilities.multivariate:
        return tiny_batch()
    batch = grouped_batch()
    able = model.capabilities
    return Batch(
        tiny_batch(5).context,
        group_ids=batch.group_ids,
        future=batch.future if able.known_covariates else None,
        is_target=batch.is_target if able.past_covariates else None,
    )


def request(model: Forecaster, out: Path, **options: Any) -> Request:
    out.mkdir()
    return Request(model, "tiny", out, [fitting(model)], 18, Progress(quiet=True), options)


@st.composite
def cuts(draw: st.DrawFn, model: Forecaster) -> tuple[dict[str, list[int]], list[str]]:
    """Cuts of all kinds but experts, and which of the channels go by an index; nothing left is common."""
    kept: dict[str, list[int]] = {}
    for name, group in model.unit_groups().items():
        if group.kind == "expert":
            continue
        if group.kind in WHOLE:
            choice = draw(st.sampled_from(["whole"] * 6 + ["none"]))
        elif group.kind.endswith("_channel") and group.kind != "ffn_channel":
            choice = draw(st.sampled_from(["whole"] * 4 + ["some", "some", "none"]))
        else:
            choice = draw(st.sampled_from(["whole", "some", "some", "none"]))
        if choice == "none":
            kept[name] = list(range(group.floor))
        elif choice == "some":
            drawn = draw(st.lists(st.booleans(), min_size=group.units, max_size=group.units))
            kept[name] = [unit for unit, stays in enumerate(drawn) if stays or unit < group.floor]
    channels = [name for name in kept if name.endswith(("/in_channel", "/out_channel"))]
    return kept, [name for name in channels if draw(st.booleans())]


@every_family
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_uncut_form_forecasts_what_the_slim_model_forecasts(family: str, data: st.DataObject) -> None:
    model = MODELS[family]
    smaller = slim(model, *data.draw(cuts(model)))
    whole = uncut(smaller)
    sizes = {name: tensor.shape for name, tensor in whole.state_dict().items()}
    assert sizes == {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert whole.config == model.config
    assert whole.kept == {}
    found = equivalence(whole, smaller, {}, fitting(model), model.native_horizon + 2)
    assert found["relative_float64"] <= 1e-12, found
    assert found["relative"] <= 1e-5, found


@every_family
def test_what_stays_is_where_it_was_and_the_rest_is_zero(family: str) -> None:
    model = MODELS[family]
    kept = {
        name: list(range(0, group.units, 2))
        for name, group in model.unit_groups().items()
        if group.kind in ("head", "ffn_channel", "value_dim")
    }
    whole = uncut(slim(model, kept))
    before = model.state_dict()
    for name, tensor in whole.state_dict().items():
        changed = tensor != before[name]
        assert bool((tensor[changed] == 0).all()), name
    assert sum(int((p == 0).sum()) for p in whole.parameters()) > 0


@pytest.mark.parametrize("family", ["chronos2", "chronos_bolt", "ttm", "toto", "timer_xl"])
def test_what_is_written_loads_as_an_uncut_model(family: str, tmp_path: Path) -> None:
    model = MODELS[family]
    kinds = ("head", "ffn_channel")
    smaller = slim(model, {n: [1] for n, g in model.unit_groups().items() if g.kind in kinds})
    before = fingerprint(smaller)
    found = EXPORT.write(request(smaller, tmp_path / "out"))
    assert fingerprint(smaller) == before
    assert sorted(found["files"]) == ["config.json", "model.safetensors"]
    assert found["files"] == {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    again = tsprune.load(tmp_path / "out")
    assert again.kept == {}
    assert again.parameter_count() == model.parameter_count() == found["parameters"]["written"]
    assert found["parameters"]["slim"] == smaller.parameter_count()
    assert found["zeros"] >= model.parameter_count() - smaller.parameter_count()
    assert found["difference"]["float64"] <= 1e-12
    assert found["changed"] == {}
    batch = fitting(model)
    torch.testing.assert_close(again.forecast(batch, 18), smaller.forecast(batch, 18), rtol=1e-4, atol=1e-4)


def test_a_model_that_lost_nothing_is_written_as_it_is(tmp_path: Path) -> None:
    model = MODELS["chronos2"]
    EXPORT.write(request(model, tmp_path / "out"))
    assert fingerprint(tsprune.load(tmp_path / "out")) == fingerprint(model)


MOE = tiny_model("time_moe", num_experts=5)


def test_files_beside_the_weights_come_from_the_base(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for name in ("LICENSE", "generation_config.json", "model.safetensors", "README.md"):
        (base / name).write_text(name)
    found = EXPORT.write(request(MODELS["ttm"], tmp_path / "out", base=str(base)))
    assert found["copied"] == ["LICENSE", "generation_config.json"]
    assert (tmp_path / "out" / "LICENSE").read_text() == "LICENSE"
    with pytest.raises(TspruneError, match="--base nowhere is not a directory"):
        EXPORT.write(request(MODELS["ttm"], tmp_path / "other", base="nowhere"))


def experts_left(model: Forecaster, *kept: list[int]) -> Forecaster:
    """A model whose mixtures keep these experts, layer by layer."""
    names = [name for name, group in model.unit_groups().items() if group.kind == "expert"]
    return slim(model, dict(zip(names, kept, strict=True)))


def test_removed_experts_leave_the_config_where_all_layers_lost_equally_many(tmp_path: Path) -> None:
    smaller = experts_left(MOE, [0, 2, 3], [1, 2, 3])
    channels = next(n for n in smaller.unit_groups() if n.endswith("experts.3/ffn_channel"))
    smaller = slim(smaller, {channels: [2]})
    found = EXPORT.write(request(smaller, tmp_path / "out"))
    assert found["changed"] == {"num_experts": 3}
    assert found["notes"] == ["num_experts is 3 in config.json, it was 5"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_experts"] == 3
    assert found["difference"]["float64"] <= 1e-12


def test_a_layer_without_any_network_has_room_for_any_number_of_experts(tmp_path: Path) -> None:
    model = MOE
    names = list(model.unit_groups())
    branch = next(name for name in names if name.endswith("layers.0.layer.1/ffn"))
    experts = [name for name in names if name.endswith("/expert")]
    smaller = slim(model, {branch: [], experts[1]: [0, 3]})
    found = EXPORT.write(request(smaller, tmp_path / "out"))
    assert found["changed"] == {"num_experts": 2}
    assert found["difference"]["float64"] <= 1e-12


def test_experts_without_a_form_in_the_original_are_refused(tmp_path: Path) -> None:
    uneven = experts_left(MOE, [0, 2, 3], [1, 2])
    assert "layers have 2 and 3 experts left" in EXPORT.refusal(uneven)
    model = MODELS["moirai_moe"]
    names = [name for name, group in model.unit_groups().items() if group.kind == "expert"]
    fewer = slim(model, {name: [0, 2] for name in names})
    assert "the original of family moirai_moe always has" in EXPORT.refusal(fewer)
    with pytest.raises(TspruneError, match="experts"):
        EXPORT.write(request(fewer, tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("family", ["chronos_bolt", "chronos_t5"])
def test_tables_that_were_tuned_apart_get_heads_of_their_own(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    heads = [n for n in model.unit_groups() if n.startswith("encoder") and n.endswith("SelfAttention/head")]
    smaller = slim(model, {heads[0]: [0, 2], heads[1]: [0, 1]})
    found = EXPORT.write(request(smaller, tmp_path / "out"))
    # Head 0 of both layers wants a column there, the others have one each; a decoder's tables differ altogether.
    assert found["changed"] == {"num_heads": 4 if family == "chronos_bolt" else 6}
    assert found["difference"]["float64"] <= 1e-12
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert sum("encoder" in name and "relative_attention_bias" in name for name in stored) == 1


@pytest.mark.parametrize("family", ["chronos_bolt", "chronos_t5"])
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_tables_that_were_tuned_apart_are_no_hindrance_to_any_cut(family: str, data: st.DataObject) -> None:
    smaller = slim(APART[family], *data.draw(cuts(APART[family])))
    whole = uncut(smaller)
    assert all(
        torch.equal(whole.state_dict()[names[0]], whole.state_dict()[name])
        for names in whole.stored_once()
        for name in names
    )
    found = equivalence(whole, smaller, {}, tiny_batch(), 18)
    assert found["relative_float64"] <= 1e-12, found


def test_tables_that_were_tuned_apart_need_no_more_heads_where_no_layer_shares_them(tmp_path: Path) -> None:
    model = tiny_model("chronos_bolt")
    heads = [n for n in model.unit_groups() if n.startswith("encoder") and n.endswith("SelfAttention/head")]
    apart = slim(model, {name: [number % 3] for number, name in enumerate(heads)})
    found = EXPORT.write(request(apart, tmp_path / "out"))
    assert found["changed"] == {}
    assert found["difference"]["float64"] <= 1e-12


def test_equal_heads_of_different_layers_share_a_column_wherever_they_stand() -> None:
    model = tiny_model("chronos_bolt")
    first, second = (model.state_dict()[name] for name in model.stored_once()[0])
    second.copy_(first[:, [1, 2, 0]])
    whole = uncut(slim(model, {}))
    assert whole.config["num_heads"] == 3
    found = equivalence(whole, model, {}, tiny_batch(), 18)
    assert found["relative_float64"] <= 1e-12


def test_weights_of_another_size_than_the_plan_gives_are_refused() -> None:
    model = copy.deepcopy(slim(MODELS["ttm"], {}))
    name = next(n for n, g in model.unit_groups().items() if g.kind == "ffn_channel")
    odd: Any = slim(model, {name: [0]})
    odd.kept = {}
    with pytest.raises(TspruneError, match="does not have the size"):
        uncut(odd)
    assert "does not have the size" in EXPORT.refusal(odd)


def test_a_written_form_that_forecasts_something_else_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = slim(MODELS["ttm"], {})

    def spoilt(given: Forecaster) -> Forecaster:
        twin = copy.deepcopy(given)
        with torch.no_grad():
            next(twin.parameters()).add_(0.1)
        return twin

    monkeypatch.setattr("tsprune.exports.masked.uncut", spoilt)
    with pytest.raises(TspruneError, match="forecasts something else"):
        EXPORT.write(request(model, tmp_path / "out"))


def test_a_folded_model_is_refused_with_what_to_do() -> None:
    from tsprune.folding import fold

    folded, _ = fold(tiny_model("chronos_bolt"), single_series=True)
    assert "export the model from before --fold" in EXPORT.refusal(folded)
