"""What a run says in the terminal: every admitted defeat in the verdict, and the table at every width."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import report_fixture as fixture
from tsprune.errors import TspruneError
from tsprune.report import results_table, results_text, verdict
from tsprune.report.words import change, count_text, error_text, percent, seconds


def _chosen(name: str) -> dict[str, Any]:
    changed = fixture.results()
    changed["chosen"] = name
    return changed


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=\.) (?=[A-Z])", text)


# ---- verdict


def test_when_pruning_pays_then_verdict_gives_percent_and_factors() -> None:
    text = verdict(fixture.results())
    assert 'Validation chose "prune, then fine-tune"' in text
    assert "MSE 9.3 % and MAE 5.5 % lower than zero-shot" in text
    assert "MSE 3.5 % and MAE 2.2 % lower than full fine-tuning" in text
    assert "MSE 29 % and MAE 20 % lower than seasonal naive" in text
    assert "1.67x fewer parameters (5.19 M instead of 8.65 M)" in text
    assert "1.56x faster (13.7 ms instead of 21.4 ms)" in text
    assert "did not pay" not in text
    assert len(_sentences(text)) == 3


def test_when_pruned_loses_to_full_finetuning_on_test_then_verdict_admits_it() -> None:
    lost = fixture.with_error(fixture.results(), "prune_then_finetune", "test", mse=0.450, mae=0.401)
    text = verdict(lost)
    assert "pruning did not pay: on test it is worse than full fine-tuning (MSE 12 % higher)" in text
    assert "MSE 12 % higher and MAE about the same compared with full fine-tuning" in text


@pytest.mark.parametrize(
    ("name", "clause"),
    [
        ("full_finetuning", "pruning did not pay: validation preferred full fine-tuning"),
        ("zero_shot", "no fine-tuning was preferred either"),
        ("seasonal_naive", "no model was preferred to repeating the last season"),
        ("random_prune_finetune", "validation preferred random prun"),
    ],
)
def test_when_validation_does_not_choose_pruned_then_verdict_admits_it(name: str, clause: str) -> None:
    text = verdict(_chosen(name)).lower()
    assert clause in text
    assert "did not pay" in text


def test_when_validation_prefers_full_finetuning_then_verdict_says_by_how_much() -> None:
    changed = fixture.with_error(_chosen("full_finetuning"), "prune_then_finetune", "validation", mse=0.5, mae=0.385)
    assert "validation preferred full fine-tuning (pruned: validation MSE 34 % higher)" in verdict(changed)


def test_when_validation_hardly_prefers_another_then_verdict_says_how_little() -> None:
    close = _chosen("full_finetuning")
    own = next(c for c in close["candidates"] if c["name"] == "full_finetuning")["validation"]
    changed = fixture.with_error(close, "prune_then_finetune", "validation", mse=own["mse"] * 1.001, mae=own["mae"])
    assert "validation preferred full fine-tuning by less than 1 %" in verdict(changed)


def test_when_the_machine_was_busy_then_verdict_warns_of_the_latencies() -> None:
    busy = fixture.results()
    assert "not reliable" not in verdict(busy)
    busy["protocol"] = {**busy["protocol"], "latency_busy": True}
    assert "so the latencies are not reliable" in verdict(busy)


def test_when_guards_found_leaks_then_verdict_warns_of_each() -> None:
    found = fixture.results()
    assert "believed" not in verdict(found)
    for guard, words in (("copies", "Series are copies"), ("covariates", "A covariate holds the target itself")):
        found["protocol"]["leakage"] = [{"guard": guard, "verdict": "found", "words": "as planted"}]
        assert f"{words}" in verdict(found) and "too good to be believed." in verdict(found)
    found["protocol"]["leakage"] = [{"guard": "pretraining", "verdict": "found", "words": "as planted"}]
    assert "The pretrained model may have seen these data" in verdict(found)


@pytest.mark.parametrize("simple", ["seasonal_naive", "zero_shot"])
def test_when_a_simple_forecast_wins_on_test_then_verdict_admits_it(simple: str) -> None:
    text = verdict(fixture.with_error(fixture.results(), simple, "test", mse=0.2, mae=0.2))
    name = "seasonal naive" if simple == "seasonal_naive" else "zero-shot"
    assert f"he chosen candidate loses to {name} on test (MSE 94 % and MAE 96 % higher)" in text


def test_when_errors_disagree_then_verdict_says_not_clearly() -> None:
    mixed = fixture.with_error(fixture.results(), "full_finetuning", "test", mse=0.42, mae=0.35)
    mixed = fixture.with_error(mixed, "zero_shot", "test", mse=0.5, mae=0.3)
    text = verdict(mixed)
    assert "pruning did not clearly pay in accuracy (test MAE 12 % higher, though MSE is lower)" in text
    assert "the chosen candidate does not clearly beat zero-shot on test (MAE 31 % higher" in text
    assert "MSE 7.6 % lower and MAE 12 % higher compared with full fine-tuning" in text


def test_when_numbers_come_from_numpy_then_they_count_as_measured() -> None:
    import numpy as np

    same = fixture.results()
    for candidate in same["candidates"]:
        candidate["test"] = {name: np.float32(value) for name, value in candidate["test"].items()}
        candidate["parameters"] = np.int64(candidate["parameters"])
    assert verdict(same) == verdict(fixture.results())


def test_when_random_pruning_does_as_well_then_verdict_doubts_the_score() -> None:
    same = fixture.with_error(fixture.results(), "random_prune_finetune", "test", mse=0.3882, mae=0.3921)
    assert "nothing here shows that the score mattered" in verdict(same)
    assert "the score mattered" not in verdict(fixture.results())


def test_when_pruned_is_no_faster_then_verdict_says_so() -> None:
    slow = fixture.results()
    slow["candidates"][-1]["latency_ms"] = 21.6
    assert "but is no faster on this machine" in verdict(slow)
    slow["candidates"][-1]["latency_ms"] = 30.0
    assert "but is slower on this machine" in verdict(slow)


def test_when_nothing_was_removed_then_verdict_says_it_is_not_smaller() -> None:
    same = fixture.results()
    same["candidates"][-1]["parameters"] = 8_652_672
    assert "it is not smaller than the unpruned model" in verdict(same).replace("It is", "it is")


def test_when_no_pruned_candidate_exists_then_verdict_says_so() -> None:
    changed = _chosen("full_finetuning")
    del changed["candidates"][-1]
    assert "o pruned model was among the candidates" in verdict(changed)


@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_when_test_error_is_missing_then_verdict_says_not_measured(missing: float | None) -> None:
    gone = fixture.with_error(fixture.results(), "prune_then_finetune", "test", mse=missing, mae=missing)
    assert "but its test error was not measured." in verdict(gone)
    reference = fixture.with_error(fixture.results(), "zero_shot", "test", mse=missing, mae=missing)
    assert "not comparable with zero-shot (not measured)" in verdict(reference)


def test_when_latency_is_missing_then_verdict_says_not_measured() -> None:
    gone = fixture.results()
    gone["candidates"][-1]["latency_ms"] = None
    assert "its latency was not measured" in verdict(gone)


def test_when_chosen_is_unknown_then_error_lists_candidates() -> None:
    with pytest.raises(TspruneError, match=r"'best' is not among the candidates \(seasonal_naive, zero_shot"):
        verdict(_chosen("best"))


@given(st.floats(-0.0099, 0.0099), st.floats(-0.0099, 0.0099))
def test_when_all_differences_are_below_one_percent_then_verdict_says_about_the_same(a: float, b: float) -> None:
    near = fixture.results()
    own = near["candidates"][-1]["test"]
    for candidate in near["candidates"][:-1]:
        candidate["test"] = {**own, "mse": own["mse"] / (1 + a), "mae": own["mae"] / (1 + b)}
    errors = _sentences(verdict(near))[0]
    assert errors.count("about the same as") == 3
    assert not re.search(r"better|worse|lower|higher", verdict(near))


_ANY = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True), st.floats(0, 10), st.just(0))


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from([c["name"] for c in fixture.results()["candidates"]]),
    st.lists(_ANY, min_size=30, max_size=30),
)
def test_when_numbers_are_anything_then_verdict_is_three_plain_sentences(chosen: str, values: list[Any]) -> None:
    wild, pool = _chosen(chosen), iter(values)
    for candidate in wild["candidates"]:
        for part in ("validation", "test"):
            candidate[part].update(mse=next(pool), mae=next(pool))
        candidate["latency_ms"], candidate["parameters"] = next(pool), next(pool)
    text = verdict(wild)
    assert 1 <= len(_sentences(text)) <= 3
    assert text.endswith("within seed noise.")
    assert "better" not in text
    assert not re.search(r"\b(nan|inf|None)\b", text)
    assert "\n" not in text


# ---- formats


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (999.6, "1.00 k"),
        (8_652_672, "8.65 M"),
        (512e6, "512 M"),
        (999_600_000, "1.00 G"),
        (math.nan, "-"),
    ],
)
def test_when_counts_are_formatted_then_three_figures_and_a_letter(value: float, text: str) -> None:
    assert count_text(value) == text


def test_when_durations_are_formatted_then_units_carry_over() -> None:
    assert [seconds(v) for v in (0.44, 59.96, 125.0, 7380.0)] == [
        "0.4 s",
        "1 min 0 s",
        "2 min 5 s",
        "2 h 3 min",
    ]


@given(st.floats(1e-3, 1e6), st.floats(1e-3, 1e6))
def test_when_change_is_computed_then_applying_it_gives_the_value_back(value: float, reference: float) -> None:
    assert reference * (1 + change(value, reference) / 100) == pytest.approx(value, rel=1e-6, abs=1e-9)


def test_when_reference_is_zero_then_change_is_not_comparable() -> None:
    assert math.isnan(change(1.0, 0.0))
    assert change(0.0, 0.0) == 0.0
    assert percent(-9.96) == "10 %"
    assert error_text(12.3456) == "12.346"


# ---- table


@pytest.mark.parametrize(
    ("width", "present", "absent"),
    [
        (120, ["median [q1-q3]", "FLOPs", "WQL", "val."], []),
        (100, ["MASE", "WQL", "params", "val."], ["q1", "FLOPs"]),
        (80, ["MASE", "params", "ms"], ["FLOPs", "WQL"]),
        (50, ["MSE", "MAE"], ["params", "val."]),
    ],
)
def test_when_width_shrinks_then_less_important_columns_go(width: int, present: list[str], absent: list[str]) -> None:
    from rich.console import Console

    buffer = io.StringIO()
    Console(file=buffer, width=width, legacy_windows=False).print(results_table(fixture.results(), width))
    for text in (results_text(fixture.results(), width), buffer.getvalue()):
        head = "\n".join(text.splitlines()[:2])
        assert all(word in head for word in present)
        assert not any(word in head for word in absent)
        assert max(len(line.rstrip()) for line in text.splitlines()) <= width
        assert "…" not in text
        assert "* prune, then fine-tune" in text
        assert "0.3880" in text
        assert text.count("* ") == 2  # the chosen row and the footnote


def test_when_output_is_plain_then_text_is_ascii_and_aligned() -> None:
    text = results_text(fixture.results(), 120)
    assert text.isascii()
    rows = text.splitlines()[3:8]
    assert len({len(row) for row in rows}) == 1
    assert "13.7 [13.4-14.2]" in text


def test_when_numbers_are_missing_then_table_shows_dashes() -> None:
    gone = fixture.with_error(fixture.results(), "zero_shot", "test", mse=math.nan, mae=None)
    gone["candidates"][1].update(latency_ms=None, latency_spread_ms=None, flops=None)
    row = next(line for line in results_text(gone, 120).splitlines() if "zero-shot" in line)
    assert row.split()[1:] == ["0.4010", "0.4020", "-", "-", "1.0200", "0.0990", "8.65", "M", "-", "-"]


def test_when_candidate_name_has_markup_then_rich_prints_it_as_text() -> None:
    from rich.console import Console

    odd = fixture.results()
    odd["candidates"][0]["name"] = "[red]x[/red]"
    buffer = io.StringIO()
    Console(file=buffer, width=120).print(results_table(odd, 120))
    assert "[red]x[/red]" in buffer.getvalue()


def test_when_latency_was_timed_on_other_threads_than_the_run_then_the_table_says_which() -> None:
    results = fixture.results()
    results["protocol"] |= {"threads": 8, "latency_threads": 1, "latency_batch": 4}
    assert "median at batch 4, 1 thread" in results_text(results, 120)
