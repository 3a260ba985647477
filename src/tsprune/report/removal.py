"""Which units a plan removed from which layer, arranged for a heat map and a small table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tsprune.errors import TspruneError
from tsprune.report.words import number

WHOLE = {"layer": "layer", "attention": "attention", "ffn": "FFN"}
"""Kinds whose single unit is the whole part."""
KINDS = {
    "head": "heads",
    "kv_group": "KV groups",
    "qk_pair": "QK pairs",
    "value_dim": "value dims",
    "ffn_channel": "FFN channels",
    "expert": "experts",
    "in_channel": "in channels",
    "out_channel": "out channels",
    "attention": "whole attentions",
    "ffn": "whole FFNs",
    "layer": "whole layers",
}


@dataclass(frozen=True)
class Cell:
    """Units of one group: `kept` of `units`; `removed` when the part went away as a whole."""

    kept: int
    units: int
    removed: bool

    @property
    def share(self) -> float:
        """Share of units kept, 0 to 1."""
        return self.kept / self.units if self.units and not self.removed else 0.0

    @property
    def text(self) -> str:
        """For example `3/4`, or `removed`."""
        return "removed" if self.removed else f"{self.kept}/{self.units}"


@dataclass(frozen=True)
class Row:
    """One layer: its cells by column, what is said of its whole parts, and whether one of them is gone."""

    label: str
    cells: dict[str, Cell]
    whole: str
    removed: bool


@dataclass(frozen=True)
class KindCount:
    """Units of one kind over the whole model; `parameters` is None where a unit's cost is not known."""

    kind: str
    kept: int
    units: int
    parameters: int | None


@dataclass(frozen=True)
class RemovalMap:
    """Rows and columns of the heat map, and the totals by kind."""

    rows: tuple[Row, ...]
    columns: tuple[str, ...]
    kinds: tuple[KindCount, ...]

    def sentence(self) -> str:
        """Totals in words, for example `heads: 40 of 48 kept; whole layers: 5 of 6 kept.`"""
        return "; ".join(f"{k.kind}: {k.kept} of {k.units} kept" for k in self.kinds) + "."


@dataclass(frozen=True)
class _Group:
    path: str
    kind: str
    units: int
    kept: int
    cost: float
    """Parameters of one unit; NaN where not known."""


def _groups(plan: Mapping[str, Any], units: Mapping[str, Any] | None) -> list[_Group]:
    """The plan's groups, and those only `units` knows, which the plan left whole."""
    planned: Mapping[str, Any] = plan.get("groups") or {}
    known = units or {}
    found = []
    # The model's own order where it is given; json readers may have sorted the plan.
    for name in [*known, *(n for n in planned if n not in known)]:
        entry = planned.get(name) or known[name]
        path, slash, kind = name.rpartition("/")
        if not slash or not path:
            raise TspruneError(
                f"plan: group {name!r} has no kind; expected '<module path>/<kind>', "
                "for example 'encoder.block.0/layer'"
            )
        count = int(entry["units"])
        kept = entry.get("kept") if name in planned else None
        cost = number((known.get(name) or {}).get("parameters"))
        found.append(_Group(path, kind, count, count if kept is None else len(set(kept)), cost))
    return found


