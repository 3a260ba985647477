"""Low-rank adapters: really peft's, merged without a trace, on slim models with nothing left in places."""

from __future__ import annotations

import functools
import importlib.util
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

import tsprune
from tests.sines import VALIDATION, Counted, Killed, Sines, dying, same, weights
from tests.tiny import FAMILIES, tiny_batch, tiny_model
from tsprune.adapters import NAME, AdapterTrainee, _pattern, adapted_paths
from tsprune.errors import TspruneError
from tsprune.finetuning import Tuned, finetune
from tsprune.models._forecaster import Forecaster
from tsprune.pruning import validation_loss
from tsprune.settings import FinetuneSettings
from tsprune.slimming import slim

pytest.importorskip("peft", reason="the extra lora is not installed")

every_family = pytest.mark.parametrize("family", FAMILIES)
LORA = FinetuneSettings(
    tuning="lora",
    steps=6,
    search_steps=4,
    learning_rates=(1e-3, 1e-2),
    batch=6,
    evaluations=3,
    patience=9,
    lora_rank=3,
    lora_alpha=6.0,
)


def tune(model: Forecaster, settings: FinetuneSettings = LORA, train: Any = None, **more: Any) -> Tuned:
    return finetune(model, train or Sines(), VALIDATION, settings, **more)


