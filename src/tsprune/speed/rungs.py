"""One setting of the ladder: every model on every runtime, compared first, then timed in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tsprune.errors import TspruneError
from tsprune.evaluation.cost import Latency, taking_turns, threads_set
from tsprune.speed.runtimes import REFERENCE
from tsprune.speed.runtimes._runtime import Forecast, Runtime
from tsprune.speed.subject import Subject

TOLERANCE = 1e-4
"""Largest difference from plain torch, in standard deviations of the forecast, of a runtime that must reproduce it."""
REST = 0.005
"""Seconds of rest between turns where there are several threads, so that none of the turn before still spins."""


@dataclass(frozen=True)
class Setting:
    """What all rows of a table have in common.

    Args:
        device: where forecasts run.
        windows: rows of the batch.
        threads: of torch and of the runtimes.
        why: how the batch was found; empty where it was asked for.
    """

    device: str
    windows: int
    threads: int
    why: str = ""


@dataclass(frozen=True)
class Opened:
    """A model on a runtime, ready to be timed, or why it is not.

    Attributes:
        model: name.
        runtime: name.
        forecast: the callable; None where there is none.
        largest: largest difference from plain torch, in standard deviations of its forecast; None: not compared.
        mean: mean absolute difference, in the same unit.
        error: why it is not timed.
    """

    model: str
    runtime: str
    forecast: Forecast | None = None
    largest: float | None = None
    mean: float | None = None
    error: str = ""


def rows_of(
    subjects: Sequence[Subject],
    runtimes: Mapping[str, Runtime],
    refused: Mapping[tuple[str, str], str],
    setting: Setting,
    repeats: int,
    *,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> list[dict[str, Any]]:
    """The rows of one table, models within runtimes.

    Args:
        subjects: the models, on the setting's device; the first is the one that the others are compared with.
        runtimes: by name, the reference among them.
        refused: why a model does not run on a runtime, by names of both.
        setting: see `Setting`.
        repeats: timed forecasts of each.
        clock: nanoseconds.
    """
    with threads_set(setting.threads):
        opened = _opened(subjects, runtimes, refused, setting)
        batches = {subject.name: subject.batch(setting.windows) for subject in subjects}
        runs = {
            (one.model, one.runtime): partial(one.forecast, batches[one.model])
            for one in opened
            if one.forecast is not None
        }
        pause = REST if setting.threads > 1 else 0.0
        times = taking_turns(runs, repeats, pause=pause, clock=clock)
    known = {subject.name: subject for subject in subjects}
    rows = [_row(one, known[one.model], runtimes[one.runtime], times, setting) for one in opened]
    return with_ratios(rows, subjects[0].name)


def with_ratios(rows: list[dict[str, Any]], dense: str) -> list[dict[str, Any]]:
    """Add `pruning`, time over that of the dense model on the same runtime, and `together`, over that on plain torch.

    The same of processor time, which neighbours disturb less, as `pruning_cpu` and `together_cpu`.

    Args:
        rows: each with model, runtime, median_ms and cpu_ms, which are None where it was not timed.
        dense: name of the model that the others are compared with.
    """
    base = {row["runtime"]: row for row in rows if row["model"] == dense}

    def ratio(row: Mapping[str, Any], runtime: str, clock: str) -> float | None:
        of = base[runtime][clock] if runtime in base else None
        return None if row[clock] is None or not of else float(row[clock] / of)

    return [
        row
        | {
            "pruning": ratio(row, row["runtime"], "median_ms"),
            "together": ratio(row, REFERENCE, "median_ms"),
            "pruning_cpu": ratio(row, row["runtime"], "cpu_ms"),
            "together_cpu": ratio(row, REFERENCE, "cpu_ms"),
        }
        for row in rows
    ]


def difference(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """Largest and mean absolute difference, in standard deviations of what was expected.

    Raises:
        TspruneError: another shape, or values that are not finite where they should be.
    """
    if found.shape != expected.shape:
        raise TspruneError(f"its forecasts are {list(found.shape)}, expected {list(expected.shape)}")
    apart = (found.detach().cpu().double() - expected.detach().cpu().double()).abs()
    if not bool(torch.isfinite(apart).all()):
        raise TspruneError("some of its forecasts are not finite")
    spread = float(expected.double().std()) if expected.numel() > 1 else 1.0
    unit = spread if spread > 0 else 1.0
    return float(apart.max()) / unit, float(apart.mean()) / unit


def _opened(
    subjects: Sequence[Subject],
    runtimes: Mapping[str, Runtime],
    refused: Mapping[tuple[str, str], str],
    setting: Setting,
) -> list[Opened]:
    """Every model on every runtime, compared with plain torch on the batch that will be timed."""
    expected = {
        subject.name: runtimes[REFERENCE].open(subject, setting.threads)(subject.batch(setting.windows)).clone()
        for subject in subjects
    }
    found = []
    for name, runtime in runtimes.items():
        for subject in subjects:
            if why := refused.get((subject.name, name)):
                found.append(Opened(subject.name, name, error=why))
                continue
            found.append(_open(name, runtime, subject, setting, expected[subject.name]))
    return found


def _open(name: str, runtime: Runtime, subject: Subject, setting: Setting, expected: Tensor) -> Opened:
    try:
        forecast = runtime.open(subject, setting.threads)
        largest, mean = difference(forecast(subject.batch(setting.windows)), expected)
    except Exception as error:
        # Compilers and runtimes fail in ways of their own; the others are still worth their rows.
        return Opened(subject.name, name, error=said(error))
    if runtime.exact and largest > TOLERANCE:
        return Opened(
            subject.name,
            name,
            largest=largest,
            mean=mean,
            error=f"its forecasts differ from {REFERENCE} by up to {largest:.1e} of their standard deviation, at most "
            f"{TOLERANCE:.0e} is rounding; its time would be that of another computation",
        )
    return Opened(subject.name, name, forecast, largest, mean)


def said(error: Exception) -> str:
    """An error as one line; those that are not ours with their kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else "no reason given"
    return first if isinstance(error, TspruneError) else f"{type(error).__name__}: {first}"


def _row(
    one: Opened,
    subject: Subject,
    runtime: Runtime,
    times: Mapping[tuple[str, str], Latency],
    setting: Setting,
) -> dict[str, Any]:
    timed = times.get((one.model, one.runtime))
    empty = dict.fromkeys(("median_ms", "q1_ms", "q3_ms", "minimum_ms", "cpu_ms", "busy"))
    return {
        "model": one.model,
        "runtime": one.runtime,
        **(empty if timed is None else asdict(timed)),
        "windows_per_s": None if timed is None else setting.windows / timed.median_ms * 1e3,
        "flops": subject.flops * setting.windows,
        "bytes_on_disk": None if timed is None else runtime.bytes_on_disk(subject),
        "peak_mib": None,
        "difference": None if one.largest is None else {"largest": one.largest, "mean": one.mean},
        "error": one.error,
    }
