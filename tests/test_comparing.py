"""Comparisons: the ranking is right, and "better" is said only when test and interval both say so."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from rowsums import origins, rows_of, window_losses
from tsprune.errors import TspruneError
from tsprune.evaluation.comparing import Options, compare, mean_ratio, overall, verdict, win_rate
from tsprune.evaluation.diebold_mariano import DieboldMariano
from tsprune.evaluation.intervals import Interval
from tsprune.evaluation.metrics import RowErrors
from tsprune.evaluation.timeblocks import Blocks


@pytest.fixture(scope="module")
def models() -> dict[str, RowErrors]:
    same, alike, late = window_losses(np.random.default_rng(4), 240, 6, models=3)
    return {"naive": rows_of(1.5 * late), "ours": rows_of(same), "rival": rows_of(alike)}


def test_ranking_and_ratios_are_those_of_the_measure(models: dict[str, RowErrors]) -> None:
    found = compare(models, "naive", origins(240, 6))
    values = {name: rows.value("mse") or 0.0 for name, rows in models.items()}
    assert [entry["name"] for entry in found["ranking"]] == sorted(values, key=lambda name: values[name])
    for entry in found["ranking"]:
        assert entry["value"]["estimate"] == values[entry["name"]]
        assert entry["ratio"]["estimate"] == pytest.approx(values[entry["name"]] / values["naive"])
        wins = (models[entry["name"]].squared < models["naive"].squared).mean()
        assert entry["win_rate"] == (0.5 if entry["name"] == "naive" else pytest.approx(wins))
    verdicts = {entry["name"]: entry["verdict"] for entry in found["ranking"]}
    assert verdicts == {"naive": "reference", "ours": "better", "rival": "better"}


def test_chance_is_not_called_better(models: dict[str, RowErrors]) -> None:
    found = compare(models, "naive", origins(240, 6))
    assert found["top"]["better"] is False
    assert {found["top"]["first"], found["top"]["second"]} == {"ours", "rival"}
    assert "neither is called better" in found["sentence"]


def test_clear_lead_is_called_better(models: dict[str, RowErrors]) -> None:
    pair = {name: models[name] for name in ("naive", "ours")}
    found = compare(pair, "naive", origins(240, 6))
    assert found["top"]["better"] is True
    assert found["sentence"].startswith("ours has ") and found["sentence"].endswith("it is better.")
    assert "less MSE than naive (ratio 0." in found["sentence"]


def test_result_is_plain_json_and_repeatable(models: dict[str, RowErrors]) -> None:
    first, again = (compare(models, "ours", origins(240, 6), Options("smape", seed=3)) for _ in range(2))
    assert json.dumps(first, allow_nan=False) == json.dumps(again, allow_nan=False)
    assert "less sMAPE than" in first["sentence"]


def test_the_same_errors_are_not_better() -> None:
    rows = rows_of(np.random.default_rng(1).exponential(size=60))
    found = compare({"a": rows, "b": rows}, "a", origins(60, 3))
    assert found["sentence"] == "a and b have the same MSE; neither is better."
    assert found["ranking"][1]["diebold_mariano"]["p_value"] == 1


def test_perfect_model_and_too_few_windows_are_no_error() -> None:
    found = compare({"perfect": rows_of(np.zeros(3)), "b": rows_of([1.0, 2.0, 3.0])}, "perfect", origins(3, 3))
    assert json.dumps(found, allow_nan=False)
    assert found["top"]["better"] is False and "no interval" in found["sentence"]
    assert found["notes"][0].startswith("only 1.0 independent")


@pytest.mark.parametrize(
    ("low", "high", "p_value", "said"),
    [
        (0.8, 0.95, 0.01, "better"),
        (1.1, 1.3, 0.01, "worse"),
        (1.1, None, 0.01, "worse"),
        (0.8, 1.01, 0.01, "undecided"),
        (0.8, 0.95, 0.06, "undecided"),
        (0.8, 0.95, None, "undecided"),
        (None, None, 0.01, "undecided"),
    ],
)
def test_verdict_needs_both(low: float | None, high: float | None, p_value: float | None, said: str) -> None:
    ratio = Interval(1.2 if (low or 0) > 1 else 0.9, low, high, 0.95)
    assert verdict(ratio, DieboldMariano(0.1, 1.0, p_value, 50, 0, "rectangular")) == said


def test_ties_are_half_a_win_and_units_without_targets_do_not_count() -> None:
    one, two = rows_of([1.0, 2.0, 3.0, 9.0], [1, 1, 1, 0]), rows_of([2.0, 2.0, 1.0, 1.0], [1, 1, 1, 0])
    assert win_rate(one, two, origins(4), "mse") == pytest.approx(0.5)


def test_geometric_mean_over_series_is_clipped_and_counted() -> None:
    blocks = Blocks(np.array([0, 0, 1, 2, 3]), 4, 1, "series")
    one, two = rows_of([1.0, 1.0, 0.0, 0.0, 4.0]), rows_of([4.0, 4.0, 0.0, 1.0, 4.0])
    found = mean_ratio(one, two, blocks)
    # 1/2 for the first series, 1 for 0 over 0, the lower bound for 0 over 1, 1.
    assert found["ratio"] == pytest.approx((0.5 * 0.01) ** 0.25)
    assert (found["units"], found["clipped"]) == (4, 1)


ERRORS = {
    "etth1-96": {"ours": 0.9, "naive": 1.0, "rival": 1.0},
    "etth1-336": {"ours": 1.8, "naive": 2.0, "rival": 2.2},
    "weather-96": {"ours": 0.16, "naive": 0.2, "rival": 0.1},
}


def test_summary_over_tasks_is_the_geometric_mean() -> None:
    found = overall(ERRORS, "naive")
    by_name = {entry["name"]: entry for entry in found["models"]}
    assert by_name["ours"]["ratio"] == pytest.approx((0.9 * 0.9 * 0.8) ** (1 / 3))
    assert by_name["ours"]["win_rate"] == 1
    assert by_name["rival"]["win_rate"] == pytest.approx(1.5 / 3)
    assert by_name["ours"]["mean_rank"] == pytest.approx((1 + 1 + 2) / 3)
    assert by_name["rival"]["mean_rank"] == pytest.approx((2.5 + 3 + 1) / 3)
    logs = np.log([0.9, 0.9, 0.8])
    half = 4.30265273 * logs.std(ddof=1) / math.sqrt(3)
    wanted = (math.exp(logs.mean() - half), math.exp(logs.mean() + half))
    assert (by_name["ours"]["low"], by_name["ours"]["high"]) == pytest.approx(wanted)
    assert by_name["naive"]["ratio"] == by_name["naive"]["low"] == 1
    assert json.dumps(found, allow_nan=False)


def test_tasks_of_one_data_set_count_once() -> None:
    sets = {task: task.split("-")[0] for task in ERRORS}
    found = overall(ERRORS, "naive", data_sets=sets)
    ours = next(entry for entry in found["models"] if entry["name"] == "ours")
    assert found["data_sets"] == 2
    assert ours["ratio"] == pytest.approx(math.sqrt(0.9 * 0.8))
    assert "over 3 tasks on 2 data sets" in found["sentence"]
    alone = overall(ERRORS, "naive", data_sets=dict.fromkeys(ERRORS, "one"))
    assert alone["models"][0]["low"] is None and "no interval from one data set" in alone["sentence"]


def test_mistakes_are_named(models: dict[str, RowErrors]) -> None:
    with pytest.raises(TspruneError, match="the reference is 'nobody' and the models are naive, ours, rival"):
        compare(models, "nobody", origins(240, 6))
    with pytest.raises(TspruneError, match="at least two models"):
        compare({"a": models["ours"]}, "a", origins(240, 6))
    empty = rows_of(np.ones(9), observed=0)
    with pytest.raises(TspruneError, match=r"mse has no denominator in these windows \(a, b\)"):
        compare({"a": empty, "b": empty}, "a", origins(9))
    with pytest.raises(TspruneError, match="task 'y' has other models"):
        overall({"x": {"a": 1.0, "b": 1.0}, "y": {"a": 1.0}}, "a")
    with pytest.raises(TspruneError, match="at least one"):
        overall({}, "a")
    with pytest.raises(TspruneError, match="reference 'c'"):
        overall({"x": {"a": 1.0}}, "c")
    with pytest.raises(TspruneError, match="not finite"):
        overall({"x": {"a": math.nan}}, "a")
