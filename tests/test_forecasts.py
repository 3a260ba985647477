"""Forecasts beyond one pass: how paths are fed back and pooled."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import FAMILIES, LEVELS, tiny_batch, tiny_model, waves
from tsprune.data.batch import Batch
from tsprune.models._forecaster import at_levels
from tsprune.models._rollout import empirical_quantiles, level_masses, weighted_quantiles
from tsprune.models.chronos2 import PATHS

every_family = pytest.mark.parametrize("family", FAMILIES)


@every_family
@pytest.mark.parametrize("horizon", [1, 15, 16])
def test_a_shorter_horizon_is_the_beginning_of_the_native_one_where_the_family_says_so(
    family: str, horizon: int
) -> None:
    model, batch = tiny_model(family), tiny_batch()
    whole = model.forecast(batch, 16)
    # Chronos-2 puts one token per future patch, so only whole patches may be cut.
    if family == "chronos_bolt" or horizon > 8:
        torch.testing.assert_close(model.forecast(batch, horizon), whole[..., :horizon])


@every_family
def test_the_first_block_of_a_long_forecast_is_the_native_forecast(family: str) -> None:
    model, batch = tiny_model(family), tiny_batch()
    assert torch.equal(model.forecast(batch, 40)[..., :16], model.forecast(batch, 16))


@every_family
def test_a_long_forecast_of_each_row_does_not_depend_on_its_neighbours(family: str) -> None:
    model, context = tiny_model(family), waves(3, 50)
    together = model.forecast(Batch(context), 45)
    alone = torch.cat([model.forecast(Batch(row[None]), 45) for row in context])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-3)


def test_a_long_forecast_works_with_patches_of_one_step() -> None:
    sizes = {"input_patch_size": 1, "input_patch_stride": 1, "output_patch_size": 1}
    model, context = tiny_model("chronos2", **sizes), waves(3, 20)
    quantiles = model.forecast(Batch(context), 7)
    assert quantiles.shape == (3, len(LEVELS), 7)
    assert torch.equal(quantiles[..., :2], model.forecast(Batch(context), 2))
    alone = torch.cat([model.forecast(Batch(row[None]), 7) for row in context])
    torch.testing.assert_close(quantiles, alone, rtol=1e-4, atol=1e-3)


def test_chronos_bolt_feeds_every_quantile_path_back() -> None:
    model, context = tiny_model("chronos_bolt"), waves(2, 50)
    first = model.forecast(Batch(context), 16)
    paths = torch.cat([context[:, None].expand(-1, len(LEVELS), -1), first], dim=-1).flatten(0, 1)
    pooled = model.forecast(Batch(paths), 16).reshape(2, -1, 16)
    expected = torch.quantile(pooled, torch.tensor(LEVELS), dim=1).transpose(0, 1)
    torch.testing.assert_close(model.forecast(Batch(context), 32)[..., 16:], expected)


def test_chronos_2_feeds_nine_paths_back_that_mix_within_a_group_but_never_with_each_other() -> None:
    model, context, ids = tiny_model("chronos2"), waves(3, 50), torch.tensor([4, 4, 1])
    first = model.forecast(Batch(context, group_ids=ids), 16)
    pooled = []
    for level in PATHS:
        path = at_levels(first, LEVELS, [level])[:, 0]
        pooled.append(model.forecast(Batch(torch.cat([context, path], dim=1), group_ids=ids), 16))
    weights = torch.outer(level_masses(PATHS), level_masses(LEVELS)).reshape(-1)
    expected = weighted_quantiles(torch.cat(pooled, dim=1), weights, LEVELS)
    found = model.forecast(Batch(context, group_ids=ids), 32)[..., 16:]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_chronos_2_uses_known_futures_beyond_the_first_block() -> None:
    model = tiny_model("chronos2")
    context, ids = waves(2, 50), torch.tensor([1, 1])
    future = torch.full((2, 40), torch.nan)
    future[1] = 4.0
    changed = future.clone()
    changed[1, 16:] = 9.0
    one, two = (model.forecast(Batch(context, group_ids=ids, future=f), 40) for f in (future, changed))
    assert torch.equal(one[..., :16], two[..., :16])
    assert not torch.allclose(one[0, :, 16:], two[0, :, 16:])


def test_a_known_future_shorter_or_longer_than_the_horizon_is_taken_as_far_as_it_goes() -> None:
    model = tiny_model("chronos2")
    context, ids = waves(2, 50), torch.tensor([1, 1])
    future = torch.full((2, 60), torch.nan)
    future[1, :20] = 4.0
    short = model.forecast(Batch(context, group_ids=ids, future=future[:, :20]), 40)
    torch.testing.assert_close(model.forecast(Batch(context, group_ids=ids, future=future), 40), short)


@every_family
def test_forecasts_leave_no_graph_and_do_not_look_at_the_target(family: str) -> None:
    model, batch = tiny_model(family), tiny_batch()
    found = model.forecast(batch, 20)
    assert not found.requires_grad
    assert torch.equal(found, model.forecast(Batch(batch.context), 20))


samples = st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=12)
levels = st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4)


@settings(max_examples=50, deadline=None)
@given(values=samples, wanted=levels)
def test_empirical_quantiles_equal_those_of_torch(values: list[float], wanted: list[float]) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    expected = torch.quantile(x, torch.tensor(wanted, dtype=torch.float64))
    torch.testing.assert_close(empirical_quantiles(x[None, :, None], wanted)[0, :, 0], expected)


@settings(max_examples=50, deadline=None)
@given(values=samples, wanted=levels, data=st.data())
def test_weighted_quantiles_rise_with_the_level_and_stay_inside_the_samples(
    values: list[float], wanted: list[float], data: st.DataObject
) -> None:
    weights = data.draw(st.lists(st.floats(0.01, 1), min_size=len(values), max_size=len(values)))
    x = torch.tensor(values, dtype=torch.float64)[None, :, None]
    found = weighted_quantiles(x, torch.tensor(weights, dtype=torch.float64), sorted(wanted))[0, :, 0]
    assert bool((found.diff() >= -1e-9).all())
    assert x.min() - 1e-9 <= found.min() <= found.max() <= x.max() + 1e-9


def test_a_heavy_sample_pulls_the_quantile_towards_it() -> None:
    x = torch.tensor([0.0, 1.0, 2.0])[None, :, None]
    found = weighted_quantiles(x, torch.tensor([0.8, 0.1, 0.1]), [0.5, 0.85])
    torch.testing.assert_close(found[0, :, 0], torch.tensor([0.0, 0.5]))


def test_level_masses_are_half_the_gaps_and_add_up_to_one() -> None:
    expected = torch.tensor([0.25, 0.4, 0.25], dtype=torch.float64) / 0.9
    torch.testing.assert_close(level_masses([0.1, 0.5, 0.9]), expected)


@settings(max_examples=50, deadline=None)
@given(level=st.floats(0.02, 0.98))
def test_interpolated_levels_lie_on_the_line_between_their_neighbours(level: float) -> None:
    own = [0.1, 0.3, 0.9]
    quantiles = torch.tensor([1.0, 5.0, 6.0], dtype=torch.float64)[None, :, None]
    points = [(0.0, 1.0), (0.1, 1.0), (0.3, 5.0), (0.9, 6.0), (1.0, 6.0)]
    left, right = next((a, b) for a, b in pairwise(points) if a[0] <= level <= b[0])
    expected = left[1] + (right[1] - left[1]) * (level - left[0]) / (right[0] - left[0])
    assert float(at_levels(quantiles, own, [level])) == pytest.approx(expected, abs=1e-6)


@every_family
def test_own_levels_come_as_they_are_and_as_interpolation_would_give_them(family: str) -> None:
    model, batch = tiny_model(family), tiny_batch()
    own = model.forecast(batch, 16)
    assert torch.equal(model.forecast(batch, 16, model.levels), own)
    # One level more takes the long way.
    assert torch.equal(model.forecast(batch, 16, (*model.levels, 0.55))[:, : len(model.levels)], own)


@every_family
@pytest.mark.parametrize("training", [False, True])
def test_forecast_leaves_every_part_in_its_mode_and_is_the_same_in_both(family: str, training: bool) -> None:
    model, batch = tiny_model(family), tiny_batch()
    expected = model.forecast(batch, 16)
    model.train(training)
    assert torch.equal(model.forecast(batch, 16), expected)
    assert all(module.training is training for module in model.modules())
