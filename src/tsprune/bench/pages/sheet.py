"""A self-contained HTML page made of plain blocks, in the look of the run report: no network, no scripts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tsprune.bench.pages.layout import Table
from tsprune.stages import writable_file, write_text

if TYPE_CHECKING:
    from markupsafe import Markup


@dataclass(frozen=True)
class Block:
    """What a section is made of; `kind` chooses its part of the template."""

    kind: ClassVar[str] = ""


@dataclass(frozen=True)
class Text(Block):
    """A paragraph; a note is smaller and grey."""

    kind: ClassVar[str] = "text"
    text: str
    note: bool = False


@dataclass(frozen=True)
class Bullets(Block):
    """A list."""

    kind: ClassVar[str] = "bullets"
    items: Sequence[str]
    note: bool = False


@dataclass(frozen=True)
class Figure(Block):
    """An inline SVG of ours with its caption; `lead` is the caption's first words, in bold."""

    kind: ClassVar[str] = "figure"
    svg: str
    caption: str
    lead: str = ""

    @property
    def markup(self) -> Markup:
        """The SVG, which our own code drew and escaped."""
        return _markup(self.svg)

    @property
    def width(self) -> int:
        """Width in pixels at which it was drawn."""
        found = re.search(r"max-width:(\d+)px", self.svg)
        return int(found[1]) if found else 600


@dataclass(frozen=True)
class Figures(Block):
    """Figures side by side where there is room: two in a row, or as many as fit at the width they were drawn."""

    kind: ClassVar[str] = "figures"
    figures: Sequence[Figure]
    flow: bool = False


@dataclass(frozen=True)
class Tabled(Block):
    """A table of numbers; long headings and cells of text are broken where `wrapped`."""

    kind: ClassVar[str] = "table"
    table: Table
    wrapped: bool = False


@dataclass(frozen=True)
class Pairs(Block):
    """Names and what is to be said of each."""

    kind: ClassVar[str] = "pairs"
    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Fold(Block):
    """Blocks that are shown on demand."""

    kind: ClassVar[str] = "fold"
    summary: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Section:
    """A numbered section; `id` is its anchor."""

    id: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Sheet:
    """A page.

    Attributes:
        title: heading, and title of the window.
        subtitle: one grey line below.
        headline: what the page has to say, above all sections.
        alerts: what is missing or not to be relied on, shown before the headline.
        facts: key figures, each with what it means.
        sections: in their order.
        footer: last line.
        command: the command that wrote it, for the title of the window.
    """

    title: str
    subtitle: str
    headline: str
    alerts: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    sections: Sequence[Section] = field(default_factory=list)
    footer: str = "Written by tsprune. This file loads nothing from anywhere and runs no scripts."
    command: str = "bench"


def write_sheet(path: str | PathLike[str], sheet: Sheet) -> Path:
    """Write a page whole or not at all; the same page gives the same bytes.

    Raises:
        TspruneError: the path is a folder, or nothing can be written there.
    """
    target = writable_file(Path(path))
    write_text(target, html_of(sheet))
    return target


def html_of(sheet: Sheet) -> str:
    """The HTML text of a page; all text is escaped, only figures are taken as they are."""
    from jinja2 import DictLoader, Environment, StrictUndefined

    own = resources.files(__package__).joinpath("templates")
    report = resources.files("tsprune.report").joinpath("templates")
    environment = Environment(
        loader=DictLoader({"sheet": own.joinpath("sheet.html.j2").read_text(encoding="utf-8")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    styles = (report.joinpath("report.css"), own.joinpath("sheet.css"))
    style = _markup("\n".join(one.read_text(encoding="utf-8") for one in styles))
    return environment.get_template("sheet").render(sheet=sheet, style=style)


def _markup(text: str) -> Markup:
    from markupsafe import Markup

    return Markup(text)
