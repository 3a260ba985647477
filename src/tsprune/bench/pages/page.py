"""The page of a grid: what may be said, tables, ranks, single tasks, and accuracy against cost."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from tsprune.bench import SPECIALIST
from tsprune.bench.pages import costblocks, rankblocks
from tsprune.bench.pages.ends import machine_blocks, missing_alerts
from tsprune.bench.pages.layout import Cell, Line, Table, measure_name, overall_table, share_tables
from tsprune.bench.pages.sheet import Block, Figure, Figures, Fold, Section, Sheet, Tabled, Text, html_of, write_sheet
from tsprune.bench.pages.taskfigures import Ratio, forest_figure, shared_limits
from tsprune.bench.pages.tasking import Grid, Row
from tsprune.data.words import many
from tsprune.report.words import human, number, percent

_SAID = ("better", "undecided", "worse")


def write_page(
    path: str | PathLike[str],
    rows: Sequence[Row],
    latencies: Sequence[Mapping[str, Any]],
    comparisons: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
) -> Path:
    """Write the results of a grid as one self-contained HTML file: no network, no scripts, figures as inline SVG.

    The file appears whole or not at all, and the same input gives the same bytes. What is missing is said at the top,
    and a figure without data is replaced by the reason.

    Args:
        path: where to write; missing folders are made, an existing file is replaced.
        rows: one per model, data set, horizon, share of the training windows, candidate and seed.
        latencies: one per model, data set, horizon and candidate; may be empty.
        comparisons: one per model, data set, horizon and share, with what `comparing.compare` says.
        summary: names, measures, reference, protocols, machine, versions, and what `comparing.overall` says.

    Returns:
        The path written.

    Raises:
        TspruneError: two rows for the same cell and seed, negative errors, or a path that cannot be written.
    """
    return write_sheet(path, sheet(rows, latencies, comparisons, summary))


def render(
    rows: Sequence[Row],
    latencies: Sequence[Mapping[str, Any]],
    comparisons: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
) -> str:
    """The HTML text of the page; arguments and errors as in `write_page`."""
    return html_of(sheet(rows, latencies, comparisons, summary))


def sheet(
    rows: Sequence[Row],
    latencies: Sequence[Mapping[str, Any]],
    comparisons: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
) -> Sheet:
    """The page as blocks; arguments and errors as in `write_page`."""
    grid = Grid(rows, summary)
    share = grid.shares[0] if grid.shares else 1.0
    compared = [one for one in comparisons if one.get("share", share) == share]
    sections = [
        Section("said", "What may be said", _verdicts(grid, compared)),
        Section("tables", "Errors", _tables(grid)),
        Section("ranks", "Ranks and win rates", rankblocks.rank_blocks(grid)),
        Section("differences", "Which differences are more than chance", rankblocks.difference_blocks(grid)),
        Section("tasks", "Task by task", _forest(grid, compared)),
        Section("latency", "Accuracy against latency", costblocks.latency_blocks(grid, latencies)),
        Section("parameters", "Parameters kept", costblocks.parameter_blocks(grid)),
    ]
    if len(grid.shares) > 1:
        sections.append(Section("few-shot", "With fewer training windows", costblocks.few_shot_blocks(grid)))
    sections += [
        Section("protocol", "Protocol", [Text(str(text)) for text in summary.get("protocols") or ["Not recorded."]]),
        Section("machine", "Machine, versions and settings", machine_blocks(summary)),
    ]
    return Sheet(
        title=str(summary.get("name") or "Grid"),
        subtitle=_subtitle(grid),
        headline=headline(grid, compared),
        alerts=_alerts(summary, latencies),
        facts=_facts(grid),
        sections=sections,
    )


def headline(grid: Grid, compared: Sequence[Mapping[str, Any]]) -> str:
    """What may be said over all tasks, and on how many of them the leading candidate is better by its own test."""
    scope = _scope(grid)
    if scope is None or not scope.get("sentence"):
        return "Nothing can be said over all tasks yet: no task has been finished by every candidate."
    said = [_named(str(scope["sentence"]), grid)]
    leader = _leader(grid, scope)
    if leader is None:
        return said[0]
    verdicts = _counts(compared).get(leader)
    if verdicts:
        total = sum(verdicts.values())
        said.append(
            f"Tested task by task, it is better on {verdicts['better']} of {total}, worse on {verdicts['worse']} and "
            f"undecided on {verdicts['undecided']}."
        )
    else:
        said.append("Its tasks were not tested one by one.")
    return " ".join(said)


def _scope(grid: Grid) -> Mapping[str, Any] | None:
    """The summary over all models; over the only one, where there is no other."""
    by_scope = (grid.summary.get("overall") or {}).get(grid.summary["measure"]) or {}
    names = ["all", *(grid.models if len(grid.models) == 1 else [])]
    return next((by_scope[name] for name in names if by_scope.get(name)), None)


def _leader(grid: Grid, scope: Mapping[str, Any]) -> str | None:
    """The one that the sentence is about: the lowest ratio but for the reference."""
    names = [str(one["name"]) for one in scope.get("models") or []]
    return next((name for name in names if name != grid.summary["reference"]), None)


def _named(sentence: str, grid: Grid) -> str:
    """Candidates' names in a sentence as people say them, in quotes where they would run into the sentence."""
    names = sorted(grid.candidates(), key=len, reverse=True)
    if not names:
        return sentence
    pattern = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, names))})(?![\w-])")
    return pattern.sub(lambda found: f"“{human(found[1])}”", sentence)


