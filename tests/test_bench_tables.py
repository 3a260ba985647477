"""Tables in the layout of the papers: means, marks, averages, counts, and text that survives Markdown and LaTeX."""

from __future__ import annotations

import math
import re
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bench_fixture as fixture
from tsprune.bench.pages.layout import Table, all_tables, overall_table, share_tables
from tsprune.bench.pages.markup import latex_escaped, markdown_escaped
from tsprune.bench.pages.tables import latex, markdown
from tsprune.bench.pages.tasking import Grid, Value
from tsprune.errors import TspruneError


def _row(candidate: str, mse: float | None, seed: int | None = 0, **more: Any) -> dict[str, Any]:
    kind = {"model": "m", "data": "ETTh1", "horizon": 96, "share": 1.0, "candidate": candidate, "seed": seed}
    return {**kind, "test": {"mse": mse, "mae": mse}, **more}


def _grid(rows: list[dict[str, Any]], **more: Any) -> Grid:
    summary = {"measures": ["mse"], "measure": "mse", "reference": "full_finetuning", "models": ["m"], **more}
    return Grid(rows, summary)


def _only(grid: Grid) -> Table:
    (table,) = share_tables(grid, 1.0)
    return table


def _column(table: Table, candidate: str) -> list[Any]:
    place = table.groups.index(candidate) * len(table.measures)
    return [line.cells[place] for line in table.lines]


# ---- means


def test_when_there_are_seeds_then_cells_are_means_with_sample_deviations() -> None:
    values = [0.41, 0.44, 0.40]
    table = _only(_grid([_row("lora", value, seed) for seed, value in enumerate(values)]))
    cell = _column(table, "LoRA")[0]
    assert cell.text == f"{statistics.mean(values):.3f}"
    assert cell.spread == f" ± {statistics.stdev(values):.3f}"


def test_when_deviation_would_round_to_nothing_then_one_figure_is_shown() -> None:
    table = _only(_grid([_row("lora", 0.4 + 0.0002 * seed, seed) for seed in range(2)]))
    assert _column(table, "LoRA")[0].spread == " ± 0.0001"


def test_when_horizons_are_averaged_then_deviation_is_that_of_the_seeds_averages() -> None:
    rows = [_row("lora", 0.4 + seed / 10, seed) for seed in range(3)]
    rows += [_row("lora", 0.8 - seed / 10, seed, horizon=192) for seed in range(3)]
    average = _column(_only(_grid(rows)), "LoRA")[2]
    assert average.text == "0.600"
    # What one horizon gains the other loses, so that seeds agree on the average.
    assert re.fullmatch(r" ± (0\.000|\de-\d\d|0)", average.spread)


def test_when_a_seed_lacks_a_horizon_then_it_does_not_enter_the_average() -> None:
    rows = [_row("lora", 0.4, 0), _row("lora", 9.0, 1), _row("lora", 0.6, 0, horizon=192)]
    average = Grid(rows, {}).average("m", [("ETTh1", 96), ("ETTh1", 192)], "lora", "mse")
    assert average == Value(0.5, None, 1)


def test_when_a_horizon_is_missing_then_average_is_a_dash() -> None:
    rows = [_row("lora", 0.4), _row("dlinear", 0.5), _row("dlinear", 0.6, horizon=192)]
    table = _only(_grid(rows))
    assert [cell.text for cell in _column(table, "LoRA")[:3]] == ["0.400", "–", "–"]
    assert [cell.text for cell in _column(table, "DLinear")[:3]] == ["0.500", "0.600", "0.550"]


def test_when_some_cells_have_fewer_seeds_then_they_are_marked_but_baselines_are_not() -> None:
    rows = [_row("lora", 0.4, seed) for seed in range(3)] + [_row("head_only", 0.5, seed) for seed in range(2)]
    rows.append(_row("seasonal_naive", 0.9, None, model=None))
    table = _only(_grid(rows))
    few = {group: _column(table, group)[0].few for group in table.groups}
    assert few == {"LoRA": False, "fine-tuning the head only": True, "seasonal naive": False}
    assert any("fewer seeds" in note for note in table.notes)


