"""Metrics: equal to the definition, blind to batches, order and unobserved targets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsprune.errors import TspruneError
from tsprune.evaluation.metrics import DECILES, MEASURES, Accumulator, Metrics, RowErrors, naive_error


@dataclass
class Case:
    truth: np.ndarray
    quantiles: np.ndarray
    original: np.ndarray
    scale: np.ndarray
    naive: np.ndarray

    def part(self, rows) -> tuple[np.ndarray, ...]:
        return tuple(array[rows] for array in vars(self).values())


@st.composite
def cases(draw) -> Case:
    rows, steps = draw(st.integers(1, 12)), draw(st.integers(1, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    truth = rng.normal(size=(rows, steps)).astype(np.float32)
    truth[rng.random(truth.shape) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = np.nan
    naive = rng.lognormal(size=rows)
    naive[rng.random(rows) < 0.2] = 0.0
    naive[rng.random(rows) < 0.2] = np.nan
    scale = rng.lognormal(sigma=3, size=rows)
    return Case(
        truth=truth,
        quantiles=rng.normal(size=(rows, 9, steps)).astype(np.float32),
        original=truth.astype(np.float64) * scale[:, None] + rng.normal(size=(rows, 1)) * 10,
        scale=scale,
        naive=naive,
    )


def measure(case: Case, *parts) -> Metrics:
    accumulator = Accumulator()
    for rows in parts or (slice(None),):
        accumulator.add(*case.part(rows))
    return accumulator.metrics()


def brute_force(case: Case) -> Metrics:
    """The definitions, value by value, on the original scale wherever that is the definition's scale."""
    squared, absolute, mase, loss, size = [], [], [], 0.0, 0.0
    for row, truth in enumerate(case.truth.astype(float)):
        scale = case.scale[row]
        errors = []
        for step, y in enumerate(truth):
            if math.isnan(y):
                continue
            q = case.quantiles[row, :, step].astype(float)
            squared.append((y - q[4]) ** 2)
            absolute.append(abs(y - q[4]))
            original = case.original[row, step]
            forecast = original + (q - y) * scale
            errors.append(abs(original - forecast[4]))
            size += abs(original)
            for level, value in zip(DECILES, forecast, strict=True):
                gap = original - value
                loss += level * gap if gap >= 0 else (level - 1) * gap
        if errors and case.naive[row] > 0:
            mase.append(np.mean(errors) / case.naive[row])
    return {
        "mse": float(np.mean(squared)) if squared else None,
        "mae": float(np.mean(absolute)) if absolute else None,
        "mase": float(np.mean(mase)) if mase else None,
        "wql": 2 * loss / 9 / size if size else None,
    }


@given(cases())
@settings(max_examples=60, deadline=None)
def test_measures_equal_the_definitions(case):
    found, expected = measure(case), brute_force(case)
    for name, value in expected.items():
        assert found[name] == (None if value is None else pytest.approx(value, rel=1e-9)), name


@given(case=cases(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_split_and_order_of_rows_gives_the_same_bits(case, data):
    order = data.draw(st.permutations(range(len(case.truth))))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(order)))))
    edges = [0, *cuts, len(order)]
    parts = [list(order[a:b]) for a, b in zip(edges, edges[1:], strict=False)]
    assert measure(case, *parts) == measure(case)


@given(cases())
@settings(max_examples=40, deadline=None)
def test_memory_layout_does_not_change_a_bit(case):
    turned = Case(**{name: np.asfortranarray(array) for name, array in vars(case).items()})
    assert measure(turned) == measure(case)


@given(case=cases(), junk=st.sampled_from([1e30, math.inf, math.nan]))
@settings(max_examples=40, deadline=None)
def test_forecasts_at_unobserved_targets_do_not_matter(case, junk):
    spoilt = Case(**{**vars(case), "quantiles": case.quantiles.copy()})
    spoilt.quantiles[np.broadcast_to(np.isnan(case.truth)[:, None], spoilt.quantiles.shape)] = junk
    assert measure(spoilt) == measure(case)


def one_row(truth, *, location=0.0, scale=1.0, naive=1.0) -> Case:
    truth = np.array([truth])
    quantiles = np.zeros((1, 9, truth.shape[1]))
    return Case(truth, quantiles, truth * scale + location, np.array([scale]), np.array([naive]))


def test_no_observed_target_gives_none_everywhere_and_is_counted():
    accumulator = Accumulator()
    accumulator.add(*one_row([math.nan, math.nan]).part(slice(None)))
    assert accumulator.metrics() == {"mse": None, "mae": None, "mase": None, "wql": None}
    assert (accumulator.without_target, accumulator.without_scale) == (1, 0)
    assert "1 of 1 windows have no observed target" in accumulator.notes()[0]


