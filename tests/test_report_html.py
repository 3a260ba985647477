"""The HTML report: whole, safe, alone, and written at once or not at all."""

from __future__ import annotations

import copy
import json
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import report_fixture as fixture
from tsprune.errors import TspruneError
from tsprune.report import ForecastExample, write_report
from tsprune.report.html import SECTIONS, render
from tsprune.report.removal import removal_map

# ---- removal map


def test_when_parts_are_removed_then_map_marks_their_cells() -> None:
    found = removal_map(fixture.plan(), fixture.units())
    rows = {row.label: row for row in found.rows}
    assert found.columns == ("self attention\nheads", "cross attention\nheads", "mlp\nFFN channels")
    assert list(rows) == [f"{s}.block.{i}" for s in ("encoder", "decoder") for i in range(4)]
    assert rows["decoder.block.2"].whole == "layer removed"
    assert all(cell.text == "removed" for cell in rows["decoder.block.2"].cells.values())
    assert rows["encoder.block.3"].whole == "self attention removed"
    assert rows["encoder.block.3"].cells["self attention\nheads"].removed
    assert not rows["encoder.block.3"].cells["mlp\nFFN channels"].removed
    assert rows["encoder.block.0"].whole == "mlp removed"
    assert rows["encoder.block.1"].whole == "kept"


def test_when_whole_parts_go_then_their_parameters_are_counted_once() -> None:
    plan = {
        "groups": {
            "b.0/layer": {"kind": "layer", "units": 1, "kept": []},
            "b.0.att/head": {"kind": "head", "units": 4, "kept": [0]},
            "b.1.att/head": {"kind": "head", "units": 4, "kept": [0, 1]},
        }
    }
    units = {name: {"units": g["units"], "parameters": 100} for name, g in plan["groups"].items()}
    kinds = {k.kind: k for k in removal_map(plan, units).kinds}
    assert (kinds["whole layers"].parameters, kinds["heads"].parameters) == (100, 200)
    assert (kinds["heads"].kept, kinds["heads"].units) == (2, 8)
    assert removal_map(plan).kinds[0].parameters is None


def test_when_layers_are_many_and_undeclared_then_rows_follow_their_numbers() -> None:
    groups = {f"model.layers.{i}.attn/head": {"kind": "head", "units": 2, "kept": [1]} for i in (10, 9, 1)}
    assert [r.label for r in removal_map({"groups": groups}).rows] == [f"model.layers.{i}" for i in (1, 9, 10)]


def test_when_units_know_more_groups_then_they_count_as_kept() -> None:
    found = removal_map({"groups": {}}, {"b.0.att/head": {"kind": "head", "units": 4}})
    assert found.rows[0].cells["att\nheads"].text == "4/4"


def test_when_two_modules_of_a_layer_share_a_name_then_columns_stay_apart() -> None:
    groups = {f"b.0.{i}.mlp/ffn_channel": {"kind": "ffn_channel", "units": 8, "kept": [i]} for i in (0, 1)}
    assert removal_map({"groups": groups}).columns == ("0.mlp\nFFN channels", "1.mlp\nFFN channels")


def test_when_group_name_lacks_kind_then_error_says_what_is_expected() -> None:
    with pytest.raises(TspruneError, match="'head' has no kind; expected '<module path>/<kind>'"):
        removal_map({"groups": {"head": {"units": 1, "kept": []}}})


# ---- HTML


