"""Figures of ranks: how often each method came where, and the critical-difference diagram."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from tsprune.bench.pages.ranks import Ranking, mean_ranks
from tsprune.bench.pages.signedrank import midranks
from tsprune.bench.pages.tasking import Matrix
from tsprune.data.words import listed, many
from tsprune.report.canvas import BLUE, GREY, INK, ORANGE, bare_figure, plainly, svg
from tsprune.report.words import human

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LONG, _ROW, _LETTER = 4.2, 0.27, 0.078
"""Length of the line of ranks, height of a method, and width of a letter, in inches."""


@plainly
def rank_figure(matrix: Matrix, name: str) -> str:
    """Ranks of each method on all tasks, as circles with areas like their numbers, and the mean as a bar."""
    order, means = mean_ranks(matrix)
    ranks = midranks(matrix.errors)
    tasks, methods = ranks.shape
    figure, axes = bare_figure(6.6, 0.33 * methods + 0.6)
    labels = [human(matrix.methods[i]) for i in order]
    for y, column in enumerate(order):
        counts = Counter(ranks[:, column].tolist())
        areas = [260 * times / tasks for times in counts.values()]
        axes.scatter(list(counts), [y] * len(counts), s=areas, color="#9bbcd9", linewidths=0)
        axes.plot([means[y]] * 2, [y - 0.34, y + 0.34], color=BLUE, linewidth=2.4, solid_capstyle="butt")
        axes.text(
            methods + 1.3, y, f"{means[y]:.2f}", va="center", ha="right", fontsize=9, color=INK, clip_on=False
        )  # fmt: skip
    axes.set(xlim=(0.6, methods + 1.35), ylim=(methods - 0.4, -0.6))
    axes.set_xticks(range(1, methods + 1))
    axes.set_yticks(range(methods), labels, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(False, axis="y")
    axes.set_xlabel("rank on a task, 1 is the lowest error", fontsize=9, color=INK)
    said = "; ".join(f"{label} {mean:.2f}" for label, mean in zip(labels, means, strict=True))
    return svg(figure, name, f"Mean ranks over {many(tasks, 'task')}: {said}.")


@plainly
def critical_difference_figure(ranking: Ranking, name: str) -> str:
    """Methods on a line by their mean ranks, with a bar over every run of methods that are not told apart.

    The bracket above is as wide as Nemenyi's critical difference.
    """
    count = len(ranking.methods)
    left = math.ceil(count / 2)
    deep = 0.18 * len(ranking.groups)
    label = _LETTER * (max(len(human(method)) for method in ranking.methods) + 6) + 0.2
    figure, axes = bare_figure(_LONG + 2 * label, 1.05 + deep + _ROW * left)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xticks([])
    axes.set_yticks([])
    # Methods hang below the bars, half of them on either side.
    reach = max(count - 1, 1)
    side = label / _LONG * reach
    axes.set(xlim=(1 - side, count + side), ylim=(0.3 + deep + _ROW * left, -0.8))
    _draw_line(axes, count)
    difference = ranking.critical_difference
    if difference is not None:
        _draw_bracket(axes, difference, ranking.alpha)
    for place, (low, high) in enumerate(ranking.groups):
        y = 0.14 + 0.18 * place
        ends = [ranking.mean_ranks[low] - 0.012 * reach, ranking.mean_ranks[high] + 0.012 * reach]
        axes.plot(ends, [y, y], color=ORANGE, linewidth=4, solid_capstyle="butt")
    for place, (method, mean) in enumerate(zip(ranking.methods, ranking.mean_ranks, strict=True)):
        on_left = place < left
        y = deep + 0.2 + _ROW * (place if on_left else count - 1 - place)
        edge = 1 - 0.04 * reach if on_left else count + 0.04 * reach
        axes.plot([mean, mean, edge], [0, y, y], color=GREY, linewidth=0.8)
        text = f"{human(method)}  {mean:.2f}" if on_left else f"{mean:.2f}  {human(method)}"
        shift = -0.02 * reach if on_left else 0.02 * reach
        style: dict[str, Any] = {"ha": "right" if on_left else "left", "va": "center", "fontsize": 9, "color": INK}
        axes.text(edge + shift, y, text, parse_math=False, **style)
    return svg(figure, name, _alternative(ranking))


def _draw_line(axes: Axes, count: int) -> None:
    axes.plot([1, count], [0, 0], color=INK, linewidth=1.2)
    for mark in range(1, count + 1):
        axes.plot([mark, mark], [0, -0.07], color=INK, linewidth=1)
        axes.text(mark, -0.11, str(mark), ha="center", va="bottom", fontsize=9, color=INK)


def _draw_bracket(axes: Axes, difference: float, alpha: float) -> None:
    y = -0.45
    axes.plot([1, 1 + difference], [y, y], color=GREY, linewidth=1)
    for end in (1, 1 + difference):
        axes.plot([end, end], [y - 0.05, y + 0.05], color=GREY, linewidth=1)
    text = f"Nemenyi's critical difference at {alpha:g}: {difference:.2f}"
    axes.text(1, y - 0.08, text, ha="left", va="bottom", fontsize=9, color=GREY)


def _alternative(ranking: Ranking) -> str:
    ranks = "; ".join(
        f"{human(method)} {mean:.2f}" for method, mean in zip(ranking.methods, ranking.mean_ranks, strict=True)
    )
    groups = [
        listed([human(name) for name in ranking.methods[low : high + 1]], high - low + 1)
        for low, high in ranking.groups
    ]
    said = "; ".join(groups) if groups else "none"
    return f"Mean ranks over {many(ranking.tasks, 'data set')}: {ranks}. Groups that are not told apart: {said}."
