"""The page's blocks on what accuracy costs: latency, parameters, training windows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tsprune.bench.pages.layout import measure_name
from tsprune.bench.pages.matrixfigure import matrix_figure
from tsprune.bench.pages.sheet import Block, Bullets, Figure, Text
from tsprune.bench.pages.taskfigures import Point, few_shot_figure, latency_figure, with_front
from tsprune.bench.pages.tasking import Grid, without_gaps
from tsprune.data.words import many
from tsprune.report.words import human, number

Latencies = Sequence[Mapping[str, Any]]


def latency_blocks(grid: Grid, latencies: Latencies) -> list[Block]:
    """Per model, error ratios against latency; geometric means over the tasks that all candidates share."""
    if not latencies:
        return [Text("No figure: no latency was measured.")]
    blocks: list[Block] = []
    for place, model in enumerate(grid.models or [None]):
        points, tasks, notes = latency_points(grid, latencies, model)
        if not points:
            blocks.append(Text(f"No figure{_of(model)}: no task has latencies and errors of two candidates."))
            continue
        caption = (
            f"{measure_name(grid.summary['measure'])} over that of {human(grid.summary['reference'])} (square) against "
            f"the median latency of one forecast, with its quartiles, on the machine named below; geometric means over "
            f"{many(tasks, 'task')}. Filled and joined: nothing else is both faster and more accurate. An arrow lies "
            "above the scale."
        )
        reference = str(grid.summary["reference"])
        blocks.append(Figure(latency_figure(points, reference, f"latency{place}"), caption, str(model or "")))
        blocks += [Bullets(notes, note=True)] if notes else []
    if any(one.get("busy") for one in latencies):
        blocks.append(Text("Other programs were running while these were timed: the latencies are not reliable."))
    batches = sorted({one["batch"] for one in latencies if one.get("batch") is not None})
    if batches:
        blocks.append(Text(f"Series per forecast: {', '.join(map(str, batches))}.", note=True))
    return blocks


def latency_points(grid: Grid, latencies: Latencies, model: str | None) -> tuple[list[Point], int, tuple[str, ...]]:
    """Points of one model's figure, over how many tasks, and what was left out."""
    timed = {
        (one["data"], one["horizon"], one["candidate"]): one for one in latencies if one.get("model") in (model, None)
    }
    measure, methods = grid.summary["measure"], grid.candidates(model)
    table = np.full((len(grid.tasks), len(methods)), np.nan)
    for row, task in enumerate(grid.tasks):
        for column, name in enumerate(methods):
            time = number(timed.get((*task, name), {}).get("latency_ms"))
            if time > 0 and grid.ratio(model, task, name, measure) is not None:
                table[row, column] = time
    labels = [f"{data} {horizon}" for data, horizon in grid.tasks]
    matrix = without_gaps(labels, methods, table)
    if len(matrix.methods) < 2 or not matrix.tasks:
        return [], 0, ()
    tasks = [task for task, label in zip(grid.tasks, labels, strict=True) if label in matrix.tasks]
    points = []
    for name in matrix.methods:
        entries = [timed[(*task, name)] for task in tasks]
        times = [float(one["latency_ms"]) for one in entries]
        spreads = [one.get("spread_ms") or [time, time] for one, time in zip(entries, times, strict=True)]
        first, third = (_geometric([number(spread[end]) for spread in spreads]) for end in (0, 1))
        time = _geometric(times)
        ratio = _geometric([grid.ratio(model, task, name, measure) for task in tasks])
        ends = (time, time) if math.isnan(first + third) else (min(first, time), max(third, time))
        points.append(Point(name, time, *ends, ratio, False))
    return with_front(points), len(tasks), matrix.notes


