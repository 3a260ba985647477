"""The report's figures, each one inline SVG string: deterministic, no scripts, no references outwards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tsprune.errors import TspruneError
from tsprune.report.canvas import BAND, BLUE, GREY, INK, ORANGE, bare_figure, labels_apart, plainly, svg
from tsprune.report.evidence import Evidence, span
from tsprune.report.removal import Cell, RemovalMap
from tsprune.report.words import Results, baselines, count_text, error_text, human, metric, milliseconds, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GONE = "#d3d7dd"
_CELL = 1.25
"""Width of a cell of the heat map in inches."""


@dataclass(frozen=True)
class ForecastExample:
    """One test window to draw.

    Attributes:
        series: id of the series (user text; escaped wherever it is shown).
        window: timestamp or index of the first forecast step.
        history: tail of the context, oldest first; NaN = missing.
        truth: observed values [H]; NaN = missing.
        quantiles: quantile level in (0, 1) -> the chosen candidate's forecast [H].
        other: candidate name -> its median forecast [H], drawn as a thin line.
    """

    series: str
    window: str
    history: list[float]
    truth: list[float]
    quantiles: dict[float, list[float]]
    other: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise TspruneError where a path is not as long as the truth or no quantile is given."""
        steps = len(self.truth)
        if not steps or not self.quantiles:
            raise TspruneError(
                f"forecast example {self.series!r}: expected truth and at least one quantile, "
                f"found {steps} steps and {len(self.quantiles)} quantiles"
            )
        paths = {f"quantile {q}": p for q, p in self.quantiles.items()} | {f"{n!r}": p for n, p in self.other.items()}
        for name, path in paths.items():
            if len(path) != steps:
                raise TspruneError(
                    f"forecast example {self.series!r}: {name} has {len(path)} steps, "
                    f"truth has {steps}; give both the same horizon"
                )

    def level(self, wanted: float) -> float:
        """The quantile level nearest to `wanted`."""
        return min(self.quantiles, key=lambda q: (abs(q - wanted), q))


