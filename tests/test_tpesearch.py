"""What optuna proposes and ends: seeded, within bounds, after the usual rates, and the same when it is told again."""

from __future__ import annotations

import importlib.util
import logging
import math
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import tiny_model
from tsprune.dropouts import dropout_rates, set_dropout
from tsprune.errors import TspruneError
from tsprune.searching import Choice, Grid, search_of
from tsprune.settings import RATES, FinetuneSettings
from tsprune.stages import digest
from tsprune.tpesearch import TpeSearch, space_of

MODEL = tiny_model("chronos2", dropout_rate=0.1)
TRIALS = FinetuneSettings(trials=8)
Objective = Callable[[Choice, int], list[float]]


def played(search: TpeSearch, losses: Objective) -> list[tuple[Choice, list[float], bool]]:
    """Every trial with the losses it came to, and whether it was pruned."""
    found = []
    for number in range(search.trials):
        choice, seen, pruned = search.ask(), [], False
        planned = losses(choice, number)
        for loss in planned:
            seen.append(loss)
            pruned = len(seen) < len(planned) and search.hopeless(seen)
            if pruned:
                break
        search.tell(seen, pruned)
        found.append((choice, seen, pruned))
    return found


def bowl(choice: Choice, number: int) -> list[float]:
    """Falls towards a floor that is lowest at a rate of 2e-3, without decay and with the model's own dropout."""
    floor = math.log(choice.learning_rate / 2e-3) ** 2 + choice.weight_decay + (choice.dropout or 0)
    return [floor + 1 / step for step in (1, 2, 3, 4)]


def test_the_usual_rates_come_first_with_all_else_as_set_and_are_never_pruned() -> None:
    given = replace(TRIALS, tuning="lora", weight_decay=0.03)
    found = played(TpeSearch(given, MODEL, 0), bowl)
    assert [choice for choice, _, _ in found[:3]] == [
        Choice(rate, 0.03, None, ("weight_decay", "dropout")) for rate in RATES["lora"]
    ]
    assert not any(pruned for _, _, pruned in found[:3])
    assert len({choice for choice, _, _ in found}) == 8


@pytest.mark.parametrize(("tuning", "low", "high"), [("full", 1e-5, 1e-2), ("head", 1e-4, 1e-1), ("lora", 1e-4, 1e-1)])
def test_rates_are_searched_a_decade_beside_those_of_the_mode(tuning: str, low: float, high: float) -> None:
    space = space_of(replace(TRIALS, tuning=tuning), MODEL)  # type: ignore[arg-type]
    assert space.learning_rate == (low, high)


def test_dropout_is_searched_only_where_the_model_drops_and_nothing_fixes_it() -> None:
    assert space_of(TRIALS, MODEL).dropout == (None, 0.0, 0.2)
    uneven = tiny_model("chronos2", dropout_rate=0.1)
    set_dropout(uneven, {**dropout_rates(uneven), next(iter(dropout_rates(uneven))): 0.3})
    assert space_of(TRIALS, uneven).dropout == (None, 0.0, 0.1, 0.2)
    assert space_of(replace(TRIALS, dropout=0.3), MODEL).dropout == ()
    fixed = [choice for choice, _, _ in played(TpeSearch(replace(TRIALS, dropout=0.3), MODEL, 0), bowl)]
    assert {choice.dropout for choice in fixed} == {0.3}
    assert {tuple(choice.facts()) for choice in fixed} == {("weight_decay",)}


def test_without_any_place_that_drops_dropout_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsprune.tpesearch.dropout_rates", lambda model: {})
    assert TpeSearch(TRIALS, MODEL, 0).ask().searched == ("weight_decay",)


def test_the_sampler_is_seeded() -> None:
    first, again, other = (played(TpeSearch(TRIALS, MODEL, seed), bowl) for seed in (1, 1, 2))
    assert first == again
    assert [choice for choice, _, _ in first[3:]] != [choice for choice, _, _ in other[3:]]
    # Any seed that the settings allow, also one that is too long for the library.
    assert played(TpeSearch(TRIALS, MODEL, 2**63 - 1), bowl)


def test_the_sampler_learns_from_what_it_is_told() -> None:
    def far(best: float) -> float:
        """Mean distance of the later trials from a best rate, in decades."""
        found: list[float] = []
        for seed in range(3):
            search = TpeSearch(replace(TRIALS, trials=30), MODEL, seed)

            def losses(choice: Choice, number: int) -> list[float]:
                return [abs(math.log10(choice.learning_rate / best))]

            found += [losses[0] for _, losses, _ in played(search, losses)[15:]]
        return statistics.mean(found)

    # Drawn blindly from three decades, the mean distance from either end were 1.5.
    assert far(1e-5) < 0.75
    assert far(1e-2) < 0.75


