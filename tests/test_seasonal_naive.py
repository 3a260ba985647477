"""Seasonal naive: exact where it must be, never NaN, spread that grows with the seasons ahead."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.evaluation.baselines import check, names
from tsprune.evaluation.baselines.seasonal_naive import SeasonalNaive

NAN = math.nan


def point(season: int, context: list[list[float]], horizon: int) -> list[list[float]]:
    forecast = SeasonalNaive(season).forecast(Batch(context=torch.tensor(context)), horizon, [0.5])
    return forecast[:, 0].tolist()


def slow_point(row: list[float], season: int, horizon: int) -> list[float]:
    """The definition, one value at a time."""
    out = []
    for step in range(horizon):
        position = len(row) + step
        while position >= len(row):
            position -= season
        while position >= 0 and math.isnan(row[position]):
            position -= season
        if position >= 0:
            out.append(row[position])
        else:
            out.append(next((value for value in reversed(row) if not math.isnan(value)), 0.0))
    return out


@given(
    season=st.integers(1, 9),
    seasons=st.integers(1, 4),
    extra=st.integers(0, 8),
    horizon=st.integers(1, 25),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_periodic_series_is_forecast_exactly_and_without_spread(season, seasons, extra, horizon, seed):
    length = season * (seasons + 1) + extra
    wave = np.random.default_rng(seed).normal(size=season).astype(np.float32)
    full = torch.from_numpy(np.resize(wave, length + horizon))
    quantiles = SeasonalNaive(season).forecast(Batch(context=full[None, :length]), horizon, [0.1, 0.5, 0.9])
    for level in range(3):
        assert torch.equal(quantiles[0, level], full[length:])


@given(
    rows=st.lists(
        st.lists(st.one_of(st.just(NAN), st.floats(-9, 9, width=32)), min_size=7, max_size=7),
        min_size=1,
        max_size=5,
    ),
    season=st.integers(1, 10),
    horizon=st.integers(1, 12),
)
@settings(max_examples=100, deadline=None)
def test_any_context_matches_the_definition_and_is_never_nan(rows, season, horizon):
    batch = Batch(context=torch.tensor(rows, dtype=torch.float32))
    quantiles = SeasonalNaive(season).forecast(batch, horizon, [0.2, 0.5, 0.8])
    assert torch.isfinite(quantiles).all()
    assert quantiles[:, 1].tolist() == [slow_point(row, season, horizon) for row in rows]


def test_value_missing_in_last_season_comes_from_the_season_before():
    assert point(3, [[1.0, 2.0, 3.0, 4.0, NAN, 6.0]], 4) == [[4.0, 2.0, 6.0, 4.0]]


def test_phase_never_observed_takes_the_last_observed_value():
    assert point(3, [[1.0, NAN, 3.0, 4.0, NAN, NAN]], 3) == [[4.0, 4.0, 3.0]]


def test_context_shorter_than_a_season_takes_known_phases_and_the_last_value_elsewhere():
    assert point(4, [[5.0, 7.0]], 4) == [[7.0, 7.0, 5.0, 7.0]]


@pytest.mark.parametrize("length", [0, 1, 6])
def test_context_without_any_value_is_forecast_as_zero(length):
    forecast = SeasonalNaive(4).forecast(Batch(context=torch.full((2, length), NAN)), 5, [0.1, 0.5, 0.9])
    assert torch.equal(forecast, torch.zeros(2, 3, 5))


def test_season_one_repeats_the_last_value():
    assert point(1, [[1.0, 2.0, 8.0]], 3) == [[8.0, 8.0, 8.0]]


def test_quantiles_are_normal_around_the_point_and_widen_with_the_seasons_ahead():
    context = torch.tensor([[0.0, 10.0, 3.0, 14.0]])  # seasonal differences 3 and 4
    forecast = SeasonalNaive(2).forecast(Batch(context=context), 5, [0.1, 0.5, 0.9])
    sigma = math.sqrt((9 + 16) / 2)
    age = torch.tensor([1.0, 1.0, 2.0, 2.0, 3.0])
    expected = torch.tensor([3.0, 14.0, 3.0, 14.0, 3.0]) + NormalDist().inv_cdf(0.9) * sigma * age.sqrt()
    torch.testing.assert_close(forecast[0, 2], expected)
    torch.testing.assert_close(forecast[0, 1] * 2 - forecast[0, 0], expected)


def test_value_taken_from_an_earlier_season_is_less_certain():
    context = torch.tensor([[0.0, 5.0, 1.0, 5.5, 2.0, NAN]])
    forecast = SeasonalNaive(2).forecast(Batch(context=context), 2, [0.5, 0.9])
    width = forecast[0, 1] - forecast[0, 0]
    torch.testing.assert_close(width[1] / width[0], torch.tensor(math.sqrt(2.0)))


def test_last_value_that_stands_in_is_as_uncertain_as_it_is_old():
    context = torch.tensor([[0.0, NAN, 3.0, NAN, 5.0, NAN]])  # phase 1 is never observed
    forecast = SeasonalNaive(2).forecast(Batch(context=context), 4, [0.5, 0.9])
    width = forecast[0, 1] - forecast[0, 0]
    torch.testing.assert_close(width / width[0], torch.tensor([1.0, 2.0, 2.0, 3.0]).sqrt())


def test_no_pair_of_values_a_season_apart_uses_the_spread_of_the_context():
    forecast = SeasonalNaive(9).forecast(Batch(context=torch.tensor([[1.0, 3.0]])), 1, [0.5, 0.9])
    torch.testing.assert_close(forecast[0, 1, 0] - forecast[0, 0, 0], torch.tensor(NormalDist().inv_cdf(0.9)))


@pytest.mark.parametrize(("season", "horizon", "levels"), [(0, 1, [0.5]), (1, 0, [0.5]), (1, 1, [0.0]), (1, 1, [1.0])])
def test_impossible_request_is_refused(season, horizon, levels):
    with pytest.raises(TspruneError):
        SeasonalNaive(season).forecast(Batch(context=torch.ones(1, 2)), horizon, levels)


def test_registry_lists_the_folder():
    assert "seasonal_naive" in names()
    check(["seasonal_naive", "seasonal-naive"])


def test_unknown_baseline_lists_the_known():
    with pytest.raises(TspruneError, match="'prophet' is not among the baselines; known: .*seasonal_naive"):
        check(["prophet"])
