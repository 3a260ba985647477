"""What only TimesFM promises: roll-out, spread far ahead, flips, clamps, trends, frequencies, versions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tsprune
from tests import test_families as contract
from tests.families import timesfm as facts
from tests.tiny import tiny_batch, tiny_model, waves
from tsprune.blocks.patching import fill_gaps
from tsprune.blocks.rowscale import RowScale
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._timesfm2 import TIMESCALES, TimesFM2
from tsprune.models._timesfm2_5 import TimesFM25, running_moments
from tsprune.models.timesfm import TimesFM

PATCH, HORIZON, CONTEXT = 8, 16, 64


def older(seed: int = 0, **changes: Any) -> TimesFM2:
    model = tiny_model("timesfm", seed, **changes)
    assert isinstance(model, TimesFM2)
    return model


def newer(seed: int = 0, **changes: Any) -> TimesFM25:
    model = tiny_model("timesfm", seed, **(facts.newer() | changes))
    assert isinstance(model, TimesFM25)
    return model


both = pytest.mark.parametrize("build", [older, newer])
Build = Callable[..., TimesFM2 | TimesFM25]


def contract_tests() -> list[Callable[..., None]]:
    """Those that every family takes with nothing but its name, and those that also need a folder."""
    found = []
    for name, test in inspect.getmembers(contract, inspect.isfunction):
        taken = set(inspect.signature(test).parameters) - {"family", "tmp_path"}
        if name.startswith("test_") and not taken and "family" in inspect.signature(test).parameters:
            found.append(test)
    return found


@pytest.mark.parametrize("test", contract_tests(), ids=lambda test: test.__name__)
def test_the_newer_generation_keeps_the_contract_of_all_families_too(
    test: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(facts, "FAMILY", replace(facts.FAMILY, config=facts.newer))
    wants_folder = "tmp_path" in inspect.signature(test).parameters
    test("timesfm", **({"tmp_path": tmp_path} if wants_folder else {}))


@pytest.mark.parametrize("seed", range(3))
def test_a_slim_model_of_the_newer_generation_equals_its_mask(
    seed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(facts, "FAMILY", replace(facts.FAMILY, config=facts.newer))
    contract.test_a_slim_model_equals_its_mask_and_reloads_bit_equal("timesfm", seed, tmp_path)


def test_configs_of_both_generations_build_their_network_and_others_are_not_recognised() -> None:
    assert isinstance(TimesFM.from_config(facts.config()), TimesFM2)
    assert isinstance(TimesFM.from_config(facts.newer()), TimesFM25)
    assert isinstance(TimesFM.from_config(facts.newer() | {"architectures": None}), TimesFM25)
    assert not TimesFM.recognises(facts.config() | {"architectures": ["TimesFmModel"]})
    assert not TimesFM.recognises({"model_type": "t5"})


@both
def test_beyond_one_horizon_the_point_forecast_is_fed_back(build: Build) -> None:
    model = build()
    context = waves(3, 60)
    first, _, scale = model(context)
    point = scale.invert(first)[:, model.point]
    assert model.point == (5 if isinstance(model, TimesFM25) else 0)
    second, _, scale = model(torch.cat([context, point], dim=1)[:, -CONTEXT:])
    second = scale.invert(second)
    found = model.forecast(Batch(context), 2 * HORIZON)
    if isinstance(model, TimesFM25):
        torch.testing.assert_close(found[:, model.point - 1, HORIZON:], second[:, model.point])
    else:
        torch.testing.assert_close(found[..., HORIZON:], second[:, 1:])


def test_the_spread_of_the_first_pass_reaches_as_far_as_its_head_and_no_further() -> None:
    model = newer(output_quantile_len=24)
    context = waves(3, 60)
    _, offsets, scale = model(context)
    assert offsets is not None
    assert offsets.shape == (3, 10, 24)
    found = model.forecast(Batch(context), 2 * HORIZON)
    median = found[:, [4]]
    distance = offsets[:, 1:] * scale.scale[:, :, None]
    torch.testing.assert_close(found[..., :24] - median[..., :24], distance, rtol=1e-4, atol=1e-4)
    point = found[:, 4, :HORIZON]
    later, _, scale = model(torch.cat([context, point], dim=1)[:, -CONTEXT:])
    torch.testing.assert_close(found[..., 24:], scale.invert(later)[:, 1:, 24 - HORIZON :], rtol=1e-4, atol=1e-4)


def test_without_the_spread_head_the_quantiles_are_those_of_the_first_head() -> None:
    model = newer()
    plain = newer(use_continuous_quantile_head=False)
    with_head, without = (m.forecast(tiny_batch(), HORIZON) for m in (model, plain))
    torch.testing.assert_close(with_head[:, 4], without[:, 4])
    assert not torch.allclose(with_head[:, 0], without[:, 0])


@pytest.mark.parametrize("horizon", [HORIZON, 40])
def test_a_series_upside_down_gets_the_forecast_upside_down(horizon: int) -> None:
    context = waves(3, 60)
    for flip in (True, False):
        model = newer(force_flip_invariance=flip)
        turned = -model.forecast(Batch(-context), horizon).flip(1)
        assert torch.allclose(turned, model.forecast(Batch(context), horizon), rtol=1e-4, atol=1e-3) == flip


@both
def test_only_rows_without_negative_values_are_clamped(build: Build) -> None:
    name = "infer_is_positive" if build is newer else "truncate_negative"
    plain, clamped = build(**{name: False}), build(**{name: True})
    context = torch.rand(2, 48)
    context[1, 3] = -0.2
    free, held = plain.forecast(Batch(context), 40), clamped.forecast(Batch(context), 40)
    assert bool((free < 0).any(-1).all(-1).any())
    assert torch.equal(held[0], free[0].clamp(min=0))
    assert torch.equal(held[1], free[1])
    torch.testing.assert_close(clamped.forecast(Batch(context[:1]), 40), held[:1], rtol=1e-4, atol=1e-4)


@both
def test_with_a_window_trend_and_rest_are_forecast_apart_and_added(build: Build) -> None:
    context = waves(3, CONTEXT)
    kernel = torch.nn.functional.pad(context, (4, 0))
    trend = torch.stack([kernel[:, step : step + 5].mean(1) for step in range(CONTEXT)], dim=1)
    plain, cut = build(), build(window_size=5)
    apart = plain.forecast(Batch(trend), HORIZON) + plain.forecast(Batch(context - trend), HORIZON)
    torch.testing.assert_close(cut.forecast(Batch(context), HORIZON), apart, rtol=1e-4, atol=1e-3)
    assert len(cut.network_windows(Batch(context))) == 2 * len(plain.network_windows(Batch(context)))


def test_the_frequency_class_comes_from_the_config_or_is_set_for_each_row() -> None:
    batch = tiny_batch(3)
    low, high = (older(frequency=number).forecast(batch, HORIZON) for number in (0, 2))
    assert not torch.allclose(low, high)
    assert torch.equal(older().forecast(batch, HORIZON), low)
    model = older()
    model.frequency = torch.tensor([2, 0, 2])
    torch.testing.assert_close(model.forecast(batch, HORIZON), torch.stack([high[0], low[1], high[2]]))


@pytest.mark.parametrize(("version", "spread"), [("4.57.6", 1.0), ("5.0.0", 1e-6), ("4.50.0.dev0", 1.0), (None, 1e-6)])
def test_a_first_patch_without_spread_is_scaled_as_the_release_that_wrote_the_config_does(
    version: str | None, spread: float
) -> None:
    model = older(transformers_version=version)
    flat = torch.full((1, 24), 2.5)
    forecast = model.forecast(Batch(flat), HORIZON) - 2.5
    usual = older(transformers_version="4.0").forecast(Batch(flat), HORIZON) - 2.5
    torch.testing.assert_close(forecast, usual * spread, rtol=1e-4, atol=3e-7)
    assert float(usual.abs().mean()) > 0.1


def test_the_first_patch_with_three_values_scales_a_row() -> None:
    model = older()
    context = waves(2, 24)
    context[0, :5] = torch.nan  # three values in the first patch: they scale
    context[1, :6] = torch.nan  # two: the second patch scales
    values, observed = model.filled(context)
    patches, held = values.view(2, -1, PATCH), observed.view(2, -1, PATCH)
    location, spread = model._first_patch(patches, held)
    chosen = [context[0, 5:8], context[1, 8:16]]
    torch.testing.assert_close(location[:, 0], torch.stack([part.mean() for part in chosen]))
    torch.testing.assert_close(spread[:, 0], torch.stack([part.std(correction=0) for part in chosen]))


@both
def test_gaps_are_straight_lines_and_ends_repeat_the_last_value(build: Build) -> None:
    model, context = build(), waves(3, 50)
    context[0, 10:17] = torch.nan
    context[1, -5:] = torch.nan
    filled = Batch(fill_gaps(context.double()))
    assert torch.equal(model.forecast(Batch(context), 40), model.forecast(filled, 40).float())
    assert not model.capabilities.missing_values


@both
@pytest.mark.parametrize("objective", ["own", "mse"])
def test_the_loss_is_what_its_formula_says_on_the_instance_scale(build: Build, objective: str) -> None:
    model = build()
    model.objective = objective
    batch = tiny_batch(3, length=48)
    assert batch.target is not None
    entries, _, scale = model(batch.context)
    entries, target = entries.detach().double(), scale.apply(batch.target).double()
    expected = []
    for row in range(3):
        terms = []
        for step in range(HORIZON):
            wanted = target[row, step]
            if torch.isnan(wanted):
                continue
            mean, *quantiles = entries[row, :, step]
            errors = [wanted - quantile for quantile in quantiles]
            pinball = [max(level * e, (level - 1) * e) for level, e in zip(model.levels, errors, strict=True)]
            own = (mean - wanted) ** 2 + torch.stack(pinball).mean()
            terms.append(own if objective == "own" else errors[4] ** 2)
        expected.append(torch.stack(terms).mean())
    torch.testing.assert_close(model.loss(batch).detach().double(), torch.stack(expected), rtol=1e-5, atol=1e-6)


@both
def test_the_loss_does_not_depend_on_the_unit_of_the_series(build: Build) -> None:
    model, batch = build(), tiny_batch(3, length=48)
    assert batch.target is not None
    other = Batch(batch.context * 2000 - 7e4, batch.target * 2000 - 7e4)
    torch.testing.assert_close(model.loss(other), model.loss(batch), rtol=1e-3, atol=1e-3)


@both
@pytest.mark.parametrize("level", [0.0, 0.1, 3e5])
def test_constant_rows_do_not_rule_the_loss_and_are_forecast_as_they_are(build: Build, level: float) -> None:
    model = build()
    context = torch.full((1, 48), level)
    assert float(model.loss(Batch(context, context[:, :HORIZON] + 0.5 * level + 0.5)).detach()) < 100
    torch.testing.assert_close(model.forecast(Batch(context), 40), torch.full((1, 9, 40), level), rtol=1e-6, atol=1e-4)


def test_scaling_by_the_padded_window_as_upstream_cancels_out() -> None:
    model = newer().double()
    context = torch.nn.functional.pad(waves(3, 21), (CONTEXT - 21, 0), value=torch.nan).double()
    padded = context.nan_to_num(0.0)
    scale = RowScale(padded.mean(1, keepdim=True), padded.std(1, keepdim=True))
    (ours, _, own), (theirs, _, _) = model(context), model(context, scale=scale)
    assert float((own.scale / scale.scale - 1).abs().max()) > 0.05
    torch.testing.assert_close(scale.invert(theirs), own.invert(ours), rtol=1e-9, atol=1e-9)


@settings(max_examples=60)
@given(st.integers(0, 40), st.integers(1, 5), st.floats(-50, 50), st.integers(0, 1000))
def test_running_moments_equal_those_of_all_values_so_far(padding: int, tokens: int, shift: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(tokens * PATCH, generator=draw, dtype=torch.float64) + shift
    held = torch.arange(tokens * PATCH) >= padding
    mean, deviation = running_moments(values.view(1, tokens, PATCH), held.view(1, tokens, PATCH))
    for token in range(tokens):
        upto = values[: (token + 1) * PATCH][held[: (token + 1) * PATCH]]
        expected = (upto.mean(), upto.std(correction=0)) if len(upto) else (torch.zeros(()), torch.zeros(()))
        for found, wanted in zip((mean, deviation), expected, strict=True):
            torch.testing.assert_close(found[0, token], wanted.double(), rtol=1e-6, atol=1e-6)


def test_files_say_ff0_and_modules_of_the_public_code_say_fc1_and_both_load() -> None:
    model = newer()
    written = model.tensors_to_public()
    assert "model.layers.0.mlp.ff0.weight" in written
    assert "output_projection_point.input_layer.weight" in written
    renamed = {name.replace("ff0", "fc1").replace("ff1", "fc2"): tensor for name, tensor in written.items()}
    assert renamed.keys() != written.keys()
    back = model.tensors_from_public(renamed)
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())


def test_the_table_of_position_frequencies_is_written_where_upstream_has_it_and_never_needed(tmp_path: Path) -> None:
    model = older(use_positional_embedding=True)
    assert model.tensors_to_public()[TIMESCALES].shape == (12,)
    assert TIMESCALES not in older().tensors_to_public()
    tsprune.save(model, tmp_path / "model")
    again = tsprune.load(tmp_path / "model")
    assert torch.equal(again.forecast(tiny_batch(), 20), model.forecast(tiny_batch(), 20))


def test_positions_count_from_the_first_patch_that_is_not_padding() -> None:
    model = older(use_positional_embedding=True)
    seen = torch.tensor([[False, False, True, True], [True, True, True, True]])
    places: Tensor = model._positions(seen)
    torch.testing.assert_close(places[0, 2:], places[1, :2])
    torch.testing.assert_close(places[1, 3, 0], torch.tensor(3.0).sin())
    torch.testing.assert_close(places[1, 3, 12], torch.tensor(3.0).cos())


def test_a_value_equal_to_the_padding_value_is_padding_wherever_it_stands() -> None:
    model, context = older(pad_val=77.0), waves(1, 32)
    one, other = context.clone(), context.clone()
    one[0, 16:24], other[0, 16:24] = 77.0, torch.tensor([77.0, 77.0, 77.0, 77.0, 77.0, 77.0, 77.0, 1.0])
    values, observed = model.filled(one)
    assert observed.tolist() == [[True] * 16 + [False] * 8 + [True] * 8]
    assert float(values[0, 16:24].abs().max()) == 0
    assert not torch.allclose(model.forecast(Batch(one), 8), model.forecast(Batch(other), 8))


def test_options_that_the_network_does_not_have_are_refused_by_name() -> None:
    with pytest.raises(TspruneError, match="rope_type 'linear'"):
        newer(rope_parameters={"rope_type": "linear", "factor": 2.0})
    with pytest.raises(TspruneError, match="frequency 7"):
        older(frequency=7)


def test_the_option_of_a_longer_context_widens_that_of_the_config() -> None:
    series = waves(2, 112)
    inputs = {"past_values.0": series[0], "past_values.1": series[1, :70]}
    option = {"kwargs": {"forecast_context_len": 96}}
    narrow, wide = newer(context_length=64), newer(context_length=96)
    with torch.no_grad():
        found = facts.TwoFive().forward(narrow, inputs, option)
        expected = facts.TwoFive().forward(wide, inputs, {})
    torch.testing.assert_close(found, expected)
