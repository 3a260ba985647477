"""Tiny models, small files and ways to call the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import tiny
import tsprune
from tsprune.cli import main

SMALL: dict[str, Any] = {
    "horizon": 8,
    "rounds": 2,
    "steps": 4,
    "search_steps": 2,
    "evaluations": 2,
    "batch": 8,
    "validation_windows": 16,
    "prune_windows": 16,
    "adapt_steps": 2,
}
FAST = [text for name, value in SMALL.items() for text in ("--" + name.replace("_", "-"), str(value))]
TIMINGS = {"latency_ms", "latency_spread_ms", "timings", "machine", "latency_busy"}


def wide(rows: int = 2, length: int = 240, seed: int = 0) -> pd.DataFrame:
    """Hourly series `a`, `b`, ... beside a column `date`."""
    values = tiny.waves(rows, length, seed).numpy()
    stamps = pd.date_range("2024-01-01", periods=length, freq="h")
    return pd.DataFrame({"date": stamps} | {chr(97 + row): values[row] for row in range(rows)})


def fill(folder: Path) -> Path:
    """A folder with `chronos2/`, `chronos_bolt/` and `wide.csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    for family in tiny.FAMILIES:
        tsprune.save(tiny.tiny_model(family), folder / family)
    wide().to_csv(folder / "wide.csv", index=False)
    return folder


def start(arguments: list[str], folder: Path, **more: Any) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
    return subprocess.Popen(
        [sys.executable, "-m", "tsprune", *arguments], cwd=folder, env=environment, text=True, **streams
    )


def finished(arguments: list[str], folder: Path) -> tuple[int, str, str]:
    """Exit code and both streams of a process that ran to its end."""
    process = start(arguments, folder)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def called(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """The same in this process, which saves the imports."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


@contextmanager
def no_figures() -> Iterator[None]:
    """Runs within write an empty report: drawing takes most of a tiny run's time and has its own tests."""

    def stub(path: Path, *arguments: Any) -> None:
        path.write_text("stub", encoding="utf-8")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tsprune.report.write_report", stub)
        yield


def listing(folder: Path) -> dict[str, int]:
    """Every path below a folder with its size, directories as -1."""
    return {str(p.relative_to(folder)): p.stat().st_size if p.is_file() else -1 for p in sorted(folder.rglob("*"))}


def without_timings(results: Any) -> Any:
    """Results without what a clock decides: timings, latencies, what the verdict says of them, the machine's load."""
    if isinstance(results, dict):
        return {k: without_timings(v) for k, v in results.items() if k not in TIMINGS | {"verdict"}}
    return [without_timings(value) for value in results] if isinstance(results, list) else results
