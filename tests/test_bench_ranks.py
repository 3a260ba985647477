"""Ranks of methods over tasks, against scipy, published tables and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

import bench_fixture as fixture
from tsprune.bench.pages import ranks
from tsprune.bench.pages.signedrank import EXACT, holm, midranks, signed_rank_p, smallest_p
from tsprune.bench.pages.tails import chi_square_tail, f_tail, range_quantile, range_tail
from tsprune.bench.pages.tasking import Grid, Matrix, without_gaps
from tsprune.errors import TspruneError


def _matrix(errors: NDArray[np.float64] | list[list[float]]) -> Matrix:
    table = np.asarray(errors, np.float64)
    return Matrix(tuple(f"t{i}" for i in range(len(table))), tuple("abcdefghij"[: table.shape[1]]), table)


# ---- tails


@pytest.mark.parametrize("df", [1, 2, 3, 4, 7, 12, 30])
@pytest.mark.parametrize("x", [0.01, 0.7, 3.0, 11.0, 60.0])
def test_when_chi_square_tail_is_taken_then_scipy_agrees(df: int, x: float) -> None:
    assert chi_square_tail(x, df) == pytest.approx(stats.chi2.sf(x, df), rel=1e-10)


@pytest.mark.parametrize(("first", "second"), [(1, 4), (2, 8), (7, 42), (9, 99)])
@pytest.mark.parametrize("x", [0.2, 1.0, 3.5, 40.0])
def test_when_f_tail_is_taken_then_scipy_agrees(first: int, second: int, x: float) -> None:
    assert f_tail(x, first, second) == pytest.approx(stats.f.sf(x, first, second), rel=1e-9)


@pytest.mark.parametrize("groups", [2, 3, 5, 10, 20])
@pytest.mark.parametrize("alpha", [0.05, 0.1])
def test_when_range_quantile_is_taken_then_scipy_agrees(groups: int, alpha: float) -> None:
    found = range_quantile(alpha, groups)
    assert range_tail(found, groups) == pytest.approx(alpha, abs=1e-9)
    assert found == pytest.approx(stats.studentized_range.ppf(1 - alpha, groups, np.inf), rel=1e-6)


def test_when_two_groups_differ_then_range_is_that_of_two_normals() -> None:
    """The difference of two standard normals has deviation root 2, in closed form."""
    assert range_tail(2.5, 2) == pytest.approx(math.erfc(2.5 / 2), rel=1e-10)


def test_when_critical_values_are_divided_by_root_two_then_they_are_demsars() -> None:
    """Table 5(a) of Demsar 2006."""
    at_05 = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}
    at_10 = {2: 1.645, 3: 2.052, 4: 2.291, 5: 2.459, 6: 2.589, 7: 2.693, 8: 2.780, 9: 2.855, 10: 2.920}
    for alpha, table in ((0.05, at_05), (0.1, at_10)):
        for groups, value in table.items():
            assert range_quantile(alpha, groups) / math.sqrt(2) == pytest.approx(value, abs=1.2e-3)


def test_when_tails_get_nonsense_then_error_says_what_is_expected() -> None:
    with pytest.raises(TspruneError, match="0 degrees of freedom, expected at least 1"):
        chi_square_tail(1.0, 0)
    with pytest.raises(TspruneError, match="error level is 1.5, expected a number between 0 and 1"):
        range_quantile(1.5, 3)
    assert chi_square_tail(-1.0, 3) == f_tail(0.0, 2, 3) == range_tail(-1.0, 3) == 1.0
    assert f_tail(math.inf, 2, 3) == 0.0


# ---- Wilcoxon and Holm


@pytest.mark.parametrize("count", [1, 5, 12, 30])
def test_when_differences_do_not_tie_then_p_is_scipys_exact_one(count: int) -> None:
    values = np.random.default_rng(count).normal(0.4, 1, count)
    assert signed_rank_p(values.tolist()) == pytest.approx(stats.wilcoxon(values, mode="exact").pvalue, rel=1e-12)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_when_differences_tie_then_p_is_that_of_all_signs(values: list[int]) -> None:
    known = [abs(value) for value in values if value]
    own = np.asarray(midranks(known)) if known else np.array([])
    found = sum(rank for rank, value in zip(own, [v for v in values if v], strict=True) if value > 0)
    sums = [sum(itertools.compress(own, signs)) for signs in itertools.product((0, 1), repeat=len(known))]
    least = min(found, sum(own) - found)
    both = 2 * sum(one <= least + 1e-9 for one in sums) / len(sums)
    assert signed_rank_p(values) == pytest.approx(min(1.0, both))


def test_when_differences_are_many_then_p_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(0.1, 1, EXACT + 60)
    expected = stats.wilcoxon(values, mode="approx", correction=False).pvalue
    assert signed_rank_p(values.tolist()) == pytest.approx(expected, rel=1e-9)


def test_when_sign_of_differences_changes_then_p_does_not() -> None:
    values = [0.3, -1.2, 2.0, 2.0, 0.0, -0.7]
    assert signed_rank_p(values) == signed_rank_p([-value for value in values])
    assert signed_rank_p([0.0, 0.0]) == 1.0


@pytest.mark.parametrize("tasks", [1, 3, 5, 10])
def test_when_one_wins_on_all_tasks_then_p_is_the_smallest(tasks: int) -> None:
    assert signed_rank_p([float(i + 1) for i in range(tasks)]) == pytest.approx(smallest_p(tasks))


def test_when_p_values_are_adjusted_then_holms_example_comes_out() -> None:
    """Steps worked by hand: 4 x 0.01, 3 x 0.02 and so on, never below what came before."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=50, deadline=None)
