"""The page of a grid: whole, safe, alone, honest about what is missing; its figures and those of recipes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import bench_fixture as fixture
from chromium import opened, requests, started
from tsprune.bench.pages.costblocks import few_shot_curves, latency_points
from tsprune.bench.pages.matrixfigure import matrix_figure, pivot
from tsprune.bench.pages.page import headline, render, write_page
from tsprune.bench.pages.recipepage import write_recipe_page
from tsprune.bench.pages.taskfigures import Point, Ratio, shared_limits, with_front
from tsprune.bench.pages.tasking import Grid
from tsprune.errors import TspruneError


class _Page(HTMLParser):
    """Ids, anchors, texts of sections, labels of figures, and what could load or run something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.labels: list[str] = []
        self.outward: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)
        if found.get("id"):
            self.ids.append(str(found["id"]))
        if tag == "svg":
            self.labels.append(str(found.get("aria-label")))
        for name in ("href", "src", "xlink:href"):
            target = str(found.get(name) or "")
            if target.startswith("#"):
                self.targets.append(target[1:])
            elif target and not target.startswith("data:"):
                self.outward.append(target)
        if tag in ("script", "iframe", "object") or any(name.startswith("on") for name in found):
            self.outward.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page() -> str:
    return render(fixture.rows(), fixture.latencies(), fixture.comparisons(), fixture.summary())


@pytest.fixture(scope="module")
def few_shot() -> str:
    rows = fixture.rows(["ETTh1", "ETTm1", "weather_hourly", "a", "b", "c"], (1.0, 0.1), ["ttm"])
    summary = fixture.summary(rows)
    summary["missing"] = [f"ttm, ETTh2, horizon {horizon}: not run yet" for horizon in range(11)]
    return render(rows, fixture.latencies(busy=True), [], summary)


def _section(text: str, name: str) -> str:
    found = re.search(rf'<section id="{name}".*?</section>', text, re.S)
    assert found is not None
    return found[0]


# ---- the whole page


def test_when_page_is_written_then_it_stands_alone_and_its_ids_are_unique(page: str) -> None:
    found = _Page(page)
    assert found.outward == [] and found.open == []
    assert len(found.ids) == len(set(found.ids))
    assert set(found.targets) <= set(found.ids)
    assert "NaN" not in page and ">nan<" not in page and "Undefined" not in page


def test_when_page_is_written_then_every_figure_has_a_text_alternative(page: str) -> None:
    labels = _Page(page).labels
    # Ranks, wins, nine candidates against the reference, and latency and parameters of two models.
    assert len(labels) == 2 + 9 + 2 + 2
    assert all(len(label) > 60 for label in labels)


