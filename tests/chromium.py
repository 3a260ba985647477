"""A real headless Chromium for tests of pages."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


def _absent(reason: str) -> None:
    if os.environ.get("TSPRUNE_REQUIRE_BROWSER") == "1":
        pytest.fail(f"TSPRUNE_REQUIRE_BROWSER=1, but {reason}")
    pytest.skip(reason)


def started(profile: Path) -> Iterator[Any]:
    """Chromium with logs of the console and of the network, its own empty profile, and no driver download."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        _absent("no chromium and chromedriver found; install the Debian packages chromium and chromium-driver")
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.options import Options
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        _absent("selenium is not installed; pip install selenium, apt install chromium chromium-driver")
    options = Options()
    options.binary_location = chromium or ""
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(executable_path=driver))
    yield found
    found.quit()


def opened(browser: Any, page: Path, width: int) -> None:
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # reading empties it
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    browser.get(page.as_uri())


def requests(browser: Any) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