def test_when_p_values_are_adjusted_then_decisions_are_those_of_stepping_down(values: list[float]) -> None:
    alpha, rejected = 0.05, [False] * len(values)
    for step, i in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        if (len(values) - step) * values[i] > alpha:
            break
        rejected[i] = True
    assert [p <= alpha for p in holm(values)] == rejected


# ---- Friedman


@given(st.integers(0, 1000), st.integers(2, 9), st.integers(3, 7))
@settings(max_examples=40, deadline=None)
def test_when_methods_are_ranked_then_friedman_is_scipys_with_ties_too(seed: int, tasks: int, methods: int) -> None:
    errors = np.random.default_rng(seed).integers(1, 6, (tasks, methods)).astype(np.float64)
    if (errors == errors[:, :1]).all():
        return
    expected = stats.friedmanchisquare(*errors.T)
    found = ranks.friedman(errors)
    assert found.chi_square == pytest.approx(expected.statistic)
    assert found.chi_square_p == pytest.approx(expected.pvalue, rel=1e-8)


@pytest.mark.parametrize(("tasks", "methods"), [(4, 3), (3, 4), (7, 2)])
def test_when_sizes_are_small_then_friedmans_p_is_that_of_all_orders(tasks: int, methods: int) -> None:
    errors = np.random.default_rng(tasks).integers(1, 5, (tasks, methods)).astype(np.float64)
    table = midranks(errors)
    middle = tasks * (methods + 1) / 2
    found = ((table.sum(axis=0) - middle) ** 2).sum()
    orders = [list(itertools.permutations(line)) for line in table.tolist()]
    apart = [
        ((np.sum(chosen, axis=0) - middle) ** 2).sum() >= found - 1e-9 for chosen in itertools.product(*orders)
    ]  # fmt: skip
    tested = ranks.friedman(errors)
    assert tested.exact
    assert tested.p_value == pytest.approx(np.mean(apart))


