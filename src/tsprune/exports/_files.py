"""What an export has written."""

from __future__ import annotations

from pathlib import Path


def sizes_of(directory: Path) -> dict[str, int]:
    """Bytes of every file in a directory, by its path inside, sorted."""
    found = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.stat().st_size for path in found}
