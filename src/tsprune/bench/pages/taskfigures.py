"""Figures of single tasks and of costs: ratios with intervals, accuracy against latency, few-shot curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tsprune.data.words import many
from tsprune.report.canvas import BLUE, GREY, INK, ORANGE, bare_figure, labels_apart, plainly, svg
from tsprune.report.words import human, milliseconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_VERDICTS = {"better": (BLUE, "o", BLUE), "worse": (ORANGE, "D", ORANGE), "undecided": (GREY, "o", "white")}
"""Colour, shape and filling: each of the three is told from the others by two of them."""
_MARKERS = "osD^vPX*<>"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#7f7f7f")
"""Okabe and Ito's palette, without its yellow."""
_NEAR = 1.3
"""How far above the lowest ratio the scale of a figure may reach."""


@dataclass(frozen=True)
class Ratio:
    """A candidate against the reference on one task; ends of the interval are NaN where there are none."""

    task: str
    estimate: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True)
class Point:
    """A candidate's cost and error: latency in ms with its quartiles, and the error over the reference's."""

    candidate: str
    latency: float
    first: float
    third: float
    ratio: float
    front: bool


@plainly
def forest_figure(ratios: Sequence[Ratio], limits: tuple[float, float], name: str) -> str:
    """Error ratios of one candidate with their intervals, a line per task; what lies beyond the limits is an arrow."""
    figure, axes = bare_figure(5.2, 0.21 * len(ratios) + 0.62)
    low, high = limits
    axes.axvline(1, color=INK, linewidth=0.9)
    for y, one in enumerate(ratios):
        colour, shape, face = _VERDICTS.get(one.verdict, _VERDICTS["undecided"])
        if low <= one.estimate <= high:
            if not math.isnan(one.low):
                ends = [max(one.low, low), high if math.isnan(one.high) else min(one.high, high)]
                axes.plot(ends, [y, y], color=colour, linewidth=1.3, solid_capstyle="butt")
            axes.plot([one.estimate], [y], shape, color=colour, markerfacecolor=face, markersize=5)
            continue
        over = one.estimate > high
        edge = 0.015 * (high - low)
        axes.plot([high - edge if over else low + edge], [y], ">" if over else "<", color=colour, markersize=5)
        style: dict[str, Any] = {"ha": "right" if over else "left", "va": "center", "fontsize": 9, "color": colour}
        axes.text(high - 3 * edge if over else low + 3 * edge, y, f"{one.estimate:.2f}", **style)
    axes.set(xlim=limits, ylim=(len(ratios) - 0.4, -0.6))
    axes.set_yticks(range(len(ratios)), [one.task for one in ratios], parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("error over the reference's, below 1 is better", fontsize=9, color=INK)
    said = "; ".join(f"{one.task} {one.estimate:.3f}, {one.verdict}" for one in ratios)
    return svg(figure, name, f"Error ratios on {many(len(ratios), 'task')}: {said}.")


def shared_limits(ratios: Sequence[Ratio]) -> tuple[float, float]:
    """Limits that hold nearly all estimates and intervals, and 1; no wider than from 0.5 to 2."""
    ends = sorted(v for one in ratios for v in (one.low, one.estimate, one.high) if math.isfinite(v))
    if not ends:
        return 0.9, 1.1
    cut = len(ends) // 40
    low, high = min(ends[cut], 0.97), max(ends[-1 - cut], 1.03)
    room = 0.06 * (high - low)
    return max(low - room, 0.5), min(high + room, 2.0)


def with_front(points: Sequence[Point]) -> list[Point]:
    """The points, each saying whether no other is both as fast and as accurate, and better in one of the two."""
    return [
        Point(**{**vars(one), "front": not any(_beats(other, one) for other in points)})
        for one in points
    ]  # fmt: skip


def _beats(one: Point, other: Point) -> bool:
    as_good = one.latency <= other.latency and one.ratio <= other.ratio
    return as_good and (one.latency < other.latency or one.ratio < other.ratio)


@plainly
def latency_figure(points: Sequence[Point], reference: str, name: str) -> str:
    """Error ratio against latency; the front is filled and joined. Points far above are arrows at the top."""
    figure, axes = bare_figure(6.8, max(3.2, 0.26 * len(points) + 0.9))
    ratios = [one.ratio for one in points]
    near = [ratio for ratio in ratios if ratio <= max(_NEAR, _NEAR * min(ratios))]
    bottom, top = min(*near, 1.0), max(*near, 1.0)
    span = max(top - bottom, 0.02)
    # The last label may stand above the highest point.
    gap = 1.25 * span / max(len(points), 6)
    shown = [min(ratio, top + 0.12 * span) for ratio in ratios]
    heights = labels_apart(shown, gap)
    fastest, slowest = min(one.first for one in points), max(one.third for one in points)
    decades = math.log(max(slowest / fastest, 2.0))
    edge = slowest * math.exp(0.06 * decades)
    axes.axhline(1, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    front = sorted((one.latency, one.ratio) for one in points if one.front and one.ratio <= top)
    axes.step([x for x, _ in front], [y for _, y in front], where="post", color=BLUE, linewidth=1.1, zorder=1)
    for one, y, height in zip(points, shown, heights, strict=True):
        colour = BLUE if one.front else GREY
        shape = "^" if one.ratio > top else "s" if one.candidate == reference else "o"
        axes.plot([one.first, one.third], [y, y], color=colour, linewidth=1)
        axes.plot([one.latency], [y], shape, color=colour, markerfacecolor=colour if one.front else "white")
        axes.plot([one.latency, edge], [y, height], color=GREY, linewidth=0.5, zorder=0)
        axes.text(edge * math.exp(0.02 * decades), height, _point_text(one), fontsize=9, va="center",
                  color=BLUE if one.front else INK, parse_math=False)  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(fastest * math.exp(-0.06 * decades), edge * math.exp(1.05 * decades))
    _plain_ticks(axes, fastest, slowest)
    axes.set_ylim(min([bottom, *heights]) - 0.7 * gap, max([top, *shown, *heights]) + 0.7 * gap)
    axes.grid(False, axis="y")
    axes.set_xlabel("latency of one forecast, ms (logarithmic)", fontsize=9, color=INK, loc="left")
    axes.set_ylabel("error over the reference's", fontsize=9, color=INK)
    said = "; ".join(f"{_point_text(one)}{', on the front' if one.front else ''}" for one in points)
    return svg(figure, name, f"Error over the reference's against latency: {said}.")


def _point_text(one: Point) -> str:
    return f"{human(one.candidate)}: {one.ratio:.3f}, {milliseconds(one.latency)} ms"


def _plain_ticks(axes: Axes, low: float, high: float) -> None:
    """Ticks at 1, 2 and 5 times powers of ten within the data; a short axis has no powers of ten to show."""
    start, end = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 3, 5, 7) if high < 10 * low else (1, 2, 5) if high < 100 * low else (1,)
    ticks = [
        factor * 10.0**power
        for power in range(start, end + 1)
        for factor in factors
        if low <= factor * 10.0**power <= high
    ]
    axes.set_xticks(ticks or [math.sqrt(low * high)], [f"{tick:.3g}" for tick in ticks or [math.sqrt(low * high)]])
    axes.minorticks_off()


@plainly
def few_shot_figure(curves: Mapping[str, Sequence[tuple[float, float]]], name: str) -> str:
    """Error over that of the reference with all windows, against the share of windows used.

    Args:
        curves: candidate -> share and ratio, smallest share first; one point only is drawn as a level.
        name: begins the ids within the SVG.
    """
    shares = sorted({share for points in curves.values() for share, _ in points})
    lowest = min(ratio for points in curves.values() for _, ratio in points)
    # A rival far above would press all the others together.
    near = {one: points for one, points in curves.items() if min(r for _, r in points) <= _NEAR * lowest}
    figure, axes = bare_figure(6.6, max(3.2, 0.24 * len(near) + 1))
    every = [ratio for points in near.values() for _, ratio in points]
    gap = 1.05 * max(max(every) - min(every), 0.02) / max(len(near), 7)
    reach = math.log(max(shares[-1] / shares[0], 2.0))
    heights = labels_apart([points[-1][1] for points in near.values()], gap)
    for place, ((candidate, points), height) in enumerate(zip(near.items(), heights, strict=True)):
        colour, shape, last = _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)], points[-1]
        if len(points) == 1:
            axes.plot([shares[0], shares[-1]], [last[1]] * 2, color=colour, linewidth=1, linestyle=(0, (4, 3)))
        else:
            axes.plot(*zip(*points, strict=True), color=colour, marker=shape, markersize=5, linewidth=1.3)
        end = shares[-1] * math.exp(0.08 * reach)
        axes.plot([shares[-1], end], [last[1], height], color=colour, linewidth=0.7)
        axes.plot([end], [height], shape, color=colour, markersize=5)
        axes.text(end * math.exp(0.025 * reach), height, human(candidate), fontsize=9, va="center", color=INK,
                  parse_math=False)  # fmt: skip
    if far := [f"{human(one)} {points[-1][1]:.2f}" for one, points in curves.items() if one not in near]:
        axes.text(0.02, 0.98, "above the scale: " + ", ".join(far), transform=axes.transAxes, fontsize=9, color=GREY,
                  va="top", parse_math=False)  # fmt: skip
        axes.margins(y=0.12)
    axes.set_xscale("log")
    axes.set_xlim(shares[0] * math.exp(-0.05 * reach), shares[-1] * math.exp(0.75 * reach))
    axes.set_xticks(shares, [f"{100 * share:g} %" for share in shares])
    axes.minorticks_off()
    axes.set_xlabel("share of the training windows", fontsize=9, color=INK, loc="left")
    axes.set_ylabel("error over the full reference's", fontsize=9, color=INK)
    said = "; ".join(
        f"{human(one)}: " + ", ".join(f"{100 * share:g} % {ratio:.3f}" for share, ratio in points)
        for one, points in curves.items()
    )
    return svg(figure, name, f"Error by share of the training windows. {said}.")