def _facts(grid: Grid) -> list[tuple[str, str]]:
    """Ratios of the best and of what validation chose, against the reference."""
    scope = _scope(grid)
    if scope is None:
        return []
    leader = _leader(grid, scope)
    by_name = {str(one["name"]): one for one in scope.get("models") or []}
    against = f"{measure_name(grid.summary['measure'])} against {human(grid.summary['reference'])}"
    found = []
    for name in dict.fromkeys((leader, SPECIALIST, "zero_shot")):
        if name in by_name and name != grid.summary["reference"]:
            ratio, low, high = (number(by_name[name].get(key)) for key in ("ratio", "low", "high"))
            ends = "no interval" if math.isnan(low + high) else f"interval {_moved(low)} to {_moved(high)}"
            found.append((_moved(ratio), f"{against}: {human(name)} ({ends})"))
    return found


def _moved(ratio: float) -> str:
    return f"{'−' if ratio < 1 else '+'}{percent(100 * (ratio - 1))}".replace(" ", "\u00a0")


def _alerts(summary: Mapping[str, Any], latencies: Sequence[Mapping[str, Any]]) -> list[str]:
    found = missing_alerts(summary)
    if any(one.get("busy") for one in latencies):
        found.append("Latencies were measured while other programs were running; they are not reliable.")
    return found


def _subtitle(grid: Grid) -> str:
    summary = grid.summary
    seeds = summary.get("seeds") or []
    parts = [
        many(len(grid.models), "model"),
        many(len({data for data, _ in grid.tasks}), "data set"),
        many(len({horizon for _, horizon in grid.tasks}), "horizon"),
        many(len(grid.candidates()), "candidate"),
        many(len(seeds), "seed"),
    ]
    return f"{' · '.join(parts)} · measured by {', '.join(measure_name(name) for name in summary['measures'])}"


def _counts(compared: Sequence[Mapping[str, Any]]) -> dict[str, Counter[str]]:
    """How often each candidate is better, undecided and worse; those that are the reference are left out."""
    found: dict[str, Counter[str]] = {}
    for one in compared:
        for entry in one["compared"]["ranking"]:
            if entry["verdict"] in _SAID:
                found.setdefault(str(entry["name"]), Counter())[str(entry["verdict"])] += 1
    return found


def _verdicts(grid: Grid, compared: Sequence[Mapping[str, Any]]) -> list[Block]:
    reference = human(grid.summary["reference"])
    said = "The candidate with the lowest error was found by looking at the test errors, so its lead is flattered"
    if SPECIALIST in grid.candidates():
        said += f"; “{human(SPECIALIST)}” is what a run would have handed back without looking"
    blocks: list[Block] = [Text(f"{said}.")]
    found = _counts(compared)
    if not found:
        return [*blocks, Text("No table of verdicts: no task was tested by itself.")]
    lines = []
    for name in (one for one in grid.candidates() if one in found):
        total = sum(found[name].values())
        cells = [Cell(f"{found[name][said]}", f" ({found[name][said] / total:.0%})") for said in _SAID]
        lines.append(Line((human(name),), (*cells, Cell(str(total)))))
    measure = measure_name(compared[0]["compared"]["measure"])
    note = (
        "“Better” and “worse” need both a bootstrap interval of the ratio of errors that excludes 1 and a "
        "Diebold-Mariano test that agrees; all else is undecided, which does not mean equal."
    )
    title = f"Tasks on which a candidate's {measure} is better than, worse than or not told from that of {reference}"
    return [*blocks, Tabled(Table(title, ("candidate",), ("",), (*_SAID, "tasks"), tuple(lines), (note,)))]


def _tables(grid: Grid) -> list[Block]:
    if not grid.rows:
        return [Text("No table: nothing has been measured yet.")]
    over = overall_table(grid)
    blocks: list[Block] = [Tabled(over)] if over is not None else []
    blocks += [Tabled(table) for table in share_tables(grid, grid.shares[0])]
    return blocks + [
        Fold(f"Tables with {100 * share:g} % of the training windows", list(map(Tabled, share_tables(grid, share))))
        for share in grid.shares[1:]
    ]


def _forest(grid: Grid, compared: Sequence[Mapping[str, Any]]) -> list[Block]:
    reference = str(grid.summary["reference"])
    found: dict[str, list[Ratio]] = {}
    for one in compared:
        task = f"{one['data']} {one['horizon']}"
        label = f"{one['model']}, {task}" if len(grid.models) > 1 else task
        for entry in one["compared"]["ranking"]:
            ratio = entry["ratio"]
            estimate, low, high = (number(ratio.get(end)) for end in ("estimate", "low", "high"))
            if entry["name"] != reference and not math.isnan(estimate):
                one_ratio = Ratio(label, estimate, low, high, str(entry["verdict"]))
                found.setdefault(str(entry["name"]), []).append(one_ratio)
    if not found:
        return [Text("No figure: no task was tested by itself.")]
    own = {row["candidate"] for row in grid.rows if row.get("model") is not None}
    limits = shared_limits([one for name, ratios in found.items() if name in own or not own for one in ratios])
    figures = []
    for place, name in enumerate(one for one in grid.candidates() if one in found):
        counted = Counter(one.verdict for one in found[name])
        caption = ", ".join(f"{said} on {counted[said]}" for said in _SAID)
        figures.append(Figure(forest_figure(found[name], limits, f"forest{place}"), caption, human(name)))
    level = compared[0]["compared"].get("level", 0.95)
    return [
        Text(
            f"Ratio of each candidate's error to that of {human(reference)}, with its {level:.0%} interval. Blue "
            "circles are better, orange diamonds worse, grey rings undecided. All share one scale; an arrow with a "
            "number lies beyond it."
        ),
        Figures(figures),
    ]