@plainly
def forecast_figure(example: ForecastExample, name: str) -> str:
    """Context tail, truth, median and the band of the outer quantiles nearest to 10 % and 90 %."""
    figure, axes = bare_figure(5.0, 2.35)
    past = range(-len(example.history), 0)
    steps = range(len(example.truth))
    low, middle, high = (example.level(q) for q in (0.1, 0.5, 0.9))
    axes.axvline(-0.5, color=GREY, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.fill_between(steps, example.quantiles[low], example.quantiles[high], color=BAND, linewidth=0)
    axes.plot(past, example.history, color=GREY, linewidth=1.0)
    # Joined to the last observation so that the eye sees one series.
    tail = example.history[-1:]
    axes.plot(range(-len(tail), len(steps)), [*tail, *example.truth], color=INK, linewidth=1.3)
    for path in example.other.values():
        axes.plot(steps, path, color=ORANGE, linewidth=0.9)
    axes.plot(steps, example.quantiles[middle], color=BLUE, linewidth=1.7)
    if len(steps) == 1:
        axes.plot(steps, example.quantiles[middle], "o", color=BLUE, markersize=4)
        axes.plot(steps, example.truth, "o", color=INK, markersize=4)
    axes.margins(x=0.01)
    axes.set_xlabel("steps from the start of the forecast", fontsize=9, color=INK)
    missing = sum(not math.isfinite(v) for v in [*example.history, *example.truth])
    alt = (
        f"Series {example.series}, forecast from {example.window}: {len(past)} steps of context, "
        f"{len(steps)} steps of truth, median and band from quantile {low:g} to {high:g}"
        + (f"; {missing} values are missing" if missing else "")
        + "."
    )
    return svg(figure, name, alt)


@plainly
def rounds_figure(pruning: Results, name: str) -> str:
    """Validation loss against the share of parameters removed, the round that was kept ringed, round 0 = unpruned."""
    rounds = [r for r in pruning.get("rounds") or [] if not math.isnan(number(r.get("removed_share")))]
    rounds.sort(key=lambda r: int(r["round"]))
    figure, axes = bare_figure(5.6, 3.1)
    shares = [100 * number(r["removed_share"]) for r in rounds]
    losses = [number(r.get("validation_loss")) for r in rounds]
    axes.plot(shares, losses, color=BLUE, linewidth=1.4, marker="o", markersize=4)
    said = ""
    for row, share, loss in zip(rounds, shares, losses, strict=True):
        if math.isnan(loss):
            continue
        if row["round"] == 0:
            axes.axhline(loss, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
            axes.annotate("unpruned", (share, loss), (6, 5), textcoords="offset points", fontsize=9, color=GREY)
        if row["round"] == pruning.get("best_round"):
            axes.plot(
                [share],
                [loss],
                "o",
                markersize=11,
                markerfacecolor="none",
                markeredgecolor=ORANGE,
                markeredgewidth=1.6,
            )
            axes.annotate(
                f"kept: round {row['round']}",
                (share, loss),
                (0, -19),
                textcoords="offset points",
                fontsize=9,
                color=ORANGE,
                ha="center",
                fontweight="bold",
            )
            said = f" Kept is round {row['round']} at {share:.1f} % removed with loss {error_text(loss)}."
    axes.margins(y=0.2)
    most = max([*shares, 5.0])
    axes.set_xlim(-0.05 * most, 1.06 * most)
    axes.set_xlabel("parameters removed, %", fontsize=9, color=INK)
    axes.set_ylabel("validation loss", fontsize=9, color=INK)
    return svg(figure, name, f"Validation loss over {len(rounds)} pruning rounds.{said}")


@plainly
def ratio_figure(standing: Mapping[str, Evidence], base: str, chosen: str, name: str) -> str:
    """Ratio of every candidate's error to the reference's with its interval, the best at the top; 1 is the reference.

    Filled is what differs by more than chance. Whiskers that would squeeze the rest together end in an arrow.
    """
    rows = {title: e for title, e in standing.items() if title != base and not math.isnan(e.ratio)}
    figure, axes = bare_figure(6.6, 0.27 * len(rows) + 0.75)
    far = 2 * max([abs(e.ratio - 1) for e in rows.values()] + [0.05])
    left, right = max(0.0, 1 - far), 1 + far
    inside = [v for e in rows.values() for v in (e.low, e.high, e.ratio) if left <= v <= right] + [1.0]
    margin = 0.06 * (max(inside) - min(inside)) + 0.005
    left, right = max(left, min(inside) - margin), min(right, max(inside) + margin)
    axes.axvline(1, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)))
    said = []
    for y, (title, evidence) in enumerate(rows.items()):
        color = BLUE if title == chosen else INK
        if not math.isnan(evidence.low):
            low, high = max(evidence.low, left), min(evidence.high, right)
            axes.plot([low, high], [y, y], color=color, linewidth=1.4)
            for end, cut, arrow in ((low, evidence.low < left, "<"), (high, evidence.high > right, ">")):
                axes.plot([end], [y], arrow if cut else "|", color=color, markersize=6, clip_on=False)
        face = color if evidence.shown else "white"
        axes.plot([evidence.ratio], [y], "o", markersize=6, markerfacecolor=face, markeredgecolor=color)
        said.append(f"{human(title)}: {span(evidence)}")
    axes.set(xlim=(left, right), ylim=(len(rows) - 0.5, -0.5))
    axes.grid(False, axis="y")
    axes.set_yticks(range(len(rows)), [human(title) for title in rows], parse_math=False)
    for label, title in zip(axes.get_yticklabels(), rows, strict=True):
        label.set(color=BLUE if title == chosen else INK, fontweight="bold" if title == chosen else "normal")
    axes.set_xlabel(f"test MSE over that of {human(base)}", fontsize=9, color=INK)
    return svg(figure, name, f"Ratios of test MSE to {human(base)} with intervals. " + "; ".join(said) + ".")


