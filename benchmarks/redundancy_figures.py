"""The figures of docs/redundancy.md, in the looks of the reports."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from tsprune.report.canvas import BLUE, GREY, INK, ORANGE, RULE, plainly, svg

COLORS = (BLUE, ORANGE, INK, "#6a51a3", "#2f7d4f", "#8c6d1f")
MARKS = ("o", "s", "D", "^", "v", "P")
_FONT = 'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"'


def standing_alone(drawing: str) -> str:
    """An inline SVG element as a file: names spaces, a size, a font and white behind it, also in a dark page."""
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawing)[0]
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    opening = f'<svg {spaces} width="{float(width) * 4 / 3:.0f}" height="{float(height) * 4 / 3:.0f}" {_FONT} '
    head, _, rest = drawing.partition(">")
    head = re.sub(r' style="[^"]*"', "", head).replace("<svg ", opening, 1)
    return f'{head}><rect width="100%" height="100%" fill="white"/>{rest}\n'


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=8, color=GREY)
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)


def percent(value: float, _: Any = None) -> str:
    """Growth as a change."""
    change = 100 * (value - 1)
    return "0" if abs(change) < 1e-9 else f"{change:+.3g} %"


def _whisker(axes: Axes, x: Mapping[str, Any], y: float, color: str, mark: str) -> None:
    if x["low"] is not None:
        axes.plot([x["low"], x["high"]], [y, y], color=color, linewidth=1.1, alpha=0.55, solid_capstyle="butt")
    axes.plot([x["mean"]], [y], color=color, marker=mark, markersize=4.2, linestyle="none")


@plainly
def dots(
    rows: Sequence[str],
    series: Mapping[str, Sequence[Mapping[str, Any] | None]],
    axis: str,
    name: str,
    *,
    controls: Sequence[str] = (),
    marked: float = 1.0,
    limits: tuple[float, float] | None = None,
) -> str:
    """Growth by row and model: means with intervals over sets, rows of controls on grey, on a log scale."""
    figure = Figure(figsize=(7.6, 1.0 + 0.1 * len(rows) * (len(series) + 1)), layout="constrained")
    axes = figure.add_subplot()
    _bare(axes)
    axes.set_xscale("log")
    axes.axvline(marked, color=GREY, linewidth=1)
    step = 0.8 / max(1, len(series))
    for number, (label, values) in enumerate(series.items()):
        color, mark = COLORS[number % len(COLORS)], MARKS[number % len(MARKS)]
        axes.plot([], [], color=color, marker=mark, markersize=4.2, linestyle="none", label=label)
        for row, value in enumerate(values):
            if value is not None:
                _whisker(axes, value, row - 0.4 + (number + 0.5) * step, color, mark)
    for row, label in enumerate(rows):
        if label in controls:
            axes.axhspan(row - 0.48, row + 0.48, color="#eceef1", zorder=0)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    if limits is not None:
        axes.set_xlim(*limits)
    _ticks(axes)
    axes.set_xlabel(axis, fontsize=8.5, color=INK)
    figure.legend(loc="outside upper left", ncols=len(series), fontsize=8, frameon=False, labelcolor=INK)
    told = "; ".join(f"{m}: " + ", ".join(f"{r} {v['mean']:.3g}" for r, v in zip(rows, vs, strict=True) if v)
                     for m, vs in series.items())  # fmt: skip
    return svg(figure, name, f"{axis}. {told}.")


def _ticks(axes: Axes, along: str = "x") -> None:
    """A few round changes in per cent on a log axis."""
    low, high = axes.get_xlim() if along == "x" else axes.get_ylim()
    fine = (-0.2, -0.1, -0.05, -0.02, -0.01, 0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 4, 9, 19, 49, 99)
    inside = [1 + one for one in fine if low <= 1 + one <= high]
    chosen: list[float] = []
    for value in sorted(inside, key=lambda v: (v != 1, abs(math.log(v)))):
        if all(abs(math.log(value / other)) > math.log(high / low) / 9 for other in chosen):
            chosen.append(value)
    axis = axes.xaxis if along == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(percent))
    axis.set_minor_formatter(NullFormatter())
    axis.set_ticks(sorted(chosen))
    axis.set_ticks([], minor=True)


def place_name(path: str) -> str:
    """A short name of an attention or layer, such as `1 group` or `dec 0 cross`."""
    number = re.findall(r"\.(\d+)(?:\.layer)?", path)
    side = "dec " if path.startswith("decoder") else "enc " if "SelfAttention" in path else ""
    if "EncDec" in path:
        kind = " cross"
    elif path.endswith("layer.1.self_attention"):
        kind = " group"
    elif path.endswith("layer.0.self_attention"):
        kind = " time"
    else:
        kind = ""
    return f"{side}{number[0] if number else path}{kind}"


@plainly
def kept_by_attention(models: Mapping[str, Mapping[str, Any]], rules: Mapping[str, tuple[str, str]], name: str) -> str:
    """Share of the heads kept by attention, one panel per model: mean over sets, with the range.

    Args:
        models: `attentions` of the heads' summary by model.
        rules: label and colour by rule.
        name: of the figure.
    """
    widths = [len(found) + 1.5 for found in models.values()]
    figure = Figure(figsize=(9.6, 2.9), layout="constrained")
    panels = figure.subplots(1, len(models), width_ratios=widths, sharey=True, squeeze=False)[0]
    for axes, (model, found) in zip(panels, models.items(), strict=True):
        _bare(axes)
        for shift, (rule, (label, color)) in enumerate(rules.items()):
            for at, one in enumerate(found.values()):
                shares = [value / one["heads"] for value in one[rule].values()]
                x = at + (shift - (len(rules) - 1) / 2) * 0.22
                axes.plot([x, x], [min(shares), max(shares)], color=color, linewidth=1.1, alpha=0.5)
                axes.plot([x], [sum(shares) / len(shares)], color=color, marker=MARKS[shift], markersize=4)
            axes.plot([], [], color=color, marker=MARKS[shift], markersize=4, linestyle="none", label=label)
        axes.set_xticks(range(len(found)), [place_name(path) for path in found], rotation=90)
        axes.set_title(model, fontsize=9, color=INK)
        axes.grid(axis="x", visible=False)
    panels[0].set_ylim(-0.04, 1.04)
    panels[0].set_ylabel("share of heads kept", fontsize=8.5, color=INK)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(rules), fontsize=8, frameon=False)
    return svg(figure, name, "Share of the heads that are kept for a loss within 1 %, by attention.")


@plainly
def by_depth(stacks: Mapping[str, Mapping[str, Any]], name: str) -> str:
    """Growth without one layer, by depth and part, one panel per stack; grey: a layer at random."""
    figure = Figure(figsize=(9.6, 2.9), layout="constrained")
    panels = figure.subplots(1, len(stacks), sharey=True, squeeze=False)[0]
    for axes, (title, parts) in zip(panels, stacks.items(), strict=True):
        _bare(axes)
        axes.set_yscale("log")
        for number, (part, one) in enumerate(parts.items()):
            shift = (number - 1) * 0.12
            color = COLORS[number]
            means = [entry["mean"] for entry in one["growth"]]
            xs = [at + shift for at in range(len(means))]
            axes.plot(xs, means, color=color, marker=MARKS[number], markersize=4, linewidth=1.3, label=f"{part} off")
            for x, entry in zip(xs, one["growth"], strict=True):
                if entry["low"] is not None:
                    axes.plot([x, x], [entry["low"], entry["high"]], color=color, linewidth=1, alpha=0.45)
        random = parts["both"]["random layer"]["mean"]
        axes.axhline(random, color=GREY, linewidth=1, linestyle="--", label="both off, a layer at random")
        axes.axhline(1, color=RULE, linewidth=1)
        axes.set_xticks(range(len(means)))
        axes.set_title(title, fontsize=9, color=INK)
        axes.set_xlabel("layer", fontsize=8.5, color=INK)
    panels[0].set_ylim(0.8, 16)
    _ticks(panels[0], "y")
    panels[0].set_ylabel("growth of the loss", fontsize=8.5, color=INK)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4, fontsize=8, frameon=False)
    return svg(figure, name, "Growth of the loss without one layer or a part of it, by depth.")


@plainly
def correlations(rows: Mapping[str, Mapping[str, Any]], axis: str, name: str) -> str:
    """Rank correlations by row: a dot for each set, a bar at the mean, and grey where random rankings lie."""
    figure = Figure(figsize=(7.6, 0.9 + 0.34 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    _bare(axes)
    for row, one in enumerate(rows.values()):
        low, high = one["random"]
        axes.barh(row, high - low, left=low, height=0.72, color="#e6e8ec", zorder=0)
        axes.plot(list(one["by set"].values()), [row] * len(one["by set"]), color=BLUE, marker="o", markersize=4.2,
                  linestyle="none", alpha=0.75)  # fmt: skip
        axes.plot([one["mean"]["mean"]] * 2, [row - 0.3, row + 0.3], color=ORANGE, linewidth=2)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_yticks(range(len(rows)), [f"{label} ({one['attentions']})" for label, one in rows.items()])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(-1.05, 1.05)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(axis, fontsize=8.5, color=INK)
    told = ", ".join(f"{label} {one['mean']['mean']:.2f}" for label, one in rows.items())
    return svg(figure, name, f"{axis}: {told}.")
