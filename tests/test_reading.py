"""Files as people have them: read, repaired aloud, or refused with a reason."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tables import Write, by_id, daily, lines, noted
from tsprune.data.reading import ReadOptions, read
from tsprune.errors import TspruneError


@pytest.fixture(scope="module")
def shared() -> Path:
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("TSPRUNE_SHARED", beside)) / "data"
    if not folder.is_dir():
        pytest.skip("reference data absent: set TSPRUNE_SHARED to the folder that holds data/")
    return folder


# Layouts


def test_wide_file_gives_a_series_per_column(write: Write) -> None:
    panel = read(write("date,a,b\n2020-01-01,1,4\n2020-01-02,2,5\n2020-01-03,3,6\n"))
    assert by_id(panel) == {"a": [1, 2, 3], "b": [4, 5, 6]}
    assert panel.frequency == "D"
    assert panel.inferred["layout"].startswith("wide")
    assert panel.inferred["timestamp column"] == "date"
    assert not panel.repairs


def test_long_file_gives_a_series_per_id_in_natural_order(write: Write) -> None:
    rows = [f"T{k},2020-0{m}-01,{k * m}" for k in (10, 2) for m in (1, 2, 3)]
    panel = read(write("unique_id,ds,y\n" + "\n".join(rows)))
    assert panel.ids == ("T2", "T10")
    assert panel.frequency == "MS"
    assert panel.inferred["id column"] == "unique_id"


def test_long_file_with_unusual_names_finds_the_id_by_repeated_stamps(write: Write) -> None:
    panel = read(write("city,when,amount\nx,2020-01-01,1\nx,2020-01-02,2\ny,2020-01-01,3\ny,2020-01-02,4\n"))
    assert by_id(panel) == {"x": [1, 2], "y": [3, 4]}


def test_row_per_series_without_stamps_is_read_and_padding_cut(write: Write) -> None:
    panel = read(write('"V1","V2","V3","V4"\n"H1","1","2","3"\n"H2","4","",""\n"H3","5","","7"\n'))
    assert [series.values.shape for series in panel.series] == [(3,), (1,), (3,)]
    assert np.isnan(panel.series[2].values[1])
    assert panel.frequency == ""
    assert panel.season() == 1
    assert panel.series[0].start is None


def test_row_per_series_takes_a_given_frequency_for_its_season(write: Write) -> None:
    panel = read(write("V1,V2,V3\nH1,1,2\nH2,4,5\n"), ReadOptions(frequency="h"))
    assert panel.season() == 24
    assert isinstance(panel.timestamps(0), pd.RangeIndex)


def test_row_per_series_with_dates_as_names_gets_stamps(write: Write) -> None:
    panel = read(write("page,2020-01-01,2020-01-02,2020-01-03\nx,1,2,3\ny,4,,6\n"))
    assert panel.frequency == "D"
    assert str(panel.timestamps("xy".index("y"))[2])[:10] == "2020-01-03"


def test_numbers_without_stamps_become_steps_and_this_is_said(write: Write) -> None:
    panel = read(write("a,b\n1.5,2\n2.5,3\n3.5,9\n"))
    assert by_id(panel) == {"a": [1.5, 2.5, 3.5], "b": [2, 3, 9]}
    assert "none found" in panel.inferred["timestamps"]


def test_headerless_file_keeps_its_first_row(write: Write) -> None:
    panel = read(write("2020-01-01,1\n2020-01-02,2\n2020-01-03,3\n"))
    assert by_id(panel) == {"column 2": [1, 2, 3]}
    assert "none" in panel.inferred["header"]


def test_numeric_ids_as_header_are_not_taken_for_data(write: Write) -> None:
    panel = read(write("773869,767541\n64.3,67.6\n62.6,68.5\n"))
    assert panel.ids == ("773869", "767541")


def test_ids_stay_texts_also_where_they_look_like_numbers_or_missing(write: Write) -> None:
    panel = read(write("id,ds,y\n007,2020-01-01,1\n007,2020-01-02,2\nNA,2020-01-01,3\nNA,2020-01-02,4\n"))
    assert set(panel.ids) == {"007", "NA"}


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_wide_and_long_forms_give_equal_series(width: int, length: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(length, width)).astype(np.float32)
    names = [f"s{place}" for place in range(width)]
    wide = pd.DataFrame(values, columns=names)
    wide.insert(0, "ds", pd.date_range("2021-03-01", periods=length, freq="h"))
    long = wide.melt("ds", var_name="unique_id", value_name="y")
    back = long.pivot(index="ds", columns="unique_id", values="y")
    prints = {read(frame).fingerprint() for frame in (wide, long, back)}
    assert len(prints) == 1
    assert by_id(read(long)) == {name: values[:, place].tolist() for place, name in enumerate(names)}


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(3, 12), st.integers(0, 2**32 - 1))
def test_shuffled_rows_read_like_sorted_rows(width: int, length: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    stamps = np.tile(pd.date_range("2021-03-01", periods=length, freq="15min"), width)
    frame = pd.DataFrame({"id": np.repeat(np.arange(width), length), "ds": stamps})
    frame["y"] = generator.normal(size=len(frame))
    shuffled = frame.iloc[generator.permutation(len(frame))]
    assert read(shuffled).fingerprint() == read(frame).fingerprint()


def test_dataframe_with_dates_in_the_index_and_parquet_read_alike(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0]}, index=pd.date_range("2020", periods=2, freq="h"))
    frame.to_parquet(tmp_path / "a.parquet")
    assert read(frame).fingerprint() == read(tmp_path / "a.parquet").fingerprint()
    assert read(frame["a"]).fingerprint() == read(frame).fingerprint()


def test_index_column_of_an_export_is_left_out_aloud(write: Write) -> None:
    panel = read(write(",date,a\n0,2020-01-01,1\n1,2020-01-02,2\n"))
    assert panel.ids == ("a",)
    assert noted(panel, "only numbers the rows")


# Encodings, separators and numbers


def test_byte_order_mark_semicolons_and_decimal_commas_are_understood_and_reported(write: Write) -> None:
    text = "\ufeffdate;a\n" + "\n".join(f"{day:02d}.01.2020;{day},5" for day in range(1, 20))
    panel = read(write(text))
    assert panel.series[0].values[:2].tolist() == [1.5, 2.5]
    assert panel.inferred["separator"] == "';'"
    assert panel.inferred["decimal mark"] == "comma"
    assert "day first" in panel.inferred["timestamps"]


def test_text_that_is_no_utf8_is_read_as_cp1252_aloud(write: Write) -> None:
    wide = "date,Bär,Bör,5€\n2020-01-01,1,2,3\n2020-01-02,2,3,4\n"
    panel = read(write(wide.encode("cp1252")))
    assert panel.ids == ("Bär", "Bör", "5€")
    assert panel.inferred["encoding"].startswith("cp1252")
    assert not panel.repairs
    long = "id,date,y\n" + "\n".join(f"B{vowel}r,2020-01-0{day},{day}" for vowel in "äö" for day in (1, 2))
    assert read(write(gzip.compress(long.encode("latin-1")))).ids == ("Bär", "Bör")


def test_a_byte_beyond_the_sample_still_decides_on_the_encoding(write: Write) -> None:
    days = pd.date_range("1900-01-01", periods=20000).strftime("%Y-%m-%d")
    rows = [f"{'Köln' if place > 30000 else 'Bonn'},{days[place % 20000]},1" for place in range(40000)]
    panel = read(write(("id,date,y\n" + "\n".join(sorted(set(rows)))).encode("latin-1")))
    assert panel.ids == ("Bonn", "Köln")


def test_a_few_broken_bytes_among_valid_ones_are_replaced_and_counted(write: Write) -> None:
    text = "date,température,été\n2020-01-01,1,1\n2020-01-02,2,2\n".encode()
    panel = read(
        write(text.replace(b"date,", b"date,\xe9tage,").replace(b"-01,", b"-01,0,").replace(b"-02,", b"-02,0,"))
    )
    assert panel.ids == ("\ufffdtage", "température", "été")
    assert noted(panel, "1 place", "utf-8")
    assert "encoding" not in panel.inferred


def test_replacement_characters_of_the_file_itself_are_no_sign_of_another_encoding(write: Write) -> None:
    panel = read(write("date,5 \ufffdC\n2020-01-01,1\n2020-01-02,2\n"))
    assert panel.ids == ("5 \ufffdC",)
    assert "encoding" not in panel.inferred
    assert not panel.repairs


def test_utf16_and_gzip_are_recognised_by_content(write: Write) -> None:
    text = "date,é\n2020-01-01,1\n2020-01-02,2\n"
    wide = read(write(text.encode("utf-16")))
    zipped = read(write(gzip.compress(text.encode()), "zipped.csv"))
    assert wide.ids == zipped.ids == ("é",)


def test_grouped_numbers_are_read_where_only_one_reading_is_possible(write: Write) -> None:
    panel = read(write('date,a\n2020-01-01,"1,234.5"\n2020-01-02,999\n2020-01-03,"1,111"\n'))
    assert by_id(panel)["a"] == [1234.5, 999, 1111]
    assert noted(panel, "thousands")


def test_numbers_with_a_comma_of_unknown_meaning_are_refused_until_decided(write: Write) -> None:
    path = write('date,a\n2020-01-01,"1,234"\n2020-01-02,"2,999"\n')
    with pytest.raises(TspruneError, match=r"'1,234' in line 2.*--decimal"):
        read(path)
    assert by_id(read(path, ReadOptions(decimal=".")))["a"] == [1234, 2999]
    assert by_id(read(path, ReadOptions(decimal=",")))["a"] == pytest.approx([1.234, 2.999])


def test_words_in_a_number_column_are_named_with_their_lines(write: Write) -> None:
    rows = ["1", "abc", "3", "-", "5", "x", "y"]
    text = "date,a\n" + "\n".join(f"2020-01-0{day},{cell}" for day, cell in enumerate(rows, 1))
    with pytest.raises(TspruneError, match=r"'a': 4 cells.*'abc' in line 3, '-' in line 5, 'x' in line 7\)"):
        read(write(text))


def test_words_that_mean_missing_can_be_named(write: Write) -> None:
    panel = read(write("date,a\n2020-01-01,1\n2020-01-02,?\n2020-01-03,3\n"), ReadOptions(missing_text=("?",)))
    assert np.isnan(panel.series[0].values).tolist() == [False, True, False]
    assert noted(panel, "1 cell with ?")


def test_text_column_is_refused_unless_value_columns_are_named(write: Write) -> None:
    path = write("date,a,notes\n2020-01-01,1,x\n2020-01-02,2,hello\n")
    with pytest.raises(TspruneError, match=r"'notes' holds text.*--value-columns"):
        read(path)
    panel = read(path, ReadOptions(value_columns=("a",)))
    assert panel.ids == ("a",)
    assert noted(panel, "ignored", "notes")


def test_infinite_values_become_missing_and_are_reported(write: Write) -> None:
    panel = read(write("date,a\n2020-01-01,inf\n2020-01-02,2\n2020-01-03,1e39\n"))
    assert np.isnan(panel.series[0].values).tolist() == [True, False, True]
    assert noted(panel, "1 infinite value", "'a' (first in line 2)")
    assert noted(panel, "1 value overflows float32", "1e+39 in 'a' (first in line 4)")


def test_overflow_in_a_long_table_names_the_series() -> None:
    frame = pd.DataFrame({"id": list("xxxyyy"), "ds": [*pd.date_range("2020", periods=3)] * 2, "y": range(6)})
    frame = frame.astype({"y": float})
    frame.loc[4, "y"] = -1e300
    assert noted(read(frame), "1 value overflows float32", "-1e+300 in 'y' of y (first in row 4)")
    assert noted(read(frame, ReadOptions(sentinels=(-1e300,))), "1 value equal to the sentinel -1e+300")


# Repairs


def test_unsorted_rows_are_sorted_and_counted(write: Write) -> None:
    panel = read(write("date,a\n2020-01-03,3\n2020-01-02,2\n2020-01-01,1\n"))
    assert by_id(panel)["a"] == [1, 2, 3]
    assert noted(panel, "newest first", "2 stood after a later one", "2020-01-02")


def test_equal_duplicates_are_dropped_and_different_ones_averaged(write: Write) -> None:
    days = [f"2020-01-{day:02d},{day}" for day in range(1, 20)]
    panel = read(write("\n".join(["date,a", *days, "2020-01-03,3", "2020-01-05,8"])))
    assert panel.series[0].values[[2, 4]].tolist() == [3, 6.5]
    assert noted(panel, "1 repeated stamp, equal rows dropped: 2020-01-03")
    assert noted(panel, "1 repeated stamp, different values averaged: 2020-01-05")


def test_average_of_duplicates_ignores_missing_values() -> None:
    stamps = [*pd.date_range("2020", periods=19), pd.Timestamp("2020-01-03")]
    frame = pd.DataFrame({"ds": stamps, "a": np.arange(20.0), "b": np.arange(20.0)})
    frame.loc[2, "a"] = np.nan
    panel = read(frame)
    assert by_id(panel)["a"][2] == 19
    assert by_id(panel)["b"][2] == 10.5


def test_gap_becomes_missing_values_and_is_located(write: Write) -> None:
    days = [day for day in pd.date_range("2020-01-01", periods=20).date if day.day not in (5, 6, 11)]
    panel = read(write(lines(days)))
    assert np.flatnonzero(np.isnan(panel.series[0].values)).tolist() == [4, 5, 10]
    assert noted(panel, "3 absent steps", "2 gaps", "2 steps after 2020-01-04")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(20, 60))
def test_any_gaps_keep_every_value_on_its_stamp(seed: int, length: int) -> None:
    generator = np.random.default_rng(seed)
    keep = generator.random(length) < 0.8
    keep[[0, 1, 2, -1]] = True
    stamps = pd.date_range("2020-02-27", periods=length, freq="10min")
    values = generator.normal(size=length).astype(np.float32)
    panel = read(pd.DataFrame({"ds": stamps[keep], "y": values[keep]}))
    expected = np.where(keep, values, np.nan)
    np.testing.assert_array_equal(panel.series[0].values, expected)


def test_jittered_stamps_are_snapped_and_the_shift_reported() -> None:
    stamps = pd.date_range("2020", periods=30, freq="h") + pd.to_timedelta(np.arange(30) * 7 % 11 - 5, unit="s")
    panel = read(pd.DataFrame({"ds": stamps, "y": np.arange(30)}))
    assert panel.frequency == "h"
    assert (panel.timestamps(0) == pd.date_range("2020", periods=30, freq="h")).all()
    assert noted(panel, "snapped", "by 5 s at most")


def test_stamps_far_off_the_grid_are_refused_with_an_example_and_readable_as_rows(write: Write) -> None:
    path = write(lines([f"2020-01-01 0{hour}:{'27' if hour == 2 else '00'}" for hour in range(6)]))
    with pytest.raises(TspruneError, match=r"1 of 6 stamps.*grid of step h, e.g. 2020-01-01 02:27.*--grid rows"):
        read(path)
    panel = read(path, ReadOptions(grid="rows"))
    assert len(panel.series[0]) == 6
    assert panel.timestamps(0)[2] == pd.Timestamp("2020-01-01 02:27")
    assert panel.horizon_timestamps(0, 5, 2)[1] == pd.Timestamp("2020-01-01 06:00")
    assert noted(panel, "kept as they stand", "1 stamp off the grid")


def test_frequency_that_contradicts_the_stamps_is_refused() -> None:
    frame = pd.DataFrame({"ds": pd.date_range("2020", periods=50, freq="h"), "y": range(50)})
    with pytest.raises(TspruneError, match="not on a regular grid of step D"):
        read(frame, ReadOptions(frequency="D"))


def test_one_stamp_far_away_does_not_explode_the_grid() -> None:
    stamps = [*pd.date_range("2020", periods=5, freq="s"), pd.Timestamp("2031")]
    with pytest.raises(TspruneError, match=r"would have .* steps for 6 rows"):
        read(pd.DataFrame({"ds": stamps, "y": range(6)}))


def test_series_of_other_frequency_in_a_long_file_are_named() -> None:
    daily = [pd.DataFrame({"id": name, "ds": pd.date_range("2020", periods=9), "y": 1.0}) for name in "ac"]
    weekly = pd.DataFrame({"id": "b", "ds": pd.date_range("2020", periods=9, freq="W"), "y": 1.0})
    with pytest.raises(TspruneError, match="usual step is D, but b keep another"):
        read(pd.concat([*daily, weekly]))


def test_rows_of_several_series_without_id_column_are_refused() -> None:
    stamps = np.tile(pd.date_range("2020", periods=5), 3)
    with pytest.raises(TspruneError, match=r"15 rows share 5 different stamps.*--id-column"):
        read(pd.DataFrame({"ds": stamps, "y": range(15)}))


@pytest.mark.parametrize("given", [{}, {"value_columns": ("y",)}, {"id_column": "two"}])
@pytest.mark.parametrize("names", [{"one": "store", "two": "item"}, {"one": "town", "two": "item"}, {}])
def test_two_columns_that_together_name_the_series_are_named(names: dict[str, str], given: dict[str, Any]) -> None:
    parts = [daily(y=range(9)).assign(one=one, two=two) for one in "AB" for two in "xy"]
    chosen = {key: names.get(str(value), value) for key, value in given.items()}
    with pytest.raises(TspruneError, match=r"together name the series; join both.*(A/x|x/A).*--id-column"):
        read(pd.concat(parts).rename(columns=names), ReadOptions(**chosen))


def test_two_columns_of_numbers_that_name_the_series_are_named_too() -> None:
    parts = [daily(sales=range(9)).assign(store=one, item=two) for one in (1, 2) for two in (1, 2)]
    with pytest.raises(TspruneError, match="only 'item' and 'store' together name the series"):
        read(pd.concat(parts))


def test_empty_short_and_constant_series_are_dropped_or_reported() -> None:
    parts = {"full": [1.0, 2, 3, 4], "flat": [5.0] * 4, "none": [np.nan] * 4, "short": [1.0, 2]}
    frame = pd.concat(
        pd.DataFrame({"id": name, "ds": pd.date_range("2020", periods=len(values)), "y": values})
        for name, values in parts.items()
    )
    panel = read(frame, ReadOptions(min_length=3))
    assert panel.ids == ("flat", "full")
    assert noted(panel, "without any value", "none")
    assert noted(panel, "fewer than 3 steps", "short")
    assert noted(panel, "never changes", "flat")
    with pytest.raises(TspruneError, match=r"no series is left.*4 steps, --min-length asks for 9"):
        read(frame, ReadOptions(min_length=9))


# Covariates


def test_rows_with_only_known_covariates_at_the_end_are_the_future(write: Write) -> None:
    path = write("ds,y,temp,wind\n2020-01-01,1,5,1\n2020-01-02,2,6,2\n2020-01-03,,7,3\n2020-01-04,,8,\n")
    panel = read(path, ReadOptions(value_columns=("y",), known_covariates=("temp",), past_covariates=("wind",)))
    series = panel.series[0]
    assert (len(series), series.known_ahead) == (2, 2)
    assert series.known["temp"].tolist() == [5, 6, 7, 8]
    assert series.past["wind"].tolist() == [1, 2]
    assert noted(panel, "future", "up to 2")


def test_without_known_covariates_empty_targets_at_the_end_stay_missing(write: Write) -> None:
    panel = read(write("ds,y,x\n2020-01-01,1,5\n2020-01-02,2,6\n2020-01-03,,7\n"))
    assert np.isnan(panel.series[0].values).tolist() == [False, False, True]


def test_covariates_of_a_wide_table_are_shared_not_copied(write: Write) -> None:
    path = write("ds,a,b,x\n2020-01-01,1,5,0\n2020-01-02,2,6,1\n")
    panel = read(path, ReadOptions(known_covariates=("x",)))
    assert panel.ids == ("a", "b")
    assert np.shares_memory(panel.series[0].known["x"], panel.series[1].known["x"])


# Refusals


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"", "a.csv", "the file is empty"),
        (b"\n\n", "a.csv", "nothing but blank lines"),
        (b"date,a\n", "a.csv", "a header but no rows"),
        (b"date,a\n,\n", "a.csv", "every cell is empty"),
        (b"date,a\n2020-01-01,1,2\n2020-01-02,1,2\n", "a.csv", "not a regular table of 2 columns"),
        (b"PAR1 and then nothing", "a.parquet", "not a readable Parquet file"),
        (b"\x1f\x8bnot gzip at all", "a.csv.gz", "gzip file is damaged"),
        (gzip.compress(b"date,a\n2020-01-01,1\n" * 5000)[:-9], "a.csv.gz", "gzip file is damaged"),
        (b"PK\x03\x04 a spreadsheet", "a.xlsx", "spreadsheet.*export it as CSV"),
        (b"date,a\n2020-01-01,1\n", "a.csv", "step is unknown; give --frequency"),
        (b"a\0b\0\n1\0", "a.csv", "not a text file"),
        (b"label,a,b\n" + b"word,1,2\n" * 40, "a.csv", "--timestamp-column.*--layout transposed"),
    ],
)
def test_broken_files_are_refused_in_one_line(write: Write, content: bytes, name: str, message: str) -> None:
    with pytest.raises(TspruneError, match=message) as caught:
        read(write(content, name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", [{"a": [1]}, [1, 2], np.zeros(3), None, 5, b"a.csv"])
def test_sources_of_other_kinds_are_refused_with_those_accepted(source: Any) -> None:
    kind = type(source).__name__
    with pytest.raises(TspruneError, match=rf"of type {kind}, expected a path .*DataFrame or Series; wrap"):
        read(source)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TspruneError, match="no such file"):
        read(tmp_path / "none.csv")
    with pytest.raises(TspruneError, match="is a folder"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "tall"}, "--layout is 'tall', expected one of 'auto', 'long'"),
        ({"min_length": -1}, "--min-length is -1"),
        ({"frequency": "fortnight"}, "--frequency 'fortnight' is not known"),
        ({"value_columns": ("b",)}, "--value-columns names 'b', but the columns are ds, y"),
        ({"value_columns": ("y",), "past_covariates": ("y",)}, "given by both"),
        ({"value_columns": ("y", "y")}, "--value-columns names 'y' twice"),
        ({"layout": "long"}, "give --id-column"),
    ],
)
def test_impossible_options_name_the_flag(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TspruneError, match=message):
        read(pd.DataFrame({"ds": pd.date_range("2020", periods=5), "y": range(5)}), ReadOptions(**options))


# Real files


def test_every_reference_file_is_read_or_refused_with_a_cure(shared: Path) -> None:
    paths = sorted([*shared.glob("benchmark/*.csv*"), *shared.glob("pretraining/*.csv*")])
    refused = {}
    for path in paths:
        try:
            read(path)
        except TspruneError as error:
            refused[path.name] = str(error)
    assert len(paths) > 20
    assert list(refused) == ["bike_sharing_hour.csv"]
    assert "--id-column" in refused["bike_sharing_hour.csv"]


def test_weather_reports_its_three_known_defects(shared: Path) -> None:
    path = shared / "benchmark/weather.csv.gz"
    panel = read(path)
    assert len(panel.series[0]) == 52704
    assert noted(panel, "2020-05-12 06:00", "equal rows dropped")
    assert noted(panel, "9 absent steps", "2020-05-29 09:30")
    assert noted(panel, "-9999 occurs 81 times")
    assert len(read(path, ReadOptions(grid="rows")).series[0]) == 52696