def shaken(subject: AdapterTrainee, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random values for all adapters, B included, which starts at zero."""
    draw = torch.Generator().manual_seed(seed)
    return {name: 0.3 * torch.randn(value.shape, generator=draw) for name, value in subject.tensors().items()}


def half(model: Forecaster) -> Forecaster:
    """Half of the heads and channels, the first of either kind gone altogether."""
    kept: dict[str, Sequence[int]] = {}
    for kind in ("head", "ffn_channel"):
        names = [name for name, group in model.unit_groups().items() if group.kind == kind]
        kept |= {name: range(model.unit_groups()[name].units // 2) for name in names} | {names[0]: []}
    return slim(model, {name: list(units) for name, units in kept.items()})


@every_family
@pytest.mark.parametrize("cut", [False, True])
def test_when_adapters_are_merged_then_forecasts_are_those_of_the_unmerged_network(family: str, cut: bool) -> None:
    model = half(tiny_model(family)) if cut else tiny_model(family)
    subject = AdapterTrainee(model, LORA, 0)
    values, batch = shaken(subject), tiny_batch()
    subject.load(values)
    subject.network.eval()
    unmerged = subject.network.forecast(batch, 16)
    merged = subject.ordinary(values)
    found = merged.forecast(batch, 16)
    assert float((found - unmerged).abs().max()) < 1e-5 * float(unmerged.std())
    assert float((found - model.forecast(batch, 16)).abs().max()) > 1e-2 * float(unmerged.std())


@every_family
@pytest.mark.parametrize("seed", range(3))
def test_when_units_of_every_kind_are_gone_then_merged_is_unmerged_and_sizes_stay(family: str, seed: int) -> None:
    model, draw = tiny_model(family, seed=1), random.Random(seed)
    kept = {}
    for name, group in model.unit_groups().items():
        if group.units > 1 and draw.random() < 0.6:
            kept[name] = sorted(draw.sample(range(group.units), draw.randint(max(1, group.units // 2), group.units)))
    small = slim(model, kept)
    subject = AdapterTrainee(small, LORA, 0)
    # In float64, so that rounding hides nothing.
    subject.network.double()
    subject.plain.double()
    subject.load(shaken(subject, seed))
    subject.settle()
    values, batch = subject.values(), tiny_batch()
    unmerged = subject.network.eval().forecast(batch, 16)
    merged = subject.ordinary(values)
    assert float((merged.forecast(batch, 16) - unmerged).abs().max()) < 1e-10 * float(unmerged.std())
    assert merged.parameter_count() == small.parameter_count()
    for path, module in small.named_modules():
        dead = getattr(module, "dead", {})
        weight = getattr(merged.get_submodule(path), "weight", None)
        if isinstance(weight, torch.Tensor) and dead:
            assert not weight[list(dead["out_channel"])].any()
            assert not weight[:, list(dead["in_channel"])].any()


@every_family
def test_when_adapters_are_merged_then_weights_are_the_sum_written_out(family: str) -> None:
    model = tiny_model(family)
    subject = AdapterTrainee(model, LORA, 0)
    values = shaken(subject)
    found, before = weights(subject.ordinary(values)), weights(model)
    paths = {f"{path}.weight" for path in adapted_paths(model)}
    assert paths < set(before)
    for name, value in before.items():
        if name in paths:
            path = name.removesuffix(".weight")
            a, b = (values[f"{path}.lora_{part}.{NAME}.weight"] for part in "AB")
            assert a.shape[0] == b.shape[1] == 3
            torch.testing.assert_close(found[name], value + 6.0 / 3 * (b @ a))
        else:
            assert torch.equal(found[name], value)


def test_when_maps_are_listed_then_they_are_those_of_attention_and_feed_forward() -> None:
    model = tiny_model("chronos_bolt")
    expected = {
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and path.startswith(("encoder.block", "decoder.block"))
    }
    assert set(adapted_paths(model)) == expected
    # Two layers each: q, k, v, o once in the encoder and twice in the decoder, two maps of the feed-forward.
    assert len(expected) == 2 * (4 + 2) + 2 * (8 + 2)


def test_when_adapters_are_put_in_then_they_are_those_of_peft_and_nowhere_else() -> None:
    from peft.tuners.lora import LoraLayer

    model = half(tiny_model("chronos2"))
    subject = AdapterTrainee(model, LORA, 0)
    found = {path for path, module in subject.network.named_modules() if isinstance(module, LoraLayer)}
    assert found == set(adapted_paths(model))
    empty = [p for p, m in model.named_modules() if isinstance(m, nn.Linear) and not m.weight.numel()]
    assert not found & set(empty)
    assert all(not p.requires_grad for n, p in subject.network.named_parameters() if ".lora_" not in n)


def test_when_paths_end_alike_then_only_the_named_ones_fit() -> None:
    import re

    pattern = _pattern(["block.0.q", "block.1.q"])
    assert [bool(re.fullmatch(pattern, p)) for p in ("block.0.q", "block.1.q", "a.block.0.q", "block.0xq")] == [
        True,
        True,
        False,
        False,
    ]


@every_family
def test_when_lora_tunes_then_an_ordinary_model_comes_back_and_is_reloaded_without_peft(
    family: str, tmp_path: Path
) -> None:
    model = half(tiny_model(family, seed=1, dropout_rate=0.1))
    state = torch.get_rng_state()
    tuned = tune(model, replace(LORA, dropout=0.0))
    assert torch.equal(torch.get_rng_state(), state)
    assert tuned.best.best_step > 0
    assert tuned.best.validation_loss == validation_loss(tuned.model, VALIDATION) < validation_loss(model, VALIDATION)
    assert weights(tuned.model).keys() == weights(model).keys()
    assert type(tuned.model) is type(model)
    assert not [m for m in tuned.model.modules() if "peft" in type(m).__module__]
    assert not hasattr(tuned.model, "peft_config")
    assert all(p.requires_grad for p in tuned.model.parameters())
    tsprune.save(tuned.model, tmp_path / "model")
    again = tsprune.load(tmp_path / "model")
    assert torch.equal(again.forecast(tiny_batch(), 16), tuned.model.forecast(tiny_batch(), 16))


def test_when_a_rate_is_absurd_then_the_model_comes_back_bit_equal() -> None:
    whole = FinetuneSettings(steps=40, search_steps=0, learning_rates=(4e-3,), batch=16, evaluations=2)
    model = tune(tiny_model("chronos2", seed=1), whole).model
    tuned = tune(model, replace(LORA, learning_rates=(500.0, 900.0)))
    assert tuned.best.best_step == 0
    assert same(weights(tuned.model), weights(model))


@functools.cache
def uninterrupted(family: str) -> Tuned:
    return tune(tiny_model(family, dropout_rate=0.2), seed=1)


@pytest.mark.parametrize("at", [1, 4, 7])
@every_family
def test_when_lora_is_killed_at_a_validation_then_it_continues_to_bit_equal_weights(
    family: str, at: int, tmp_path: Path
) -> None:
    model = tiny_model(family, dropout_rate=0.2)
    with pytest.raises(Killed):
        tune(model, seed=1, directory=tmp_path, report=dying(at))
    torch.manual_seed(99 + at)
    found = tune(model, seed=1, directory=tmp_path)
    assert same(weights(found.model), weights(uninterrupted(family).model))
    assert found.trials == uninterrupted(family).trials


@pytest.mark.parametrize("at", [1, 6, 11])
def test_when_lora_is_killed_between_validations_then_it_ends_the_same(at: int, tmp_path: Path) -> None:
    model = tiny_model("chronos2", dropout_rate=0.2)
    with pytest.raises(Killed):
        tune(model, train=Counted(at), seed=1, directory=tmp_path)
    found = tune(model, seed=1, directory=tmp_path)
    assert same(weights(found.model), weights(uninterrupted("chronos2").model))


def test_when_lora_is_checkpointed_then_the_file_holds_adapters_alone(tmp_path: Path) -> None:
    model = tiny_model("chronos2")
    tune(model, directory=tmp_path)
    expected = sum(3 * (m.in_features + m.out_features) for m in map(model.get_submodule, adapted_paths(model)))  # type: ignore[operator]
    with safe_open(next(tmp_path.glob("full-*.safetensors")), framework="pt") as file:
        stored = sum(file.get_tensor(name).numel() for name in file.keys() if name.startswith("model."))
    assert stored == expected


def test_when_a_map_reads_and_writes_by_index_then_so_does_its_adapter() -> None:
    """The adapted map, against the same map with its channels laid out in full."""
    from tsprune.adapters import _follow_indices

    class Indexed(nn.Linear):
        reads, writes, span = torch.tensor([0, 2, 5]), torch.tensor([1, 3]), 4

        def forward(self, x: torch.Tensor, rows: Any = None) -> torch.Tensor:
            out = super().forward(x[..., self.reads])
            return out.new_zeros(*out.shape[:-1], 4).index_copy(-1, self.writes, out)

    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(0)
    holder = nn.ModuleDict({"map": Indexed(3, 2)})
    layer: Any = inject_adapter_in_model(LoraConfig(r=2, lora_alpha=4, target_modules=["map"]), holder)["map"]  # type: ignore[index]
    _follow_indices(layer)
    nn.init.normal_(layer.lora_B[NAME].weight)
    x = torch.randn(5, 6)
    whole = torch.zeros(4, 6)
    merged = layer.base_layer.weight + 2.0 * layer.lora_B[NAME].weight @ layer.lora_A[NAME].weight
    whole[torch.tensor([1, 3])[:, None], torch.tensor([0, 2, 5])] = merged.detach()
    bias = torch.zeros(4).index_copy(0, torch.tensor([1, 3]), layer.base_layer.bias.detach())
    torch.testing.assert_close(layer(x, None), x @ whole.T + bias)


def test_when_channels_were_pruned_by_zeroing_then_adapters_keep_them_zero() -> None:
    model = tiny_model("chronos2", seed=1)
    path = adapted_paths(model)[0]
    layer: Any = model.get_submodule(path)
    layer.dead = {"in_channel": (1, 4), "out_channel": (0,)}
    with torch.no_grad():
        layer.weight[0] = 0
        layer.weight[:, [1, 4]] = 0
    tuned: Any = tune(model).model.get_submodule(path)
    assert not torch.equal(tuned.weight, layer.weight)
    assert not tuned.weight[0].any()
    assert not tuned.weight[:, [1, 4]].any()


def test_when_nothing_is_left_to_adapt_then_lora_is_refused() -> None:
    model = tiny_model("chronos2")
    kept = {name: [] for name, group in model.unit_groups().items() if group.kind in ("head", "ffn_channel")}
    with pytest.raises(TspruneError, match=r"--tuning lora: nothing is left .* --tuning full or head"):
        tune(slim(model, kept))


def test_when_peft_is_missing_then_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "peft" else real(name, *more))
    with pytest.raises(TspruneError, match=r"pip install 'tsprune\[lora\]'"):
        tune(tiny_model("chronos2"))
