"""What only iTransformer promises: the series of a window are tokens, seen by each other in no order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tsprune
from tests.tiny import grouped_batch, tiny_batch, tiny_config, tiny_model, waves
from tsprune.blocks.patching import fill_gaps
from tsprune.data.batch import Batch
from tsprune.models.itransformer import ITransformer
from tsprune.slimming import slim


def inverted(**changes: object) -> ITransformer:
    model = tiny_model("itransformer", **changes)
    assert isinstance(model, ITransformer)
    return model


def windows(rows: int, ids: list[int]) -> Batch:
    return replace(tiny_batch(rows), group_ids=torch.tensor(ids))


def test_forecasts_follow_the_order_of_the_rows_of_a_window_and_nothing_else_changes() -> None:
    model, batch = inverted().double(), windows(5, [4, 4, 1, 4, 1])
    order = torch.tensor([3, 2, 0, 4, 1])
    assert batch.group_ids is not None
    shuffled = Batch(batch.context[order], group_ids=batch.group_ids[order])
    torch.testing.assert_close(model.forecast(shuffled, 20), model.forecast(batch, 20)[order])


def test_windows_of_different_size_side_by_side_equal_each_alone() -> None:
    model, batch = inverted().double(), windows(6, [9, 2, 9, 7, 2, 9])
    assert batch.group_ids is not None
    assert batch.target is not None
    whole, losses = model.forecast(batch, 40), model.loss(batch)
    for place, name in enumerate([9, 2, 7]):
        own = batch.group_ids == name
        alone = Batch(batch.context[own], batch.target[own], batch.group_ids[own])
        torch.testing.assert_close(model.forecast(alone, 40), whole[own])
        torch.testing.assert_close(model.loss(alone)[0], losses[place])
    assert model.network_windows(batch).tolist() == [0, 1, 2]


def by_hand(model: ITransformer, given: Tensor) -> Tensor:
    """The network's answer to tokens `[W, N, seq_len]` as they enter the embedding."""
    x = model.enc_embedding["value_embedding"](given)
    for layer in model.encoder["attn_layers"]:  # type: ignore[union-attr]
        x = layer(x, None)
    found: Tensor = model.projection(model.encoder["norm"](x))
    return found


@torch.no_grad()
def test_a_short_context_has_its_mean_in_front_and_its_scale_from_its_own_values() -> None:
    model, short = inverted(), waves(1, 20)[None]
    padded = torch.nn.functional.pad(short, (44, 0), value=torch.nan)
    mean, spread = short.mean(), (short.var(correction=0) + 1e-5).sqrt()
    given = torch.nn.functional.pad((short - mean) / spread, (44, 0))
    torch.testing.assert_close(model(padded), by_hand(model, given) * spread + mean)
    torch.testing.assert_close(model.forecast(Batch(short[0]), 16), model(padded))
    plain = inverted(use_norm=0)
    torch.testing.assert_close(plain(padded), by_hand(plain, padded.nan_to_num(float(mean))))


def test_gaps_are_filled_by_straight_lines() -> None:
    model, whole = inverted(), waves(2, 64)
    whole[0, 30:35] = torch.linspace(1, 3, 5)
    whole[1, 60:] = whole[1, 59]
    holes = whole.clone()
    holes[0, 31:34] = torch.nan
    holes[1, 60:] = torch.nan
    torch.testing.assert_close(model.forecast(Batch(holes), 16), model.forecast(Batch(whole), 16))


