"""What probes found as one self-contained page: answers first, then what may go, then probe by probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tsprune.bench.pages.layout import Cell, Line, Table
from tsprune.bench.pages.sheet import (
    Block,
    Bullets,
    Figure,
    Figures,
    Fold,
    Pairs,
    Section,
    Sheet,
    Tabled,
    Text,
    write_sheet,
)
from tsprune.data.words import many
from tsprune.lens._figures import curves_figure, heat_map, picture_figure

FIRST = ("what_may_go", "heads_at", "heads_shown")
"""Probes that come first on the page; the others follow in the order in which they ran."""
WIDEST = 32
"""Units of a block that a heat map still shows one by one."""
SHOWN = 3
"""Heat maps of a probe up to which all are shown; of more, the first of each kind of unit, the others on demand."""
_KIND = {"high": "high values are needed", "low": "low values are needed", "": ""}


def write_lens_page(path: Path, content: Mapping[str, Any]) -> Path:
    """Write the page of a `lens.json`."""
    probes = content["probes"]
    order = [*(name for name in FIRST if name in probes), *(name for name in probes if name not in FIRST)]
    done = {name: probes[name] for name in order if "refused" not in probes[name]}
    refused = [f"{probes[name]['title']}: {probes[name]['refused']}." for name in order if name not in done]
    answers: list[Block] = [Pairs([(found["title"], found["answer"]) for found in done.values()])] if done else []
    if refused:
        answers += [Text("Does not apply to this model:", note=True), Bullets(refused, note=True)]
    versions = ", ".join(f"{name} {value}" for name, value in content["versions"].items())
    sections = [
        Section("answers", "Answers", answers),
        *(Section(name, found["title"], _blocks(name, found)) for name, found in done.items()),
        Section("protocol", "How", [Bullets([*content["windows"], *content["notes"]])]),
        Section("machine", "Machine", [Pairs([("machine", content["machine"]), ("versions", versions)])]),
    ]
    subtitle = f"{content['model']} ({content['family']}) on {content['data']}, horizon {content['horizon']}"
    headline = next((found["answer"] for found in done.values()), "No probe applies to this model.")
    facts = _key_figures(content["parameters"], done)
    return write_sheet(path, Sheet("Lens", subtitle, headline, (), facts, sections, command="lens"))


def _key_figures(parameters: int, done: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Numbers that stand above everything, of the probes that ran."""
    found = [(f"{parameters / 1e6:.2f} M", "parameters of the model")]
    if facts := done.get("what_may_go", {}).get("facts"):
        for percent, count in facts["within"].items():
            removed = facts["steps"][count - 1]["removed"] if count else 0
            found.append((f"{100 * removed / parameters:.0f} %", f"of them may go, loss within {percent} %"))
    if facts := done.get("heads_at", {}).get("facts"):
        heads = sum(len(order) for orders in facts["orders"].values() for order in list(orders.values())[:1])
        for percent, one in facts["removable"].items():
            found.append((f"{len(one['together'])} of {heads}", f"heads may go together, loss within {percent} %"))
    return found


def _blocks(name: str, found: Mapping[str, Any]) -> list[Block]:
    blocks: list[Block] = [Text(found["question"], note=True), Text(found["answer"])]
    if found["curves"]:
        drawn = curves_figure(found["curves"], tuple(found["axes"]), f"{name}curves")
        caption = "Grey: controls, cut off where they go far beyond. Bands: intervals, or the range of controls."
        blocks.append(Figure(drawn, caption, f"{found['axes'][1]}."))
    tables = [_tabled(table) for table in found["tables"]]
    blocks += tables[:1] if name in FIRST else []
    blocks += _pictures(name, found.get("pictures", ()))
    blocks += _measures(name, found["measures"])
    rest: list[Block] = [*tables[1:]] if name in FIRST else [*tables]
    if rest:
        titles = "; ".join(str(table["title"]) for table in found["tables"][-len(rest) :])
        blocks.append(Fold(f"{many(len(rest), 'table', 'tables')}: {titles}", rest))
    words = [f"{one['name']}: {one['words']}" for one in found["measures"] if one["words"]]
    return [*blocks, Bullets([*found["notes"], f"Source: {found['source']}"], note=True), *_explained(words)]


