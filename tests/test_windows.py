"""Windows against a brute-force cut; thinning, sampling, covariates and groups."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsprune.data.panel import FloatArray, Panel, Series
from tsprune.data.scaling import Scaler
from tsprune.data.windows import WindowSet, cut_windows, forecast_batch
from tsprune.errors import TspruneError


def panel_of(*lengths: int, missing: float = 0.0, seed: int = 0) -> Panel:
    generator = np.random.default_rng(seed)
    series = []
    for place, length in enumerate(lengths):
        values = generator.normal(place, 1 + place, length).astype(np.float32)
        values[generator.random(length) < missing] = np.nan
        series.append(Series(f"s{place}", values))
    return Panel(tuple(series))


def with_covariates(length: int = 20, ahead: int = 4) -> Panel:
    series = []
    past = np.arange(100, 100 + length, dtype=np.float32)
    known = np.arange(200, 200 + length + ahead, dtype=np.float32)
    for place in range(2):
        values = np.arange(length, dtype=np.float32) * (place + 1)
        series.append(Series(f"s{place}", values, {"p": past}, {"k": known}))
    return Panel(tuple(series))


def brute(values: FloatArray, origin: int, context: int, horizon: int) -> tuple[FloatArray, FloatArray]:
    padded = np.concatenate([np.full(context, np.nan, np.float32), values])
    return padded[origin : origin + context], values[origin : origin + horizon]


def whole(panel: Panel, context: int, horizon: int, **more: Any) -> WindowSet:
    return cut_windows(panel, np.ones(len(panel.series)), panel.lengths - horizon, context, horizon, **more)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=4),
    st.integers(1, 12),
    st.integers(1, 6),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.3, 0.9]),
    st.integers(0, 999),
)
def test_windows_equal_a_brute_force_cut(
    lengths: list[int], context: int, horizon: int, stride: int, missing: float, seed: int
) -> None:
    panel = panel_of(*lengths, missing=missing, seed=seed)
    windows = whole(panel, context, horizon, stride=stride)
    expected = []
    for index, series in enumerate(panel.series):
        for origin in range(1, len(series) - horizon + 1):
            past, future = brute(series.values, origin, context, horizon)
            aligned = (len(series) - horizon - origin) % stride == 0
            if aligned and not np.isnan(past).all() and not np.isnan(future).all():
                expected.append((index, origin, past, future))
    assert [(int(s), int(o)) for s, o in zip(windows.series_index, windows.origin, strict=True)] == [
        entry[:2] for entry in expected
    ]
    if expected:
        batch = windows.batch(np.arange(len(windows)))
        assert batch.target is not None
        np.testing.assert_array_equal(batch.context.numpy(), np.stack([entry[2] for entry in expected]))
        np.testing.assert_array_equal(batch.target.numpy(), np.stack([entry[3] for entry in expected]))
        np.testing.assert_array_equal(windows.targets(range(len(windows))), batch.target.numpy())
        np.testing.assert_array_equal(windows.contexts(range(len(windows))), batch.context.numpy())
        assert batch.group_ids is batch.is_target is batch.future is None


@given(st.lists(st.integers(20, 60), min_size=1, max_size=4), st.floats(0.01, 1.0))
def test_latest_windows_are_the_last_of_every_series(lengths: list[int], share: float) -> None:
    windows = whole(panel_of(*lengths), 4, 3)
    found = windows.latest(share)
    for series in np.unique(windows.series_index):
        every = windows.origin[windows.series_index == series]
        kept = found.origin[found.series_index == series]
        assert len(kept) == max(1, int(share * len(every) + 0.5))
        assert np.array_equal(kept, every[len(every) - len(kept) :])
    with pytest.raises(TspruneError, match="share of 0 windows"):
        windows.latest(0)


def test_windows_without_observations_are_left_out_and_counted() -> None:
    values = np.arange(12, dtype=np.float32)
    values[4:8] = np.nan
    windows = whole(Panel((Series("a", values),)), 2, 2)
    assert windows.origin.tolist() == [1, 2, 3, 7 + 2, 10]
    assert any("3 windows with no observed target" in note for note in windows.notes)
    assert any("2 windows with no observed context" in note for note in windows.notes)


def test_scaled_batch_and_its_inverse_return_the_data() -> None:
    panel = panel_of(40, 30, missing=0.1)
    scaler = Scaler.fit(panel, [20, 20])
    windows = whole(panel, 8, 3, scaler=scaler)
    indices = np.array([len(windows) - 1, 0, 5])
    batch = windows.batch(indices)
    series = windows.target_series(indices)
    assert batch.target is not None
    np.testing.assert_allclose(scaler.inverse(batch.target, series), windows.targets(indices), rtol=1e-5, atol=1e-6)
    quantiles = np.stack([batch.target.numpy()] * 4, axis=1)
    np.testing.assert_allclose(scaler.inverse(quantiles, series)[:, 2], windows.targets(indices), rtol=1e-5, atol=1e-6)
    plain = (panel.series[1].values - np.nanmean(panel.series[1].values[:20])) / np.nanstd(panel.series[1].values[:20])
    np.testing.assert_allclose(batch.target.numpy()[0], plain[-3:], rtol=1e-4, atol=1e-5)


def test_scaler_uses_the_train_part_alone_and_one_where_nothing_varies() -> None:
    values = np.array([[1, 3, 99, 99], [5, 5, 5, 9], [np.nan, np.nan, 1, 2]], np.float32)
    scaler = Scaler.fit(Panel(tuple(Series(f"s{k}", row) for k, row in enumerate(values))), [2, 3, 2])
    assert scaler.mean[:, 0].tolist() == [2, 5, 0]
    assert scaler.std[:, 0].tolist() == [1, 1, 1]
    assert "s1, s2" in scaler.notes[0]
    assert "s0" not in scaler.notes[0]


def test_scaler_does_not_blow_up_rounding_of_a_constant() -> None:
    scaler = Scaler.fit(Panel((Series("a", np.full(1001, 0.1, np.float32)),)), [1001])
    assert scaler.std[0, 0] == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(4, 60), min_size=1, max_size=6), st.integers(1, 80), st.integers(1, 3))
def test_thinning_keeps_the_limit_an_even_stride_and_the_last_windows(
    lengths: list[int], most: int, stride: int
) -> None:
    windows = whole(panel_of(*lengths), 3, 2, stride=stride)
    thin, used = windows.thin(most)
    assert 1 <= len(thin) <= most
    assert used == thin.stride
    if len(windows) <= most:
        assert thin is windows
        return
    for index in np.unique(thin.series_index):
        origins = thin.origin[thin.series_index == index]
        assert (np.diff(origins) == used).all()
        assert origins[-1] == lengths[index] - 2
    owners = len(np.unique(windows.series_index))
    if most >= owners:
        assert len(np.unique(thin.series_index)) == owners
        finer = sum(-(-int((windows.series_index == s).sum()) // (used // stride - 1)) for s in range(len(lengths)))
        assert finer > most
    else:
        assert "picked evenly" in thin.notes[-1]
        assert len(thin) == most


def test_aligned_series_keep_common_origins_when_thinned() -> None:
    thin, _ = whole(panel_of(50, 50, 50), 4, 2).thin(20)
    first = thin.origin[thin.series_index == 0]
    for index in (1, 2):
        assert (thin.origin[thin.series_index == index] == first).all()


def test_sampling_is_repeatable_and_without_repetition() -> None:
    windows = whole(panel_of(40), 4, 2)
    for make in (np.random.default_rng, lambda seed: torch.Generator().manual_seed(seed)):
        one, two, other = (windows.sample(20, make(seed)) for seed in (1, 1, 2))
        assert one.tolist() == two.tolist() != other.tolist()
        assert len(set(one.tolist())) == 20
        assert max(one) < len(windows)
    assert len(windows.sample(100, np.random.default_rng(0))) == 100


def test_batches_cover_every_window_once_with_a_short_last_one() -> None:
    windows = whole(panel_of(20), 4, 2)
    sizes = [(len(indices), batch.rows) for indices, batch in windows.batches(7)]
    assert sizes == [(7, 7), (7, 7), (4, 4)]


def test_no_window_copies_the_panel() -> None:
    length = 2_000_000
    panel = Panel((Series("a", np.zeros(length, np.float32)),))
    tracemalloc.start()
    windows = whole(panel, 512, 96)
    windows.batch([0, 1000, len(windows) - 1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(windows) == length - 96
    assert windows.origin.nbytes + windows.series_index.nbytes == 8 * len(windows)
    assert peak < 40 * length
    assert windows.panel.series[0].values is panel.series[0].values


def test_covariates_follow_their_target_in_one_group() -> None:
    panel = with_covariates()
    windows = cut_windows(panel, [6, 6], [16, 16], 5, 4)
    batch = windows.batch([0, len(windows) - 1])
    assert batch.context.shape == (6, 5)
    assert batch.group_ids is not None
    assert batch.is_target is not None
    assert batch.target is not None
    assert batch.future is not None
    assert batch.group_ids.tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.is_target.tolist() == [True, False, False] * 2
    assert batch.context[:3, 0].tolist() == [1, 101, 201]
    assert batch.target[3].tolist() == [32, 34, 36, 38]
    assert batch.target[[1, 2, 4, 5]].isnan().all()
    assert batch.future[[0, 1, 3, 4]].isnan().all()
    assert batch.future[2].tolist() == [206, 207, 208, 209]
    assert windows.target_series([0, len(windows) - 1]).tolist() == [0, 1]


def test_covariates_are_scaled_by_their_own_train_part() -> None:
    panel = with_covariates()
    scaler = Scaler.fit(panel, [10, 10])
    batch = cut_windows(panel, [10, 10], [16, 16], 5, 4, scaler=scaler).batch([0])
    known = panel.series[0].known["k"]
    assert batch.future is not None
    expected = (known[10:14] - known[:10].mean()) / known[:10].std()
    np.testing.assert_allclose(batch.future[2].numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(scaler.inverse(batch.future[2:3], [0], variate=2)[0], known[10:14], rtol=1e-6)


def test_grouping_all_puts_every_series_and_each_shared_covariate_into_one_window() -> None:
    windows = cut_windows(with_covariates(), [6, 6], [16, 16], 5, 4, grouping="all")
    assert len(windows) == 11
    assert (windows.rows_per_window, windows.targets_per_window) == (4, 2)
    batch = windows.batch([0, 10])
    assert batch.group_ids is not None
    assert batch.is_target is not None
    assert batch.group_ids.tolist() == [0] * 4 + [1] * 4
    assert batch.is_target.tolist() == [True, True, False, False] * 2
    assert batch.context[:, 0].tolist() == [1, 2, 101, 201, 11, 22, 111, 211]
    assert windows.target_series([0, 10]).tolist() == [0, 1, 0, 1]
    assert windows.targets([10])[1].tolist() == [32, 34, 36, 38]


def test_grouping_all_without_covariates_still_groups() -> None:
    batch = whole(panel_of(10, 10), 3, 2, grouping="all").batch([1, 2])
    assert batch.group_ids is not None
    assert batch.group_ids.tolist() == [0, 0, 1, 1]
    assert batch.is_target is None


def test_grouping_all_over_unaligned_series_is_refused() -> None:
    with pytest.raises(TspruneError, match="--together .*'s1' covers others than 's0'"):
        whole(panel_of(10, 12), 3, 2, grouping="all")


def test_zero_stride_and_empty_requests_are_refused() -> None:
    with pytest.raises(TspruneError, match="stride is 0"):
        whole(panel_of(10), 3, 2, stride=0)
    with pytest.raises(TspruneError, match="at least 1"):
        whole(panel_of(10), 3, 2).thin(0)


def test_forecast_batch_ends_at_the_last_step_and_carries_the_known_future() -> None:
    batch = forecast_batch(with_covariates(), 5, 4)
    assert batch.target is None
    assert batch.future is not None
    assert batch.context[0].tolist() == [15, 16, 17, 18, 19]
    assert batch.context[5].tolist() == [215, 216, 217, 218, 219]
    assert batch.future[2].tolist() == [220, 221, 222, 223]
    assert batch.future[0].isnan().all()
    both = forecast_batch(with_covariates(), 5, 4, grouping="all")
    assert both.context.shape == (4, 5)


def test_forecast_of_short_series_is_padded_and_scaled() -> None:
    panel = panel_of(3, 9)
    scaler = Scaler.fit(panel, panel.lengths)
    batch = forecast_batch(panel, 5, 2, scaler, series=[0])
    assert batch.context[0].isnan().tolist() == [True, True, False, False, False]
    np.testing.assert_allclose(scaler.inverse(batch.context, [0])[0, 2:], panel.series[0].values, rtol=1e-5)


def test_forecast_beyond_known_covariates_names_column_and_missing_steps() -> None:
    with pytest.raises(TspruneError, match=r"reach 6 steps beyond.*'k' lacks 2 steps"):
        forecast_batch(with_covariates(ahead=4), 5, 6)
    known = np.ones(14, np.float32)
    known[-1] = np.nan
    panel = Panel((Series("a", np.ones(10, np.float32), {}, {"k": known}),))
    with pytest.raises(TspruneError, match="'k' lacks 1 step"):
        forecast_batch(panel, 5, 4)


def test_window_knows_its_stamps() -> None:
    panel = Panel((Series("a", np.ones(10, np.float32), start=pd.Timestamp("2020-01-01")),), "D")
    assert whole(panel, 3, 2).horizon_timestamps(0)[0] == pd.Timestamp("2020-01-02")