def test_when_page_is_written_twice_then_bytes_agree_and_nothing_else_is_left(tmp_path: Path) -> None:
    rows = fixture.rows(["ETTh1"])
    given = (rows, [], [], fixture.summary(rows))
    paths = [write_page(tmp_path / "deep" / f"{i}.html", *given) for i in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["0.html", "1.html"]
    with pytest.raises(TspruneError, match="is a directory"):
        write_page(tmp_path / "deep", *given)


def test_when_names_are_hostile_then_they_are_only_text() -> None:
    odd = "<script>alert(1)</script>$x$"
    rows = [row for row in fixture.rows() if row["data"] == "ETTh1"]
    for row in rows:
        row["data"] = odd
    summary = {**fixture.summary(rows), "name": odd, "machine": odd, "missing": [odd], "protocols": [odd]}
    text = render(rows, [], [], summary)
    assert _Page(text).outward == []
    assert "<script" not in text


def test_when_candidates_are_named_then_it_is_as_people_say_them(page: str) -> None:
    for name in (*fixture.OWN, *fixture.RIVALS):
        if "_" in name:
            assert name not in page


# ---- what is said


def test_when_tasks_were_tested_then_headline_says_ratio_and_on_how_many_it_is_better() -> None:
    summary = fixture.summary()
    said = headline(Grid(fixture.rows(), summary), fixture.comparisons())
    counts = {"better": 0, "worse": 0, "undecided": 0}
    for one in fixture.comparisons():
        entry = next(e for e in one["compared"]["ranking"] if e["name"] == "prune_then_finetune")
        counts[entry["verdict"]] += 1
    entry = next(e for e in summary["overall"]["mse"]["all"]["models"] if e["name"] == "prune_then_finetune")
    assert said.startswith("“prune, then fine-tune” against “full fine-tuning” over 12 tasks on 3 data sets")
    assert f"ratio {entry['ratio']:.3f}" in said
    assert said.endswith(
        f"better on {counts['better']} of 12, worse on {counts['worse']} and undecided on {counts['undecided']}."
    )


def test_when_nothing_is_finished_then_page_says_so_everywhere() -> None:
    summary = {**fixture.summary(), "overall": {}, "missing": ["all of it"]}
    text = render([], [], [], summary)
    assert "Nothing can be said over all tasks yet" in text
    assert "1 cell is missing" in text
    assert "<svg" not in text
    for name in ("tables", "ranks", "differences", "tasks", "latency", "parameters"):
        assert re.search(r"<p>No (figure|table)", _section(text, name)), name


def test_when_cells_are_missing_then_top_names_some_and_bottom_all(few_shot: str) -> None:
    top, bottom = few_shot[: few_shot.index('<section id="said"')], _section(few_shot, "machine")
    assert "11 cells are missing" in top and "horizon 7:" in top and "horizon 8:" not in top
    assert all(f"horizon {i}:" in bottom for i in range(11))


def test_when_machine_was_busy_then_page_says_so_at_the_top_and_by_the_figure(few_shot: str, page: str) -> None:
    assert "not reliable" in few_shot[: few_shot.index('<section id="said"')]
    assert "not reliable" in _section(few_shot, "latency")
    assert "not reliable" not in page


def test_when_data_sets_are_few_then_reason_stands_for_the_diagram(page: str, few_shot: str) -> None:
    assert "fewer than 5 are not tested" in _section(page, "differences")
    assert "<svg" not in _section(page, "differences")
    diagram = _section(few_shot, "differences")
    assert "Groups that are not told apart" in diagram
    assert "no pair can be told apart, even if one method always won" in diagram


def test_when_there_is_one_share_then_there_are_no_few_shot_curves(page: str, few_shot: str) -> None:
    assert 'id="few-shot"' not in page
    assert "Error by share of the training windows" in _section(few_shot, "few-shot")
    assert "Tables with 10 % of the training windows" in _section(few_shot, "tables")


# ---- figures' numbers


def test_when_latency_is_drawn_then_points_are_geometric_means_and_the_front_is_that_of_brute_force() -> None:
    grid = Grid(fixture.rows(), fixture.summary())
    points, tasks, notes = latency_points(grid, fixture.latencies(), "ttm")
    assert (tasks, notes, len(points)) == (6, (), 10)
    point = next(one for one in points if one.candidate == "lora")
    logs = [
        math.log(one["latency_ms"])
        for one in fixture.latencies()
        if (one["model"], one["candidate"]) == ("ttm", "lora")
    ]
    assert point.latency == pytest.approx(math.exp(sum(logs) / 6))
    ratios = [grid.ratio("ttm", task, "lora", "mse") for task in grid.tasks]
    assert point.ratio == pytest.approx(math.exp(sum(math.log(ratio or 0) for ratio in ratios) / 6))
    for one in points:
        beaten = any(
            (o.latency, o.ratio) != (one.latency, one.ratio) and o.latency <= one.latency and o.ratio <= one.ratio
            for o in points
        )
        assert one.front is not beaten


def test_when_two_points_are_equal_then_both_are_on_the_front() -> None:
    points = [Point("a", 1, 1, 1, 0.9, False), Point("b", 1, 1, 1, 0.9, False), Point("c", 2, 2, 2, 0.9, False)]
    assert [one.front for one in with_front(points)] == [True, True, False]


def test_when_latencies_lack_a_task_then_all_are_compared_on_the_others() -> None:
    grid = Grid(fixture.rows(), fixture.summary())
    early = ("lora", "specialist", "dlinear", "head_only")
    timed = [one for one in fixture.latencies() if not (one["data"] == "ETTh1" and one["candidate"] in early)]
    points, tasks, notes = latency_points(grid, timed, "ttm")
    assert (tasks, len(points)) == (4, 10)
    assert notes == ("Without ETTh1 96, ETTh1 336, where not every method was measured.",)
    assert latency_points(grid, [one for one in timed if one["candidate"] == "lora"], "ttm") == ([], 0, ())


def test_when_windows_are_fewer_then_curves_are_against_the_reference_with_all() -> None:
    rows = fixture.rows(["ETTh1"], (1.0, 0.1), ["ttm"])
    rows = [row for row in rows if row["candidate"] != "zero_shot" or row["share"] == 1.0]
    grid = Grid(rows, fixture.summary(rows))
    curves, tasks, _ = few_shot_curves(grid, "ttm")
    assert tasks == 2
    assert curves["full_finetuning"][1] == (1.0, pytest.approx(1.0))
    assert [share for share, _ in curves["lora"]] == [0.1, 1.0]
    assert len(curves["zero_shot"]) == 1
    logs = [
        math.log(
            grid.value("ttm", task, "lora", "mse", 0.1).mean / grid.value("ttm", task, "full_finetuning", "mse").mean
        )  # type: ignore[union-attr]
        for task in grid.tasks
    ]
    assert curves["lora"][0][1] == pytest.approx(math.exp(sum(logs) / 2))


def test_when_ratios_spread_then_limits_hold_1_and_stay_within_half_and_double() -> None:
    assert shared_limits([]) == (0.9, 1.1)
    low, high = shared_limits([Ratio("t", 0.99, 0.98, math.nan, "undecided")])
    assert low < 0.97 and high > 1.03
    wide = [Ratio("t", value, value, value, "worse") for value in (0.01, 50.0)] * 3
    assert shared_limits(wide) == (0.5, 2.0)


# ---- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from started(tmp_path_factory.mktemp("profile"))


@pytest.mark.browser
@pytest.mark.parametrize("width", [1200, 420])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_when_page_is_shown_then_it_is_silent_fits_and_stays_readable(
    browser: Any, page: str, tmp_path: Path, width: int, scheme: str
) -> None:
    path = tmp_path / "page.html"
    path.write_text(page, encoding="utf-8")
    wanted = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wanted})
    opened(browser, path, width)
    assert browser.get_log("browser") == []
    assert [url for url in requests(browser) if url != path.as_uri() and not url.startswith("data:")] == []
    inside, outside, paper, figures = browser.execute_script(
        "const d = document.documentElement; return [d.scrollWidth, d.clientWidth,"
        "getComputedStyle(document.body).backgroundColor, [...document.querySelectorAll('figure svg')].map(s => {"
        "const b = s.getBoundingClientRect(); return [b.width, b.height]})]"
    )
    assert inside <= outside <= width
    assert paper == "rgb(255, 255, 255)"
    assert len(figures) == 15
    assert all(wide > 250 and high > 100 for wide, high in figures)
    if width == 1200:
        cut = browser.execute_script(
            "return [...document.querySelectorAll('.drawn')].filter(e => e.scrollWidth > e.clientWidth).length"
        )
        assert cut == 0


