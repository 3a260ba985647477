"""What stands at the ends of every page: what is missing at the top, machine and versions at the bottom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tsprune.bench.pages.sheet import Block, Bullets, Fold, Pairs
from tsprune.data.words import many

_SHOWN = 8


def missing_alerts(summary: Mapping[str, Any]) -> list[str]:
    """That cells are missing, and the first of them."""
    missing = [str(one) for one in summary.get("missing") or []]
    if not missing:
        return []
    is_or_are = "is" if len(missing) == 1 else "are"
    said = [f"This is not finished: {many(len(missing), 'cell')} {is_or_are} missing.", *missing[:_SHOWN]]
    return said + ([f"And {len(missing) - _SHOWN} more, listed at the end."] if len(missing) > _SHOWN else [])


def machine_blocks(summary: Mapping[str, Any]) -> list[Block]:
    """Machine, versions, settings, notes, and all that is missing where the top had no room for it."""
    versions = ", ".join(f"{name} {value}" for name, value in (summary.get("versions") or {}).items())
    pairs = [("machine", str(summary.get("machine") or "not recorded")), ("versions", versions or "not recorded")]
    blocks: list[Block] = [Pairs(pairs + _described(summary.get("settings") or {}))]
    if notes := [str(note) for note in summary.get("notes") or []]:
        blocks.append(Bullets(notes, note=True))
    missing = [str(one) for one in summary.get("missing") or []]
    if len(missing) > _SHOWN:
        blocks.append(Fold(f"All {len(missing)} missing cells", [Bullets(missing, note=True)]))
    return blocks


def _described(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Settings as pairs of text; what is nested is joined by dots."""
    found: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found += [(f"{name}.{inner}", text) for inner, text in _described(value)]
        else:
            several = isinstance(value, list | tuple)
            found.append((str(name), ", ".join(map(str, value)) if several else str(value)))
    return found
