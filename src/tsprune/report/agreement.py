"""Two plans side by side, layer by layer: a heat map of how far they agree, for the terminal and as a page."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tsprune.report.removal import KINDS, removal_map

if TYPE_CHECKING:
    from rich.table import Table

Plans = tuple[Mapping[str, Any], Mapping[str, Any]]
Cells = list[list[str]]


@dataclass(frozen=True)
class Shared:
    """One group in both plans: units there are, those that each keeps, and those that both keep."""

    units: int
    first: int
    second: int
    both: int

    @property
    def jaccard(self) -> float | None:
        """Both over either; None where neither plan keeps a unit."""
        either = self.first + self.second - self.both
        return self.both / either if either else None

    @property
    def text(self) -> str:
        """For example `4 5 | 3 0.50`: kept by the first, by the second, by both, and the Jaccard index."""
        return f"{self.first} {self.second} | {self.both} {share(self.jaccard)}"


@dataclass(frozen=True)
class AgreementMap:
    """Layers down, parts across; `wholes` says for each layer which whole parts the two plans removed."""

    layers: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[Mapping[str, Shared], ...]
    wholes: tuple[tuple[str, str], ...]


def agreement_map(plans: Plans) -> AgreementMap:
    """Arrange two plans by layer and part.

    Args:
        plans: contents of two plan.json over the same groups.

    Raises:
        TspruneError: a group name without a kind.
    """
    first, second = (_kept(plan) for plan in plans)
    both = {name: sorted(set(units) & set(second[name])) for name, units in first.items()}
    # Three maps over the same groups are laid out alike, cell by cell.
    maps = [removal_map(_with(plans[0], kept)) for kept in (first, second, both)]
    cells = [
        {
            column: Shared(a.cells[column].units, a.cells[column].kept, b.cells[column].kept, c.cells[column].kept)
            for column in a.cells
        }
        for a, b, c in zip(*(found.rows for found in maps), strict=True)
    ]
    wholes = [(a.whole, b.whole) for a, b in zip(maps[0].rows, maps[1].rows, strict=True)]
    labels = tuple(row.label for row in maps[0].rows)
    return AgreementMap(labels, maps[0].columns, tuple(cells), tuple(wholes))


def share(value: float | None) -> str:
    """Two digits, or a dash where there is nothing to compare."""
    return "-" if value is None else f"{value:.2f}"


def kind_rows(found: Mapping[str, Any]) -> tuple[list[str], Cells]:
    """Headings and rows of the table by kind, the last row over all; `found` is `PlanDiff.to_dict()`."""
    head = ["units", "of", "A keeps", "B keeps", "both", "Jaccard kept", "(chance)", "Jaccard removed", "(chance)"]
    named = {KINDS.get(kind, kind): entry for kind, entry in found["kinds"].items()}
    if found["all"] is not None and len(named) > 1:
        named["all"] = found["all"]
    return head, [
        [
            kind,
            *(str(entry[name]) for name in ("units", "first", "second", "both")),
            *_against_chance(entry, "kept"),
            *_against_chance(entry, "removed"),
        ]
        for kind, entry in named.items()
    ]


def _against_chance(entry: Mapping[str, Any], what: str) -> list[str]:
    return [share(entry[what]), f"({share(entry[f'{what}_by_chance'])})"]


def map_rows(found: AgreementMap) -> tuple[list[str], Cells]:
    """Headings and rows of the heat map as text."""
    said = any(first or second for first, second in found.wholes)
    head = ["layer", *(column.replace("\n", " ") for column in found.columns), *(["whole parts"] if said else [])]
    rows = []
    for layer, cells, wholes in zip(found.layers, found.cells, found.wholes, strict=True):
        texts = [cells[column].text if column in cells else "" for column in found.columns]
        rows.append([layer, *texts, *([_wholes(*wholes)] if said else [])])
    return head, rows


def _wholes(first: str, second: str) -> str:
    return first if first == second else f"A: {first}; B: {second}"


def text_table(head: list[str], rows: Cells) -> str:
    """Columns padded with spaces, for a file or a pipe."""
    widths = [max(len(row[place]) for row in [head, *rows]) for place in range(len(head))]
    return "\n".join(
        "  ".join(
            text.ljust(w) if place == 0 else text.rjust(w)
            for place, (text, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [head, *rows]
    )


def rich_map(found: AgreementMap) -> Table:
    """The heat map in colour: green where both keep the same units, red where they share none."""
    from rich.table import Table
    from rich.text import Text

    head, rows = map_rows(found)
    table = Table(title="kept by A, by B | by both, Jaccard", title_justify="left", box=None, padding=(0, 1))
    for name in head:
        table.add_column(name)
    for row, cells in zip(rows, found.cells, strict=True):
        values = [cells[column].jaccard if column in cells else None for column in found.columns]
        styles = ["", *(_colour(value) for value in values)]
        styles += [""] * (len(row) - len(styles))
        table.add_row(*(Text(text, style) for text, style in zip(row, styles, strict=True)))
    return table


def _colour(value: float | None) -> str:
    return "" if value is None else f"black on rgb({int(235 - 95 * value)},{int(140 + 75 * value)},140)"


def page(found: Mapping[str, Any], cells: AgreementMap) -> str:
    """A page that stands alone: facts, table by kind, heat map. All text from the plans is escaped."""
    plans = "".join(
        f"<tr><th>{name}</th><td>{html.escape(plan['base_model'])}</td><td>{html.escape(plan['score'])}</td>"
        f"<td>{html.escape(plan['schedule'])}</td><td>{plan['parameters']['before']:,} to "
        f"{plan['parameters']['after']:,} parameters</td></tr>"
        for name, plan in zip("AB", found["plans"], strict=True)
    )
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in found["notes"])
    head, rows = map_rows(cells)
    body = ""
    for row, own in zip(rows, cells.cells, strict=True):
        values: list[float | None] = [None, *(own[c].jaccard if c in own else None for c in cells.columns)]
        values += [None] * (len(row) - len(values))
        body += "<tr>" + "".join(_cell(text, value) for text, value in zip(row, values, strict=True)) + "</tr>"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Two pruning plans</title><style>'
        "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#1b2430}"
        "table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .7em;text-align:right;border:1px solid "
        "#d8dce1}th,td:first-child{text-align:left}</style></head><body><h1>What two plans share</h1>"
        f"<table>{plans}</table>{notes}<h2>By kind</h2>{_html_table(*kind_rows(found))}"
        "<p>Jaccard: units in both plans over units in either. Chance: its expected value for random plans that keep "
        "as many units of every kind.</p><h2>By layer</h2><p>Kept by A, by B | by both, and their Jaccard index.</p>"
        f"<table><tr>{''.join(f'<th>{html.escape(name)}</th>' for name in head)}</tr>{body}</table></body></html>\n"
    )


def _html_table(head: list[str], rows: Cells) -> str:
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    return (
        f"<table><tr>{top}</tr>{''.join('<tr>' + ''.join(_cell(t, None) for t in r) + '</tr>' for r in rows)}</table>"
    )


def _cell(text: str, value: float | None) -> str:
    # From red where nothing is shared to green where all is.
    style = "" if value is None else f' style="background:hsl({int(120 * value)} 55% 82%)"'
    return f"<td{style}>{html.escape(text)}</td>"


def _kept(plan: Mapping[str, Any]) -> dict[str, list[int]]:
    return {name: list(group["kept"]) for name, group in plan["groups"].items()}


def _with(plan: Mapping[str, Any], kept: Mapping[str, list[int]]) -> dict[str, Any]:
    return {"groups": {name: {**group, "kept": kept[name]} for name, group in plan["groups"].items()}}