class _Page(HTMLParser):
    """Tags, ids and every attribute that could load something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.labels: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        self.ids += [v for k, v in attrs if k == "id" and v]
        self.loads += [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "data", "action") and v]
        if tag == "svg":
            self.labels.append(found.get("aria-label") or "")


def _full(results: dict[str, Any] | None = None, **changes: Any) -> str:
    parts = {"plan": fixture.plan(), "forecasts": fixture.forecasts(), "units": fixture.units()} | changes
    return render(results or fixture.results(), **parts)


def test_when_report_is_rendered_then_sections_come_in_order_with_figures_and_tables() -> None:
    text = _full()
    page = _Page(text)
    places = [text.index(f'<section id="{key}"') for key, _ in SECTIONS]
    assert places == sorted(places)
    assert len(page.labels) == 6 + 4
    assert all(len(label) > 30 for label in page.labels)
    assert page.tags.count("table") == 11
    assert "3/4" in text
    assert "M-104: 3 missing timestamps" in text
    assert "unknown: the corpora list does not name this source" in text
    assert "1.90e-06" in text
    assert "15 min 22 s" in text or "15 min 23 s" in text


def test_when_another_candidate_is_chosen_then_the_plan_is_not_passed_off_as_its_own() -> None:
    words = "which validation did not choose"
    assert words not in _full()
    other = fixture.results()
    other["chosen"] = "full_finetuning"
    assert words in _full(other)


def test_when_errors_were_compared_then_every_candidate_has_its_ratio_and_interval() -> None:
    text = _full()
    assert "0.965</td><td>0.96 to 0.97</td><td>&lt; 0.001</td><td>50 %</td><td>better</td>" in text
    assert "zero-shot: ratio 1.065, 95 % interval 1.05 to 1.08" in text  # of the figure
    assert "before &#34;full fine-tuning&#34;" in text
    near = _full(fixture.compared(fixture.results(), 0.2, notes=["only 2.5 independent stretches"]))
    assert "0.77 to 1.16</td><td>0.400</td><td>50 %</td><td>not shown</td>" in near
    assert "only 2.5 independent stretches" in near and "no difference shown, interval 0.77 to 1.16" in near
    few = _full(fixture.compared(fixture.results(), 0.0))
    assert "fewer than two independent stretches" in few and "fewer than two" not in near


def test_when_nothing_was_compared_then_the_section_says_why() -> None:
    old = fixture.results()
    del old["comparison"]
    text = _full(old)
    assert "did not compare errors window by window" in text and "Ratios of test MSE" not in text
    note = "MSE was not compared: no target of the test windows is observed"
    empty = {"reference": "full_finetuning", "measures": {}, "chosen": {}, "notes": [note]}
    assert note in _full(fixture.results() | {"comparison": empty})


def test_when_report_is_rendered_then_the_protocol_is_told_in_words() -> None:
    assert "Contexts reach back before a border" in _full()
    told = fixture.results()
    told["protocol"]["words"] = "As it was written then."
    assert "As it was written then." in _full(told) and "Contexts reach back" not in _full(told)


def test_when_report_is_rendered_then_it_loads_nothing_and_runs_nothing() -> None:
    text = _full()
    page = _Page(text)
    assert all(load.startswith(("#", "data:")) for load in page.loads)
    assert not {"script", "iframe", "object", "embed", "form"} & set(page.tags)
    assert "http://" not in text and "https://" not in text
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", text))
    assert "default-src 'none'" in text


def test_when_figures_share_a_page_then_ids_are_unique_and_references_resolve() -> None:
    text = _full()
    page = _Page(text)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    assert used <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_when_guards_were_asked_then_the_report_says_what_each_found() -> None:
    found = fixture.results()
    text = _full(found, plan=None, forecasts=[], units=None)
    assert "Guards against leakage" in text and "no leak: no series holds values of another one" in text
    found["protocol"]["leakage"][1] = {"guard": "copies", "verdict": "found", "words": "a and b are the same"}
    assert "LEAK FOUND: a and b are the same" in _full(found, plan=None, forecasts=[], units=None)
    del found["protocol"]["leakage"]
    assert "Guards against leakage" not in _full(found, plan=None, forecasts=[], units=None)


_EVIL = '<script>alert("x")</script>&\'$a_{$'


def test_when_user_text_holds_markup_then_it_is_escaped_everywhere() -> None:
    evil = fixture.results()
    for key in ("data", "model", "machine", "scale", "pretraining_overlap"):
        evil["protocol"][key] = _EVIL
    evil["protocol"]["leakage"] = [{"guard": _EVIL, "verdict": _EVIL, "words": _EVIL}]
    evil["protocol"].update(repairs=[_EVIL], inferred={_EVIL: _EVIL}, split={"name": _EVIL, "train_end": _EVIL})
    evil["candidates"][0].update(notes=_EVIL, name=_EVIL)
    evil.update(versions={_EVIL: _EVIL}, timings={_EVIL: 1.0}, verdict=_EVIL)
    evil["search"] = {_EVIL: evil["search"]["full_finetuning"]}
    plan = fixture.plan()
    plan.update(score=_EVIL, schedule=_EVIL)
    plan["groups"][f"{_EVIL}.0/head"] = {"kind": "head", "units": 2, "kept": [0]}
    example = fixture.forecasts(1)[0]
    odd = ForecastExample(_EVIL, _EVIL, example.history, example.truth, example.quantiles, {_EVIL: example.truth})
    text = _full(evil, plan=plan, forecasts=[odd], units=None)
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 15
    assert "script" not in _Page(text).tags


def test_when_numbers_are_missing_then_report_still_renders_without_nan() -> None:
    gone = fixture.results()
    for candidate in gone["candidates"]:
        for part in ("validation", "test"):
            candidate[part] = dict.fromkeys(candidate[part], None)
        candidate.update(latency_ms=math.nan, latency_spread_ms=None, flops=None)
    gone["pruning"]["rounds"][3]["validation_loss"] = math.nan
    gone["search"]["full_finetuning"][0]["validation_loss"] = None
    gone["equivalence"] = {"max_abs_difference": math.nan, "relative": None, "windows": 0}
    example = fixture.forecasts(2)[1]
    blank = ForecastExample("s", "w", [math.nan] * 4, [math.nan] * 48, example.quantiles, {})
    text = _full(gone, forecasts=[blank])
    visible = re.sub(r"<[^>]*>", " ", text)
    assert not re.search(r"\b(nan|NaN|None)\b", visible)
    assert "test error was not measured" in visible


def test_when_almost_everything_is_absent_then_sections_say_so() -> None:
    bare = {"schema": 1, "chosen": "zero_shot", "candidates": [{"name": "zero_shot", "test": {"mse": 0.5}}]}
    text = render(bare, None, [], None)
    for said in (
        "No plan was recorded",
        "No forecasts were handed",
        "No pruning rounds",
        "No search was recorded",
        "Nothing was repaired",
        "No comparison of the masked",
        "No times were recorded",
    ):
        assert said in text
    assert all(f'<section id="{key}"' in text for key, _ in SECTIONS)


def test_when_horizon_is_one_and_history_empty_then_figure_renders() -> None:
    one = ForecastExample("s", "7", [], [1.0], {0.5: [1.1]}, {"zero_shot": [0.9]})
    assert "from quantile 0.5 to 0.5" in _full(forecasts=[one])


def test_when_rendered_twice_then_bytes_agree() -> None:
    assert _full() == _full()


def test_when_matplotlib_is_set_up_otherwise_then_figures_stay_the_same() -> None:
    import matplotlib

    expected = _full()
    with matplotlib.rc_context({"text.usetex": True, "axes.facecolor": "black", "svg.fonttype": "path"}):
        assert _full() == expected
        assert matplotlib.rcParams["axes.facecolor"] == "black"  # and the user's settings are not touched


def test_when_inputs_are_rendered_then_they_are_not_changed() -> None:
    results, plan, units = fixture.results(), fixture.plan(), fixture.units()
    before = json.dumps([results, plan, units])
    render(results, plan, [], units)
    assert json.dumps([results, plan, units]) == before


def test_when_best_round_is_zero_then_report_says_nothing_was_removed() -> None:
    changed = copy.deepcopy(fixture.results())
    changed["pruning"]["best_round"] = 0
    assert "it is round 0, so nothing was removed" in _full(changed)
    assert "it is round 0" not in _full()


def test_when_a_budget_ends_the_rounds_then_report_does_not_speak_of_tolerance() -> None:
    results = fixture.results()
    assert "within the tolerance of the lowest" in render(results, fixture.plan(), fixture.forecasts(1), None)
    results["pruning"] |= {"budget": "--keep 0.6", "best_round": 7}
    page = render(results, fixture.plan(), fixture.forecasts(1), None)
    assert "it reaches the budget, --keep 0.6" in page
    assert "within the tolerance of the lowest" not in page


def test_when_lengths_differ_then_forecast_example_names_the_path() -> None:
    with pytest.raises(TspruneError, match=r"'s': quantile 0.5 has 1 steps, truth has 2"):
        ForecastExample("s", "w", [], [1.0, 2.0], {0.5: [1.0]})
    with pytest.raises(TspruneError, match="expected truth and at least one quantile"):
        ForecastExample("s", "w", [], [1.0], {})


# ---- writing


def test_when_report_is_written_then_folder_holds_only_the_file(tmp_path: Path) -> None:
    target = tmp_path / "run" / "report.html"
    assert write_report(target, fixture.results(), None) == target
    target.write_text("old")
    write_report(target, fixture.results(), fixture.plan(), fixture.forecasts(1), fixture.units())
    assert [p.name for p in target.parent.iterdir()] == ["report.html"]
    assert target.read_text(encoding="utf-8").rstrip().endswith("</html>")


def test_when_writing_is_interrupted_then_old_report_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.html"
    target.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("disk is gone")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk is gone"):
        write_report(target, fixture.results(), None)
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_when_path_is_a_folder_then_error_says_how_to_fix(tmp_path: Path) -> None:
    with pytest.raises(TspruneError, match="is a folder, expected a file"):
        write_report(tmp_path, fixture.results(), None)


def test_when_report_room_is_imported_then_no_heavy_module_is_loaded() -> None:
    import subprocess
    import sys

    code = (
        "import sys, tsprune.report; "
        "print([m for m in ('matplotlib', 'rich', 'jinja2', 'torch', 'pandas', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.strip() == "[]"