# ---- matrices and recipes


def test_when_records_are_pivoted_then_labels_keep_their_order_and_gaps_are_none() -> None:
    rows = [
        {"source": "b", "target": "a", "ratio": 1.1},
        {"source": "a", "target": "b", "ratio": math.nan},
        {"source": "b", "target": "b", "ratio": 1},
    ]
    assert pivot(rows) == (["b", "a"], ["a", "b"], [[1.1, 1.0], [None, None]])
    with pytest.raises(TspruneError, match="two records of the matrix are for source 'b', target 'a'"):
        pivot([rows[0], rows[0]])
    with pytest.raises(TspruneError, match="no 'score'; it has: source, target, ratio"):
        pivot(rows, value="score")


def test_when_matrix_is_drawn_then_numbers_stand_in_cells_and_in_the_alternative() -> None:
    text = matrix_figure(["one", "two"], ["x", "y"], [[0.5, None], [1.5, 1.0]], "Ratios", middle=1.0)
    (label,) = _Page(text).labels
    assert label == "Ratios. one: x 0.50, y not measured; two: x 1.50, y 1.00."
    shown = re.findall(r">([^<>]+)</text>", text)
    assert sorted(shown) == sorted(["0.50", "1.50", "1.00", "one", "two", "x", "y"])
    # Good, bad and neutral cells differ; a missing one is hatched.
    assert len(set(re.findall(r"fill: #[0-9a-f]{6}", text))) >= 4 and "url(#matrix-" in text


def test_when_good_is_high_then_colours_change_sides() -> None:
    def fills(high_is_good: bool) -> list[str]:
        text = matrix_figure(["r"], ["x", "y"], [[0.0, 1.0]], "t", middle=0.5, high_is_good=high_is_good)
        return re.findall(r'id="matrix-patch_[34]".*?fill: (#\w+)', text, re.S)

    assert fills(True) == fills(False)[::-1]
    assert len(set(fills(True))) == 2


@pytest.mark.parametrize("values", [[[1.0]], [[1.0, 2.0], [1.0, 2.0]], []])
def test_when_labels_do_not_fit_the_values_then_error_counts_them(values: list[list[float | None]]) -> None:
    with pytest.raises(TspruneError, match="1 row labels and 2 column labels"):
        matrix_figure(["one"], ["x", "y"], values, "Ratios")


def test_when_recipe_is_written_then_matrices_and_tables_stand_in_its_parts(tmp_path: Path) -> None:
    rows, columns, values = pivot([{"source": "a", "target": "b", "ratio": 0.9}])
    parts = [
        {"title": "Transfer", "matrix": {"rows": rows, "columns": columns, "values": values, "middle": 1.0}},
        {"title": "Stability", "text": ["Said."], "table": {"head": ["score", "halves"], "rows": [["taylor", 0.9]]}},
        {"title": "Drift", "missing": "too few windows"},
    ]
    text = write_recipe_page(tmp_path / "r.html", "transfer", "It pays.", parts, fixture.summary()).read_text()
    assert _Page(text).outward == []
    assert "Transfer. a: b 0.90." in _section(text, "part0")
    assert "taylor" in _section(text, "part1")
    assert "No figure: too few windows." in _section(text, "part2")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"text": []}, "has no title"),
        ({"title": "t", "figure": 1}, "has 'figure', expected only matrix, missing, table, text, title"),
        ({"title": "t", "table": {"head": ["a", "b"], "rows": [["x"]]}}, "1 cells, its head has 2"),
    ],
)
def test_when_part_of_a_recipe_is_wrong_then_error_says_how(tmp_path: Path, part: dict[str, Any], message: str) -> None:
    with pytest.raises(TspruneError, match=message):
        write_recipe_page(tmp_path / "r.html", "n", "h", [part], fixture.summary())