@torch.no_grad()
def test_marks_are_seen_as_they_are_and_not_forecast() -> None:
    model, values, marks = inverted(), waves(6, 64).view(2, 3, 64), torch.rand(2, 4, 64)
    found = model(values, marks=marks)
    assert found.shape == (2, 3, 16)
    assert not torch.allclose(found, model(values))
    assert not torch.allclose(found, model(values, marks=marks + 1))
    torch.testing.assert_close(model(values, marks=marks.flip(1)), found, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_places_without_a_series_are_seen_by_nobody() -> None:
    model, values, marks = inverted(), waves(6, 64).view(2, 3, 64), torch.rand(2, 4, 64)
    present = torch.tensor([[True, True, True], [True, True, False]])
    both = model(values, marks=marks, present=present)
    torch.testing.assert_close(both[1, :2], model(values[1:, :2], marks=marks[1:])[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both[:1], model(values[:1], marks=marks[:1]), rtol=1e-4, atol=1e-4)


def test_beyond_the_native_horizon_the_forecasts_of_the_window_are_fed_back() -> None:
    model, batch = inverted().double(), windows(3, [1, 1, 1])
    first = model.forecast(batch, 16)
    longer = torch.cat([fill_gaps(batch.context), first[:, 0]], dim=1)
    second = model.forecast(Batch(longer, group_ids=batch.group_ids), 16)
    torch.testing.assert_close(model.forecast(batch, 27), torch.cat([first, second], dim=-1)[..., :27])


def test_a_covariate_row_informs_the_targets_of_its_window_and_is_not_scored() -> None:
    model, batch = inverted(), replace(grouped_batch(), future=None)
    changed = batch.context.clone()
    changed[1] = changed[1].flip(-1)
    moved = (model.forecast(replace(batch, context=changed), 16) - model.forecast(batch, 16)).abs().amax((1, 2))
    assert (moved > 1e-4).tolist() == [True, True, False, True, False]
    assert batch.is_target is not None
    rows = model.row_losses(batch)
    assert (rows != 0).tolist() == batch.is_target.tolist()


def test_rows_in_other_units_weigh_alike_constant_ones_too() -> None:
    model, batch = inverted(), tiny_batch()
    assert batch.target is not None
    large = Batch(batch.context * 1e3, batch.target * 1e3)
    torch.testing.assert_close(model.row_losses(large), model.row_losses(batch), rtol=1e-3, atol=1e-4)
    constant = Batch(torch.full((1, 64), 50.0), torch.full((1, 16), 55.0))
    forecast = model.forecast(constant, 16)[0, 0]
    expected = ((forecast - 55) / 50).square().mean()
    torch.testing.assert_close(model.row_losses(constant)[0], expected)


def test_files_have_the_names_and_convolutions_of_the_library(tmp_path: Path) -> None:
    model = inverted()
    tsprune.save(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    layer = "encoder.attn_layers.1"
    assert tensors[f"{layer}.conv1.weight"].shape == (20, 24, 1)
    assert tensors[f"{layer}.conv2.weight"].shape == (24, 20, 1)
    names = {name.removeprefix(f"{layer}.").rpartition(".")[0] for name in tensors if name.startswith(layer)}
    projections = {f"attention.{name}_projection" for name in ("query", "key", "value", "out")}
    assert names == projections | {"conv1", "conv2", "norm1", "norm2"}
    rest = {name for name in tensors if ".attn_layers." not in name}
    wholes = ("enc_embedding.value_embedding", "encoder.norm", "projection")
    assert rest == {f"{whole}.{part}" for whole in wholes for part in ("weight", "bias")}
    batch = tiny_batch()
    assert torch.equal(tsprune.load(tmp_path).forecast(batch, 16), model.forecast(batch, 16))


def test_a_model_without_queries_and_keys_no_longer_tells_series_apart() -> None:
    model = inverted()
    pairs = [f"encoder.attn_layers.{number}.layer.0.attention/qk_pair" for number in (0, 1)]
    assert slim(model, {pairs[0]: []}).mixes_series
    assert not slim(model, {pair: [] for pair in pairs}).mixes_series


@pytest.mark.parametrize(
    ("change", "ours"),
    [
        ({"model": "iTransformer"}, True),
        ({"model": "PatchTST"}, False),
        ({"architectures": ["PatchTSTForPrediction"]}, False),
        ({"input_token_len": 8}, False),
    ],
)
def test_configs_that_name_another_model_are_not_ours(change: dict[str, object], ours: bool) -> None:
    assert ITransformer.recognises(tiny_config("itransformer") | change) == ours