def test_targets_that_are_zero_in_original_units_give_no_wql():
    found = measure(one_row([2.0], location=-6.0, scale=3.0))
    assert found["wql"] is None
    assert found["mse"] == 4.0


@pytest.mark.parametrize("naive", [0.0, math.nan])
def test_series_without_naive_error_is_left_out_of_mase_and_said(naive):
    accumulator = Accumulator()
    accumulator.add(*one_row([1.0], naive=naive).part(slice(None)))
    accumulator.add(*one_row([3.0], naive=2.0, scale=4.0).part(slice(None)))
    assert accumulator.metrics()["mase"] == 6.0
    assert accumulator.without_scale == 1
    assert accumulator.notes() and "MASE leaves out 1 of 2 windows" in accumulator.notes()[0]


def test_nothing_added_gives_none():
    assert set(Accumulator().metrics().values()) == {None}
    assert Accumulator().notes() == []


@pytest.mark.parametrize("junk", [math.nan, math.inf])
def test_forecast_that_is_not_finite_is_refused(junk):
    case = one_row([1.0, 2.0])
    case.quantiles[0, 3, 1] = junk
    with pytest.raises(TspruneError, match="1 of 1 forecasts are not finite"):
        measure(case)


def test_forecast_of_the_wrong_shape_is_refused():
    case = one_row([1.0, 2.0])
    case.quantiles = case.quantiles[:, :5]
    with pytest.raises(TspruneError, match="9 deciles"):
        measure(case)


def test_naive_error_is_the_mean_seasonal_difference_over_observed_pairs():
    assert naive_error([1.0, 5.0, 2.0, math.nan, 5.0, 9.0], 2) == 2.0
    assert naive_error([1.0, 5.0, 2.0], 1) == 3.5


@pytest.mark.parametrize("train", [[], [1.0], [1.0, 2.0, 3.0], [math.nan] * 9])
def test_train_part_too_short_or_empty_has_no_naive_error(train):
    assert math.isnan(naive_error(train, 3))


def test_season_of_zero_is_refused():
    with pytest.raises(TspruneError, match="season is 0"):
        naive_error([1.0, 2.0], 0)


@given(cases())
@settings(max_examples=30, deadline=None)
def test_smape_equals_the_m4_definition(case):
    accumulator = Accumulator()
    accumulator.add(*case.part(slice(None)))
    means = []
    for row, truth in enumerate(case.truth.astype(float)):
        terms = []
        for step in np.flatnonzero(~np.isnan(truth)):
            y = case.original[row, step]
            f = y + (case.quantiles[row, 4, step].astype(float) - truth[step]) * case.scale[row]
            terms.append(200 * abs(y - f) / (abs(y) + abs(f)))
        if terms:
            means.append(np.mean(terms))
    assert accumulator.rows().value("smape") == (pytest.approx(np.mean(means), rel=1e-6) if means else None)


def test_smape_of_0_forecast_as_0_is_0_and_of_0_forecast_as_anything_else_200():
    accumulator = Accumulator()
    # A mean of 6 and a scale of 3: 0 is -2 on the z-scored scale, met but for rounding, then missed.
    truth, original = np.array([[-2.0, -2.0]]), np.array([[0.0, 0.0]])
    quantiles = np.full((1, 9, 2), -2.0)
    quantiles[..., 0] *= 1 - 2e-7
    quantiles[..., 1] += 1e-3
    accumulator.add(truth, quantiles, original, np.array([3.0]), np.array([1.0]))
    assert accumulator.rows().value("smape") == pytest.approx(100)


def test_each_measure_is_a_ratio_of_sums_of_its_terms_and_rows_can_be_joined():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(9, 4))
    truth[0], truth[3, 1] = np.nan, np.nan
    case = Case(truth, rng.normal(size=(9, 9, 4)), truth + 5, np.ones(9), np.r_[0.0, np.ones(8)])
    rows = []
    for part in (slice(0, 4), slice(4, 9)):
        accumulator = Accumulator()
        accumulator.add(*case.part(part))
        rows.append(accumulator.rows())
    joined = RowErrors.joined(rows)
    assert joined.metrics() == measure(case)
    for name in MEASURES:
        terms = joined.terms(name)
        assert joined.value(name) == pytest.approx(terms.numerator.sum() / terms.denominator.sum(), rel=1e-12)
    assert {name: joined.value(name) for name in measure(case)} == measure(case)
    with pytest.raises(TspruneError, match="'crps' is not known"):
        joined.value("crps")
