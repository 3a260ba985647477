"""Intervals: the bootstrap draws what it says, keeps together what belongs together, and covers the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rowsums import origins, panel_of, rows_of, window_losses
from tsprune.data.split import Split
from tsprune.data.windows import cut_windows
from tsprune.errors import TspruneError
from tsprune.evaluation.intervals import circular_sums, interval, ratio_interval, resample
from tsprune.evaluation.metrics import MEASURES
from tsprune.evaluation.timeblocks import Blocks


@given(count=st.integers(1, 30), data=st.data())
@settings(max_examples=25, deadline=None)
def test_circular_sums_go_around_the_end(count: int, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, count))
    values = np.random.default_rng(count).normal(size=(count, 2))
    wanted = [values[[(first + step) % count for step in range(length)]].sum(axis=0) for first in range(count)]
    np.testing.assert_allclose(circular_sums(values, length), wanted, atol=1e-12)


@pytest.mark.parametrize(("count", "length"), [(12, 4), (11, 4), (7, 1), (5, 5)])
def test_replicates_are_the_units_that_were_drawn(count: int, length: int) -> None:
    values = np.random.default_rng(1).normal(size=(count, 3))
    whole, rest = divmod(count, length)
    starts = np.random.default_rng(9).integers(0, count, (40, whole + 1))
    drawn = []
    for row in starts:
        units = [(start + step) % count for start in row[:whole] for step in range(length)]
        units += [(row[whole] + step) % count for step in range(rest)]
        assert len(units) == count
        drawn.append(values[units].sum(axis=0))
    np.testing.assert_allclose(resample(values, length, 40, seed=9), drawn, atol=1e-12)


def test_one_block_of_all_units_changes_nothing() -> None:
    values = np.random.default_rng(0).normal(size=(9, 2))
    np.testing.assert_allclose(resample(values, 9, 5), np.tile(values.sum(axis=0), (5, 1)), atol=1e-12)


@pytest.mark.parametrize("measure", MEASURES)
def test_estimates_are_the_measures_themselves(measure: str) -> None:
    generator = np.random.default_rng(3)
    rows = rows_of(generator.exponential(size=80), generator.integers(1, 9, 80))
    found = interval(rows, origins(40, 4, series=2), measure, replicates=50)
    assert found.estimate == rows.value(measure)
    assert found.low is not None and found.high is not None and found.low < found.estimate < found.high


@given(seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_ratio_upside_down_turns_the_interval_upside_down(seed: int) -> None:
    generator = np.random.default_rng(seed)
    one, two = (rows_of(generator.exponential(size=60)) for _ in range(2))
    up, down = (ratio_interval(*pair, origins(60, 3), "mse", replicates=60) for pair in ((one, two), (two, one)))
    ends = (up.estimate, up.low, up.high)
    assert ends == pytest.approx([1 / (down.estimate or 0), 1 / (down.high or 0), 1 / (down.low or 0)], rel=1e-9)


def test_same_seed_same_interval() -> None:
    rows, blocks = rows_of(np.random.default_rng(0).exponential(size=50)), origins(50, 2)
    first, again, other = (interval(rows, blocks, "mse", replicates=99, seed=seed) for seed in (4, 4, 5))
    assert first == again != other


def test_model_against_itself_has_ratio_1_exactly() -> None:
    rows = rows_of(np.random.default_rng(0).exponential(size=50))
    found = ratio_interval(rows, rows, origins(50, 5), "wql")
    assert (found.estimate, found.low, found.high) == (1, 1, 1)
    assert not found.excludes(1)


def test_independent_units_give_students_interval() -> None:
    losses = 5 + np.random.default_rng(2).normal(size=400)
    blocks = Blocks(np.arange(400), 400, 1, "series")
    found = interval(rows_of(losses), blocks, "mse", replicates=4000)
    half = 1.966 * losses.std(ddof=1) / math.sqrt(400)
    assert (found.low, found.high) == pytest.approx((losses.mean() - half, losses.mean() + half), abs=0.12 * half)


def test_series_that_say_the_same_do_not_narrow_the_interval() -> None:
    losses = np.random.default_rng(2).exponential(size=100)
    alone = interval(rows_of(losses), origins(100, 4), "mse")
    tenfold = interval(rows_of(np.repeat(losses, 10)), origins(100, 4, series=10), "mse")
    assert (tenfold.low, tenfold.high) == pytest.approx((alone.low, alone.high), rel=1e-12)


@pytest.mark.parametrize(("count", "horizon"), [(300, 12), (70, 12), (300, 1), (150, 50)])
def test_intervals_cover_the_truth_about_as_often_as_they_say(count: int, horizon: int) -> None:
    generator, blocks, covered = np.random.default_rng(count + horizon), origins(count, horizon), 0
    for seed in range(200):
        one, two = (rows_of(losses) for losses in window_losses(generator, count, horizon))
        covered += not ratio_interval(one, two, blocks, "mse", replicates=200, seed=seed).excludes(1)
    assert 0.87 <= covered / 200 <= 0.99


@pytest.mark.parametrize(
    ("count", "overlap", "length"),
    [(2785, 96, 192), (2161, 720, 720), (1000, 1, 10), (60, 12, 12), (4, 1, 1), (3, 5, 5), (100, 15, 20)],
)
def test_block_length_follows_its_rule(count: int, overlap: int, length: int) -> None:
    blocks = origins(count, overlap)
    assert blocks.length == length
    assert blocks.stretches == count / length
    assert bool(blocks.notes()) == (count / length < 10)


def test_too_few_stretches_give_no_interval_but_a_reason() -> None:
    found = interval(rows_of([1.0, 2.0, 3.0]), origins(3, 2), "mse")
    assert found.estimate == 2 and found.low is None and found.high is None
    assert not found.excludes(99)
    assert "fewer than two independent stretches" in found.to_json()["note"]


def test_perfect_models_divide_nothing_by_zero() -> None:
    perfect, other = rows_of(np.zeros(40)), rows_of(np.r_[np.zeros(39), 1.0])
    blocks = origins(40)
    assert interval(perfect, blocks, "mse").high == 0
    assert ratio_interval(perfect, perfect, blocks, "mse").estimate == 1
    assert ratio_interval(perfect, other, blocks, "mse").estimate == 0
    assert ratio_interval(other, perfect, blocks, "mse").estimate is None
    # One error only: some replicates do not have it, and the lower end is 0.
    assert interval(other, blocks, "mse").low == 0
    assert interval(rows_of(np.ones(40), observed=0), blocks, "mse").estimate is None


@pytest.mark.parametrize(("stride", "overlap"), [(1, 6), (2, 3), (4, 2), (6, 1), (7, 1)])
def test_overlap_is_the_horizon_in_window_steps(stride: int, overlap: int) -> None:
    split = Split.make(panel_of(200, 200), 6, 10, "ratio 60/20/20")
    windows = split.test(stride)
    blocks = Blocks.of(windows)
    assert (blocks.kind, blocks.overlap, blocks.count) == ("origins", overlap, len(windows) // 2)


def test_rows_of_one_origin_are_one_unit_in_any_grouping() -> None:
    panel = panel_of(60, 60, 60)
    alone, together = (
        cut_windows(panel, [20] * 3, [50] * 3, 8, 6, grouping=grouping)  # type: ignore[arg-type]
        for grouping in ("none", "all")
    )
    values = {(s, o): 100 * s + o for s in range(3) for o in range(20, 51)}
    per_series = [values[s, o] for s, o in zip(alone.series_index.tolist(), alone.origin.tolist(), strict=True)]
    per_window = [values[s, o] for o in together.origin.tolist() for s in range(3)]
    sums = [Blocks.of(alone).sums(np.array([per_series]).T), Blocks.of(together).sums(np.array([per_window]).T)]
    np.testing.assert_array_equal(sums[0], sums[1])
    assert sums[0][:, 0].tolist() == [300 + 3 * origin for origin in range(20, 51)]


def test_dates_tell_which_origins_coincide() -> None:
    panel = panel_of(60, 50, starts=[0, 10])
    windows = cut_windows(panel, [30, 20], [50, 40], 8, 6)
    blocks = Blocks.of(windows)
    assert blocks.count == 21
    assert blocks.unit[:21].tolist() == blocks.unit[21:].tolist()
    # In different phases of the stride, more units overlap than windows of one series.
    assert Blocks.of(cut_windows(panel, [30, 20], [50, 39], 8, 6, stride=6)).overlap == 2


def test_series_are_the_units_where_nothing_else_is_sensible() -> None:
    undated = panel_of(60, 50, dated=False)
    windows = cut_windows(undated, [30, 20], [50, 40], 8, 6)
    blocks = Blocks.of(windows)
    assert (blocks.kind, blocks.count, blocks.length, blocks.overlap) == ("series", 2, 1, 1)
    assert np.bincount(blocks.unit).tolist() == [21, 21]
    with pytest.raises(TspruneError, match="no timestamps and differ in length"):
        Blocks.of(windows, by="origins")
    single = Split.make(panel_of(60, 60, 60), 6, 10, "holdout").test()
    assert (Blocks.of(single).kind, Blocks.of(single, by="origins").count) == ("series", 1)


def test_folds_line_up_by_series_and_date() -> None:
    panel = panel_of(60, 60)
    folds = [cut_windows(panel, [40] * 2, [40] * 2, 8, 6), cut_windows(panel.select([1]), [50], [50], 8, 6)]
    assert Blocks.of(folds).unit.tolist() == [0, 0, 1]
    assert Blocks.of(folds, by="series").unit.tolist() == [0, 1, 1]
    with pytest.raises(TspruneError, match="several horizons"):
        Blocks.of([folds[0], cut_windows(panel, [40] * 2, [40] * 2, 8, 5)])


def test_mistakes_are_named() -> None:
    rows, blocks = rows_of(np.ones(20)), origins(20)
    with pytest.raises(TspruneError, match=r"'rmse' is not known: expected one of mse, mae, mase, wql, smape"):
        interval(rows, blocks, "rmse")
    with pytest.raises(TspruneError, match="different windows"):
        ratio_interval(rows, rows_of(np.ones(20), observed=2), blocks, "mse")
    with pytest.raises(TspruneError, match="different windows"):
        ratio_interval(rows, rows_of(np.ones(19)), blocks, "mse")
    with pytest.raises(TspruneError, match="20 rows of errors for 21 rows of windows"):
        interval(rows, origins(21), "mse")
    with pytest.raises(TspruneError, match="confidence level is 95"):
        interval(rows, blocks, "mse", level=95)
    with pytest.raises(TspruneError, match="0 replicates"):
        interval(rows, blocks, "mse", replicates=0)
