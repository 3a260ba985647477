"""The corpus of real series: reading, odds, windows, and what it refuses."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsprune.data.corpus import Corpus, CorpusSeries
from tsprune.data.simulated import Shares, WindowSource
from tsprune.errors import TspruneError


def write(folder: Path, name: str, lines: list[str]) -> None:
    text = "\n".join(lines) + "\n"
    if name.endswith(".gz"):
        with gzip.open(folder / name, "wt") as file:
            file.write(text)
    else:
        (folder / name).write_text(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "pretraining"
    place.mkdir()
    hours = [f"2020-01-{1 + h // 24:02d} {h % 24:02d}:00:00" for h in range(480)]
    write(place, "load.csv.gz", ["date, a,b,flat", *[f"{t},{h},{h * h},1" for h, t in enumerate(hours)]])
    long = [f"S{k},2001-{1 + m:02d}-01,{10 * k + m}" for k in (1, 2) for m in range(12)]
    more = [f"S{k},2002-{1 + m:02d}-01,{10 * k + m + 12}" for k in (1, 2) for m in range(12)]
    write(place, "many.csv", ["unique_id,ds,y", *long, *more])
    return place


def by_name(corpus: Corpus) -> dict[str, np.ndarray]:
    return {one.name: one.values for one in corpus.series}


def test_wide_and_long_files_are_read_and_constant_columns_left_out(folder: Path) -> None:
    series = by_name(Corpus.from_folder(folder))
    assert sorted(series) == ["load/a", "load/b", "many/S1", "many/S2"]
    assert np.array_equal(series["load/a"], np.arange(480, dtype=np.float32))
    assert np.array_equal(series["many/S2"], np.arange(20, 44, dtype=np.float32))
    assert all(values.dtype == np.float32 for values in series.values())


def test_newest_first_is_put_in_order_and_absent_steps_become_nan(folder: Path) -> None:
    days = [d for d in range(1, 31) if d != 17]
    write(folder, "days.csv", ["Day,v", *[f"04/{d:02d}/2021,{d}" for d in reversed(days)]])
    values = by_name(Corpus.from_folder(folder))["days/v"]
    assert len(values) == 30 and np.isnan(values[16])
    assert np.array_equal(np.delete(values, 16), np.array(days, dtype=np.float32))


def test_table_without_timestamps_keeps_numbered_columns(folder: Path) -> None:
    write(folder, "speed.csv", ["773869,767541", *[f"{k},{-k}" for k in range(40)]])
    series = by_name(Corpus.from_folder(folder))
    assert np.array_equal(series["speed/767541"], -np.arange(40, dtype=np.float32))


def test_excluded_files_are_not_read(folder: Path) -> None:
    names = by_name(Corpus.from_folder(folder, exclude=["many*"]))
    assert sorted(names) == ["load/a", "load/b"]


@pytest.mark.parametrize("name", ["benchmark", "Benchmark", "benchmark/inner"])
def test_evaluation_data_is_refused(folder: Path, name: str) -> None:
    place = folder / name
    place.mkdir(parents=True)
    write(place, "x.csv", ["y", *[str(k) for k in range(50)]])
    with pytest.raises(TspruneError, match="benchmark"):
        Corpus.from_folder(place)


def test_link_into_evaluation_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "benchmark").mkdir()
    (tmp_path / "innocent").symlink_to(tmp_path / "benchmark")
    with pytest.raises(TspruneError, match="benchmark"):
        Corpus.from_folder(tmp_path / "innocent")


def test_single_file_linked_from_evaluation_data_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "benchmark").mkdir()
    write(tmp_path / "benchmark", "x.csv", ["y", *[str(k) for k in range(50)]])
    (folder / "x.csv").symlink_to(tmp_path / "benchmark" / "x.csv")
    with pytest.raises(TspruneError, match="benchmark"):
        Corpus.from_folder(folder)


def test_absent_empty_or_broken_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TspruneError, match="no such folder"):
        Corpus.from_folder(tmp_path / "nowhere")
    with pytest.raises(TspruneError, match="no usable series in 0"):
        Corpus.from_folder(tmp_path)
    (tmp_path / "bad.csv").write_text("")
    with pytest.raises(TspruneError, match="bad.csv"):
        Corpus.from_folder(tmp_path)


def test_description_counts_files_series_and_points(folder: Path) -> None:
    described = Corpus.from_folder(folder).describe()
    assert described["source"] == "pretraining"
    assert (described["series"], described["points"]) == (4, 2 * 480 + 2 * 24)
    assert described["files"]["many.csv"] == {"series": 2, "points": 48, "names": ["many/S1", "many/S2"]}


def test_many_short_series_do_not_crowd_out_one_long_one() -> None:
    rng = np.random.default_rng(0)
    short = [CorpusSeries(f"s/{k}", "s.csv", rng.random(50).astype(np.float32)) for k in range(1000)]
    corpus = Corpus([*short, CorpusSeries("l", "l.csv", rng.random(50_000).astype(np.float32))])
    whole = ~np.isnan(corpus.draw(np.random.default_rng(1), 400, 300)).any(axis=1)
    assert 0.45 < whole.mean() < 0.8


@settings(max_examples=60, deadline=None)
@given(steps=st.integers(16, 2000), length=st.integers(32, 300), seed=st.integers(0, 10**6))
def test_windows_of_any_series_are_standardised_and_leave_values_in_the_context(
    steps: int, length: int, seed: int
) -> None:
    values = np.random.default_rng(seed).random(steps).astype(np.float32)
    corpus = Corpus([CorpusSeries("x", "x.csv", values)])
    windows = corpus.draw(np.random.default_rng(seed), 5, length)
    assert windows.shape == (5, length) and windows.dtype == np.float32
    assert same(windows, corpus.draw(np.random.default_rng(seed), 5, length))
    assert not np.isinf(windows).any()
    assert (np.isfinite(windows[:, : length - length // 4]).sum(axis=1) >= 8).all()
    assert np.isfinite(windows[:, length - length // 4 :]).any(axis=1).all()
    assert np.nanstd(windows, axis=1) == pytest.approx(1.0, abs=0.2)


def same(first: np.ndarray, second: np.ndarray) -> bool:
    return np.array_equal(first, second, equal_nan=True)


def test_groups_are_columns_of_one_table_cut_at_the_same_place() -> None:
    steps = np.arange(1000)
    wave = np.sin(steps * steps / 500).astype(np.float32)
    columns = [CorpusSeries(f"t/{k}", "t.csv", wave * (k + 1), column=True) for k in range(3)]
    other = CorpusSeries("o", "o.csv", wave[::-1].copy())
    corpus = Corpus([*columns, other])
    assert corpus.has_groups
    drawn = corpus.draw_groups(np.random.default_rng(0), 4, 5, 100)
    assert drawn.shape == (4, 5, 100)
    assert np.abs(drawn - drawn[:, :1]).max() < 1e-4
    with pytest.raises(TspruneError, match="several columns"):
        Corpus([other]).draw_groups(np.random.default_rng(0), 1, 2, 100)


def test_real_share_decides_how_many_windows_are_real() -> None:
    ramp = np.arange(5000, dtype=np.float32)
    corpus = Corpus([CorpusSeries("ramp", "ramp.csv", ramp)])
    simulated = WindowSource(128, 0, corpus, Shares(real=0.0)).draw(64, 0)
    mostly = WindowSource(128, 0, corpus, Shares(real=1e6)).draw(64, 0)

    def lines(windows: np.ndarray) -> float:
        bends = np.nanmax(np.abs(np.diff(windows, 2, axis=1)), axis=1)
        return float((bends < 1e-3).mean())

    assert lines(simulated) < 0.1
    assert lines(mostly) > 0.7


def test_reference_corpus_reads_whole() -> None:
    shared = Path(os.environ.get("TSPRUNE_SHARED", Path(__file__).parents[2] / "shared"))
    place = shared / "data" / "pretraining"
    if not place.is_dir():
        pytest.skip("reference data absent: set TSPRUNE_SHARED to the folder that holds data/pretraining")
    corpus = Corpus.from_folder(place)
    series = by_name(corpus)
    assert corpus.has_groups and len(series) == len(corpus.series)
    assert len(series["metr_la_week/773869"]) == 2016
    assert len(series["pjm_aep_hourly/AEP_MW"]) == 121296
    gasoline = series["us_gasoline/Gasoline"]
    assert len(gasoline) == 1578 and gasoline[-1] == 8864
    assert len([name for name in series if name.startswith("monash_m3_monthly/")]) == 1428