numbers = st.floats(-5, 5) | st.sampled_from([math.inf, math.nan, 1e6])
histories = st.lists(st.lists(numbers, min_size=1, max_size=5), min_size=7, max_size=7)


@settings(max_examples=25, deadline=None)
@given(histories, st.integers(0, 3))
def test_any_losses_give_choices_within_bounds_and_prune_behind_the_median(
    planned: list[list[float]], seed: int
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search = TpeSearch(replace(TRIALS, trials=7), MODEL, seed)
        found = played(search, lambda choice, number: planned[number])
    low, high = search.space.learning_rate
    whole: list[list[float]] = []
    for number, (choice, seen, pruned) in enumerate(found):
        assert low <= choice.learning_rate <= high
        assert choice.weight_decay in search.space.weight_decay and choice.dropout in search.space.dropout
        for count in range(1, len(planned[number])):
            behind = hopeless(planned[number][:count], whole)
            assert behind == (pruned and len(seen) == count)
            if behind:
                break
        whole += [] if pruned else [seen]
    # Told the same losses again, as after a kill, it proposes the same; no verdict is asked for.
    again = TpeSearch(replace(TRIALS, trials=7), MODEL, seed)
    for choice, seen, pruned in found:
        assert again.ask() == choice
        again.tell(seen, pruned)


def hopeless(seen: Sequence[float], whole: Sequence[Sequence[float]]) -> bool:
    """The rule written out: from the second loss and the fourth trial on, the best is above the median there."""
    there = [fit(losses[len(seen) - 1]) for losses in whole if len(losses) >= len(seen)]
    if len(seen) < 2 or len(whole) < 3 or not there:
        return False
    return min(map(fit, seen)) > statistics.median(there)


def fit(loss: float) -> float:
    return loss if math.isfinite(loss) else 1e300


@pytest.mark.parametrize("spoilt", [[9.0, 80.0, 700.0, 6000.0], [9.0, math.nan, math.nan, math.nan]])
def test_a_planted_diverging_trial_is_pruned_half_way(spoilt: list[float]) -> None:
    found = played(TpeSearch(TRIALS, MODEL, 0), lambda choice, number: spoilt if number == 4 else [4.0, 3.0, 2.0, 1.0])
    assert [pruned for _, _, pruned in found] == [number == 4 for number in range(8)]
    assert len(found[4][1]) == 2


def test_the_log_and_its_level_stay_the_users(capfd: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.DEBUG)
    try:
        played(TpeSearch(TRIALS, MODEL, 0), bowl)
        assert optuna.logging.get_verbosity() == logging.DEBUG
    finally:
        optuna.logging.set_verbosity(before)
    assert capfd.readouterr() == ("", "")


# ---- settings


def test_without_trials_hashes_are_those_of_before_there_were_any() -> None:
    assert digest(FinetuneSettings().inputs()) == "ca875622be0a"
    given = FinetuneSettings(tuning="head", learning_rates=(1e-3,), dropout=0.1)
    assert digest(given.inputs()) == "e6426ea9d7c5"
    assert FinetuneSettings(trials=4).inputs()["trials"] == 4


def test_without_trials_the_rates_are_tried_in_their_order_with_all_else_as_set() -> None:
    search = search_of(FinetuneSettings(weight_decay=0.2, dropout=0.1), MODEL, 0)
    assert isinstance(search, Grid) and not search.judges
    assert [search.ask() for _ in range(search.trials)] == [Choice(rate, 0.2, 0.1) for rate in RATES["full"]]
    assert search_of(FinetuneSettings(search_steps=0), MODEL, 0).trials == 0


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"trials": -1}, "--trials -1 must not be negative; 0 tries"),
        ({"trials": 4, "learning_rates": (1e-3, 0.02)}, "--trials 4 .*--learning-rates 0.001,0.02 lists; give one of"),
        ({"trials": 4, "search_steps": 0}, "--trials 4 with --search-steps 0 .*such as --search-steps 40"),
    ],
)
def test_trials_that_mean_nothing_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(TspruneError, match=said):
        FinetuneSettings(**values)  # type: ignore[arg-type]


def test_without_optuna_trials_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "optuna" else there(name))
    with pytest.raises(TspruneError, match=r"--trials 8 needs the package optuna.*pip install 'tsprune\[tune\]', or"):
        search_of(TRIALS, MODEL, 0)
    assert search_of(FinetuneSettings(), MODEL, 0).trials == 3