def test_when_a_cell_has_two_rows_then_error_names_it() -> None:
    with pytest.raises(TspruneError, match="model m, ETTh1, horizon 96, share 1, lora, seed 0"):
        _grid([_row("lora", 0.4), _row("lora", 0.5)])


# ---- marks and counts


def test_when_means_differ_beyond_the_digits_shown_then_marks_follow_full_precision() -> None:
    table = _only(_grid([_row("lora", 0.40000002), _row("head_only", 0.40000001), _row("dlinear", 0.5)]))
    marks = {group: _column(table, group)[0].mark for group in table.groups}
    assert marks == {"fine-tuning the head only": "best", "LoRA": "second", "DLinear": ""}


def test_when_means_tie_then_both_are_marked_and_both_take_first_place() -> None:
    table = _only(_grid([_row("lora", 0.4), _row("specialist", 0.4), _row("head_only", 0.45), _row("dlinear", 0.5)]))
    marks = {group: _column(table, group)[0].mark for group in table.groups}
    assert marks == {
        "LoRA": "best",
        "chosen by validation": "best",
        "fine-tuning the head only": "second",
        "DLinear": "",
    }
    firsts = {group: _column(table, group)[-1].text for group in table.groups}
    assert firsts == {"LoRA": "1", "chosen by validation": "1", "fine-tuning the head only": "0", "DLinear": "0"}


def test_when_tasks_are_won_then_last_lines_count_first_places_and_wins() -> None:
    rows = []
    for place, (own, base) in enumerate([(1.0, 2.0), (2.0, 1.0), (1.0, 1.0), (3.0, 4.0)]):
        rows += [_row("lora", own, horizon=place), _row("full_finetuning", base, horizon=place)]
    table = _only(_grid(rows))
    first, wins = table.lines[-2:]
    assert (first.labels[0], wins.labels[0]) == ("first places", "win rate")
    assert [cell.text for cell in _column(table, "LoRA")[-2:]] == ["3", "62 %"]
    assert [cell.text for cell in _column(table, "full fine-tuning")[-2:]] == ["2", "–"]


def test_when_measures_are_those_of_panels_then_columns_are_too() -> None:
    row = {**_row("lora", None), "test": {"mase": 0.9, "smape": 0.1, "wql": None, "mse": 5.0}}
    table = _only(_grid([row], measures=["mase", "smape", "wql"]))
    assert table.measures == ("MASE", "sMAPE", "WQL")
    assert [cell.text for cell in table.lines[0].cells] == ["0.900", "0.100", "–"]


@given(st.lists(st.one_of(st.none(), st.sampled_from([0.1, 0.2, 0.3, math.nan])), min_size=1, max_size=6))
def test_when_any_cells_are_missing_then_marks_are_those_of_brute_force(values: list[float | None]) -> None:
    names = ["lora", "head_only", "zero_shot", "dlinear", "nlinear", "specialist"][: len(values)]
    rows = [_row(name, value) for name, value in zip(names, values, strict=True)]
    rows.append(_row("full_finetuning", 0.4))
    table = _only(_grid(rows, candidates=[*names, "full_finetuning"]))
    values = [*values, 0.4]
    known = [value for value in values if value is not None and not math.isnan(value)]
    for value, cell in zip(values, table.lines[0].cells, strict=True):
        lower = {one for one in known if value is not None and one < value}
        wanted = "" if value not in known or len(known) < 2 or len(lower) > 1 else "second" if lower else "best"
        assert cell.mark == wanted


# ---- which tables


def test_when_there_are_two_models_then_each_has_a_table_with_the_rivals_and_one_is_over_all() -> None:
    tables = all_tables(Grid(fixture.rows(), fixture.summary()))
    assert [table.title for table in tables] == [
        "Error relative to full fine-tuning, all tasks",
        "ttm: test errors",
        "chronos_bolt: test errors",
    ]
    assert tables[0].groups == ("ttm", "chronos_bolt", "all models")
    assert all(table.groups[:2] == ("seasonal naive", "DLinear") for table in tables[1:])
    assert [line.labels for line in tables[1].lines[:3]] == [("ETTh1", "96"), ("", "336"), ("", "average")]


