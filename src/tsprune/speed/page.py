"""The ladder as one self-contained page: a figure and a table for every batch, number of threads and device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tsprune.bench.pages.layout import Cell, Line, Table
from tsprune.bench.pages.sheet import Block, Bullets, Figure, Pairs, Section, Sheet, Tabled, Text, write_sheet
from tsprune.report.canvas import BLUE, GREY, INK, bare_figure, plainly, svg
from tsprune.report.words import milliseconds
from tsprune.speed.runtimes import REFERENCE
from tsprune.speed.tables import (
    DASH,
    HEAD,
    LOADS,
    STUBS,
    fastest,
    legend,
    line,
    load_lines,
    megabytes,
    sentence,
    sentences,
    short_legend,
    title,
)


def write_latency_page(path: Path, content: Mapping[str, Any]) -> Path:
    """Write the page of a `latency.json`."""
    sections = [
        Section(f"table{place}", title(table).split(" (")[0], _blocks(f"table{place}", table, content))
        for place, table in enumerate(content["tables"])
    ]
    if content["loads"]:
        lines = _lines(load_lines(content))
        note = "From files on disk (in the page cache) to the first forecast of one window, imports left out; median."
        table = Table(
            "Loading in a fresh process, without any base model", LOADS[:STUBS], ("",), LOADS[STUBS:], lines, (note,)
        )
        sections.append(Section("loading", "Loading", [Tabled(table)]))
    sections.append(Section("models", "Models", [Tabled(_models(content))]))
    sections.append(Section("protocol", "How", [Bullets(legend(content)), Bullets(list(content["notes"]), note=True)]))
    versions = ", ".join(f"{name} {value}" for name, value in content["versions"].items())
    sections.append(Section("machine", "Machine", [Pairs([("machine", content["machine"]), ("versions", versions)])]))
    disturbed = "Other programs ran while some of these times were taken; they are not reliable."
    alerts = [disturbed] if content["busy"] else []
    best = fastest(content)
    said = sentences(content)[:1] if best is None else [sentence(content["tables"][0], best, content)]
    names = ", ".join(model["name"] for model in content["models"])
    subtitle = f"{names}; context {content['context']}, horizon {content['horizon']}, random windows"
    sheet = Sheet("Latency", subtitle, said[0] if said else "Nothing to compare.", alerts, _facts(content), sections)
    return write_sheet(path, sheet)


def _facts(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Both ratios of the model that stands for the page, apart from each other."""
    best, dense = fastest(content), content["reference"]
    if best is None:
        return []
    runtime, plain = (content["runtimes"][name]["title"] for name in (best["runtime"], REFERENCE))
    return [
        (f"{best['pruning']:.2f}", f"of the time of {dense} on the same runtime ({runtime}): pruning"),
        (f"{best['together']:.2f}", f"of the time of {dense} on {plain}: pruning and runtime together"),
    ]


def _blocks(name: str, table: Mapping[str, Any], content: Mapping[str, Any]) -> list[Block]:
    rows = [line(row, content) for row in table["rows"]]
    timed = [row for row in rows if not row[-1].startswith("not timed")]
    missing = [f"{row[0]}, {row[1]}: {row[-1]}." for row in rows if row[-1].startswith("not timed")]
    shown = Table(title(table), HEAD[:STUBS], ("",), HEAD[STUBS:], _lines(timed), tuple(short_legend(content)))
    caption = "Milliseconds per forecast, median; the thin line spans the quartiles. Grey is the uncut model."
    blocks: list[Block] = [Figure(bars(name, table, content), caption, "Time per forecast."), Tabled(shown)]
    if table["why"]:
        blocks.append(Text(f"The batch: {table['why']}.", note=True))
    return [*blocks, Bullets(missing, note=True)] if missing else blocks


def _lines(rows: list[list[str]]) -> tuple[Line, ...]:
    """Rows with a rule above each runtime, whose name stands once."""
    found = []
    for place, row in enumerate(rows):
        starts = place == 0 or rows[place - 1][0] != row[0]
        cells = tuple(Cell(text) for text in row[2:])
        found.append(Line((row[0], row[1]), cells, starts=starts))
    return tuple(found)


def _models(content: Mapping[str, Any]) -> Table:
    lines = tuple(
        Line(
            (model["name"],),
            (
                Cell(model["family"]),
                Cell(f"{model['parameters']:,}"),
                Cell(f"{model['flops'] / 1e9:.3g}"),
                Cell(megabytes(model["checkpoint_bytes"])),
            ),
        )
        for model in content["models"]
    )
    measures = ("family", "parameters", "GFLOP per window", "checkpoint MB")
    return Table("Models", ("model",), ("",), measures, lines, ("The first one is what the others are compared with.",))


@plainly
def bars(name: str, table: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    """Horizontal bars, models within runtimes."""
    rows = [row for row in table["rows"] if row["median_ms"] is not None]
    figure, axes = bare_figure(7.2, 0.9 + 0.27 * len(rows) + 0.2 * len(content["runtimes"]))
    places, labels, place, before = [], [], 0.0, ""
    for row in rows:
        place -= 1.0 if row["runtime"] == before or not before else 1.7
        before = row["runtime"]
        places.append(place)
        labels.append(f"{content['runtimes'][row['runtime']]['title']}, {_short(row['model'])}")
    most = max((row["q3_ms"] for row in rows), default=1.0)
    for where, row in zip(places, rows, strict=True):
        color = GREY if row["model"] == content["reference"] else BLUE
        axes.barh(where, row["median_ms"], height=0.72, color=color)
        axes.plot([row["q1_ms"], row["q3_ms"]], [where, where], color=INK, linewidth=1)
        share = DASH if row["pruning"] is None else f"{row['pruning']:.2f} on the same runtime"
        said = milliseconds(row["median_ms"])
        said += "" if row["model"] == content["reference"] else f" ({share})"
        axes.text(row["q3_ms"] + 0.01 * most, where, said, va="center", fontsize=8, color=INK)
    axes.set_yticks(places, labels)
    axes.set_xlim(0, 1.35 * most)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("milliseconds per forecast", fontsize=9, color=INK)
    told = "; ".join(f"{label} {milliseconds(row['median_ms'])} ms" for label, row in zip(labels, rows, strict=True))
    return svg(figure, name, f"Time per forecast. {told}.")


def _short(text: str, most: int = 28) -> str:
    """The end of a long name: folders differ there."""
    return text if len(text) <= most else f"…{text[1 - most :]}"
