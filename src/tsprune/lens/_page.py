"""What probes found as one self-contained page: an answer for each question, heat maps, curves, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tsprune.bench.pages.layout import Cell, Line, Table
from tsprune.bench.pages.matrixfigure import matrix_figure
from tsprune.bench.pages.sheet import Block, Bullets, Figure, Pairs, Section, Sheet, Tabled, Text, write_sheet
from tsprune.report.canvas import BAND, BLUE, GREY, INK, ORANGE, bare_figure, plainly, svg

WIDEST = 32
"""Units of a block that a heat map still shows one by one."""
_KIND = {"high": "high values are needed", "low": "low values are needed", "": ""}


def write_lens_page(path: Path, content: Mapping[str, Any]) -> Path:
    """Write the page of a `lens.json`."""
    probes = content["probes"]
    done = {name: found for name, found in probes.items() if "refused" not in found}
    refused = [f"{found['title']}: {found['refused']}." for found in probes.values() if "refused" in found]
    sections = [Section(name, found["title"], _blocks(name, found)) for name, found in done.items()]
    answers = [f"{found['title']}: {found['answer']}" for found in done.values()]
    sections.insert(
        0, Section("answers", "Answers", [Bullets(answers), *([Bullets(refused, note=True)] if refused else [])])
    )
    sections.append(
        Section("protocol", "How", [Bullets(list(content["windows"])), Bullets(list(content["notes"]), note=True)])
    )
    versions = ", ".join(f"{name} {value}" for name, value in content["versions"].items())
    sections.append(Section("machine", "Machine", [Pairs([("machine", content["machine"]), ("versions", versions)])]))
    subtitle = f"{content['model']} ({content['family']}) on {content['data']}, horizon {content['horizon']}"
    headline = next(iter(answers), "No probe applies to this model.")
    return write_sheet(path, Sheet("Lens", subtitle, headline, (), (), sections))


def _blocks(name: str, found: Mapping[str, Any]) -> list[Block]:
    blocks: list[Block] = [Text(found["question"], note=True), Text(found["answer"])]
    for place, measure in enumerate(found["measures"]):
        blocks += _heat_map(f"{name}{place}", measure)
    if found["curves"]:
        drawn = curves_figure(found["curves"], tuple(found["axes"]), f"{name}curves")
        blocks.append(Figure(drawn, "Grey: controls. Bands: intervals.", f"{found['axes'][1]}."))
    for table in found["tables"]:
        lines = tuple(Line((_said(row[0]),), tuple(Cell(_said(value)) for value in row[1:])) for row in table["rows"])
        head = [str(text) for text in table["head"]]
        blocks.append(Tabled(Table(table["title"], (head[0],), ("",), tuple(head[1:]), lines, ())))
    notes = [*found["notes"], f"Source: {found['source']}"]
    return [*blocks, Bullets(notes, note=True)]


def _heat_map(name: str, measure: Mapping[str, Any]) -> list[Block]:
    """Blocks as rows, units as columns; too many units in a row are only summarised."""
    values: Mapping[str, Sequence[float | None]] = measure["values"]
    if not values:
        return [Text(f"{measure['name']}: nothing was measured.", note=True)]
    most = max(len(row) for row in values.values())
    unit = str(measure["unit"]).replace("_", " ")
    said = ". ".join(part for part in (measure["words"], _KIND[measure["needed"]]) if part)
    if most > WIDEST:
        rows = [(path, _quartiles(row)) for path, row in values.items()]
        lines = tuple(Line((path,), tuple(Cell(_said(value)) for value in numbers)) for path, numbers in rows)
        head = ("block",), ("",), ("lowest", "lower quartile", "median", "upper quartile", "highest")
        return [Tabled(Table(f"{measure['name']}, over the {unit}s of each block", *head, lines, ()))]
    padded = [[*row, *[None] * (most - len(row))] for row in values.values()]
    columns = [str(number) for number in range(most)] if most > 1 else [unit]
    middle = 0.0 if any(value is not None and value < 0 for row in padded for value in row) else None
    picture = matrix_figure(
        list(values), columns, padded, measure["name"], name=name, middle=middle, text="{:.2g}".format,
        axis_names=("block", unit),
    )  # fmt: skip
    return [
        Figure(picture, f"{said}. Hatched: no such unit." if said else "Hatched: no such unit.", f"{measure['name']}.")
    ]


def _quartiles(row: Sequence[float | None]) -> list[float | None]:
    import numpy as np

    known = [value for value in row if value is not None]
    return [float(v) for v in np.quantile(known, (0, 0.25, 0.5, 0.75, 1))] if known else [None] * 5


@plainly
def curves_figure(curves: Sequence[Mapping[str, Any]], axes_names: tuple[str, ...], name: str) -> str:
    """Curves over amounts, controls in grey, with their intervals as bands."""
    figure, axes = bare_figure(6.6, 3.4)
    colors = [BLUE, ORANGE, INK, "#6a51a3", "#2f7d4f", "#8c6d1f"]
    said, plain = [], 0
    for curve in curves:
        points = [(x, y) for x, y in zip(curve["x"], curve["y"], strict=True) if y is not None]
        if not points:
            continue
        color = GREY if curve["control"] else colors[plain % len(colors)]
        plain += not curve["control"]
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, color=color, linewidth=1.2 if curve["control"] else 1.8, marker="o", markersize=3)
        if curve["low"] and curve["high"] and None not in (*curve["low"], *curve["high"]):
            axes.fill_between(
                curve["x"], curve["low"], curve["high"], color=BAND if color == BLUE else color, alpha=0.25
            )
        axes.annotate(
            curve["name"], (xs[-1], ys[-1]), xytext=(4, 0), textcoords="offset points", fontsize=8, color=color
        )
        said.append(f"{curve['name']} from {ys[0]:.3g} to {ys[-1]:.3g}")
    axes.set_xlabel(axes_names[0], fontsize=9, color=INK)
    axes.set_ylabel(axes_names[1], fontsize=9, color=INK)
    axes.margins(x=0.2)
    return svg(figure, name, f"{axes_names[1]} over {axes_names[0]}. " + "; ".join(said) + ".")


def _said(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
