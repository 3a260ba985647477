"""A heat map of any table of numbers: win rates, parameters kept, transfer between data sets, stability of scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tsprune.data.words import listed
from tsprune.errors import TspruneError
from tsprune.report.canvas import INK, bare_figure, plainly, svg
from tsprune.report.words import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GOOD, BAD = (0.12, 0.37, 0.60), (0.76, 0.34, 0.10)
"""Blue and orange, which remain two colours to the colour-blind."""
_ABSENT = "#e6e8ec"
_CELL, _LINE, _LETTER = 0.62, 0.3, 0.078
_STRONGEST, _FAINTEST = 0.85, 0.12
_SLANTED = 8

Values = Sequence[Sequence[float | None]]


def pivot(
    rows: Sequence[Mapping[str, Any]], row: str = "source", column: str = "target", value: str = "ratio"
) -> tuple[list[str], list[str], list[list[float | None]]]:
    """Labels and values of a matrix from one record per cell, in the order in which labels come up.

    Raises:
        TspruneError: a record without one of the three, or two records of one cell.
    """
    found: dict[tuple[str, str], float | None] = {}
    for entry in rows:
        if absent := [name for name in (row, column, value) if name not in entry]:
            raise TspruneError(f"a record of the matrix has no {absent[0]!r}; it has: {listed(list(entry))}")
        key = str(entry[row]), str(entry[column])
        if key in found:
            raise TspruneError(f"two records of the matrix are for {row} {key[0]!r}, {column} {key[1]!r}; expected one")
        known = number(entry[value])
        found[key] = None if math.isnan(known) else known
    downwards = list(dict.fromkeys(key[0] for key in found))
    across = list(dict.fromkeys(key[1] for key in found))
    return downwards, across, [[found.get((one, other)) for other in across] for one in downwards]


@plainly
def matrix_figure(
    labels_row: Sequence[str],
    labels_column: Sequence[str],
    values: Values,
    title: str,
    *,
    name: str = "matrix",
    middle: float | None = None,
    high_is_good: bool = False,
    text: Callable[[float], str] = "{:.2f}".format,
    axis_names: tuple[str, str] = ("", ""),
) -> str:
    """A heat map with its numbers in the cells, as an inline SVG.

    Args:
        labels_row: from the top.
        labels_column: from the left.
        values: one row per label; None or NaN = not measured, which is hatched.
        title: what the numbers are; begins the text alternative, and stands nowhere else.
        name: begins the ids within the SVG, so that several fit on one page.
        middle: value without colour, with blue on its good side and orange on the other; None for one colour only.
        high_is_good: which side of the middle that is.
        text: a value as it stands in its cell.
        axis_names: what rows and columns are.

    Raises:
        TspruneError: values of another shape than the labels, or no cell at all.
    """
    widths = {len(line) for line in values}
    if not labels_row or not labels_column or len(values) != len(labels_row) or widths != {len(labels_column)}:
        raise TspruneError(
            f"{title}: {len(labels_row)} row labels and {len(labels_column)} column labels for {len(values)} rows of "
            f"{listed(sorted(widths))} values; expected one label each, and at least one cell"
        )
    cells = [[number(value) for value in line] for line in values]
    known = [value for line in cells for value in line if not math.isnan(value)]
    longest = max(map(len, labels_column))
    wide = max(_CELL, _LETTER * max((len(text(value)) for value in known), default=1) + 0.2)
    slanted = longest > max(_SLANTED, wide / _LETTER)
    left = _LETTER * max(map(len, labels_row)) + (0.5 if axis_names[0] else 0.25)
    # Slanted labels reach beyond the last column.
    right = 0.7 * _LETTER * len(labels_column[-1]) if slanted else 0.1
    top = 0.2 + (0.6 * _LETTER * longest if slanted else 0.2) + (0.2 if axis_names[1] else 0)
    figure, axes = bare_figure(left + right + wide * len(labels_column), top + _LINE * len(labels_row))
    for y, line in enumerate(cells):
        for x, value in enumerate(line):
            share = _share(value, known, middle)
            colour = GOOD if middle is None or (share > 0) == high_is_good else BAD
            _draw(axes, x, y, value, share, colour, text)
    axes.set(xlim=(0, len(labels_column)), ylim=(len(labels_row), 0))
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    slant: dict[str, Any] = {"rotation": 35, "ha": "left", "rotation_mode": "anchor"} if slanted else {}
    axes.set_xticks([x + 0.5 for x in range(len(labels_column))], labels_column, parse_math=False, **slant)
    axes.set_yticks([y + 0.5 for y in range(len(labels_row))], labels_row, parse_math=False)
    axes.set_ylabel(axis_names[0], fontsize=9, color=INK)
    axes.set_xlabel(axis_names[1], fontsize=9, color=INK)
    return svg(figure, name, _alternative(title, labels_row, labels_column, cells, text))


def _share(value: float, known: Sequence[float], middle: float | None) -> float:
    """Where a value lies: -1 to 1 around the middle, or up to 1 from the lowest to the highest."""
    if middle is None:
        low, high = min(known, default=0.0), max(known, default=1.0)
        # The lowest value has some colour too, or its cell would not look like one.
        return _FAINTEST + (1 - _FAINTEST) * (value - low) / (high - low) if high > low else _FAINTEST
    reach = max((abs(one - middle) for one in known), default=1.0) or 1.0
    return (value - middle) / reach


def _draw(
    axes: Axes, x: int, y: int, value: float, share: float, colour: tuple[float, ...], text: Callable[[float], str]
) -> None:
    from matplotlib.patches import Rectangle

    absent = math.isnan(value)
    strength = 0.0 if absent else _STRONGEST * min(abs(share), 1.0)
    face: Any = _ABSENT if absent else tuple(1 - strength * (1 - part) for part in colour)
    shape = Rectangle((x, y), 1, 1, facecolor=face, edgecolor="white", linewidth=1.5)
    if absent:
        shape.set_hatch("////")
        shape.set_edgecolor("white")
    axes.add_patch(shape)
    ink = "white" if strength > 0.6 else INK
    shown = "" if absent else text(value)
    axes.text(x + 0.5, y + 0.5, shown, ha="center", va="center", fontsize=9, color=ink, parse_math=False)


def _alternative(
    title: str,
    labels_row: Sequence[str],
    labels_column: Sequence[str],
    cells: Sequence[Sequence[float]],
    text: Callable[[float], str],
) -> str:
    lines = [
        f"{label}: "
        + ", ".join(
            f"{other} {'not measured' if math.isnan(value) else text(value)}"
            for other, value in zip(labels_column, line, strict=True)
        )
        for label, line in zip(labels_row, cells, strict=True)
    ]
    return f"{title}. " + "; ".join(lines) + "."
