"""Forecasts without the sharpest and the most diffuse head, and the page that draws them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.chromium import opened, requests, started
from tests.lens_fixture import counted, halves, ran, study_of
from tests.running import wide
from tests.tiny import tiny_batch, tiny_model
from tsprune import lens, read
from tsprune.lens import _ablating as ablating
from tsprune.lens import _similarity as similarity
from tsprune.lens import heads_shown
from tsprune.lens._figures import brief, curves_figure, digits, heat_map, picture_figure, short
from tsprune.lens._page import write_lens_page
from tsprune.lens._probe import Curve, Findings, Measure, Picture, Table, Trace
from tsprune.lens._run import look
from tsprune.lens._study import study_of as real_study
from tsprune.preparing import Prepared, prepare
from tsprune.settings import TaskSettings
from tsprune.slimming import slim


def ready(**changes: Any) -> Prepared:
    settings = TaskSettings(**{"horizon": 8, "context": 32} | changes)
    return prepare(settings, panel=read(wide()), model=tiny_model("chronos2"))


# ---- the probe


@pytest.mark.parametrize("family", ["chronos2", "chronos_bolt"])
def test_what_is_drawn_are_forecasts_of_models_without_the_head(family: str) -> None:
    model = tiny_model(family)
    study = study_of(model, halves(tiny_batch(7)))
    probe = lens.find("heads_shown")
    with counted(model) as calls:
        found, ticks = ran(probe, study)
    json.dumps(found.to_json(), allow_nan=False)
    assert calls["forecast"] == heads_shown.PASSES * len(study.first) and ticks == heads_shown.PASSES + 1
    extremes, _ = ran(lens.find("attention_entropy"), study)
    ends = extremes.facts["sharpest"][0], extremes.facts["most_diffuse"][0]
    intact, truth = ablating.medians(model, study.first), ablating.truth(study.first)
    assert [one["which"] for one in found.facts["shown"]] == ["sharpest", "most diffuse"]
    for place, (one, end) in enumerate(zip(found.facts["shown"], ends, strict=True)):
        assert (one["group"], one["unit"], one["entropy"]) == (f"{end['path']}/head", end["head"], end["entropy"])
        group = model.unit_groups()[one["group"]]
        smaller = slim(model, ablating.without(group, [one["unit"]]))
        without = ablating.medians(smaller, study.first)
        change = (without - intact).square().mean(-1).sqrt()
        most, middle = one["rows"]
        assert change[most] == pytest.approx(float(change.max()), rel=1e-3)
        assert change[middle] == pytest.approx(float(change.median()), rel=1e-3)
        for picture, row in zip(found.pictures[2 * place :], (most, middle), strict=False):
            context, came, before, after = picture.traces
            assert [trace.role for trace in picture.traces] == ["context", "truth", "forecast", "other"]
            assert context.start == -len(context.values) and came.start == before.start == after.start == 0
            assert f"row {row}" in picture.title
            _alike(before.values, intact[row])
            _alike(after.values, without[row])
            _alike(came.values, truth[row])
            _alike(context.values, ablating.contexts(study.first)[row][-len(context.values) :])
        drawn, everything = found.tables
        line = drawn.rows[2 * place]
        expected = similarity.spearman_distance(intact[most][None], without[most][None]).mean()
        assert line[3] == pytest.approx(float(expected), abs=1e-3)
        errors = [similarity.squared_error(values[most], truth[most]) for values in (intact, without)]
        assert line[4:] == pytest.approx(errors, rel=1e-3)
        assert everything.rows[place][6] == pytest.approx(
            similarity.squared_error(without, truth) / similarity.squared_error(intact, truth), rel=1e-3
        )


def _alike(values: Any, expected: torch.Tensor) -> None:
    found = torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float64)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4, equal_nan=True)


@given(st.lists(st.floats(0, 9) | st.just(math.nan), min_size=1, max_size=9))
def test_the_window_that_changes_most_and_the_middle_one(values: list[float]) -> None:
    most, middle = heads_shown.picked(torch.tensor(values, dtype=torch.float64))
    known = [math.inf if math.isnan(value) else value for value in values]
    assert known[most] == max(known)
    assert known[middle] == sorted(known)[(len(known) - 1) // 2]


def test_models_without_heads_are_refused_and_one_key_leaves_nothing_to_show(monkeypatch: pytest.MonkeyPatch) -> None:
    probe, study = lens.find("heads_shown"), study_of(tiny_model("chronos2"), [tiny_batch(2)])
    assert "no attention heads" in probe.refusal(tiny_model("ttm"))
    _, units = heads_shown.entropy_of(study, str)
    for count in (0, 1):
        monkeypatch.setattr(heads_shown, "entropy_of", lambda *_, count=count: ({}, units[:count]))
        found, ticks = ran(probe, study)
        assert len(found.pictures) == 2 * count and len(found.facts["shown"]) == count
        assert ticks == heads_shown.PASSES and ("no head is sharp or diffuse" in found.answer) == (count == 0)


def test_windows_are_called_by_series_and_time() -> None:
    study, _ = real_study(ready(), 4, 4)
    rows = sum(batch.rows for batch in study.first)
    assert len(study.rows) == rows and {name[0] for name in study.rows} == {"a", "b"}
    assert all(" from 2024-01-" in name for name in study.rows)
    together, _ = real_study(ready(together=True), 4, 4)
    assert [name[0] for name in together.rows[:4]] == ["a", "b", "a", "b"]
    assert together.rows[0][1:] == together.rows[1][1:] != together.rows[2][1:]


# ---- figures


@given(st.lists(st.lists(st.sampled_from(["enc", "block", "0", "1", "self"]), min_size=1, max_size=5), min_size=1))
def test_what_paths_share_is_taken_from_all_of_them(parts: list[list[str]]) -> None:
    paths = [".".join(own) for own in parts]
    shared, left = short(paths)
    assert all(rest for rest in left)
    assert [f"{shared}.{rest}" if shared else rest for rest in left] == paths


def test_numbers_that_lie_close_together_are_told_apart() -> None:
    assert [digits(values) for values in ([0.1, 0.9], [1.0, 1.06], [1.0, 1.004], [], [2.0, 2.0])] == [2, 3, 4, 2, 2]
    measure = {"name": "error", "unit": "head", "values": {"a.b": [1.0, 1.06], "a.c": [1.02]}}
    drawn = heat_map(measure, "m")
    assert "1.06" in drawn and "1.02" in drawn and "not measured" in drawn and "a …" in drawn


def test_a_control_far_beyond_does_not_press_the_curves_flat() -> None:
    own = {"name": "own", "x": [0, 1], "y": [1.0, 1.1], "low": [], "high": [], "control": False}
    far = {"name": "far", "x": [0, 1], "y": [1.0, 90.0], "low": [1.0, 80.0], "high": [1.0, 99.0], "control": True}
    drawn = curves_figure([own, far], ("x", "loss (of what)"), "c")
    texts = [part.partition("<")[0].strip() for part in drawn.split(">")]
    ticks = [float(text) for text in texts if text.replace(".", "").isdigit()]
    assert max(ticks) < 2 and "far from 1 to 90" in drawn and brief("loss (of what)") == "loss"


def test_a_picture_says_what_it_draws_and_bears_gaps() -> None:
    paths = [Trace("context", -3, [1.0, None, 2.0], "context"), Trace("<what>", 0, [3.0], "truth")]
    drawn = picture_figure(Findings("", pictures=[Picture("one & two", paths, "words")]).to_json()["pictures"][0], "p")
    assert "one &amp; two. words" in drawn and "&lt;what&gt; (1 steps)" in drawn and "<script" not in drawn


# ---- the page


def content(**probes: Findings) -> dict[str, Any]:
    facts = {"title": "T", "question": "Q?", "source": "S"}
    found = {name: {**facts, "title": f"title of {name}", **one.to_json()} for name, one in probes.items()}
    return {
        "model": "mini", "family": "chronos2", "data": "x.csv", "horizon": 8, "parameters": 1000, "windows": ["w"],
        "notes": [], "machine": "m", "versions": {"torch": "1"}, "probes": found,
    }  # fmt: skip


def busy(answer: str, measures: int = 5, width: int = 3) -> Findings:
    values = {"a.0": [0.1] * width, "a.1": [0.3] * width}
    made = [Measure(f"measure {place}", "head", values, "high", f"words {place}") for place in range(measures)]
    tables = [Table(f"table {place} of {answer}", ["path", "what", "n"], [["p", "text", 1234]]) for place in range(2)]
    return Findings(answer, made, [Curve("c", [0, 1], [1.0, 2.0])], ("x", "y"), tables, notes=["note"])


def test_answers_come_first_then_what_may_go_and_second_heat_maps_are_folded(tmp_path: Path) -> None:
    may_go = Findings(
        "it may go",
        tables=[Table("the ranked list", ["step", "goes"], [[1, "head"]])],
        facts={"parameters": 1000, "steps": [{"removed": 250}], "within": {"0": 0, "1": 1}},
    )
    path = write_lens_page(tmp_path / "lens.html", content(busy=busy("one"), few=busy("two", 2), what_may_go=may_go))
    page = path.read_text()
    assert "<title>tsprune lens: Lens</title>" in page and '<p class="verdict">it may go</p>' in page
    places = [page.index(f'id="{name}"') for name in ("answers", "what_may_go", "busy", "few")]
    assert places == sorted(places)
    assert "25 %" in page and "of them may go, loss within 1 %" in page
    section = page[page.index('id="busy"') : page.index('id="few"')]
    assert section.index("measure 0") < section.index("<details>") < section.index("measure 1") and "4 more" in section
    few = page[page.index('id="few"') : page.index('id="protocol"')]
    assert few.index("measure 1") < few.index("<details>") < few.index("table 0") and "more heat" not in few
    assert "1,234" in page and page.index("the ranked list") < places[2]


def test_measures_of_many_units_become_quartiles_and_empty_ones_nothing(tmp_path: Path) -> None:
    page = write_lens_page(
        tmp_path / "l.html", content(wide=busy("one", 1, 40), none=Findings("x", [Measure("m", "head", {})]))
    )
    text = page.read_text()
    assert "lower quartile" in text and "over the heads of each block" in text and text.count("<figure>") == 1


@pytest.mark.browser
def test_page_is_silent_fits_and_opens_what_is_folded(tmp_path: Path) -> None:
    look(ready(), tmp_path, probes=("weight_spectra", "heads_shown", "what_may_go"), windows=8, later=8)
    page = tmp_path / "lens.html"
    for browser in started(tmp_path / "profile"):
        for width in (1280, 400):
            opened(browser, page, width)
            assert browser.get_log("browser") == []
            # The browser's own first page may still be loading.
            asked = {url for url in requests(browser) if not url.startswith(("data:", "chrome:"))}
            assert asked == {page.as_uri()}
            browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
            inside, outside = browser.execute_script(
                "const d = document.documentElement; return [d.scrollWidth, d.clientWidth]"
            )
            assert inside <= outside <= width
            sizes = browser.execute_script(
                "return [...document.querySelectorAll('figure svg')].map(s => {const b = s.getBoundingClientRect();"
                "return [b.width, b.height]})"
            )
            # Heat maps of the spectra, pictures, one figure of curves.
            assert len(sizes) == 4 + 4 + 1 and all(wide > 60 and high > 60 for wide, high in sizes)
