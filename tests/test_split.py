"""Cut-offs: published protocols, ratios, dates, hold-out; no look into the future."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsprune.data.panel import Panel, Series
from tsprune.data.reading import read
from tsprune.data.split import Split
from tsprune.errors import TspruneError


def panel_of(*lengths: int, frequency: str = "h", seed: int = 0) -> Panel:
    generator = np.random.default_rng(seed)
    start = pd.Timestamp("2020-01-01")
    series = [Series(f"s{k}", generator.normal(size=n).astype(np.float32), start=start) for k, n in enumerate(lengths)]
    return Panel(tuple(series), frequency)


@pytest.mark.parametrize(("preset", "month"), [("etth", 720), ("ettm", 2880)])
def test_ett_presets_give_the_published_windows(preset: str, month: int) -> None:
    split = Split.make(panel_of(24 * month + 140), 96, 336, preset)
    counts = [len(part) for part in (split.train(), split.validation(), split.test())]
    assert counts == [12 * month - 336 - 96 + 1, 4 * month - 96 + 1, 4 * month - 96 + 1]
    assert split.test().origin[0] == 16 * month
    assert split.test().origin[-1] + 96 == 20 * month
    assert "unused" in split.notes[-1]


def test_ett_preset_on_short_data_is_refused_with_numbers() -> None:
    with pytest.raises(TspruneError, match=r"etth needs 14400 steps.*'s0' has 9000.*ratio"):
        Split.make(panel_of(9000), 96, 336, "etth")


def test_etth1_matches_the_protocol_on_the_real_file() -> None:
    beside = Path(__file__).resolve().parents[2] / "shared"
    path = Path(os.environ.get("TSPRUNE_SHARED", beside)) / "data/benchmark/ETTh1.csv.gz"
    if not path.exists():
        pytest.skip("ETTh1.csv.gz absent: set TSPRUNE_SHARED to the folder that holds data/")
    split = Split.make(read(path), 96, 512, "etth")
    assert len(split.test()) == 7 * 2785
    frame = pd.read_csv(path)
    train = frame["OT"].to_numpy()[:8640]
    assert split.scaler.mean[6, 0] == pytest.approx(train.mean(), rel=1e-6)
    assert split.scaler.std[6, 0] == pytest.approx(train.std(), rel=1e-6)
    assert split.describe()["validation_end"] == "2017-10-24 00:00:00 (step 11520)"


def test_ratio_cuts_aligned_series_alike() -> None:
    split = Split.make(panel_of(1000, 1000), 10, 20, "ratio 60/15/25")
    assert split.name == "ratio 60/15/25"
    assert split.train_end.tolist() == [600, 600]
    assert split.validation_end.tolist() == [750, 750]
    assert not split.notes
    assert split.describe()["train_end"] == "2020-01-26 00:00:00 (step 600)"


def test_ratio_cuts_unaligned_series_by_their_own_length() -> None:
    split = Split.make(panel_of(1000, 500), 10, 20, "70/10/20")
    assert split.train_end.tolist() == [700, 350]
    assert "own length" in split.notes[0]
    assert split.describe()["train_end"] == "per series, step 350 to 700"


def test_dates_cut_at_the_stamps() -> None:
    split = Split.make(panel_of(400, frequency="D"), 5, 10, "date 2020-10-01 2020-12-01")
    assert split.train_end[0] == 274
    assert split.validation_end[0] == 335
    assert split.test_end[0] == 400
    assert Split.make(panel_of(400, frequency="D"), 5, 10, "date 2020-10-01 2020-12-01 2021-01-01").test_end[0] == 366


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("date 2020-12-01 2020-10-01", "ascending"),
        ("date 2030-01-01 2031-01-01", "spans 2020-01-01"),
        ("date soon later", "'soon' is not a date"),
        ("date foo bar", "--split date foo bar: 'foo' is not a date, expected the form 2018-01-31"),
        ("ratio 70/20", "three whole percentages"),
        ("ratio 80/10/20", "sum to 100"),
        ("half", "expected 'auto', 'ratio 70/10/20'"),
        ("", "expected 'auto', 'ratio 70/10/20'"),
    ],
)
def test_impossible_cut_offs_are_refused_with_the_form_expected(spec: str, message: str) -> None:
    with pytest.raises(TspruneError, match=message):
        Split.make(panel_of(400, frequency="D"), 5, 10, spec)


def test_dates_without_timestamps_name_the_option_and_another_way() -> None:
    panel = Panel((Series("a", np.arange(90, dtype=np.float32)),))
    with pytest.raises(TspruneError, match="--split date 2020-01-01 2020-02-01: .*no timestamps; or give 'ratio"):
        Split.make(panel, 5, 10, "date 2020-01-01 2020-02-01")


def test_auto_is_a_ratio_that_says_so() -> None:
    split = Split.make(panel_of(1000), 10, 20)
    assert split.name == "ratio 70/10/20 (auto)"
    assert split.train_end.tolist() == [700]


def test_auto_falls_back_to_the_last_horizons_aloud_for_short_series() -> None:
    split = Split.make(panel_of(*[60] * 30, 500), 12, 24)
    assert split.name == "holdout: the last two horizons (auto)"
    assert split.train_end.tolist()[:2] == [36, 36]
    assert any("only 1 of 31 series" in note for note in split.notes)
    assert len(split.test()) == 31
    assert set(split.test().origin.tolist()) == {48, 488}


def test_series_too_short_for_all_parts_are_left_out_aloud() -> None:
    split = Split.make(panel_of(100, 8, 100, 9), 5, 10, "holdout")
    assert split.panel.ids == ("s0", "s2")
    assert any("2 series too short" in note and "s1, s3" in note and "7 steps in train" in note for note in split.notes)
    assert split.scaler.mean.shape == (2, 1)


def test_short_series_get_padded_contexts_aloud_and_long_ones_only_full_contexts() -> None:
    split = Split.make(panel_of(200, 40), 4, 50, "holdout")
    train = split.train()
    assert train.origin[train.series_index == 0].min() == 50
    assert train.origin[train.series_index == 1].min() == split.min_context == 2
    assert any("1 series of 2" in note and "padded" in note for note in split.notes)


def test_horizon_beyond_the_data_is_refused_with_a_suggestion() -> None:
    with pytest.raises(TspruneError, match=r"--horizon 96 .* has 50 steps, a window needs 120.*at most 15"):
        Split.make(panel_of(50), 96, 24)


def test_context_beyond_the_data_is_refused_with_a_suggestion_that_works() -> None:
    with pytest.raises(TspruneError, match=r"--context 512 .*at most 140 steps.*--context 95 or less"):
        Split.make(panel_of(150), 10, 512)
    assert len(Split.make(panel_of(150), 10, 95).train()) == 1
    assert len(Split.make(panel_of(150), 10, 512, pad=True).test()) == 21


def test_missing_part_is_refused_with_numbers() -> None:
    with pytest.raises(TspruneError, match=r"no validation window \(10 of 12 steps\).*'s0', 100 steps.*holdout"):
        Split.make(panel_of(100), 12, 10, "ratio 70/10/20")
    with pytest.raises(TspruneError, match=r"no train window.*--horizon of at most 9$"):
        Split.make(panel_of(30), 12, 10, "holdout")
    assert len(Split.make(panel_of(30), 9, 10, "holdout").test()) == 1
    with pytest.raises(TspruneError, match="more data are needed"):
        Split.make(panel_of(4), 2, 2, "holdout")


def test_part_without_any_observation_is_refused_by_name() -> None:
    values = np.ones(100, np.float32)
    values[80:] = np.nan
    split = Split.make(Panel((Series("a", values),)), 5, 10)
    assert len(split.train())
    with pytest.raises(TspruneError, match=r"no test window holds a value.*no observed target"):
        split.test()


def test_stride_counts_back_from_the_last_origin() -> None:
    split = Split.make(panel_of(100), 4, 8)
    assert split.test().origin.tolist() == list(range(80, 97))
    assert split.test(stride=5).origin.tolist() == [81, 86, 91, 96]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(40, 120), min_size=1, max_size=4),
    st.integers(1, 8),
    st.integers(1, 25),
    st.sampled_from(["auto", "holdout", "ratio 50/25/25"]),
)
def test_targets_of_every_part_stay_within_its_borders(
    lengths: list[int], horizon: int, context: int, spec: str
) -> None:
    split = Split.make(panel_of(*lengths), horizon, context, spec)
    borders = [np.zeros_like(split.train_end), split.train_end, split.validation_end, split.test_end]
    for place, windows in enumerate((split.train(), split.validation(), split.test())):
        series, origin = windows.series_index, windows.origin
        assert (origin >= borders[place][series]).all()
        assert (origin + horizon <= borders[place + 1][series]).all()
        assert (origin >= split.min_context).all()
        last = borders[place + 1] - horizon
        assert all(last[index] in origin[series == index] for index in range(len(split.panel.series)))


@settings(max_examples=30, deadline=None)
@given(st.integers(40, 90), st.integers(1, 4), st.integers(2, 12), st.integers(0, 999))
def test_values_after_the_train_part_change_neither_scaler_nor_train_windows(
    length: int, horizon: int, context: int, seed: int
) -> None:
    clean = panel_of(length, length, seed=seed)
    split = Split.make(clean, horizon, context, "ratio 50/25/25")
    spoilt = []
    for series, end in zip(clean.series, split.train_end, strict=True):
        values = series.values.copy()
        values[end:] = 1e9
        spoilt.append(Series(series.id, values, start=series.start))
    other = Split.make(Panel(tuple(spoilt), "h"), horizon, context, "ratio 50/25/25")
    np.testing.assert_array_equal(split.scaler.mean, other.scaler.mean)
    np.testing.assert_array_equal(split.scaler.std, other.scaler.std)
    every = np.arange(len(split.train()))
    one, two = split.train().batch(every), other.train().batch(every)
    assert one.target is not None
    assert two.target is not None
    np.testing.assert_array_equal(one.context.numpy(), two.context.numpy())
    np.testing.assert_array_equal(one.target.numpy(), two.target.numpy())
    assert (other.test().targets([0]) == 1e9).all()


def test_grouping_all_splits_an_aligned_panel_and_refuses_others() -> None:
    split = Split.make(panel_of(100, 100, 100), 5, 10, grouping="all")
    assert split.test().batch([0, 1]).rows == 6
    assert len(split.test()) == 16
    with pytest.raises(TspruneError, match="--together .*same steps"):
        Split.make(panel_of(100, 90), 5, 10, grouping="all")
