"""What the tests of reading share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from tsprune.data.panel import Panel

Write = Callable[..., Path]
"""Writes text or bytes to a file of the test, and returns its path."""


def lines(dates: Any, header: str = "date,a") -> str:
    return "\n".join([header, *(f"{date},{number}" for number, date in enumerate(dates))]) + "\n"


def by_id(panel: Panel) -> dict[str, list[float]]:
    return {series.id: series.values.tolist() for series in panel.series}


def noted(panel: Panel, *words: str) -> bool:
    return any(all(word in line for word in words) for line in panel.repairs)


def daily(**columns: Any) -> pd.DataFrame:
    length = len(next(iter(columns.values())))
    return pd.DataFrame({"ds": pd.date_range("2020", periods=length), **columns})
