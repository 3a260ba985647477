"""Tensor names of public checkpoints and ours, in both directions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property

Rule = tuple[str, str]


class Renames:
    """Pairs of paths, public and ours; `*` stands for one part of a path and is carried over.

    A rule renames the module or tensor at that path and everything below it. The first rule that fits is taken, a
    name that none fits keeps its name.

    Args:
        rules: such as `("layers.*.self_attn.q_proj", "layers.*.layer.0.self_attn.q")`. Both sides have the same number
            of `*`, used in order.
    """

    def __init__(self, rules: Sequence[Rule] = ()) -> None:
        self._rules = tuple(rules)

    # Several families may be imported to find the one that a checkpoint belongs to, but only that one renames anything.
    @cached_property
    def _to_ours(self) -> list[tuple[re.Pattern[str], str]]:
        return [_compiled(public, own) for public, own in self._rules]

    @cached_property
    def _to_public(self) -> list[tuple[re.Pattern[str], str]]:
        return [_compiled(own, public) for public, own in self._rules]

    def ours(self, name: str) -> str:
        """Our name of a public tensor or module."""
        return _renamed(name, self._to_ours)

    def public(self, name: str) -> str:
        """The public name of a tensor or module of ours."""
        return _renamed(name, self._to_public)


def _compiled(source: str, target: str) -> tuple[re.Pattern[str], str]:
    pattern = re.escape(source).replace(r"\*", r"([^.]+)")
    pieces = target.split("*")
    written = pieces[0] + "".join(rf"\g<{number}>{piece}" for number, piece in enumerate(pieces[1:], 1))
    return re.compile(rf"{pattern}(?=\.|$)"), written


def _renamed(name: str, rules: Sequence[tuple[re.Pattern[str], str]]) -> str:
    for pattern, target in rules:
        if found := pattern.match(name):
            return found.expand(target) + name[found.end() :]
    return name