def test_when_methods_are_many_then_iman_and_davenport_correct_friedman() -> None:
    """Demsar's worked example: 14 data sets, 4 classifiers, chi-square 9.28 gives F 3.69 with 3 and 39 degrees."""
    f = 13 * 9.28 / (14 * 3 - 9.28)
    assert f == pytest.approx(3.69, abs=0.005)
    errors = np.random.default_rng(3).random((14, 5))
    found = ranks.friedman(errors)
    assert not found.exact
    assert found.f == pytest.approx(13 * found.chi_square / (14 * 4 - found.chi_square))
    assert found.p_value == pytest.approx(stats.f.sf(found.f, 4, 4 * 13))


def test_when_one_order_holds_everywhere_then_f_is_infinite_and_p_0() -> None:
    found = ranks.friedman(np.tile([1.0, 2.0, 3.0, 4.0, 5.0], (6, 1)))
    assert math.isinf(found.f)
    assert found.p_value == 0.0
    tied = ranks.friedman(np.ones((6, 5)))
    assert (tied.chi_square, tied.f, tied.p_value) == (0.0, 0.0, 1.0)


def test_when_critical_difference_is_taken_then_it_is_demsars() -> None:
    """Section 3.2.2 of Demsar 2006: 4 classifiers on 14 data sets, 1.25 at 0.05 and 1.12 at 0.10."""
    assert ranks.critical_difference(4, 14, 0.05) == pytest.approx(1.25, abs=0.005)
    assert ranks.critical_difference(4, 14, 0.10) == pytest.approx(1.12, abs=0.005)


# ---- ranking


def test_when_errors_tie_then_ranks_are_shared() -> None:
    assert midranks([[1, 1, 2], [3, 2, 1], [5, 5, 5]]).tolist() == [[1.5, 1.5, 3], [3, 2, 1], [2, 2, 2]]


def test_when_two_clusters_differ_then_groups_are_the_clusters() -> None:
    draw = np.random.default_rng(0)
    near = draw.random((14, 2)) + 1
    errors = np.hstack([near, draw.random((14, 2)) + 5])
    found = ranks.rank(_matrix(errors))
    assert found.groups == ((0, 1), (2, 3))
    assert set(found.methods[:2]) == {"a", "b"}
    assert {frozenset(pair) for pair in found.apart} == {
        frozenset(p) for p in (("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"))
    }
    assert found.notes == ()


def test_when_scale_of_a_data_set_changes_then_ranking_does_not() -> None:
    errors = np.random.default_rng(1).random((9, 4)) + 0.5
    scaled = errors * np.logspace(-4, 4, 9)[:, None]
    one, other = ranks.rank(_matrix(errors)), ranks.rank(_matrix(scaled))
    assert one.mean_ranks == other.mean_ranks
    assert one.p_values == pytest.approx(other.p_values)


@pytest.mark.parametrize("tasks", [1, 4])
def test_when_data_sets_are_too_few_then_groups_are_refused_with_the_reason(tasks: int) -> None:
    found = ranks.rank(_matrix(np.random.default_rng(0).random((tasks, 3))))
    assert found.groups == () and found.friedman is None and found.critical_difference is None
    assert "fewer than 5 are not tested" in found.refused
    assert f"p = {smallest_p(tasks):g}" in found.refused
    assert len(found.mean_ranks) == 3


def test_when_no_pair_could_ever_differ_then_ranking_says_so() -> None:
    """5 data sets give p of 1/16 at best, 10 methods are 45 pairs."""
    errors = np.tile(np.arange(1.0, 11.0), (5, 1))
    found = ranks.rank(_matrix(errors))
    assert found.groups == ((0, 9),)
    (note,) = found.notes
    assert "no pair can be told apart" in note
    assert "11 data sets" in note
    at_11 = ranks.rank(_matrix(np.tile(np.arange(1.0, 11.0), (11, 1))))
    assert at_11.groups == () and at_11.notes == ()


