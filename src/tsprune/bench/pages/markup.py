"""Escapes: text of the user's as it is, in LaTeX and in Markdown."""

from __future__ import annotations

import re

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "–": "--",
    "\u00a0": "~",
}
# A bracket that begins a cell would be read as the optional argument of the line end before it.
_OPENING = re.compile(r"^\[")


def latex_escaped(text: str) -> str:
    """Text that LaTeX prints as it stands; line breaks become blanks."""
    flat = " ".join(text.splitlines())
    return _OPENING.sub("{[}", "".join(_LATEX.get(letter, letter) for letter in flat))


def markdown_escaped(text: str) -> str:
    """Text that Markdown shows as it stands, in a table's cell too; line breaks become blanks."""
    flat = " ".join(text.splitlines()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", flat)
