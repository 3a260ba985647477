"""What only TinyTimeMixer promises: windows of a fixed number of series, missing values, resolutions, losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tsprune
from tests.tiny import shared_path, tiny_config, waves
from tsprune.blocks.mixer import Mixer
from tsprune.blocks.observed import ObservedScale
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models.ttm import TTM
from tsprune.scores._taps import gate_gradients
from tsprune.slimming import make_plan, slim

MIXING = {"num_input_channels": 3, "decoder_mode": "mix_channel"}
PREFIX = {"resolution_prefix_tuning": True, "frequency_token_vocab_size": 10}


def model_of(seed: int = 0, **changes: Any) -> TTM:
    torch.manual_seed(seed)
    model = TTM.from_config(tiny_config("ttm", **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def windows_of_three(steps: int = 16) -> Batch:
    """Two windows of three series, their rows in turn, with a gap and missing targets."""
    values = waves(6, 50 + steps)
    context, target = values[:, :50].clone(), values[:, 50:].clone()
    context[1, 20:30] = torch.nan
    context[4, :25] = torch.nan
    target[2, ::3] = torch.nan
    return Batch(context, target, torch.tensor([8, 1, 8, 1, 1, 8]))


def test_series_of_a_window_inform_each_other_and_those_of_others_do_not() -> None:
    model, batch = model_of(**MIXING), windows_of_three()
    plain = model.forecast(batch, 40)
    changed = batch.context.clone()
    changed[0] = 100 - 3 * changed[0]
    moved = model.forecast(replace(batch, context=changed), 40)
    same = [torch.equal(moved[row], plain[row]) for row in range(6)]
    assert same == [False, True, False, True, True, False]


def test_windows_may_come_in_any_order_and_their_rows_in_turn() -> None:
    model, batch = model_of(**MIXING), windows_of_three()
    assert batch.target is not None
    plain, losses = model.forecast(batch, 40), model.loss(batch)
    order = torch.tensor([1, 3, 4, 0, 2, 5])
    sorted_batch = Batch(batch.context[order], batch.target[order], torch.tensor([0, 0, 0, 5, 5, 5]))
    torch.testing.assert_close(model.forecast(sorted_batch, 40), plain[order])
    torch.testing.assert_close(model.loss(sorted_batch), losses.flip(0))
    rows = torch.tensor([0, 2, 5])
    alone = Batch(batch.context[rows], batch.target[rows], torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(model.forecast(alone, 40), plain[rows])
    torch.testing.assert_close(model.loss(alone), losses[:1])


@pytest.mark.parametrize("changes", [MIXING, MIXING | {"mode": "mix_channel", "use_decoder": False}])
def test_windows_of_another_number_of_series_are_refused(changes: Mapping[str, Any]) -> None:
    model, batch = model_of(**changes), windows_of_three()
    assert model.capabilities.multivariate
    with pytest.raises(TspruneError, match="a window has 1 series, this model mixes exactly 3"):
        model.forecast(replace(batch, group_ids=None), 8)
    with pytest.raises(TspruneError, match="a window has 2 series, this model mixes exactly 3"):
        model.loss(replace(batch, group_ids=torch.tensor([0, 0, 0, 1, 1, 1]) + torch.tensor([0, 0, 2, 0, 0, 2])))


def test_a_model_without_mixing_ignores_groups_and_the_configured_number_of_series() -> None:
    batch = windows_of_three()
    model = model_of(num_input_channels=3)
    assert not model.capabilities.multivariate
    assert torch.equal(model.forecast(batch, 40), model.forecast(replace(batch, group_ids=None), 40))


def test_a_mixing_model_for_one_series_takes_rows_as_windows() -> None:
    model, batch = model_of(mode="mix_channel", num_input_channels=1), windows_of_three()
    plain = model.forecast(replace(batch, group_ids=None), 20)
    alone = torch.cat([model.forecast(Batch(batch.context[[row]]), 20) for row in range(6)])
    torch.testing.assert_close(plain, alone)


def test_past_covariates_of_a_mixing_model_are_seen_and_not_scored() -> None:
    model, batch = model_of(**MIXING), windows_of_three()
    scored = torch.tensor([True, False, True, True, True, True])
    assert batch.target is not None
    given = replace(batch, is_target=scored, target=batch.target.masked_fill(~scored[:, None], torch.nan))
    rows = model.row_losses(given)
    torch.testing.assert_close(rows[scored], model.row_losses(batch)[scored])
    assert rows[1] == 0
    torch.testing.assert_close(model.loss(given), torch.stack([rows[[0, 2, 5]].mean(), rows[[3, 4]].mean()]))


def test_series_a_model_was_not_trained_to_forecast_are_refused_as_targets() -> None:
    model, batch = model_of(**MIXING, prediction_channel_indices=[0, 2]), windows_of_three()
    with pytest.raises(TspruneError, match=r"series 1 of a window .* forecasts \[0, 2\]"):
        model.loss(batch)
    assert batch.target is not None
    second = torch.tensor([True, True, False, False, True, True])
    given = replace(batch, is_target=second, target=batch.target.masked_fill(~second[:, None], torch.nan))
    assert torch.isfinite(model.loss(given)).all()
    other = model_of(**MIXING, exogenous_channel_indices=[1])
    assert other.settings.targets == (0, 2)


def test_gate_gradients_of_mixed_windows_are_those_of_each_window() -> None:
    model, batch = model_of(**MIXING).double(), windows_of_three()
    assert batch.target is not None
    batch = replace(batch, context=batch.context.double(), target=batch.target.double())
    groups = model.unit_groups()
    names = [name for name in groups if name.endswith("/ffn_channel")]
    assert any("channel_feature_mixer" in name for name in names)
    found = gate_gradients(model, batch, {name: groups[name] for name in names})
    for name in names:
        gate, step = groups[name].gates[0], 1e-5
        losses = []
        for sign in (1, -1):
            gate.mask = torch.ones(gate.units, dtype=torch.float64)
            gate.mask[1] += sign * step
            losses.append(model.loss(batch).detach())
        gate.mask = None
        torch.testing.assert_close(found[name][:, 1], (losses[0] - losses[1]) / (2 * step), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("seed", range(2))
def test_a_slim_mixing_model_equals_its_mask_and_reloads(seed: int, tmp_path: Path) -> None:
    model, batch = model_of(seed, **MIXING, mode="mix_channel", decoder_raw_residual=True), windows_of_three()
    draw = np.random.default_rng(seed)
    kept = {
        name: sorted(draw.choice(group.units, int(draw.integers(0, group.units + 1)), replace=False).tolist())
        for name, group in model.unit_groups().items()
        if group.kind == "ffn_channel" or (group.kind == "ffn" and draw.random() < 0.2)
    }
    smaller = slim(model, kept)
    with model.masked(kept):
        expected, losses = model.forecast(batch, 20), model.loss(batch)
    assert float((smaller.forecast(batch, 20) - expected).abs().max()) <= 1e-5 * float(expected.std())
    torch.testing.assert_close(smaller.loss(batch), losses, rtol=1e-4, atol=1e-4)
    tsprune.save(smaller, tmp_path / "slim", make_plan(model, kept, base_model="tiny"))
    assert torch.equal(tsprune.load(tmp_path / "slim").forecast(batch, 20), smaller.forecast(batch, 20))


def test_missing_values_and_short_contexts_enter_as_the_rows_own_location() -> None:
    model = model_of()
    gaps = waves(3, 64)[:, None]
    gaps[0, 0, 10:20] = torch.nan
    gaps[2, 0, :40] = torch.nan
    seen = ~torch.isnan(gaps)
    filled = torch.where(seen, gaps, gaps.nanmean(-1, keepdim=True))
    found, scale = model(gaps)
    expected, other = model(filled, mask=seen)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scale.scale, other.scale)
    short = gaps[2:, :, 40:]
    torch.testing.assert_close(model(short)[0], found[2:])


def test_with_a_mask_missing_values_enter_as_the_zeros_they_hold() -> None:
    model = model_of()
    values, seen = waves(2, 64)[:, None], torch.ones(2, 1, 64, dtype=torch.bool)
    seen[0, 0, 30:40] = False
    held = torch.where(seen, values, 0.0)
    found, scale = model(held, mask=seen)
    assert not torch.allclose(found[0], model(torch.where(seen, values, torch.nan))[0][0], atol=1e-3)
    # A scaling that is already done: the same numbers, with nothing missing and no scaler.
    plain = model_of(scaling=None)
    torch.testing.assert_close(found, plain(scale.apply(held))[0], rtol=1e-4, atol=1e-5)


def test_points_that_do_not_fill_a_patch_are_the_oldest_and_count_in_the_scaling() -> None:
    model = model_of(context_length=67)
    values = waves(1, 67)[:, None]
    _, scale = model(values)
    changed = values.clone()
    changed[..., :3] += 50
    assert not torch.allclose(model(changed)[1].scale, scale.scale)
    swapped = values.clone()
    swapped[..., [0, 2]] = values[..., [2, 0]]
    torch.testing.assert_close(model(swapped)[0], model(values)[0])


def test_long_forecasts_feed_forecasts_back() -> None:
    model, context = model_of(), waves(2, 90)
    # What is fed back is not rounded in between.
    first = model.forecast(Batch(context.double()), 16)
    second = model.forecast(Batch(torch.cat([context, first[:, 0]], dim=-1)), 16)
    assert torch.equal(model.forecast(Batch(context), 27), torch.cat([first, second], dim=-1)[..., :27].float())


def test_the_time_resolution_is_unknown_unless_told_and_is_stored_with_the_model(tmp_path: Path) -> None:
    model, batch = model_of(**PREFIX), Batch(waves(2, 64))
    plain = model.forecast(batch, 16)
    told = model(batch.context[:, None], freq_token=torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(told[1].invert(told[0]), plain)
    model.freq_token = 7
    hourly = model.forecast(batch, 16)
    assert not torch.allclose(hourly, plain)
    tsprune.save(model, tmp_path / "model")
    assert tsprune.load(tmp_path / "model").config["freq_token"] == 7
    assert torch.equal(tsprune.load(tmp_path / "model").forecast(batch, 16), hourly)
    with pytest.raises(TspruneError, match=r"freq_token is 10; this model has 0\.\.9"):
        model.freq_token = 10
    with pytest.raises(TspruneError, match="has no resolution prefix"):
        model_of().freq_token = 1


def expected_losses(kind: str, error: Tensor) -> Tensor:
    """By definition; `error` is target minus forecast."""
    size = error.abs()
    if kind == "huber":
        return torch.where(size <= 0.5, 0.5 * error**2, 0.5 * (size - 0.25))
    if kind == "pinball":
        return torch.where(error >= 0, 0.8 * size, 0.2 * size)
    return error**2 if kind == "mse" else size


@pytest.mark.parametrize("kind", ["mse", "mae", "huber", "pinball"])
def test_the_loss_is_the_configs_in_units_of_the_rows_deviation(kind: str) -> None:
    model = model_of(loss=kind, huber_delta=0.5, quantile=0.8)
    assert model.levels == ((0.8,) if kind == "pinball" else (0.5,))
    context, target = waves(3, 64), waves(3, 12, seed=4)
    target[1, 3:6] = torch.nan
    error = (target - model.forecast(Batch(context), 12)[:, 0]) / context.std(-1, keepdim=True)
    torch.testing.assert_close(
        model.row_losses(Batch(context, target)), expected_losses(kind, error).nanmean(-1), rtol=1e-4, atol=1e-5
    )
    model.objective = "mse"
    torch.testing.assert_close(
        model.row_losses(Batch(context, target)), error.square().nanmean(-1), rtol=1e-4, atol=1e-5
    )
    other = Batch(40 * context - 7, 40 * target - 7)
    torch.testing.assert_close(model.row_losses(other), error.square().nanmean(-1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scaling", ["std", "mean", None])
def test_rows_weigh_alike_in_the_loss_also_when_constant_or_scaled_otherwise(scaling: str | None) -> None:
    model = model_of(scaling=scaling)
    context, target = waves(3, 64), waves(3, 16, seed=4)
    context[1], context[2], target[2] = 8.0, 0.0, 0.5
    rows = model.row_losses(Batch(context, target)).detach()
    error = target - model.forecast(Batch(context), 16)[:, 0]
    expected = (error / torch.tensor([[float(context[0].std())], [8.0], [1.0]])).square().mean(-1)
    torch.testing.assert_close(rows, expected, rtol=1e-3, atol=1e-5)


def test_a_model_without_a_loss_of_its_own_tunes_on_the_squared_error_alone() -> None:
    model, batch = model_of(loss=None), Batch(waves(2, 64), waves(2, 8))
    with pytest.raises(TspruneError, match="loss is null"):
        model.loss(batch)
    model.objective = "mse"
    assert torch.isfinite(model.loss(batch)).all()


def test_a_filtered_horizon_is_the_first_part_of_the_whole_one() -> None:
    batch = Batch(waves(2, 64))
    whole, part = model_of(), model_of(prediction_filter_length=10)
    assert part.native_horizon == 10
    assert torch.equal(part.forecast(batch, 10), whole.forecast(batch, 10))


@pytest.mark.parametrize("changes", [{}, {"use_decoder": False}, {"decoder_d_model": 24}])
def test_the_head_that_is_tuned_alone_exists_in_every_model(changes: Mapping[str, Any]) -> None:
    model = model_of(**changes)
    parts = [model.get_submodule(path) for path in model.head_paths]
    assert sum(p.numel() for part in parts for p in part.parameters()) > 0


def test_units_come_in_network_order_and_missing_mixers_have_none() -> None:
    whole = [name for name in model_of(**MIXING).unit_groups() if name.endswith("/ffn")]
    decoder = [name.split(".layer.")[1] for name in whole if name.startswith("decoder.decoder_block.mixers.0")]
    assert decoder == ["0/ffn", "1/ffn", "2/ffn"]
    single = model_of(context_length=12, decoder_num_layers=1)
    assert single.settings.encoder.patches == 1
    assert [name for name in single.unit_groups() if name.startswith("decoder") and name.endswith("/ffn")] == [
        "decoder.decoder_block.mixers.0.layer.2/ffn"
    ]
    # Finer levels split the single patch, so these do mix patches.
    assert "backbone.encoder.mlp_mixer_encoder.mixers.0.mixer_layers.0.layer.1/ffn" in single.unit_groups()


@pytest.mark.parametrize("axis", [-1, -2, -3])
@pytest.mark.parametrize("gate_first", [False, True])
def test_a_mixer_works_along_its_axis_and_gates_behind_or_before(axis: int, gate_first: bool) -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    mixer = Mixer(x.shape[axis], 7, axis=axis, gate_first=gate_first).double().eval()
    assert mixer.gating is not None

    def network(v: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        wi, wo = mixer.mlp.wi, mixer.mlp.wo
        hidden = wi.weight.detach().numpy() @ v + wi.bias.detach().numpy()
        hidden = torch.nn.functional.gelu(torch.from_numpy(hidden)).numpy()
        return np.asarray(wo.weight.detach().numpy() @ hidden + wo.bias.detach().numpy())

    def gate(v: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        assert mixer.gating is not None
        logits = mixer.gating.weight.detach().numpy() @ v + mixer.gating.bias.detach().numpy()
        shares = np.exp(logits - logits.max())
        return v * shares / shares.sum()

    expected = np.apply_along_axis(lambda v: network(gate(v)) if gate_first else gate(network(v)), axis, x.numpy())
    np.testing.assert_allclose(mixer(x).detach().numpy(), expected, rtol=1e-10, atol=1e-12)


def test_observed_scales_follow_their_definitions_whatever_missing_values_hold() -> None:
    values = torch.tensor([[[1.0, -3.0, 5.0, torch.nan]], [[9.0, 9.0, 9.0, 9.0]]], dtype=torch.float64)
    seen = torch.tensor([[[True, True, False, False]], [[False, False, False, False]]])
    std = ObservedScale(values, seen)
    torch.testing.assert_close(std.location.flatten(), torch.tensor([-1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(std.scale.flatten(), torch.tensor([4 + 1e-5, 1e-5], dtype=torch.float64).sqrt())
    mean = ObservedScale(values, seen, "mean", unobserved=3.0)
    assert mean.location.abs().max() == 0
    assert mean.scale.flatten().tolist() == [2.0, 3.0]
    assert ObservedScale(values, seen, "mean").scale.flatten().tolist() == [2.0, 1e-10]
    assert ObservedScale(values, seen, "mean", floor=2.5).scale.flatten().tolist() == [2.5, 2.5]
    plain = ObservedScale(values, seen, "none")
    torch.testing.assert_close(plain.apply(values), values, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(std.invert(std.apply(values)), values, equal_nan=True)
    assert ObservedScale(values.bfloat16(), seen).scale.dtype == torch.float32
    with pytest.raises(TspruneError, match="'max' is unknown"):
        ObservedScale(values, seen, "max")


def test_the_public_checkpoint_loads_saves_back_unchanged_and_forecasts_as_upstream(tmp_path: Path) -> None:
    folder = shared_path() / "data" / "checkpoints" / "ttm_1024_96"
    if not folder.is_dir():
        pytest.skip(f"no public checkpoint: {folder} is missing; set TSPRUNE_SHARED to the folder that has it")
    model = tsprune.load(folder)
    assert (model.family, model.native_horizon, model.parameter_count()) == ("ttm", 96, 946_336)
    tsprune.save(model, tmp_path / "again")
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    time = torch.arange(1024, dtype=torch.float64)
    days = (20 + 4 * torch.sin(2 * torch.pi * time / 24) + torch.cos(2 * torch.pi * time / 168)).float()
    found = model.forecast(Batch(days[None]), 96)[0, 0, [0, 31, 63, 95]]
    # By granite-tsfm 0.3.2 from the same file.
    torch.testing.assert_close(found, torch.tensor([18.70502, 19.62329, 19.15524, 17.93783]), rtol=0, atol=1e-4)
