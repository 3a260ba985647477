"""What all figures share: colours, a bare figure, and the way it becomes one inline SVG string."""

from __future__ import annotations

import functools
import html
import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GREY, RULE = "#1b2430", "#6b7480", "#d8dce1"
BLUE, BAND, ORANGE = "#1f5f99", "#bcd3e8", "#c2571a"
_POINTS_TO_PX = 96 / 72
P = ParamSpec("P")


def plainly(draw: Callable[P, str]) -> Callable[P, str]:
    """Draw with matplotlib's own defaults, whatever the user's matplotlibrc says, so that bytes agree."""

    @functools.wraps(draw)
    def plain(*args: P.args, **kwargs: P.kwargs) -> str:
        from matplotlib import style

        ours: dict[str, Any] = {"svg.hashsalt": "tsprune", "svg.fonttype": "none", "font.size": 9.0}
        with style.context(["default", ours]):
            return draw(*args, **kwargs)

    return plain


def bare_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of `width` x `height` inches with one bare axes, free of pyplot and its global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9, color=GREY)
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as an SVG element whose ids start with `name`, with `alt` for those who do not see it."""
    buffer = io.StringIO()
    bare = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=bare)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', text)
    text = text.replace("url(#", f"url(#{name}-")
    width, height = (float(v) for v in figure.get_size_inches() * 72)
    # Size comes from the page: as wide as allowed, never wider than drawn.
    opening = (
        f'<svg role="img" aria-label="{html.escape(alt, quote=True)}" '
        f'viewBox="0 0 {width:g} {height:g}" style="max-width:{width * _POINTS_TO_PX:.0f}px">'
    )
    return opening + text[text.index(">") + 1 :].strip()


def labels_apart(heights: Sequence[float], gap: float) -> list[float]:
    """Label heights close to `heights` but at least `gap` apart, in the same order."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = list(heights)
    for below, above in zip(order, order[1:], strict=False):
        placed[above] = max(placed[above], placed[below] + gap)
    lifted = sum(p - h for p, h in zip(placed, heights, strict=True)) / max(len(placed), 1)
    return [p - lifted for p in placed]