def _explained(words: Sequence[str]) -> list[Block]:
    return [Fold("What the numbers of the heat maps are", [Bullets(words, note=True)])] if words else []


def _pictures(name: str, pictures: Sequence[Mapping[str, Any]]) -> list[Block]:
    if not pictures:
        return []
    drawn = [
        Figure(picture_figure(one, f"{name}picture{place}"), f"{one['words']}.", f"{one['title']}.")
        for place, one in enumerate(pictures)
    ]
    return [
        Text(
            "Grey: context. Black: what came. Blue: forecast of the intact model. Orange: without the unit.", note=True
        ),
        Figures(drawn),
    ]


def _measures(name: str, measures: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Heat maps in rows, those that come second on demand; measures of too many units as tables of quartiles."""
    there = [(place, one) for place, one in enumerate(measures) if one["values"]]
    wide = [one for _, one in there if _widest(one) > WIDEST]
    maps = [(place, one) for place, one in there if _widest(one) <= WIDEST]
    unit_seen: set[str] = set()
    shown: list[Figure] = []
    folded: list[Figure] = []
    for place, one in maps:
        caption = ". ".join(part for part in (_KIND[one["needed"]], _hatched(one)) if part)
        figure = Figure(heat_map(one, f"{name}{place}"), f"{caption}." if caption else "", f"{one['name']}.")
        first = len(maps) <= SHOWN or one["unit"] not in unit_seen
        (shown if first else folded).append(figure)
        unit_seen.add(one["unit"])
    blocks: list[Block] = [Figures(shown, flow=True)] if shown else []
    blocks += [_quartiles_table(one) for one in wide]
    if folded:
        blocks.append(Fold(many(len(folded), "more heat map", "more heat maps"), [Figures(folded, flow=True)]))
    return blocks


def _widest(measure: Mapping[str, Any]) -> int:
    return max(len(row) for row in measure["values"].values())


def _hatched(measure: Mapping[str, Any]) -> str:
    rows = list(measure["values"].values())
    uneven = len({len(row) for row in rows}) > 1
    return "Hatched: no such unit, or no number" if uneven or any(None in row for row in rows) else ""


def _tabled(table: Mapping[str, Any]) -> Tabled:
    head = [str(text) for text in table["head"]]
    # A second column of text is a label too, and stands on the left.
    named = 2 if len(head) > 2 and all(isinstance(row[1], str) and row[1][:1].isalpha() for row in table["rows"]) else 1
    lines = tuple(
        Line(tuple(map(_said, row[:named])), tuple(Cell(_said(value)) for value in row[named:]))
        for row in table["rows"]
    )
    return Tabled(Table(table["title"], tuple(head[:named]), ("",), tuple(head[named:]), lines, ()), wrapped=True)


def _quartiles_table(measure: Mapping[str, Any]) -> Tabled:
    unit = str(measure["unit"]).replace("_", " ")
    rows = [(path, _quartiles(row)) for path, row in measure["values"].items()]
    lines = tuple(Line((path,), tuple(Cell(_said(value)) for value in numbers)) for path, numbers in rows)
    head = ("lowest", "lower quartile", "median", "upper quartile", "highest")
    return Tabled(Table(f"{measure['name']}, over the {unit}s of each block", ("block",), ("",), head, lines, ()))


def _quartiles(row: Sequence[float | None]) -> list[float | None]:
    import numpy as np

    known = [value for value in row if value is not None]
    return [float(v) for v in np.quantile(known, (0, 0.25, 0.5, 0.75, 1))] if known else [None] * 5


def _said(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3f}" if 0.1 <= abs(value) < 10 else f"{value:.4g}"
    return str(value)
