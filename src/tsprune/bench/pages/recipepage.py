"""Pages of recipes whose results are no grid of candidates: transfer between data sets, stability of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from tsprune.bench.pages.ends import machine_blocks, missing_alerts
from tsprune.bench.pages.layout import Cell, Line, Table
from tsprune.bench.pages.matrixfigure import matrix_figure
from tsprune.bench.pages.sheet import Block, Figure, Section, Sheet, Tabled, Text, write_sheet
from tsprune.errors import TspruneError

_KEYS = {"title", "text", "matrix", "table", "missing"}


def write_recipe_page(
    path: str | PathLike[str],
    name: str,
    headline: str,
    parts: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
) -> Path:
    """Write a recipe's results as one self-contained HTML file in the look of the grid's page.

    Args:
        path: where to write; missing folders are made, an existing file is replaced.
        name: of the recipe.
        headline: what may be said.
        parts: one section each, plain data: `title`; `text`, a list of paragraphs; `matrix` with `rows`, `columns`,
            `values`, `title` and what else `matrix_figure` takes; `table` with `head` and `rows` of text; `missing`,
            why there is neither. All but the title may be left out.
        summary: `machine`, `versions`, `settings`, `protocols` and `missing`, as of a grid.

    Returns:
        The path written.

    Raises:
        TspruneError: a part without title, with an unknown key, or with a matrix or table of uneven rows; or a path
            that cannot be written.
    """
    sections = [Section(f"part{place}", _title(part), _blocks(part, place)) for place, part in enumerate(parts)]
    if protocols := summary.get("protocols"):
        sections.append(Section("protocol", "Protocol", [Text(str(text)) for text in protocols]))
    sections.append(Section("machine", "Machine, versions and settings", machine_blocks(summary)))
    alerts = missing_alerts(summary)
    return write_sheet(path, Sheet(name, "a recipe of tsprune bench", headline, alerts, (), sections))


def _title(part: Mapping[str, Any]) -> str:
    if unknown := sorted(set(part) - _KEYS):
        raise TspruneError(f"a part of the page has {unknown[0]!r}, expected only {', '.join(sorted(_KEYS))}")
    if not part.get("title"):
        raise TspruneError("a part of the page has no title, expected a line of text")
    return str(part["title"])


def _blocks(part: Mapping[str, Any], place: int) -> list[Block]:
    blocks: list[Block] = [Text(str(text)) for text in part.get("text") or []]
    if given := part.get("matrix"):
        more = {key: value for key, value in given.items() if key not in ("rows", "columns", "values", "title")}
        title = str(given.get("title") or part["title"])
        picture = matrix_figure(given["rows"], given["columns"], given["values"], title, name=f"matrix{place}", **more)
        blocks.append(Figure(picture, "Hatched: not measured.", f"{title}."))
    if given := part.get("table"):
        blocks.append(Tabled(_table(given, str(part["title"]))))
    if part.get("missing"):
        blocks.append(Text(f"No figure: {part['missing']}."))
    return blocks


def _table(given: Mapping[str, Any], title: str) -> Table:
    head = [str(name) for name in given["head"]]
    if odd := [row for row in given["rows"] if len(row) != len(head)]:
        raise TspruneError(f"{title}: a row of the table has {len(odd[0])} cells, its head has {len(head)}")
    lines = tuple(Line((str(row[0]),), tuple(Cell(str(text)) for text in row[1:])) for row in given["rows"])
    return Table(title, (head[0],), ("",), tuple(head[1:]), lines, ())
