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
from tsprune.report import protocol_words, results_table, results_text, verdict
from tsprune.report.evidence import Evidence, ends, top_two
from tsprune.report.words import change, count_text, error_text, percent, seconds


def _chosen(name: str) -> dict[str, Any]:
    changed = fixture.results()
    changed["chosen"] = name
    return fixture.compared(changed)


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
    lost = fixture.with_error(fixture.results(), "prune_then_finetune", "test", mse=0.450, mae=0.402)
    text = verdict(fixture.compared(lost, 0.002))
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
    assert "validation preferred full fine-tuning (pruned: validation MSE 34 % above)" in verdict(changed)


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


@given(st.floats(-0.0099, 0.0099), st.floats(-0.0099, 0.0099), st.sampled_from([0.02, 1e-9]))
def test_when_all_differences_are_below_one_percent_then_verdict_calls_none_better(
    a: float, b: float, spread: float
) -> None:
    near = fixture.results()
    own = near["candidates"][-1]["test"]
    for candidate in near["candidates"][:-1]:
        candidate["test"] = {**own, "mse": own["mse"] / (1 + a), "mae": own["mae"] / (1 + b)}
    text = verdict(fixture.compared(near, spread))
    first = _sentences(text)[0]
    words = (
        ["no difference that the test windows can show from"] if spread > 0.01 else ["no difference", "about the same"]
    )
    assert any(word in first for word in words)
    assert not re.search(r"better|worse|lower|higher", text)


_ANY = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True), st.floats(0, 10), st.just(0))


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from([c["name"] for c in fixture.results()["candidates"]]),
    st.lists(_ANY, min_size=30, max_size=30),
    st.sampled_from([0.0, 0.01, 0.5]),
)
def test_when_numbers_are_anything_then_verdict_is_three_plain_sentences(
    chosen: str, values: list[Any], spread: float
) -> None:
    wild, pool = _chosen(chosen), iter(values)
    for candidate in wild["candidates"]:
        for part in ("validation", "test"):
            candidate[part].update(mse=next(pool), mae=next(pool))
        candidate["latency_ms"], candidate["parameters"] = next(pool), next(pool)
    text = verdict(fixture.compared(wild, spread))
    assert 1 <= len(_sentences(text)) <= 3
    assert text.endswith("within seed noise.")
    assert "better" not in text
    assert not re.search(r"\b(nan|inf|None)\b", text)
    assert "\n" not in text


# ---- what the test windows can show


def test_when_a_difference_is_sure_but_below_one_percent_then_it_is_about_the_same() -> None:
    near = fixture.with_error(fixture.results(), "full_finetuning", "test", mse=0.390, mae=0.394)
    text = verdict(fixture.compared(near, 1e-4))
    assert "MSE and MAE about the same as full fine-tuning" in text and "pay" not in text


def test_when_a_difference_may_be_chance_then_verdict_gives_ratio_and_interval_instead() -> None:
    near = fixture.with_error(fixture.results(), "full_finetuning", "test", mse=0.389, mae=0.393)
    first = _sentences(verdict(fixture.compared(near, 0.02)))[0]
    assert first.endswith(
        "and no difference that the test windows can show from full fine-tuning "
        "(MSE ratio 0.997, 95 % interval 0.98 to 1.02)."
    )
    assert "lower than zero-shot" in first and "than full fine-tuning" not in first


def test_when_several_differences_may_be_chance_then_the_interval_is_explained_once() -> None:
    first = _sentences(verdict(fixture.compared(fixture.results(), 0.2)))[0]
    assert (
        "from zero-shot (MSE ratio 0.907, 95 % interval 0.73 to 1.09) and full fine-tuning (0.965, 0.77 to 1.16)"
        in first
    )
    assert "MSE 29 % and MAE 20 % lower than seasonal naive" in first


def test_when_only_one_measure_is_more_than_chance_then_the_other_is_undecided() -> None:
    mixed = fixture.with_error(fixture.results(), "full_finetuning", "test", mse=0.45, mae=0.393)
    assert "MSE 14 % lower and MAE undecided compared with full fine-tuning" in verdict(mixed)


def test_when_interval_and_test_disagree_then_verdict_names_the_p_value() -> None:
    split = fixture.results()
    pair = split["comparison"]["chosen"]["mse"]["full_finetuning"]
    pair["diebold_mariano"]["p_value"], pair["verdict"] = 0.08, "undecided"
    del split["comparison"]["chosen"]["mae"]
    said = "full fine-tuning (MSE ratio 0.965, 95 % interval 0.96 to 0.97, but Diebold-Mariano p 0.080)"
    assert said in verdict(split)


