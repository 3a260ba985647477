"""The report in a real headless Chromium: it shows everything, asks for nothing and fits the screen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import report_fixture as fixture
from chromium import opened, requests, started
from tsprune.report import ForecastExample, write_report

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from started(tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full report with one hostile series id that is also very long."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    first, *rest = fixture.forecasts(4)
    odd = ForecastExample(
        "<script>document.title='owned'</script>" + "x" * 200,
        first.window,
        first.history,
        first.truth,
        first.quantiles,
        first.other,
    )
    results = fixture.results()
    results["protocol"]["repairs"].append("series " + "y" * 300 + ": 1 missing timestamp")
    return write_report(path, results, fixture.plan(), [odd, *rest], fixture.units())


def test_when_report_opens_then_console_is_silent_and_only_the_file_is_read(browser: Any, report: Path) -> None:
    opened(browser, report, 1280)
    assert browser.get_log("browser") == []
    asked = requests(browser)
    assert report.as_uri() in asked
    assert [url for url in asked if url != report.as_uri() and not url.startswith("data:")] == []
    assert browser.title == "tsprune report: load_hourly.csv"


def test_when_page_reaches_outwards_then_the_watch_on_requests_sees_it(
    browser: Any, report: Path, tmp_path: Path
) -> None:
    """Guards the test above: without it a blind log would pass."""
    leaky = tmp_path / "leaky.html"
    leaky.write_text('<img src="missing.png"><script>console.error("x")</script>', encoding="utf-8")
    opened(browser, leaky, 1280)
    assert any(url.endswith("missing.png") for url in requests(browser))
    assert browser.get_log("browser")


@pytest.mark.parametrize("width", [1280, 400])
def test_when_report_is_shown_then_tables_have_rows_and_figures_have_size(
    browser: Any, report: Path, width: int
) -> None:
    opened(browser, report, width)
    rows = browser.execute_script(
        "return [...document.querySelectorAll('table')].map(t => t.querySelectorAll('tbody tr').length)"
    )
    assert len(rows) == 11
    assert min(rows) >= 3
    figures = browser.execute_script(
        "return [...document.querySelectorAll('figure svg')].map(s => {const b = s.getBoundingClientRect();"
        "return [b.width, b.height, s.querySelectorAll('path').length, getComputedStyle(s).visibility]})"
    )
    assert len(figures) == 4 + 4
    for wide, high, paths, visibility in figures:
        assert wide > 250 and high > 120
        assert paths > 10
        assert visibility == "visible"


@pytest.mark.parametrize("width", [1280, 400])
def test_when_screen_is_wide_or_narrow_then_page_does_not_overflow(browser: Any, report: Path, width: int) -> None:
    opened(browser, report, width)
    inside, outside = browser.execute_script(
        "const d = document.documentElement; return [d.scrollWidth, d.clientWidth]"
    )
    assert inside <= outside <= width
    if width == 1280:  # nothing to scroll sideways on a desktop either
        clipped = browser.execute_script(
            "return [...document.querySelectorAll('.wide')].filter(e => e.scrollWidth > e.clientWidth).length"
        )
        assert clipped == 0


def test_when_report_is_laid_out_for_paper_then_nothing_is_cut_off(browser: Any, report: Path) -> None:
    """The print layout at the width of A4 between its margins; making the PDF itself is the browser's business."""
    opened(browser, report, 688)
    shown = "return getComputedStyle(document.querySelector('nav')).display"
    assert browser.execute_script(shown) != "none"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert browser.execute_script(shown) == "none"
        tall, inside, outside = browser.execute_script(
            "const d = document.documentElement; return [d.scrollHeight, d.scrollWidth, d.clientWidth]"
        )
        assert tall > 2 * 970  # more than two pages of A4
        assert inside <= outside
        clipped = browser.execute_script(
            "return [...document.querySelectorAll('.wide')].filter(e => getComputedStyle(e).overflowX !== 'visible')"
            ".length"
        )
        assert clipped == 0
        sizes = browser.execute_script(
            "return [...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().height)"
        )
        assert len(sizes) == 4 + 4
        assert min(sizes) > 120
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
