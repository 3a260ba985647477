"""The folder is the registry, the file name is the name, and an unknown name lists the known."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from tsprune.errors import TspruneError


def names(package: str) -> list[str]:
    """Names that a package offers: its files without a leading underscore, sorted.

    Args:
        package: dotted name, such as `tsprune.scores`. None of its files is imported.
    """
    path = importlib.import_module(package).__path__
    return sorted(
        found.name for found in pkgutil.iter_modules(path) if not found.ispkg and not found.name.startswith("_")
    )


def known(package: str, name: str, flag: str = "") -> str:
    """The name as its file has it; dashes count as underscores. No file is imported.

    Args:
        package: dotted name.
        name: as somebody gave it.
        flag: where it was given, named in the error.

    Raises:
        TspruneError: no such file; the message lists the known names.
    """
    there = names(package)
    wanted = name.replace("-", "_")
    if wanted not in there:
        kind = package.rsplit(".", 1)[-1]
        said = f"{flag}: " if flag else ""
        raise TspruneError(f"{said}{name!r} is not among the {kind}; known: {', '.join(there) or 'none'}")
    return wanted


def find(package: str, name: str) -> ModuleType:
    """The module of that name; dashes count as underscores. Only this one file is imported.

    Raises:
        TspruneError: no such file; the message lists the known names.
    """
    return importlib.import_module(f"{package}.{known(package, name)}")
