"""Figures of the lens page: heat maps of units, curves over what is gone, series with forecasts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tsprune.bench.pages.matrixfigure import matrix_figure
from tsprune.report.canvas import BLUE, GREY, INK, ORANGE, bare_figure, labels_apart, plainly, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (BLUE, ORANGE, INK, "#6a51a3", "#2f7d4f", "#8c6d1f")
_STROKES = {"context": (GREY, 1.0), "truth": (INK, 1.3), "forecast": (BLUE, 1.7), "other": (ORANGE, 1.4)}
FAR = 3
"""Heights of all other curves that a control may go beyond them before it is cut off."""
_GAP = 0.065
"""Between labels of curves, as a share of the height of the axes."""


def heat_map(measure: Mapping[str, Any], name: str) -> str:
    """Blocks as rows, units as columns; no colour is where nothing happens if values have both signs."""
    values: Mapping[str, Sequence[float | None]] = measure["values"]
    most = max(len(row) for row in values.values())
    padded = [[*row, *[None] * (most - len(row))] for row in values.values()]
    known = [value for row in padded for value in row if value is not None]
    unit = str(measure["unit"]).replace("_", " ")
    shared, labels = short(list(values))
    return matrix_figure(
        labels,
        [str(number) for number in range(most)] if most > 1 else [""],
        padded,
        str(measure["name"]),
        name=name,
        middle=0.0 if any(value < 0 for value in known) else None,
        text=f"{{:.{digits(known)}g}}".format,
        axis_names=(f"{shared} …" if shared else "block", unit),
    )


def short(paths: Sequence[str]) -> tuple[str, list[str]]:
    """What all paths begin with, up to a dot, and what is left of each; nothing is taken from a single path."""
    parts = [path.split(".") for path in paths]
    if len(parts) < 2:
        return "", list(paths)
    same = 0
    while all(len(own) > same + 1 and own[same] == parts[0][same] for own in parts):
        same += 1
    return ".".join(parts[0][:same]), [".".join(own[same:]) for own in parts]


def digits(values: Sequence[float]) -> int:
    """Digits by which values that lie close together still differ, from 2 to 4."""
    if not values:
        return 2
    size, spread = max(map(abs, values)), max(values) - min(values)
    return 2 if spread <= 0 or size <= 0 else min(4, max(2, 2 + math.floor(math.log10(size / spread) + 0.5)))


@plainly
def curves_figure(curves: Sequence[Mapping[str, Any]], axes_names: tuple[str, ...], name: str) -> str:
    """Curves over amounts, controls in grey, with their intervals as bands; names stand at the right."""
    figure, axes = bare_figure(8.2, 3.6)
    said, ends, own, plain = [], [], [], 0
    for curve in curves:
        points = [(x, y) for x, y in zip(curve["x"], curve["y"], strict=True) if y is not None]
        if not points:
            continue
        colour = GREY if curve["control"] else COLOURS[plain % len(COLOURS)]
        plain += not curve["control"]
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, color=colour, linewidth=1.2 if curve["control"] else 1.8, marker="o", markersize=3)
        if curve["low"] and curve["high"] and None not in (*curve["low"], *curve["high"]):
            axes.fill_between(curve["x"], curve["low"], curve["high"], color=colour, alpha=0.18, linewidth=0)
        ends.append((ys[-1], curve["name"], colour))
        own += [] if curve["control"] else [y for y in (*ys, *curve["low"], *curve["high"]) if y is not None]
        said.append(f"{curve['name']} from {ys[0]:.3g} to {ys[-1]:.3g}")
    axes.margins(x=0.02)
    _cut_off(axes, own)
    _name_ends(axes, ends)
    axes.set_xlabel(axes_names[0], fontsize=9, color=INK)
    axes.set_ylabel(brief(axes_names[1]), fontsize=9, color=INK)
    return svg(figure, name, f"{axes_names[1]} over {axes_names[0]}. " + "; ".join(said) + ".")


def _cut_off(axes: Axes, own: Sequence[float]) -> None:
    """Keep controls that go far beyond the other curves from pressing these flat."""
    far = FAR * (max(own, default=0.0) - min(own, default=0.0))
    if far > 0:
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, min(own) - far), min(high, max(own) + far))


def _name_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """The names of curves at the right, beside their last values, one above the other."""
    low, high = axes.get_ylim()
    places = labels_apart([min(1.0, max(0.0, (y - low) / (high - low))) for y, _, _ in ends], _GAP)
    # None beyond the upper edge, where the figure ends.
    lower = max(0.0, max(places, default=0.0) - 1)
    for place, (_, text, colour) in zip(places, ends, strict=True):
        axes.annotate(
            text,
            (1.01, place - lower),
            xycoords="axes fraction",
            fontsize=8,
            color=colour,
            va="center",
            parse_math=False,
        )


def brief(label: str) -> str:
    """A label of an axis without what it says in brackets."""
    return label.partition(" (")[0]


@plainly
def picture_figure(picture: Mapping[str, Any], name: str) -> str:
    """Lines over steps from the start of the forecast: context grey, what came black, forecasts in colour."""
    figure, axes = bare_figure(5.0, 2.3)
    axes.axvline(-0.5, color=GREY, linewidth=0.8, linestyle=(0, (2, 2)))
    for trace in picture["traces"]:
        colour, width = _STROKES[trace["role"]]
        values = [math.nan if value is None else value for value in trace["values"]]
        steps = range(trace["start"], trace["start"] + len(values))
        single = "o" if len(values) == 1 else None
        axes.plot(steps, values, color=colour, linewidth=width, marker=single, markersize=4)
    axes.margins(x=0.01)
    axes.set_xlabel("steps from the start of the forecast", fontsize=9, color=INK)
    names = ", ".join(f"{trace['name']} ({len(trace['values'])} steps)" for trace in picture["traces"])
    return svg(figure, name, f"{picture['title']}. {picture['words']}. Lines: {names}.")
