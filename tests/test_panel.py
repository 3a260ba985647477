"""Panels: shapes are checked, content has a fingerprint, steps have stamps."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tsprune.data.panel import Panel, Series
from tsprune.data.steps import parse_frequency
from tsprune.errors import TspruneError


def series(name: str = "a", length: int = 5, **more: Any) -> Series:
    return Series(name, np.arange(length, dtype=np.float32), **more)


def test_series_with_wrong_type_or_length_is_refused() -> None:
    with pytest.raises(TspruneError, match="float64"):
        Series("a", np.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(TspruneError, match="past covariates must have its length of 5"):
        series(past={"x": np.zeros(6, np.float32)})
    with pytest.raises(TspruneError, match="known covariates end before"):
        series(known={"x": np.zeros(4, np.float32)})
    with pytest.raises(TspruneError, match="differ in length"):
        series(known={"x": np.zeros(6, np.float32), "z": np.zeros(7, np.float32)})


def test_panel_refuses_repeated_ids_nothing_and_uneven_covariates() -> None:
    with pytest.raises(TspruneError, match="'a' names two series"):
        Panel((series(), series()))
    with pytest.raises(TspruneError, match="no series is left"):
        Panel(())
    with pytest.raises(TspruneError, match="'b' has other covariates than 'a'"):
        Panel((series(), series("b", past={"x": np.zeros(5, np.float32)})))


def test_fingerprint_follows_content_and_nothing_else() -> None:
    panel = Panel((series(start=pd.Timestamp("2020")),), "D")
    assert panel.fingerprint() == replace(panel, source="elsewhere", repairs=("sorted",)).fingerprint()
    values = panel.series[0].values.copy()
    values[2] = np.nan
    others = [
        Panel((replace(panel.series[0], values=values),), "D"),
        Panel((replace(panel.series[0], id="b"),), "D"),
        Panel((replace(panel.series[0], start=pd.Timestamp("2021")),), "D"),
        Panel(panel.series, "h"),
        Panel((series(start=pd.Timestamp("2020"), past={"x": panel.series[0].values}),), "D"),
    ]
    assert len({panel.fingerprint(), *(other.fingerprint() for other in others)}) == 6


def test_fingerprint_treats_every_nan_alike() -> None:
    one = np.array([1, np.nan], np.float32)
    two = one.copy()
    two.view(np.uint32)[1] = 0xFFC00001
    assert Panel((Series("a", one),)).fingerprint() == Panel((Series("a", two),)).fingerprint()


@pytest.mark.parametrize(
    ("alias", "season"),
    [
        ("10min", 144), ("15min", 96), ("h", 24), ("6h", 4), ("D", 7), ("B", 5), ("W-FRI", 52), ("MS", 12),
        ("ME", 12), ("QS", 4), ("QS-FEB", 4), ("2MS", 6), ("YS", 1), ("", 1),
    ],
)  # fmt: skip
def test_season_follows_from_the_frequency(alias: str, season: int) -> None:
    assert Panel((series(),), alias).season() == season


@pytest.mark.parametrize("alias", ["", "x", "0h", "h-MON", "W-FOO", "-1h", "hours"])
def test_unknown_aliases_are_refused(alias: str) -> None:
    with pytest.raises(TspruneError, match="--frequency"):
        parse_frequency(alias)


@pytest.mark.parametrize("alias", ["7min", "h", "B", "W-FRI", "MS", "2ME", "QE", "YS"])
def test_stamps_agree_with_pandas_before_and_beyond_the_end(alias: str) -> None:
    expected = pd.date_range("2019-12-27", periods=40, freq=alias)
    panel = Panel((series(length=30, start=expected[0]),), alias)
    assert (panel.timestamps(0) == expected[:30]).all()
    assert (panel.horizon_timestamps(0, 28, 12) == expected[28:]).all()


def test_series_in_another_phase_keep_their_own_stamps() -> None:
    panel = Panel((series(start=pd.Timestamp("2020-01-01")), series("b", start=pd.Timestamp("2020-02-01"))), "QS")
    assert panel.timestamps(1)[1] == pd.Timestamp("2020-05-01")
    assert not panel.aligned


def test_steps_before_counts_stamps_below_a_date() -> None:
    panel = Panel((series(length=10, start=pd.Timestamp("2020-01-01")),), "D")
    assert panel.steps_before(0, "2020-01-04") == 3
    assert panel.steps_before(0, "2020-01-04T12:00") == 4
    assert panel.steps_before(0, "2030-01-01") == 10
    with pytest.raises(TspruneError, match="not a date"):
        panel.steps_before(0, "soon")
    with pytest.raises(TspruneError, match="no timestamps"):
        Panel((series(),)).steps_before(0, "2020-01-01")


def test_description_names_counts_span_frequency_and_notes() -> None:
    values = np.array([1, np.nan, 3, 4], np.float32)
    panel = Panel((Series("a", values, start=pd.Timestamp("2020")),), "h", ("one thing",), {"layout": "wide"}, "my.csv")
    text = "\n".join(panel.describe())
    for words in (
        "1 series of 4 steps from my.csv",
        "2020-01-01 to 2020-01-01 03:00",
        "frequency h (season 24)",
    ):
        assert words in text
    assert "25.00% of 4" in text
    assert "note: one thing" in text
    assert "inferred layout: wide" in text


def test_from_frame_reads_like_read() -> None:
    frame = pd.DataFrame({"ds": pd.date_range("2020", periods=4), "y": [1.0, 2, 3, 4]})
    assert Panel.from_frame(frame).series[0].values.tolist() == [1, 2, 3, 4]


def test_importing_the_data_room_loads_neither_torch_nor_pandas() -> None:
    modules = "panel, reading, scaling, split, windows"
    code = f"from tsprune.data import {modules}; import sys; print({{'torch', 'pandas'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
