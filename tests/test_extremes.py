"""Values far from all others, beyond float32, or too precise for it: kept, and said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from tables import daily, noted
from tsprune.data.reading import ReadOptions, read


def wave(length: int = 400) -> np.ndarray[Any, Any]:
    return 100 + 20 * np.sin(np.arange(length) / 4) + np.random.default_rng(0).normal(size=length)


@pytest.mark.parametrize("far", [1e38, -1e12, 1e6, 9.96921e36])
def test_a_value_far_from_all_others_is_kept_with_a_hint_and_removed_on_demand(far: float) -> None:
    values = wave()
    values[5] = far
    panel = read(daily(a=values, b=wave()))
    assert panel.series[0].values[5] == np.float32(far)
    assert noted(panel, "1 value of 'a'", "2020-01-06", f"--sentinel {far:g}")
    assert len(panel.repairs) == 1
    cleaned = read(daily(a=values, b=wave()), ReadOptions(sentinels=(float(f"{far:g}"),)))
    assert np.flatnonzero(np.isnan(cleaned.series[0].values)).tolist() == [5]


def test_far_values_of_many_series_and_of_covariates_share_one_note() -> None:
    values, zeros = wave(), np.zeros(400)
    values[::40] = 1e30
    zeros[7] = 1e38
    frame = daily(a=values, b=values, empty=zeros, x=values)
    panel = read(frame, ReadOptions(known_covariates=("x",)))
    notes = [line for line in panel.repairs if "as far from" in line]
    assert len(notes) == 1
    assert notes[0].startswith("31 values of 'a', 'b', 'empty', 'x' lie more")
    assert "--sentinel 1e+30,1e+38" in notes[0]


def test_a_suspected_sentinel_is_not_noted_twice() -> None:
    values = wave() / 1000
    values[[3, 9]] = 999999
    assert len(read(daily(a=values)).repairs) == 1


def test_heavy_tails_rare_events_and_steps_are_no_far_values() -> None:
    generator = np.random.default_rng(0)
    counts = np.zeros(400)
    counts[[3, 50, 200]] = [1, 4, 700]
    level = np.where(np.arange(400) < 200, 1.0, 3e5)
    panel = read(
        daily(
            pareto=generator.pareto(0.7, 400),
            lognormal=generator.lognormal(0, 3, 400),
            cauchy=generator.standard_cauchy(400),
            counts=counts,
            level=level,
            spike=np.where(np.arange(400) == 9, 900.0, 1.0),
        )
    )
    assert not panel.repairs


def test_series_far_from_zero_that_loses_its_digits_gets_one_note() -> None:
    frame = daily(a=wave() + 1e9, flat=1e9 + np.sin(np.arange(400.0)), fine=wave() + 1e6, constant=[0.1] * 400)
    panel = read(frame)
    notes = [line for line in panel.repairs if "precision" in line]
    assert len(notes) == 1
    assert "2 series lose precision" in notes[0]
    assert "'a' (varies by" in notes[0]
    assert "'flat' (varies by 0.71 around 1e+09" in notes[0]
    assert "subtract a constant" in notes[0]


def test_rounded_constants_are_found_in_long_and_transposed_tables() -> None:
    values = 1e9 + np.sin(np.arange(12.0))
    wide = daily(a=values, b=np.full(12, 7.0), c=values[::-1])
    long = wide.melt("ds", var_name="id", value_name="y").sample(frac=1, random_state=0)
    table = wide.drop(columns="ds").T.reset_index().set_axis(["id", *(f"V{k}" for k in range(12))], axis=1)
    for frame in (wide, long, table):
        assert noted(read(frame), "2 series lose precision", "'a'", "'c'", "around 1e+09")


def test_suspected_sentinel_is_kept_with_a_hint_and_removed_on_demand() -> None:
    values = np.sin(np.arange(50.0))
    values[[5, 30]] = -9999
    frame = pd.DataFrame({"ds": pd.date_range("2020", periods=50), "a": values})
    kept = read(frame)
    assert kept.series[0].values[5] == -9999
    assert noted(kept, "--sentinel -9999", "a (2)")
    removed = read(frame, ReadOptions(sentinels=(-9999.0,)))
    assert np.flatnonzero(np.isnan(removed.series[0].values)).tolist() == [5, 30]
    assert noted(removed, "2 values equal to the sentinel")


def test_ordinary_value_of_9999_raises_no_suspicion() -> None:
    values = np.linspace(9000, 11000, 2001)
    values[3] = 9999
    panel = read(pd.DataFrame({"ds": pd.date_range("2000", periods=2001), "a": values}))
    assert not panel.repairs
