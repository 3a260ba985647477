"""The test of Diebold and Mariano: equal to its definition, about the right size, and no division by zero."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rowsums import origins, rows_of, window_losses
from tsprune.errors import TspruneError
from tsprune.evaluation.diebold_mariano import compare_rows, diebold_mariano, long_run_variance
from tsprune.evaluation.metrics import MEASURES
from tsprune.evaluation.student import two_sided_p, two_sided_quantile


@pytest.mark.parametrize("t", [0.0, 1e-6, 0.3, 1.0, 2.5, 40.0, 1e4])
def test_tails_equal_their_closed_forms(t: float) -> None:
    # Of 1, 2 and 4 degrees of freedom (Abramowitz and Stegun 26.7.3 and 4).
    assert two_sided_p(t, 1) == pytest.approx(2 / math.pi * math.atan2(1, t), rel=1e-9)
    assert two_sided_p(t, 2) == pytest.approx(2 / (math.hypot(t, math.sqrt(2)) * (math.hypot(t, math.sqrt(2)) + t)))
    angle = math.atan2(t, 2)
    inside = math.sin(angle) * (1 + math.cos(angle) ** 2 / 2)
    assert two_sided_p(-t, 4) == pytest.approx(1 - inside, rel=1e-7, abs=1e-12)


def test_tails_equal_those_of_mpmath() -> None:
    mpmath = pytest.importorskip("mpmath")
    for t, df in [(2.1, 3.7), (0.01, 1000), (5.5, 2784), (38.0, 30), (1.96, 1e6)]:
        wanted = mpmath.betainc(df / 2, 0.5, 0, df / (df + t * t), regularized=True)
        assert two_sided_p(t, df) == pytest.approx(float(wanted), rel=1e-10)


@pytest.mark.parametrize(
    ("level", "df", "wanted"),
    [(0.95, 1, 12.70620474), (0.95, 10, 2.228138852), (0.99, 30, 2.749995654), (0.9, 120, 1.657650899)],
)
def test_quantiles_equal_the_tables(level: float, df: float, wanted: float) -> None:
    assert two_sided_quantile(level, df) == pytest.approx(wanted, rel=1e-9)


def by_definition(gaps: np.ndarray, horizon: int) -> tuple[float, float]:
    """Statistic with rectangular weights, sum by sum, and its p value."""
    n, mean = len(gaps), gaps.mean()
    variance = 0.0
    for lag in range(-(horizon - 1), horizon):
        for step in range(abs(lag), n):
            variance += (gaps[step] - mean) * (gaps[step - abs(lag)] - mean) / n
    factor = math.sqrt((n + 1 - 2 * horizon + horizon * (horizon - 1) / n) / n)
    statistic = factor * mean / math.sqrt(variance / n)
    return statistic, two_sided_p(statistic, n - 1)


@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_statistic_is_the_definition(horizon: int) -> None:
    one, two = window_losses(np.random.default_rng(horizon), 40, horizon)
    found = diebold_mariano(one, two, horizon)
    assert (found.kernel, found.lags, found.units) == ("rectangular", horizon - 1, 40)
    assert (found.statistic, found.p_value) == pytest.approx(by_definition(one - two, horizon), rel=1e-9)


def test_without_overlap_it_is_the_paired_t_test() -> None:
    one, two = np.array([3.0, 5.0, 4.0, 6.0, 9.0]), np.array([2.0, 5.5, 3.0, 4.0, 8.0])
    gaps = one - two
    found = diebold_mariano(one, two)
    assert found.statistic == pytest.approx(gaps.mean() / (gaps.std(ddof=1) / math.sqrt(5)))
    assert found.difference == pytest.approx(gaps.mean())


@given(seed=st.integers(0, 999), horizon=st.integers(1, 6), factor=st.sampled_from([1e-9, 0.3, 1e8]))
@settings(max_examples=25, deadline=None)
def test_sides_and_scale_do_not_matter(seed: int, horizon: int, factor: float) -> None:
    one, two = window_losses(np.random.default_rng(seed), 30, horizon)
    found, turned = diebold_mariano(one, two, horizon), diebold_mariano(two * factor, one * factor, horizon)
    assert found.p_value is not None and 0 <= found.p_value <= 1
    assert turned.p_value == pytest.approx(found.p_value, rel=1e-7)
    assert turned.statistic == pytest.approx(-(found.statistic or 0.0), rel=1e-7)


def test_equal_forecasts_have_p_1() -> None:
    losses = np.random.default_rng(0).exponential(size=30)
    for horizon in (1, 7, 40):
        found = diebold_mariano(losses, losses, horizon)
        assert (found.p_value, found.statistic, found.difference) == (1, 0, 0)


def test_difference_without_variance_claims_nothing() -> None:
    losses = np.random.default_rng(0).exponential(size=30)
    found = diebold_mariano(losses, losses + 0.1, 3)
    assert found.p_value is None and found.statistic is None
    assert "no variance" in found.to_json()["note"]


def test_too_few_units_are_no_test() -> None:
    found = diebold_mariano([1.0, 2.0, 4.0], [1.0, 1.0, 1.0], 3)
    assert found.p_value is None and "3 units are too few" in found.note


def test_negative_variance_falls_back_to_bartlett_and_says_so() -> None:
    gaps = np.tile([1.0, -1.0], 20) + np.random.default_rng(1).normal(size=40) * 0.1
    centred = gaps - gaps.mean()
    covariances = [centred @ centred / 40, centred[1:] @ centred[:-1] / 40]
    assert covariances[0] + 2 * covariances[1] < 0
    assert long_run_variance(gaps, 1) == pytest.approx((covariances[0] + covariances[1], "bartlett"))
    assert diebold_mariano(gaps, np.zeros(40), 2).kernel == "bartlett"


@pytest.mark.parametrize(("count", "horizon"), [(60, 1), (150, 4), (250, 8)])
def test_size_is_about_right_when_losses_overlap(count: int, horizon: int) -> None:
    generator, rejected = np.random.default_rng(horizon), 0
    for _ in range(400):
        weights = np.r_[1.0, generator.uniform(0, 1, horizon - 1)]
        gaps = np.convolve(generator.normal(size=count + horizon - 1), weights, "valid")
        p_value = diebold_mariano(gaps, np.zeros(count), horizon).p_value
        rejected += p_value is not None and p_value < 0.05
    assert 0.02 <= rejected / 400 <= 0.1


def test_overlap_ignored_would_reject_far_too_often() -> None:
    generator, rejected = np.random.default_rng(5), 0
    for _ in range(100):
        one, two = window_losses(generator, 150, 12)
        rejected += (diebold_mariano(one, two).p_value or 0.0) < 0.05
    assert rejected / 100 > 0.3


@pytest.mark.parametrize("measure", MEASURES)
def test_difference_of_rows_is_that_of_the_measures(measure: str) -> None:
    generator = np.random.default_rng(3)
    count = generator.integers(1, 9, 120)
    one, two = (rows_of(generator.exponential(size=120), count) for _ in range(2))
    found = compare_rows(one, two, origins(60, 4, series=2), measure)
    assert found.difference == pytest.approx((one.value(measure) or 0) - (two.value(measure) or 0), rel=1e-9)
    assert (found.units, found.lags) == (60, 3)


def test_series_that_say_the_same_are_not_more_evidence() -> None:
    one, two = window_losses(np.random.default_rng(8), 50, 4)
    alone = compare_rows(rows_of(one), rows_of(two), origins(50, 4), "mse")
    tenfold = compare_rows(rows_of(np.repeat(one, 10)), rows_of(np.repeat(two, 10)), origins(50, 4, series=10), "mse")
    assert tenfold.p_value == pytest.approx(alone.p_value)


def test_mistakes_are_named() -> None:
    with pytest.raises(TspruneError, match=r"shapes \[2\] and \[3\]"):
        diebold_mariano([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(TspruneError, match="not finite"):
        diebold_mariano([1.0, math.nan], [1.0, 2.0])
    with pytest.raises(TspruneError, match="horizon is 0"):
        diebold_mariano([1.0, 2.0], [1.0, 3.0], 0)
    with pytest.raises(TspruneError, match="no denominator"):
        compare_rows(rows_of([1.0], 0), rows_of([1.0], 0), origins(1), "mse")
    with pytest.raises(TspruneError, match="Student's t"):
        two_sided_p(1.0, 0)
    with pytest.raises(TspruneError, match="Student's t"):
        two_sided_quantile(1.0, 3)
