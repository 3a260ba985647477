"""Pieces of Markdown that hold names from elsewhere without breaking."""

from __future__ import annotations

from collections.abc import Sequence


def code(text: str, *, bare: bool = False) -> str:
    """A name as code, or bare for a heading; what would end the line or the code is left out."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split()).replace("`", "'")
    if bare:
        return "".join(f"\\{c}" if c in "\\*_[]<>#|" else c for c in plain)
    return f"`{plain.replace('|', '/') or '?'}`"


def loading(name: str, horizon: int, *, width: int | None = None) -> str:
    """How tsprune loads a directory or a repository, and forecasts with it.

    Args:
        name: `owner/name` on the hub, or that of the directory.
        horizon: steps.
        width: bits at which a quantised model is read, where that is to be shown.
    """
    bits = "" if width is None else f", bits={width}"
    return f"""```python
import tsprune  # pip install tsprune

model = tsprune.load({name!r}{bits})
forecast = tsprune.predict(model, "your_series.csv", horizon={horizon})
```"""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table; the first column is text, the others are numbers."""
    lines = [list(head), ["---", *["---:"] * (len(head) - 1)], *map(list, rows)]
    return [f"| {' | '.join(cells)} |" for cells in lines]