@plainly
def size_figure(results: Results, name: str) -> str:
    """Test MSE against parameters with latency; a baseline without parameters is a level."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = bare_figure(6.6, 3.4)
    models, levels = [], {}
    for candidate in results["candidates"]:
        size, error = number(candidate.get("parameters")), metric(candidate, "test", "mse")
        if candidate["name"] in baselines() and not size > 0:
            levels[human(candidate["name"])] = error
        elif not math.isnan(size) and not math.isnan(error):
            models.append((candidate, size, error))
    errors = [error for *_, error in models]
    # At least 5 % of the level, so that differences the verdict calls "about the same" look it.
    span = max(max(errors) - min(errors), 0.05 * max(errors)) or 1.0 if errors else 1.0
    # Names stand in a column of their own at the right, so that none covers a point.
    heights = labels_apart(errors, 0.13 * span)
    largest = max((size for _, size, _ in models), default=1.0) or 1.0
    said = []
    for (candidate, size, error), height in zip(models, heights, strict=True):
        chosen = candidate["name"] == results.get("chosen")
        color = BLUE if chosen else INK
        latency = number(candidate.get("latency_ms"))
        text = human(candidate["name"]) + ("" if math.isnan(latency) else f", {milliseconds(latency)} ms")
        axes.plot([size], [error], "o" if not chosen else "D", color=color, markersize=7)
        axes.plot([size, 1.07 * largest], [error, height], color=GREY, linewidth=0.6, zorder=1)
        axes.text(
            1.09 * largest,
            height,
            text,
            fontsize=9,
            color=color,
            va="center",
            fontweight="bold" if chosen else "normal",
            parse_math=False,
        )
        said.append(f"{text}: MSE {error_text(error)} with {count_text(size)} parameters")
    axes.set_xlim(0, largest * 1.85)
    axes.set_xticks([t for t in MaxNLocator(5).tick_values(0, largest) if t <= largest * 1.05])
    axes.spines["bottom"].set_bounds(0, largest * 1.05)
    axes.grid(False, axis="y")
    if errors:
        middle = (min([*errors, *heights]) + max([*errors, *heights])) / 2
        reach = max(max([*errors, *heights]) - min([*errors, *heights]), span) / 2 + 0.28 * span
        axes.set_ylim(middle - reach, middle + reach)
    levels = {title: error for title, error in levels.items() if not math.isnan(error)}
    _draw_levels(axes, levels)
    said += [f"{title}: MSE {error_text(error)}" for title, error in levels.items()]
    axes.xaxis.set_major_formatter(lambda value, _: _tick(value))
    axes.set_xlabel("parameters", fontsize=9, color=INK, x=0.5 * 1.05 / 1.85)
    axes.set_ylabel("test MSE", fontsize=9, color=INK)
    return svg(figure, name, "Test MSE against parameters. " + "; ".join(said) + ".")


def _tick(value: float) -> str:
    """`2.00 M` as `2 M`."""
    size, _, letter = count_text(value).partition(" ")
    return f"{float(size):g} {letter}".strip()


def _draw_levels(axes: Axes, levels: Mapping[str, float]) -> None:
    """Draw baselines as levels; say where those are that would squeeze the models together."""
    bottom, top = axes.get_ylim()
    inside = {title: error for title, error in levels.items() if bottom < error < top}
    for place, (title, error) in enumerate(inside.items()):
        end = axes.spines["bottom"].get_bounds()[1]
        axes.plot([0, end], [error, error], color=GREY, linewidth=0.9, linestyle=(0, (4, 3)))
        # Side by side, since levels may lie close together.
        axes.annotate(
            title,
            (0.012 + 0.14 * place, error),
            (0, 3),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            fontsize=9,
            color=GREY,
        )
    for where, height in (("above", 0.98), ("below", 0.02)):
        outside = {title: e for title, e in levels.items() if title not in inside and (e >= top) == (where == "above")}
        if outside:
            axes.text(
                0.012,
                height,
                "\n".join(f"{title}: {error_text(error)}, {where} this range" for title, error in outside.items()),
                transform=axes.transAxes,
                fontsize=9,
                color=GREY,
                va="top" if where == "above" else "bottom",
            )


@plainly
def removal_figure(removal: RemovalMap, name: str) -> str:
    """Heat map: a row per layer, a column per prunable part, cell = share kept; removed parts hatched."""
    rows, columns, wide = removal.rows, removal.columns, _CELL
    after = wide * len(columns) + 0.12
    label = 0.085 * max((len(r.label) for r in rows), default=1) + 0.2
    total = after + 0.075 * max((len(r.whole) for r in rows), default=1) + 0.6
    figure, axes = bare_figure(label + total + 0.1, 0.3 * len(rows) + 0.62)
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            if column in row.cells:
                _draw_cell(axes, x * wide, y, row.cells[column])
        strong: dict[str, Any] = {"color": ORANGE, "fontweight": "bold"} if row.removed else {"color": GREY}
        axes.text(after, y + 0.5, row.whole, va="center", fontsize=9, parse_math=False, **strong)
    axes.set(xlim=(0, total), ylim=(len(rows), 0))
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9)
    axes.xaxis.tick_top()
    places = [(x + 0.5) * wide for x in range(len(columns))] + [after]
    axes.set_xticks(places, [*columns, "whole parts"], parse_math=False)
    axes.get_xticklabels()[-1].set_horizontalalignment("left")
    axes.set_yticks([y + 0.5 for y in range(len(rows))], [r.label for r in rows], parse_math=False)
    return svg(figure, name, "Units kept per layer. " + removal.sentence())


def _draw_cell(axes: Axes, x: float, y: float, cell: Cell) -> None:
    """One cell of the heat map with its upper left corner at `x`, `y`; hatched when nothing is left of it."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    gone = cell.removed or not cell.kept
    face = _GONE if gone else colormaps["Blues"](0.08 + 0.62 * cell.share)
    shape = Rectangle((x, y), _CELL, 1, facecolor=face, edgecolor="white", linewidth=1.5)
    color = "white" if not gone and cell.share > 0.75 else INK
    text = axes.text(x + _CELL / 2, y + 0.5, cell.text, ha="center", va="center", fontsize=9, color=color)
    if gone:
        shape.set_hatch("////")
        text.set_bbox({"facecolor": _GONE, "edgecolor": "none", "pad": 1})
    axes.add_patch(shape)