@given(st.integers(0, 500))
@settings(max_examples=25, deadline=None)
def test_when_groups_are_made_then_they_hold_no_pair_apart_and_cannot_grow(seed: int) -> None:
    draw = np.random.default_rng(seed)
    errors = draw.random((8, 5)) * (1 + np.arange(5) * draw.random())
    found = ranks.rank(_matrix(errors + 0.1), alpha=0.3)
    apart = {frozenset(pair) for pair in found.apart}

    def together(low: int, high: int) -> bool:
        return all(frozenset(p) not in apart for p in itertools.combinations(found.methods[low : high + 1], 2))

    runs = [(a, b) for a in range(5) for b in range(a + 1, 5) if together(a, b)]
    longest = [(a, b) for a, b in runs if not any(c <= a and b <= d and (a, b) != (c, d) for c, d in runs)]
    assert list(found.groups) == longest


def test_when_ranking_becomes_plain_data_then_json_can_hold_it() -> None:
    import json

    found = ranks.to_json(ranks.rank(_matrix(np.tile([1.0, 2.0, 3.0, 4.0, 5.0], (9, 1)))))
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again["mean_ranks"] == {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0, "e": 5.0}
    assert again["friedman"]["f"] is None
    assert len(again["pairs"]) == 10


def test_when_there_is_nothing_to_rank_then_error_says_so() -> None:
    with pytest.raises(TspruneError, match="no task that every method was measured on"):
        ranks.rank(Matrix((), ("a",), np.zeros((0, 1))))
    with pytest.raises(TspruneError, match="error level is 0"):
        ranks.rank(_matrix([[1.0, 2.0]]), alpha=0)


def test_when_win_rates_are_counted_then_ties_count_half_and_both_ways_make_one() -> None:
    rates = ranks.win_rates(_matrix([[1, 2, 2], [1, 1, 3], [3, 1, 1], [1, 2, 4]]))
    assert rates[0, 1] == (1 + 0.5 + 0 + 1) / 4
    assert rates[1, 2] == (0.5 + 1 + 0.5 + 1) / 4
    off = ~np.eye(3, dtype=bool)
    assert np.allclose((rates + rates.T)[off], 1)
    assert np.isnan(np.diag(rates)).all()


# ---- what enters


def test_when_tasks_are_averaged_then_every_data_set_speaks_once() -> None:
    grid = Grid(fixture.rows(), fixture.summary())
    tasks, sets = grid.matrix("mse"), grid.matrix("mse", by_data=True)
    assert tasks.errors.shape == (12, 10)
    assert sets.tasks == ("ETTh1", "ETTm1", "weather_hourly")
    one = grid.value("ttm", ("ETTh1", 96), "lora", "mse")
    assert one is not None and tasks.errors[0, tasks.methods.index("lora")] == one.mean
    logs = np.log(tasks.errors).reshape(2, 3, 2, 10).mean(axis=(0, 2))
    assert np.allclose(np.log(sets.errors), logs)


def test_when_values_are_missing_then_whatever_lacks_most_is_left_out_and_named() -> None:
    table = np.arange(1.0, 21.0).reshape(5, 4)
    table[0, 1:] = np.nan  # a task that has hardly begun
    table[1:4, 3] = np.nan  # a method that most tasks lack
    found = without_gaps(["a\x00x 96", "x 1", "x 2", "x 3", "x 4"], ["lora", "dlinear", "nlinear", "head_only"], table)
    assert found.tasks == ("x 1", "x 2", "x 3", "x 4")
    assert found.methods == ("lora", "dlinear", "nlinear")
    assert "x 96 (a)" in found.notes[0]
    assert "fine-tuning the head only" in found.notes[1]
    nothing = without_gaps(["x"], ["a"], np.array([[np.nan]]))
    assert nothing.errors.size == 0


def test_when_an_error_is_negative_then_matrix_is_refused() -> None:
    with pytest.raises(TspruneError, match="negative, expected 0 or more"):
        without_gaps(["x"], ["a", "b"], np.array([[1.0, -1.0]]))