def parameter_blocks(grid: Grid) -> list[Block]:
    """Per model, the percentage of the unpruned model's parameters that each candidate has, by data set."""
    blocks: list[Block] = []
    data = list(dict.fromkeys(name for name, _ in grid.tasks))
    for place, model in enumerate(grid.models):
        candidates = grid.candidates(model, rivals=False)
        values = [[_kept(grid, model, name, one) for one in data] for name in candidates]
        if all(value is None for line in values for value in line):
            blocks.append(Text(f"No figure{_of(model)}: parameters were not counted."))
            continue
        labels = [human(name) for name in candidates]
        picture = matrix_figure(
            labels, data, values, f"Percent of parameters kept{_of(model)}",
            name=f"kept{place}", text=lambda share: f"{share:.0f} %",
        )  # fmt: skip
        caption = "Percent of the unpruned model's parameters, means over horizons and seeds. Hatched: not measured."
        blocks.append(Figure(picture, caption, f"{model}."))
    return blocks or [Text("No figure: no row belongs to a model.")]


def few_shot_blocks(grid: Grid) -> list[Block]:
    """Per model, error against the share of training windows, relative to the reference with all of them."""
    blocks: list[Block] = []
    for place, model in enumerate(grid.models):
        curves, tasks, notes = few_shot_curves(grid, model)
        if not curves:
            blocks.append(Text(f"No figure{_of(model)}: no task has errors at several shares and the reference's."))
            continue
        caption = (
            f"{measure_name(grid.summary['measure'])} over that of {human(grid.summary['reference'])} with all the "
            f"training windows; geometric means over {many(tasks, 'task')}. Dashed: measured at one share only."
        )
        blocks.append(Figure(few_shot_figure(curves, f"shots{place}"), caption, f"{model}."))
        blocks += [Bullets(notes, note=True)] if notes else []
    return blocks or [Text("No figure: no row belongs to a model.")]


def few_shot_curves(
    grid: Grid, model: str
) -> tuple[dict[str, list[tuple[float, float]]], int, tuple[str, ...]]:  # fmt: skip
    """Candidate -> share and ratio, smallest share first; over how many tasks; and what was left out."""
    measure, shares = grid.summary["measure"], sorted(grid.shares)
    places = [(name, share) for name in grid.candidates(model) for share in shares]
    # What was never measured at a share is no gap.
    places = [
        (name, share)
        for name, share in places
        if any(grid.value(model, task, name, measure, share) is not None for task in grid.tasks)
    ]
    keys = [f"{name} at {100 * share:g} %" for name, share in places]
    table = np.array(
        [[_or_nan(grid.ratio(model, task, name, measure, share)) for name, share in places] for task in grid.tasks],
        np.float64,
    ).reshape(len(grid.tasks), len(places))
    labels = [f"{data} {horizon}" for data, horizon in grid.tasks]
    matrix = without_gaps(labels, keys, table)
    curves: dict[str, list[tuple[float, float]]] = {}
    for (name, share), key in zip(places, keys, strict=True):
        if matrix.tasks and key in matrix.methods:
            ratios = matrix.errors[:, matrix.methods.index(key)]
            curves.setdefault(name, []).append((share, _geometric(ratios.tolist())))
    if not any(len(points) > 1 for points in curves.values()):
        return {}, 0, ()
    return curves, len(matrix.tasks), matrix.notes


def _kept(grid: Grid, model: str, candidate: str, data: str) -> float | None:
    shares = []
    for task in grid.tasks:
        if task[0] == data:
            whole = [grid.parameters(model, task, base) for base in ("zero_shot", str(grid.summary["reference"]))]
            known = [size for size in whole if size > 0]
            share = 100 * grid.parameters(model, task, candidate) / known[0] if known else math.nan
            shares += [] if math.isnan(share) else [share]
    return math.fsum(shares) / len(shares) if shares else None


def _geometric(values: Sequence[float | None]) -> float:
    logs = [math.log(value) if value and value > 0 else math.nan for value in values]
    return math.exp(math.fsum(logs) / len(logs)) if logs and not any(map(math.isnan, logs)) else math.nan


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _of(model: str | None) -> str:
    return f" of {model}" if model else ""
