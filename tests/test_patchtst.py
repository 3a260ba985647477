"""What only PatchTST promises: batch norms, patches counted from the end, channels apart, distributions, training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tsprune
from tests import test_families as contract
from tests.families import patchtst as facts
from tests.tiny import tiny_batch, tiny_model, waves
from tsprune.blocks.norms import ChannelBatchNorm
from tsprune.blocks.patching import fill_gaps
from tsprune.data.batch import Batch
from tsprune.models._patchtst_network import above_zero
from tsprune.models.patchtst import DECILES, PatchTST
from tsprune.slimming import slim

HORIZON, CONTEXT = 16, 64
VARIANTS = facts.FAMILY.variants
STUDENT, NORMAL = ({"loss": "nll", "distribution_output": name} for name in ("student_t", "normal"))
PROMISES = [
    contract.test_every_unit_matters_when_masked_and_comes_back_afterwards,
    contract.test_the_cost_of_a_unit_is_what_the_model_loses_with_it,
    contract.test_tensors_go_to_the_public_layout_and_back,
    contract.test_own_levels_come_back_bit_equal_and_others_lie_between,
    contract.test_bfloat16_runs_and_stays_near_float32,
    contract.test_rows_of_different_length_in_one_batch_equal_each_row_alone,
]


def patchtst(seed: int = 0, **changes: Any) -> PatchTST:
    model = tiny_model("patchtst", seed, **changes)
    assert isinstance(model, PatchTST)
    return model


@pytest.mark.parametrize("variant", VARIANTS, ids=range(len(VARIANTS)))
@pytest.mark.parametrize("test", PROMISES, ids=lambda test: test.__name__)
def test_every_variant_keeps_the_contract(
    test: Callable[[str], None], variant: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "FAMILY", replace(facts.FAMILY, config=lambda: facts.config() | dict(variant)))
    test("patchtst")


@pytest.mark.parametrize("variant", VARIANTS, ids=range(len(VARIANTS)))
@pytest.mark.parametrize("seed", range(2))
def test_a_slim_model_of_every_variant_equals_its_mask(
    seed: int, variant: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(facts, "FAMILY", replace(facts.FAMILY, config=lambda: facts.config() | dict(variant)))
    contract.test_a_slim_model_equals_its_mask_and_reloads_bit_equal("patchtst", seed, tmp_path)


def test_patches_are_counted_from_the_end_and_older_points_only_scale() -> None:
    context = waves(2, 61)
    changed = context.clone()
    changed[:, :5] += 50.0
    for scaling in (None, "std"):
        model = patchtst(context_length=61, scaling=scaling)
        plain, moved = model.forecast(Batch(context), HORIZON), model.forecast(Batch(changed), HORIZON)
        assert torch.equal(plain, moved) == (scaling is None)
    changed[:, 5] += 50.0
    assert not torch.equal(patchtst(context_length=61, scaling=None).forecast(Batch(changed), HORIZON), moved)


def test_overlapping_patches_give_as_many_tokens_as_fit() -> None:
    model = patchtst(patch_length=10, patch_stride=6)
    seen: list[Tensor] = []
    handle = model.get_submodule("model.encoder.embedder.input_embedding").register_forward_pre_hook(
        lambda _, given: seen.append(given[0])
    )
    values = torch.arange(CONTEXT, dtype=torch.float32)[None]
    model.network(values)
    handle.remove()
    assert seen[0].shape == (1, 10, 10)
    assert seen[0][0, :, 0].tolist() == list(range(0, 55, 6))
    assert float(seen[0][0, -1, -1]) == CONTEXT - 1


def test_gaps_are_straight_lines_and_what_lacks_in_front_is_the_location() -> None:
    model, context = patchtst(), waves(2, CONTEXT)
    context[0, 30:37] = torch.nan
    filled = Batch(fill_gaps(context.double()))
    assert torch.equal(model.forecast(Batch(context), HORIZON), model.forecast(filled, HORIZON).float())
    short = waves(1, 40)
    scaled = torch.nn.functional.pad((short - short.mean()) / (short.var(correction=0) + 1e-5).sqrt(), (24, 0))
    expected = model.network(scaled)[:, 0] * (short.var(correction=0) + 1e-5).sqrt() + short.mean()
    torch.testing.assert_close(model.forecast(Batch(short), HORIZON)[:, 0], expected)


def test_beyond_one_horizon_the_forecast_is_fed_back() -> None:
    model, context = patchtst(), waves(3, CONTEXT)
    first = model.forecast(Batch(context), HORIZON)[:, 0]
    second = model.forecast(Batch(torch.cat([context, first], dim=1)), HORIZON)[:, 0]
    torch.testing.assert_close(model.forecast(Batch(context), 2 * HORIZON)[:, 0], torch.cat([first, second], dim=1))


def test_batch_norms_use_stored_statistics_in_a_forecast_and_collect_them_in_training(tmp_path: Path) -> None:
    model = patchtst()
    before = {name: value.clone() for name, value in model.named_buffers()}
    names = [name for name in before if name.endswith("running_mean")]
    assert len(names) == sum(isinstance(module, ChannelBatchNorm) for module in model.modules()) == 4
    model.train().forecast(tiny_batch(), HORIZON)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    model.loss(Batch(waves(8, CONTEXT), waves(8, HORIZON)))
    assert not any(torch.equal(dict(model.named_buffers())[name], before[name]) for name in names)
    plain = model.eval().forecast(tiny_batch(), HORIZON)
    tsprune.save(model, tmp_path / "trained")
    assert torch.equal(tsprune.load(tmp_path / "trained").forecast(tiny_batch(), HORIZON), plain)
    smaller = slim(model, {"model.encoder.layers.0.layer.0.self_attn/head": [1, 2]})
    assert all(torch.equal(dict(smaller.named_buffers())[name], value) for name, value in model.named_buffers())


def test_sinusoids_are_centred_with_deviation_one_tenth_and_never_trained() -> None:
    model = patchtst()
    table = model.get_submodule("model.encoder.positional_encoder").position_enc
    assert isinstance(table, Tensor)
    assert table.shape == (8, 24)
    assert "model.encoder.positional_encoder.position_enc" in model.tensors_to_public()
    assert not table.requires_grad
    assert not isinstance(table, torch.nn.Parameter)
    torch.testing.assert_close(table.mean(), torch.tensor(0.0), atol=1e-7, rtol=0)
    torch.testing.assert_close(table.std(), torch.tensor(0.1))
    places = torch.arange(8.0)
    for channel, wave in ((0, places.sin()), (1, places.cos()), (22, (places * 10000 ** (-22 / 24)).sin())):
        torch.testing.assert_close(torch.corrcoef(torch.stack([table[:, channel], wave]))[0, 1], torch.tensor(1.0))
    learned = patchtst(positional_encoding_type="random").get_submodule("model.encoder.positional_encoder").position_enc
    assert isinstance(learned, torch.nn.Parameter)


def test_only_a_model_that_reads_one_token_cannot_do_without_attention() -> None:
    assert patchtst().essential() == []
    (paths,) = patchtst(use_cls_token=True).essential()
    model = patchtst(use_cls_token=True)
    assert [type(model.get_submodule(path)).__name__ for path in paths] == ["Attention", "Attention"]


@pytest.mark.parametrize("changes", [{}, {"scaling": None}, {"scaling": "mean"}], ids=str)
def test_the_loss_is_the_squared_error_on_the_instance_scale(changes: dict[str, Any]) -> None:
    model, batch = patchtst(**changes), tiny_batch(3, length=48)
    assert batch.target is not None
    forecast = model.forecast(batch, HORIZON)[:, 0].double()
    for row, found in enumerate(model.loss(batch).detach()):
        context = batch.context[row].double()
        context = fill_gaps(context)
        spread = context[~torch.isnan(context)].std()
        error = ((forecast[row] - batch.target[row]) / spread)[~torch.isnan(batch.target[row])]
        torch.testing.assert_close(found.double(), error.square().mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scaling", ["std", "mean"])
def test_constant_rows_do_not_rule_the_loss(scaling: str) -> None:
    model = patchtst(scaling=scaling)
    for level in (0.0, 0.1, 2.0):
        context = torch.full((1, CONTEXT), level)
        assert float(model.loss(Batch(context, context[:, :HORIZON] + 0.5 * level + 0.5)).detach()) < 300


@pytest.mark.parametrize("changes", [STUDENT, NORMAL], ids=["student_t", "normal"])
def test_a_distribution_has_the_likelihood_and_the_deciles_of_its_textbook_form(changes: dict[str, Any]) -> None:
    model, batch = patchtst(**changes), Batch(waves(3, CONTEXT), waves(3, HORIZON, seed=4))
    assert batch.target is not None
    out, scale, own = model(batch.context)
    out = out.detach()
    squareplus = (out + (out.square() + 4).sqrt()) / 2
    if changes is STUDENT:
        textbook: Any = torch.distributions.StudentT(2 + squareplus[:, 0], out[:, 1], squareplus[:, 2])
    else:
        textbook = torch.distributions.Normal(out[:, 0], squareplus[:, 1])
    density = textbook.log_prob(scale.apply(batch.target)) - (scale.scale / own.scale).log()
    torch.testing.assert_close(model.loss(batch).detach(), -density.mean(-1), rtol=1e-4, atol=1e-4)
    found = model.forecast(batch, HORIZON)
    assert model.levels == DECILES
    assert model.capabilities.quantiles
    torch.testing.assert_close(found[:, 4], scale.invert(textbook.loc))
    draws = scale.invert(textbook.sample((4000,)).transpose(0, 1).flatten(1)).view(3, 4000, HORIZON)
    share = (draws[:, None] <= found[:, :, None]).double().mean(2)
    levels = torch.tensor(DECILES, dtype=torch.float64)[None, :, None].expand_as(share)
    torch.testing.assert_close(share, levels, rtol=0, atol=0.05)
    model.objective = "mse"
    median = ((found[:, 4] - batch.target) / own.scale).square().mean(-1)
    torch.testing.assert_close(model.loss(batch).detach(), median, rtol=1e-4, atol=1e-4)


def test_the_way_to_positive_numbers_has_no_cancellation_and_no_gap_in_its_gradient() -> None:
    x = torch.tensor([-3e4, -5.0, -1e-3, 0.0, 1e-3, 5.0, 3e4], requires_grad=True)
    wide = x.detach().double()
    expected = (wide + (wide.square() + 4).sqrt()) / 2
    torch.testing.assert_close(above_zero(x).double(), expected, rtol=2e-6, atol=0)
    above_zero(x).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    slope = 0.5 * (1 + wide / (wide.square() + 4).sqrt())
    torch.testing.assert_close(x.grad.double(), slope, rtol=1e-5, atol=1e-8)


def test_a_fresh_model_of_the_published_settings_learns_sines_of_any_phase() -> None:
    torch.manual_seed(0)
    small = {"d_model": 16, "num_attention_heads": 4, "ffn_dim": 128, "num_hidden_layers": 3}
    rates = {"attention_dropout": 0.0, "ff_dropout": 0.3, "path_dropout": 0.3, "head_dropout": 0.0}
    model = PatchTST.from_config(facts.config() | small | rates | {"patch_length": 16, "patch_stride": 8}).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def sines() -> Batch:
        phase, period = 6.3 * torch.rand(32, 1), 8 + 16 * torch.rand(32, 1)
        values = torch.sin(6.2832 * torch.arange(CONTEXT + HORIZON) / period + phase)
        return Batch(values[:, :CONTEXT], values[:, CONTEXT:])

    for _ in range(150):
        optimizer.zero_grad()
        model.loss(sines()).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        assert float(model.eval().loss(sines()).mean()) < 0.25