def test_when_windows_are_shared_out_then_every_share_has_its_tables() -> None:
    rows = [_row("lora", 0.4), _row("lora", 0.5, share=0.05)]
    titles = [table.title for table in all_tables(_grid(rows))]
    assert titles == ["m: test errors", "m: test errors, 5 % of the training windows"]


def test_when_tasks_were_summarised_then_overall_table_shows_ratios_with_intervals() -> None:
    summary = fixture.summary()
    table = overall_table(Grid(fixture.rows(), summary))
    assert table is not None
    place = [line.labels[0] for line in table.lines].index("prune, then fine-tune")
    entry = next(e for e in summary["overall"]["mse"]["all"]["models"] if e["name"] == "prune_then_finetune")
    cell = table.lines[place].cells[4]
    assert cell.text == f"{entry['ratio']:.3f}"
    assert cell.spread == f" [{entry['low']:.3f}, {entry['high']:.3f}]"
    assert overall_table(_grid([_row("lora", 0.4)])) is None


def test_when_grid_is_empty_then_there_are_no_tables() -> None:
    assert all_tables(_grid([])) == []
    assert markdown([], {"measures": ["mse"], "reference": "full_finetuning"}) == "\n"


# ---- Markdown and LaTeX


def test_when_markdown_is_written_then_every_line_has_as_many_cells_as_the_head() -> None:
    text = markdown(fixture.rows(), fixture.summary())
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert re.search(r"\*\*0\.\d{3}\*\* ± 0\.\d+", text)
    assert re.search(r"<ins>0\.\d{3}</ins>", text)
    assert "weather\\_hourly" in text


def test_when_latex_is_written_then_it_is_balanced_and_every_line_has_as_many_cells() -> None:
    rows = fixture.rows()
    rows[0]["data"] = "50%_of_{all} & $more$ #1"
    text = latex(rows, {**fixture.summary(), "data": []})
    bare = re.sub(r"\\[\\{}$&#%_]", "", text.replace(r"\\", ""))
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert [line for line in bare.splitlines() if "%" in line and not line.endswith("%")] == [
        "% Needs \\usepackage{booktabs} and \\usepackage{graphicx}."
    ]
    for name in ("table*", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}")
    tables = re.findall(r"\\begin\{tabular\}\{(l+r+)\}\n\\toprule\n(.*?)\\bottomrule", text, re.S)
    assert len(tables) == 3
    for columns, body in tables:
        lines = [line for line in body.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {len(columns)}
        spans = re.search(r"^.*multicolumn.*$", body, re.M)
        assert spans is not None
        wide = sum(int(count) for count in re.findall(r"\\multicolumn\{(\d+)\}", spans[0]))
        assert wide == columns.count("r")
    assert r"\textbf{0." in text and r"\underline{0." in text and r"$\pm$" in text


@given(st.text(st.sampled_from('ab \\{}$&#%_^~<>|"±†–[]\n'), max_size=30))
def test_when_text_is_escaped_then_latex_sees_no_specials_of_the_users(text: str) -> None:
    found = latex_escaped(text)
    assert "\n" not in found
    for command in (
        r"\\textbackslash\{\}",
        r"\\text[a-z]+\{\}",
        r"\$\\pm\$",
        r"\$\\dagger\$",
        r"\{\[\}",
        r"\\[{}$&#%_]",
    ):
        found = re.sub(command, "", found)
    assert not set(found.replace("~", "")) & set("\\{}$&#%_^<>|")


def test_when_text_is_escaped_then_markdown_shows_it_as_it_is() -> None:
    assert markdown_escaped("a|b_c*<script>&") == r"a\|b\_c\*&lt;script>&amp;"
    assert markdown_escaped("two\nlines") == "two lines"