def test_when_windows_are_too_few_for_an_interval_then_verdict_says_so_and_claims_nothing() -> None:
    text = verdict(fixture.compared(fixture.results(), 0.0))
    assert "too few independent test windows to tell it from zero-shot (MSE ratio 0.907), full" in text
    assert not re.search(r"better|worse|lower|higher", text)


def test_when_nothing_was_compared_then_verdict_says_so_and_claims_nothing() -> None:
    old = fixture.results()
    del old["comparison"]
    text = verdict(old)
    assert "its test errors were not tested against chance: beside zero-shot (MSE ratio 0.907), full" in text
    assert not re.search(r"better|worse|lower|higher", text)
    assert "against" not in "\n".join(results_text(old, 120).splitlines()[:2])


def test_when_the_leader_is_not_clearly_ahead_then_the_sentence_says_neither_is_better() -> None:
    clear, near = fixture.results(), fixture.compared(fixture.results(), 0.2)
    start = (
        'The lowest test MSE is that of "prune, then fine-tune", before "full fine-tuning" (ratio 0.965, 95 % interval'
    )
    assert top_two(clear) == f'{start} 0.96 to 0.97, Diebold-Mariano p < 0.001): "prune, then fine-tune" is better.'
    assert top_two(near) == (
        f"{start} 0.77 to 1.16, Diebold-Mariano p 0.400). That may be chance: neither is called better."
    )
    assert top_two({"chosen": "x"}) == ""


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.98, 1.02, "0.98 to 1.02"), (0.912, 1.004, "0.912 to 1.004"), (0.5, math.inf, "0.50 upwards")]
    + [(math.nan, math.nan, "none"), (1.0, 1.2, "1.00 to 1.20")],
)
def test_when_an_end_lies_close_to_one_then_it_gets_more_digits(low: float, high: float, said: str) -> None:
    assert ends(Evidence("mse", 0.0, 1.0, low, high)) == said


def test_when_candidates_differ_from_full_finetuning_then_the_table_says_which() -> None:
    near = fixture.with_error(fixture.results(), "random_prune_finetune", "test", mse=0.403)
    lines = results_text(near, 80).splitlines()
    words = {
        name: line for line in lines[3:8] for name in ("zero-shot", "random prune", "* prune", "full") if name in line
    }
    assert [word for name in words for word in ("better", "worse", "open") if word in words[name]] == [
        "worse",
        "open",
        "better",
    ]
    assert "against full fine-tuning: better or worse in MSE where" in " ".join(lines)


# ---- protocol


def test_protocol_says_where_data_were_cut_and_what_decided() -> None:
    text = protocol_words(fixture.results())
    for words in (
        "train before 2023-09-12 23:00:00, validation before 2023-10-19 11:00:00, test before 2023-12-31 23:00:00",
        "5,440 for train (stride 8), 318 for validation (stride 24), 640 for test (stride 24)",
        "Validation decided how much to prune",
        "opened once",
        "(80 origins in blocks of 5)",
        "One seed, 0.",
    ):
        assert words in text
    budget = fixture.results()
    budget["pruning"]["budget"] = "--keep 0.6"
    assert "Pruning went down to a budget (--keep 0.6); validation decided the learning rates" in protocol_words(budget)
    bare = protocol_words({"chosen": "zero_shot"})
    assert "not recorded" in bare and "Diebold" not in bare
    line = "protocol: ratio 0.7/0.1/0.2 in time, test from 2023-10-19 11:00:00 on, 640 test windows (stride 24)"
    assert line in " ".join(results_text(fixture.results(), 100).splitlines())


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
        (130, ["median [q1-q3]", "FLOPs", "WQL", "val.", "against"], []),
        (100, ["MASE", "WQL", "params", "val."], ["q1", "FLOPs"]),
        (80, ["MASE", "params", "ms", "against"], ["FLOPs", "WQL"]),
        (60, ["MSE", "MAE", "against"], ["params", "val."]),
        (50, ["MSE", "MAE"], ["params", "val.", "against"]),
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
    text = results_text(fixture.results(), 130)
    assert text.isascii()
    rows = text.splitlines()[3:8]
    assert len({len(row) for row in rows}) == 1
    assert "13.7 [13.4-14.2]" in text


def test_when_numbers_are_missing_then_table_shows_dashes() -> None:
    gone = fixture.with_error(fixture.results(), "zero_shot", "test", mse=math.nan, mae=None)
    gone["candidates"][1].update(latency_ms=None, latency_spread_ms=None, flops=None)
    row = next(line for line in results_text(gone, 120).splitlines() if "zero-shot" in line)
    assert row.split()[1:] == ["0.4010", "0.4020", "-", "-", "-", "1.0200", "0.0990", "8.65", "M", "-", "-"]


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
