"""The table a run ends with: rich for the terminal, plain ASCII text for pipes and logs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tsprune.report.evidence import Evidence, ranking, reference
from tsprune.report.protocol import protocol_line
from tsprune.report.words import (
    Results,
    candidates_by_name,
    count_text,
    error_text,
    human,
    metric,
    milliseconds,
    number,
)

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Column:
    """One column: two header lines, how to read a cell, and how early it is dropped (0 = never)."""

    key: str
    top: str
    name: str
    cell: Callable[[Results], str]
    drop: int


def _latency(candidate: Results) -> str:
    return milliseconds(number(candidate.get("latency_ms")))


def _latency_spread(candidate: Results) -> str:
    spread = candidate.get("latency_spread_ms") or []
    ends = [number(v) for v in spread]
    if len(ends) != 2 or any(math.isnan(v) for v in ends):
        return _latency(candidate)
    return f"{_latency(candidate)} [{milliseconds(ends[0])}-{milliseconds(ends[1])}]"


def _error(part: str, name: str) -> Callable[[Results], str]:
    return lambda candidate: error_text(metric(candidate, part, name))


AGAINST = "against"
"""Key of the column that says who differs from the reference of the comparison."""
COLUMNS = (
    Column("candidate", "", "candidate", lambda c: human(str(c["name"])), 0),
    Column("validation_mse", "val.", "MSE", _error("validation", "mse"), 5),
    Column("validation_mae", "val.", "MAE", _error("validation", "mae"), 3),
    Column("test_mse", "test", "MSE", _error("test", "mse"), 0),
    Column("test_mae", "test", "MAE", _error("test", "mae"), 0),
    Column(AGAINST, "against", "", lambda c: str(c.get(AGAINST, "-")), 9),
    Column("test_mase", "test", "MASE", _error("test", "mase"), 6),
    Column("test_wql", "test", "WQL", _error("test", "wql"), 4),
    Column("parameters", "", "params", lambda c: count_text(number(c.get("parameters"))), 7),
    Column("flops", "", "FLOPs", lambda c: count_text(number(c.get("flops"))), 2),
    Column("latency_spread", "latency ms", "median [q1-q3]", _latency_spread, 1),
    Column("latency", "latency", "ms", _latency, 8),
)
_GAP = 2


def _mark(results: Results, name: str) -> str:
    return "* " if name == results["chosen"] else "  "


def columns_of(results: Results) -> tuple[Column, ...]:
    """All columns in full; the one for the comparison only where there was one."""
    base = reference(results)
    short = {"full_finetuning": "tuned"}.get(base, human(base))
    usual = (column for column in COLUMNS if column.key != "latency" and (base or column.key != AGAINST))
    return tuple(replace(column, name=short) if column.key == AGAINST else column for column in usual)


def compared(results: Results) -> dict[str, Results]:
    """Candidates by name, with what the comparison says of each in one word."""
    base, standing = reference(results), ranking(results)
    return {
        name: {**candidate, AGAINST: "-" if name == base else _word(standing.get(name))}
        for name, candidate in candidates_by_name(results).items()
    }


def _word(evidence: Evidence | None) -> str:
    """Better or worse where it is more than chance, however little."""
    if evidence is None or not evidence.shown:
        return "-" if evidence is None else "open"
    return "better" if evidence.ratio < 1 else "worse"


def _grid(results: Results, columns: tuple[Column, ...]) -> list[list[str]]:
    rows = []
    for name, candidate in compared(results).items():
        cells = [column.cell(candidate) for column in columns]
        rows.append([_mark(results, name) + cells[0], *cells[1:]])
    return rows


def _tops(columns: tuple[Column, ...]) -> list[str]:
    """Upper header line, each word once above the first of its columns."""
    return ["" if i and columns[i - 1].top == c.top else c.top for i, c in enumerate(columns)]


def _widths(results: Results, columns: tuple[Column, ...]) -> list[int]:
    grid = _grid(results, columns)
    heads = zip(_tops(columns), columns, strict=True)
    return [max(len(top), len(column.name), *(len(row[i]) for row in grid)) for i, (top, column) in enumerate(heads)]


def fitting_columns(results: Results, width: int) -> tuple[Column, ...]:
    """The columns that fit into `width` characters; name and test errors always stay.

    Dropped in this order: quartiles of latency, FLOPs, validation MAE, WQL, validation MSE, MASE,
    parameters, latency, the comparison.
    """
    columns = columns_of(results)
    for drop in range(1, 10):
        if sum(_widths(results, columns)) + _GAP * (len(columns) - 1) <= width:
            break
        columns = tuple(c for c in columns if c.drop != drop)
        if drop == 1:
            columns = (*columns, COLUMNS[-1])
    return columns


def footnote(results: Results) -> str:
    """Under the table: what the mark, the errors, the comparison and the latency mean, and the protocol in short."""
    protocol = results.get("protocol") or {}
    scale = protocol.get("scale")
    batch, threads = protocol.get("latency_batch"), protocol.get("latency_threads", protocol.get("threads"))
    said = ["* chosen on validation"]
    if scale:
        said.append(f"errors: {scale}")
    if batch is not None and threads is not None:
        said.append(f"latency: median at batch {batch}, {threads} {'thread' if threads == 1 else 'threads'}")
    if base := reference(results):
        said.append(
            f"against {human(base)}: better or worse in MSE where bootstrap interval and Diebold-Mariano test agree on "
            "the test windows, else open"
        )
    lines = ["; ".join(said), *([protocol_line(results)] if protocol.get("split") else [])]
    return "\n".join(lines)


def results_table(results: Results, width: int = 100) -> Table:
    """Candidates as a rich table.

    Args:
        results: content of results.json, schema 1; missing numbers show as "-".
        width: characters available; columns are dropped by importance until the table fits.

    Raises:
        TspruneError: the chosen candidate is not among the candidates.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    columns = fitting_columns(results, width)
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1),
        caption=Text(footnote(results)),
        caption_justify="left",
        header_style="bold",
        show_edge=False,
        collapse_padding=True,
    )
    for i, (column, top) in enumerate(zip(columns, _tops(columns), strict=True)):
        header = Text(f"{top}\n{column.name}")
        table.add_column(header, justify="right" if i else "left", no_wrap=True)
    for name, row in zip(candidates_by_name(results), _grid(results, columns), strict=True):
        style = "bold green" if name == results["chosen"] else ""
        table.add_row(*(Text(cell) for cell in row), style=style)
    return table


def results_text(results: Results, width: int = 100) -> str:
    """The same table as plain ASCII lines, for output that is not a terminal.

    Args and errors as in :func:`results_table`; lines end without trailing blanks.
    """
    import textwrap

    columns = fitting_columns(results, width)
    widths = _widths(results, columns)

    def line(cells: list[str]) -> str:
        padded = [cells[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True)]
        return (" " * _GAP).join(padded).rstrip()

    lines = [line(_tops(columns)), line([c.name for c in columns]), line(["-" * w for w in widths])]
    lines += [line(row) for row in _grid(results, columns)]
    lines += [part for note in footnote(results).splitlines() for part in textwrap.wrap(note, max(width, 20))]
    return "\n".join(lines)