def _natural(path: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts layer 10 after layer 9."""
    return tuple((1, int(p), "") if p.isdigit() else (0, 0, p) for p in path.split("."))


def _layer_of(path: str, layers: list[str]) -> str:
    """The layer a module belongs to: a declared one, else the path up to its first number."""
    inside = [layer for layer in layers if path == layer or path.startswith(layer + ".")]
    if inside:
        return max(inside, key=len)
    found = re.match(r"(.*?\.\d+|\d+)(?=\.|$)", path)
    return found.group(1) if found else path


def _part(path: str, layer: str) -> str:
    """The module inside its layer in words: its last name that is no number; empty for the layer itself."""
    names = [p for p in path[len(layer) :].split(".") if p and not p.isdigit()]
    return names[-1].replace("_", " ") if names else ""


def _whole(layer: str, gone: list[_Group], offered: list[_Group]) -> str:
    if not offered:
        return ""
    if any(g.kind == "layer" for g in gone):
        return "layer removed"
    if not gone:
        return "kept"
    return ", ".join(_part(g.path, layer) or WHOLE[g.kind] for g in gone) + " removed"


def _inside(group: _Group, whole: _Group) -> bool:
    """Whether `group` goes away together with the removed part `whole`."""
    same = group.path == whole.path and group.kind not in WHOLE
    return same or group.path.startswith(whole.path + ".")


def _kind_counts(groups: list[_Group], lost: dict[tuple[str, str], bool]) -> tuple[KindCount, ...]:
    totals: dict[str, list[float]] = {}
    for g in groups:
        kept = 0 if lost[g.path, g.kind] else g.kept
        row = totals.setdefault(g.kind, [0, 0, 0.0])
        row[0] += kept
        row[1] += g.units
        # Units inside a removed part are counted with that part, not twice.
        row[2] += 0.0 if lost[g.path, g.kind] else (g.units - kept) * g.cost
    return tuple(
        KindCount(
            KINDS.get(kind, kind.replace("_", " ")),
            int(kept),
            int(units),
            None if cost != cost else int(cost),
        )
        for kind, (kept, units, cost) in totals.items()
    )


def removal_map(plan: Mapping[str, Any], units: Mapping[str, Any] | None = None) -> RemovalMap:
    """Arrange a plan by layer and part.

    Args:
        plan: content of plan.json, schema 1.
        units: group name -> {"kind", "units"[, "parameters": of one unit]} of the whole unpruned model, in
            its order; groups the plan does not name were kept whole. None: only the plan's groups are shown.

    Raises:
        TspruneError: a group name without a kind.
    """
    groups = _groups(plan, units)
    if units is None:
        groups.sort(key=lambda g: _natural(g.path))
    layers = [g.path for g in groups if g.kind == "layer"]
    gone = [g for g in groups if g.kind in WHOLE and g.kept == 0]
    lost = {(g.path, g.kind): any(_inside(g, w) for w in gone) for g in groups}
    inside = [g for g in groups if g.kind not in WHOLE]
    homes = {g.path: _layer_of(g.path, layers) for g in groups}
    columns = {(g.path, g.kind): _column(g, homes[g.path]) for g in inside}
    clashes = Counter((homes[g.path], columns[g.path, g.kind]) for g in inside)
    crowded = {column for (_, column), times in clashes.items() if times > 1}
    rows: list[Row] = []
    order: list[str] = []
    for layer in dict.fromkeys(homes[g.path] for g in groups):
        cells: dict[str, Cell] = {}
        for g in (g for g in inside if homes[g.path] == layer):
            column = columns[g.path, g.kind]
            if column in crowded:  # two modules of one name in a layer: tell them apart by their path
                column = f"{g.path[len(layer) :].strip('.')}\n{KINDS.get(g.kind, g.kind)}"
            cells[column] = Cell(g.kept, g.units, lost[g.path, g.kind])
        order += [c for c in cells if c not in order]
        offered = [g for g in groups if g.kind in WHOLE and homes[g.path] == layer]
        dropped = [g for g in gone if homes[g.path] == layer]
        rows.append(Row(layer, cells, _whole(layer, dropped, offered), bool(dropped)))
    return RemovalMap(tuple(rows), tuple(_in_family(order)), _kind_counts(groups, lost))


def _column(group: _Group, layer: str) -> str:
    kind = KINDS.get(group.kind, group.kind.replace("_", " "))
    part = _part(group.path, layer)
    return f"{part}\n{kind}" if part else kind


def _in_family(columns: list[str]) -> list[str]:
    """Heads before channels before the rest, otherwise as they came."""

    def rank(column: str) -> int:
        kind = column.rsplit("\n", 1)[-1]
        return list(KINDS.values()).index(kind) if kind in KINDS.values() else len(KINDS)

    return sorted(columns, key=rank)
