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


def find(package: str, name: str) -> ModuleType:
    """The module of that name; dashes count as underscores. Only this one file is imported.

    Raises:
        TspruneError: no such file; the message lists the known names.
    """
    known = names(package)
    wanted = name.replace("-", "_")
    if wanted not in known:
        kind = package.rsplit(".", 1)[-1]
        raise TspruneError(f"{name!r} is not among the {kind}; known: {', '.join(known) or 'none'}")
    return importlib.import_module(f"{package}.{wanted}")
