"""Timestamps and frequencies as people write them, in one column or two."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tables import Write, lines, noted
from tsprune.data.reading import ReadOptions, read
from tsprune.errors import TspruneError


@pytest.mark.parametrize(
    ("dates", "frequency", "first"),
    [
        (["2016-07-01 00:00:00", "2016-07-01 01:00:00", "2016-07-01 02:00:00"], "h", "2016-07-01 00:00"),
        (["1990/1/1 0:00", "1990/1/2 0:00", "1990/1/3 0:00"], "D", "1990-01-01 00:00"),
        (["04/30/2021", "05/07/2021", "05/14/2021"], "W-FRI", "2021-04-30 00:00"),
        (["1949-01", "1949-02", "1949-03"], "MS", "1949-01-01 00:00"),
        (["1956Q1", "1956Q2", "1956Q3"], "QS", "1956-01-01 00:00"),
        (["2020-W01", "2020-W02", "2020-W03"], "W-MON", "2019-12-30 00:00"),
        (["1-Jan-2020", "2-Jan-2020", "3-Jan-2020"], "D", "2020-01-01 00:00"),
        (["1/13/2020 1:00 PM", "1/13/2020 1:30 PM", "1/13/2020 2:00 PM"], "30min", "2020-01-13 13:00"),
        (["20200131", "20200229", "20200331"], "ME", "2020-01-31 00:00"),
        (["1990", "1991", "1992"], "YS", "1990-01-01 00:00"),
        (["1577836800", "1577840400", "1577844000"], "h", "2020-01-01 00:00"),
        (["2020-02-01", "2020-05-01", "2020-08-01"], "QS-FEB", "2020-02-01 00:00"),
    ],
)
def test_stamp_forms_are_read_with_their_frequency(write: Write, dates: list[str], frequency: str, first: str) -> None:
    panel = read(write(lines(dates)))
    assert panel.frequency == frequency
    assert panel.timestamps(0)[0].strftime("%Y-%m-%d %H:%M") == first


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["s", "5min", "15min", "h", "6h", "D", "B", "W-SUN", "W-WED", "MS", "ME", "QS", "QE", "YS"]),
    st.integers(15, 60),
    st.dates(pd.Timestamp("1950-01-01").date(), pd.Timestamp("2030-01-01").date()),
)
def test_grids_made_by_pandas_are_recognised_and_reproduced(alias: str, length: int, start: Any) -> None:
    stamps = pd.date_range(start, periods=length, freq=alias)
    panel = read(pd.DataFrame({"ds": stamps, "y": np.arange(length)}))
    assert panel.frequency == alias
    assert len(panel.series[0]) == length
    assert (panel.timestamps(0) == stamps).all()
    assert (panel.horizon_timestamps(0, length, 3) == pd.date_range(start, periods=length + 3, freq=alias)[-3:]).all()


def test_business_days_leave_no_holes_at_weekends(write: Write) -> None:
    days = pd.bdate_range("2020-01-01", periods=30).delete(7)
    panel = read(write(lines(days.date)))
    assert panel.frequency == "B"
    assert np.flatnonzero(np.isnan(panel.series[0].values)).tolist() == [7]


def test_day_and_month_are_told_apart_by_values_above_twelve(write: Write) -> None:
    days = pd.date_range("2020-01-01", periods=20)
    one = read(write(lines(days.strftime("%d/%m/%Y"))))
    two = read(write(lines(days.strftime("%m/%d/%Y"))))
    assert (one.timestamps(0) == days).all()
    assert (two.timestamps(0) == days).all()
    assert "month first" in two.inferred["timestamps"]


def test_day_and_month_are_told_apart_by_regular_spacing(write: Write) -> None:
    months = pd.date_range("2020-01-01", periods=24, freq="MS")
    panel = read(write(lines(months.strftime("%d/%m/%Y"))))
    assert panel.frequency == "MS"
    assert "evenly spaced" in panel.inferred["timestamps"]


def test_day_and_month_that_cannot_be_told_apart_are_refused_until_decided(write: Write) -> None:
    path = write(lines(f"01/{number:02d}/2020" for number in range(1, 13)))
    with pytest.raises(
        TspruneError,
        match=r"column 'date': '01/02/2020' may mean 2020-02-01 or 2020-01-02.*--timestamp-format",
    ):
        read(path)
    assert read(path, ReadOptions(timestamp_format="%d/%m/%Y")).frequency == "MS"
    assert read(path, ReadOptions(timestamp_format="%m/%d/%Y")).frequency == "D"


def test_unreadable_stamps_are_named_with_lines_and_the_option(write: Write) -> None:
    with pytest.raises(
        TspruneError, match=r"column 'date': 2 timestamps.*line 3, line 5.*'2020-13-02'.*--timestamp-format"
    ):
        read(write("date,a\n2020-01-01,1\n2020-13-02,2\n2020-01-03,3\nfoo,1\n"))


def test_column_without_any_date_is_refused_as_such(write: Write) -> None:
    path = write(lines(["foo"] * 50, "timestamp,a"))
    with pytest.raises(
        TspruneError, match=r"'timestamp' cannot be read as dates: .*'foo' \(line 2\).*--timestamp-format"
    ):
        read(path)
    with pytest.raises(TspruneError, match=r"'a' holds numbers such as 0.5 \(line 2\), which cannot be dates"):
        read(write("ds,a\n2020-01-01,0.5\n2020-01-02,0.5\n2020-01-03,0.5\n"), ReadOptions(timestamp_column="a"))


def test_format_that_does_not_fit_is_named_with_one_that_does(write: Write) -> None:
    path = write(lines(pd.date_range("2020-01-01", periods=9).date))
    with pytest.raises(
        TspruneError, match=r"9 timestamps do not fit --timestamp-format '%d' .*'2020-01-01'.*'%Y-%m-%d'"
    ):
        read(path, ReadOptions(timestamp_format="%d"))


def test_empty_stamp_is_refused_with_its_line(write: Write) -> None:
    with pytest.raises(TspruneError, match=r"column 'date': 1 empty timestamp \(line 3\)"):
        read(write("date,a\n2020-01-01,1\n,2\n2020-01-03,3\n"))


def test_zoned_hours_go_to_utc_and_zoned_dates_stay_local(write: Write) -> None:
    berlin = pd.date_range("2020-03-28 20:00", periods=12, freq="h", tz="Europe/Berlin")
    hours = read(write(lines(stamp.isoformat() for stamp in berlin)))
    assert not hours.repairs
    assert hours.timestamps(0)[0] == pd.Timestamp("2020-03-28 19:00")
    assert "UTC" in hours.inferred["timestamps"]
    days = read(pd.DataFrame({"ds": pd.date_range("2020-03-28", periods=4, tz="Europe/Berlin"), "a": range(4)}))
    assert days.frequency == "D"
    assert "local dates" in days.inferred["timestamps"]


def household(dates: Any, times: Any, header: str = "Date;Time;power;volt") -> str:
    rows = [
        f"{date};{time};{number};{2 * number}" for number, (date, time) in enumerate(zip(dates, times, strict=True))
    ]
    return "\n".join([header, *rows]) + "\n"


HOURS = pd.date_range("2021-01-30", periods=96, freq="h")


@pytest.mark.parametrize("given", [None, "Date", "Time"])
@pytest.mark.parametrize("days", ["%d/%m/%Y", "%Y-%m-%d", "%Y%m%d", "%m/%d/%Y"])
@pytest.mark.parametrize("clock", ["%H:%M:%S", "%H:%M", "%I:%M %p", "%H.%M.%S"])
def test_dates_and_times_of_day_in_two_columns_are_joined(write: Write, given: Any, days: str, clock: str) -> None:
    path = write(household(HOURS.strftime(days), HOURS.strftime(clock)))
    panel = read(path, ReadOptions(timestamp_column=given))
    assert panel.ids == ("power", "volt")
    assert (panel.timestamps(0) == HOURS).all()
    assert panel.frequency == "h"
    assert panel.inferred["timestamp columns"] == "Date and Time, joined"
    assert "id column" not in panel.inferred
    assert not panel.repairs


def test_order_of_day_and_month_is_decided_or_refused_also_beside_times(write: Write) -> None:
    hours = pd.date_range("2021-01-01", periods=5 * 24, freq="h")
    path = write(household(hours.strftime("%d/%m/%Y"), hours.strftime("%H:%M")))
    # Read as the first of five months these days are evenly spaced too, the hours are not.
    assert (read(path).timestamps(0) == hours).all()
    later = household(hours.strftime("%d/%m/%Y"), [f"{hour}:00" for _ in range(5) for hour in range(1, 25)])
    assert (read(write(later)).timestamps(0) == hours + pd.Timedelta("1h")).all()
    three = [f"0{day}/0{month}/2021" for day, month in ((1, 2), (2, 4), (5, 3)) for _ in range(24)]
    clocks = [f"{hour}:00" for _ in range(3) for hour in range(24)]
    with pytest.raises(TspruneError, match=r"column 'Date': '01/02/2021.*may mean.*--timestamp-format '%d/%m/%Y"):
        read(write(household(three, clocks)))


@pytest.mark.parametrize("fmt", ["%d/%m/%Y", "%d/%m/%Y %H:%M"])
def test_format_may_be_that_of_the_dates_or_of_both_columns(write: Write, fmt: str) -> None:
    hours = pd.date_range("2021-01-01", periods=48, freq="h")
    path = write(household(hours.strftime("%d/%m/%Y"), hours.strftime("%H:%M")))
    assert (read(path, ReadOptions(timestamp_format=fmt)).timestamps(0) == hours).all()


def test_times_beside_dates_are_joined_in_long_tables_and_frames() -> None:
    frame = pd.DataFrame({"day": HOURS.normalize(), "at": HOURS.time, "y": range(96)})
    long = pd.concat([frame.assign(town=town) for town in ("x", "y")])
    assert (read(frame).timestamps(0) == HOURS).all()
    panel = read(long)
    assert panel.ids == ("x", "y")
    assert panel.inferred["id column"] == "town"
    assert panel.frequency == "h"


def test_midnight_as_hour_24_belongs_to_the_next_day(write: Write) -> None:
    times = [f"{hour}:00" for hour in range(1, 25)] * 4
    dates = [f"2021-01-3{day}" for day in (0, 1) for _ in range(24)] + [
        f"2021-02-0{d}" for d in (1, 2) for _ in range(24)
    ]
    panel = read(write(household(dates, times)))
    assert panel.timestamps(0)[23] == pd.Timestamp("2021-01-31")
    assert not panel.repairs


def test_times_beside_stamps_that_hold_them_are_left_out_aloud(write: Write) -> None:
    panel = read(write(household(HOURS, HOURS.strftime("%H:%M"))))
    assert (panel.timestamps(0) == HOURS).all()
    assert noted(panel, "1 column of times of day left out, since 'Date' holds the times already: Time")


def test_headerless_dates_and_times_keep_their_first_row(write: Write) -> None:
    text = household(HOURS.strftime("%d/%m/%Y"), HOURS.strftime("%H:%M:%S"))
    panel = read(write(text.partition("\n")[2]))
    assert (panel.timestamps(0) == HOURS).all()


def test_times_that_cannot_be_joined_are_refused_with_a_cure(write: Write) -> None:
    clocks = [f"06:{minute:02d}" for minute in range(30)]
    days = pd.date_range("2021-01-01", periods=30).date
    sunrise = write(household(days, clocks, "Date;sunrise;power;volt"))
    with pytest.raises(TspruneError, match=r"'sunrise' holds times of day.*cannot be decided.*--value-columns"):
        read(sunrise)
    assert read(sunrise, ReadOptions(value_columns=("power",))).frequency == "D"
    alone = write("Time;power\n" + "\n".join(f"{clock};1" for clock in clocks))
    with pytest.raises(TspruneError, match=r"'Time' holds times of day such as '06:00' and no column holds dates"):
        read(alone)
    with pytest.raises(TspruneError, match="no column holds dates"):
        read(alone, ReadOptions(timestamp_column="Time"))
    two = write("date,on,off,y\n" + "\n".join(f"2021-01-0{1 + k // 9},0{k % 9}:00,1{k % 9}:00,{k}" for k in range(36)))
    with pytest.raises(TspruneError, match="on, off all hold times of day; join one of them with 'date'"):
        read(two)
    text = household(HOURS.strftime("%Y-%m-%d"), HOURS.strftime("%H:%M")).replace("02:00", "", 1)
    with pytest.raises(TspruneError, match=r"column 'Time': 1 time of day missing \(first in line 4\)"):
        read(write(text))
    months = write(household(["2021-01"] * 48 + ["2021-02"] * 48, HOURS.strftime("%H:%M")))
    with pytest.raises(TspruneError, match="'Time' holds times of day, but 'Date' holds no days"):
        read(months)
