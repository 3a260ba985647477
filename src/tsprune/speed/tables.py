"""What was measured as tables of text and as sentences; every row names its runtime."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tsprune.data.words import many
from tsprune.report.agreement import text_table
from tsprune.report.words import milliseconds
from tsprune.speed.runtimes import REFERENCE

DASH = "–"
STUBS = 2
SLIGHT = 1e-6
"""Differences below are rounding and shown as such."""
HEAD = (
    "runtime",
    "model",
    "ms",
    "quartiles",
    "pruning",
    "with runtime",
    "windows/s",
    "GFLOP",
    "MB on disk",
    "peak MiB",
    "differs by",
)
"""Headings of `line`."""
LOADS = (
    "runtime",
    "model",
    "first forecast s",
    "range",
    "cpu s",
    "over dense",
    "MB on disk",
    "parameters",
    "over dense",
)
"""Headings of `load_lines`."""


def texts(content: Mapping[str, Any]) -> list[str]:
    """Every table with its title, for a file or a pipe."""
    return ["\n".join([name, text_table(list(head), rows), *missing]) for name, head, rows, missing in _parts(content)]


def show(content: Mapping[str, Any]) -> None:
    """Print every table; on a terminal, cells break where there is no room."""
    if not sys.stdout.isatty():
        print("\n\n".join(texts(content)))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    for name, head, rows, missing in _parts(content):
        table = Table(title=Text(name), title_justify="left", box=None, padding=(0, 1), pad_edge=False)
        for place, text in enumerate(head):
            table.add_column(Text(text), justify="left" if place < STUBS else "right", overflow="fold")
        for cells in rows:
            table.add_row(*map(Text, cells))
        Console().print(table, *map(Text, missing), sep="\n")


def _parts(content: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[str], list[list[str]], list[str]]]:
    """Title, heads, rows that were timed, and a line for each that was not."""
    for table in content["tables"]:
        rows = [line(row, content) for row in table["rows"]]
        missing = [f"{row[0]}, {row[1]}: {row[-1]}" for row in rows if row[-1].startswith("not timed")]
        yield title(table), HEAD, [row for row in rows if not row[-1].startswith("not timed")], missing
    if content["loads"]:
        yield "loading in a fresh process", LOADS, load_lines(content), []


def title(table: Mapping[str, Any]) -> str:
    """Batch, threads and device, and whether the numbers can be relied on."""
    batch = many(table["windows"], "window") + " per forecast"
    said = f"{batch}, {many(table['threads'], 'thread')}, {table['device']}"
    return said + (" (BUSY: other programs ran meanwhile, times are not reliable)" if table["busy"] else "")


def line(row: Mapping[str, Any], content: Mapping[str, Any]) -> list[str]:
    """The cells of a row under `HEAD`; what was not timed says why in the last one."""
    runtime = content["runtimes"][row["runtime"]]["title"]
    if row["error"]:
        return [runtime, row["model"], *[DASH] * (len(HEAD) - 3), f"not timed: {row['error']}"]
    return [
        runtime,
        row["model"],
        milliseconds(row["median_ms"]),
        f"{milliseconds(row['q1_ms'])}-{milliseconds(row['q3_ms'])}",
        _ratio(row["pruning"]),
        _ratio(row["together"]),
        f"{row['windows_per_s']:,.0f}",
        f"{row['flops'] / 1e9:.3g}",
        megabytes(row["bytes_on_disk"]),
        DASH if row["peak_mib"] is None else f"{row['peak_mib']:,.0f}",
        _difference(row, content),
    ]


def load_lines(content: Mapping[str, Any]) -> list[list[str]]:
    """The cells under `LOADS`."""
    parameters = {model["name"]: model["parameters"] for model in content["models"]}
    dense = content["reference"]
    base = {(one["runtime"], one["device"]): one["first_cpu_s"] for one in content["loads"] if one["model"] == dense}
    found = []
    for one in content["loads"]:
        of = base.get((one["runtime"], one["device"]))
        low, high = one["spread_s"]
        found.append(
            [
                content["runtimes"][one["runtime"]]["title"],
                one["model"],
                f"{one['first_s']:.3f}",
                f"{low:.3f}-{high:.3f}",
                f"{one['first_cpu_s']:.3f}",
                _ratio(one["first_cpu_s"] / of if of else None),
                megabytes(one["bytes_on_disk"]),
                f"{parameters[one['model']]:,}",
                _ratio(parameters[one["model"]] / parameters[dense]),
            ]
        )
    return found


def short_legend(content: Mapping[str, Any]) -> list[str]:
    """What the two ratios say: the least that must stand below a table."""
    return legend(content)[1:3]


def legend(content: Mapping[str, Any]) -> list[str]:
    """What the columns say."""
    dense, plain = content["reference"], content["runtimes"][REFERENCE]["title"]
    return [
        f"ms: median of {content['repeats']} forecasts, all rows of a table in turn; quartiles beside it.",
        f"pruning: time over that of {dense} on the same runtime, which is what pruning gives.",
        f"with runtime: time over that of {dense} on {plain}, which is both together; the runtime's part is no "
        "merit of pruning.",
        "GFLOP: operations of one forecast of the whole batch, counted on plain torch; a product and its sum are two.",
        "peak MiB: highest memory of a fresh process that only loads and forecasts, less what its imports took.",
        f"differs by: largest difference of forecasts from {plain}, in standard deviations of the forecast, and in "
        "brackets the mean one where the runtime is not exact. On random windows, before any tuning for the runtime.",
        *(f"The batch of {many(table['windows'], 'window')}: {table['why']}." for table in _found(content["tables"])),
    ]


def sentences(content: Mapping[str, Any]) -> list[str]:
    """What each model gains in the first table of each batch, runtime by runtime, pruning apart from the runtime."""
    dense = content["reference"]
    found = [] if len(content["models"]) > 1 else ["One model alone: there is no pruning to measure, only runtimes."]
    for table in content["tables"]:
        if table["threads"] != content["tables"][0]["threads"] or table["device"] != content["tables"][0]["device"]:
            continue
        rows = [row for row in table["rows"] if row["model"] != dense and row["pruning"] is not None]
        found += [sentence(table, row, content) for row in rows]
    return found


def sentence(table: Mapping[str, Any], row: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    """What a model takes of the dense one, on the same runtime and, after it, on plain torch."""
    dense, runtime = content["reference"], content["runtimes"][row["runtime"]]["title"]
    said = f"{title(table).split(' (')[0]}: {row['model']} takes {row['pruning']:.2f} of {dense} on {runtime}"
    if row["runtime"] == REFERENCE or row["together"] is None:
        return said
    plain = content["runtimes"][REFERENCE]["title"]
    return f"{said}; together with the runtime {row['together']:.2f} of {dense} on {plain}"


def fastest(content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The row of the first table that may stand for the page: not the dense model, not on a runtime that differs."""
    rows = [
        row
        for row in content["tables"][0]["rows"]
        if row["model"] != content["reference"]
        and content["runtimes"][row["runtime"]]["exact"]
        and None not in (row["median_ms"], row["pruning"], row["together"])
    ]
    return min(rows, key=lambda row: float(row["median_ms"]), default=None)


def megabytes(count: int | None) -> str:
    """Bytes in millions."""
    return DASH if count is None else f"{count / 1e6:,.3g}" if count < 1e9 else f"{count / 1e6:,.0f}"


def _ratio(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f}"


def _difference(row: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    found = row["difference"]
    if found is None:
        return DASH
    if row["runtime"] == REFERENCE:
        return "reference"
    if not content["runtimes"][row["runtime"]]["exact"]:
        return f"{found['largest']:.2g} ({found['mean']:.2g})"
    return "rounding" if found["largest"] < SLIGHT else f"{found['largest']:.0e}"


def _found(tables: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One table for each batch that was looked for."""
    return list({(table["device"], table["windows"]): table for table in tables if table["why"]}.values())
