"""Tables in the layout of the papers, as Markdown and as LaTeX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tsprune.bench.pages.layout import BEST, SECOND, Cell, Table, all_tables
from tsprune.bench.pages.markup import latex_escaped, markdown_escaped
from tsprune.bench.pages.tasking import Grid, Row

_PACKAGES = r"% Needs \usepackage{booktabs} and \usepackage{graphicx}."


def markdown(rows: Sequence[Row], summary: Mapping[str, Any]) -> str:
    """All tables as Markdown: one per model and share of the training windows, and one over all models.

    Args:
        rows: one per model, data set, horizon, share, candidate and seed.
        summary: of the same grid.

    Raises:
        TspruneError: two rows for the same cell and seed.
    """
    return "\n\n".join(_markdown(table) for table in all_tables(Grid(rows, summary))) + "\n"


def latex(rows: Sequence[Row], summary: Mapping[str, Any]) -> str:
    """The same tables as a LaTeX fragment that needs booktabs and graphicx; arguments and errors as `markdown`."""
    tables = [_latex(table, number) for number, table in enumerate(all_tables(Grid(rows, summary)), 1)]
    return "\n\n".join([_PACKAGES, *tables]) + "\n"


def _markdown(table: Table) -> str:
    heads = [f"{group} {measure}" for group in table.groups for measure in table.measures]
    head = [*table.stubs, *heads]
    lines = [
        _bar([markdown_escaped(text) for text in head]),
        _bar([":--" if place < len(table.stubs) else "--:" for place in range(len(head))]),
        *(
            _bar([*(markdown_escaped(text) for text in line.labels), *(_markdown_cell(cell) for cell in line.cells)])
            for line in table.lines
        ),
    ]
    notes = "\n\n".join(markdown_escaped(note) for note in table.notes)
    return f"### {markdown_escaped(table.title)}\n\n" + "\n".join(lines) + f"\n\n{notes}"


def _bar(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_cell(cell: Cell) -> str:
    text = markdown_escaped(cell.text)
    text = f"**{text}**" if cell.mark == BEST else f"<ins>{text}</ins>" if cell.mark == SECOND else text
    return text + markdown_escaped(cell.spread) + ("†" if cell.few else "")


def _latex(table: Table, number: int) -> str:
    across, stubs = len(table.measures), len(table.stubs)
    spans = [
        (stubs + 1 + place * across, stubs + (place + 1) * across) for place in range(len(table.groups))
    ]  # fmt: skip
    groups = " & ".join(
        [""] * stubs + [rf"\multicolumn{{{across}}}{{c}}{{{_stacked(group)}}}" for group in table.groups]
    )
    rules = " ".join(rf"\cmidrule(lr){{{low}-{high}}}" for low, high in spans)
    heads = [*table.stubs, *(measure for _ in table.groups for measure in table.measures)]
    body = []
    for place, line in enumerate(table.lines):
        if line.starts and place:
            body.append(r"\midrule")
        cells = [*(latex_escaped(text) for text in line.labels), *(_latex_cell(cell) for cell in line.cells)]
        body.append(" & ".join(cells) + r" \\")
    notes = " ".join(latex_escaped(note) for note in table.notes)
    return "\n".join(
        [
            r"\begin{table*}[t]",
            r"\centering",
            rf"\caption{{{latex_escaped(table.title)}. {notes}}}",
            rf"\label{{tab:bench-{number}}}",
            r"\resizebox{\textwidth}{!}{%",
            rf"\begin{{tabular}}{{{'l' * stubs}{'r' * (len(heads) - stubs)}}}",
            r"\toprule",
            groups + r" \\",
            rules,
            " & ".join(latex_escaped(head) for head in heads) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}%",
            "}",
            r"\end{table*}",
        ]
    )


def _stacked(text: str) -> str:
    """A heading with a line break at its comma, which takes no package."""
    parts = [latex_escaped(part.strip()) for part in text.split(",")]
    if len(parts) == 1:
        return parts[0]
    return r"\begin{tabular}[b]{@{}c@{}}" + r",\\".join(parts) + r"\end{tabular}"


def _latex_cell(cell: Cell) -> str:
    text = latex_escaped(cell.text)
    text = rf"\textbf{{{text}}}" if cell.mark == BEST else rf"\underline{{{text}}}" if cell.mark == SECOND else text
    return text + latex_escaped(cell.spread) + (r"\textsuperscript{$\dagger$}" if cell.few else "")
