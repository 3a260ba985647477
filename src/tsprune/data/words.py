"""Counts and lists in sentences."""

from __future__ import annotations

from collections.abc import Sequence


def listed(names: Sequence[object], most: int = 5) -> str:
    """A few names, and how many more there are."""
    text = ", ".join(str(name) for name in names[:most])
    return text + (f" and {len(names) - most:,} more" if len(names) > most else "")


def many(count: int, one: str, several: str = "") -> str:
    """A count with its noun: "1 gap", "2 gaps"."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"
