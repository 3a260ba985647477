"""Which family a config belongs to, asked of as few families as possible: each one is a module to import."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tsprune import registry
from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster

PACKAGE = "tsprune.models"
NAMING = ("architectures", "model_type", "chronos_pipeline_class")
"""Entries of a config that name a class or a kind of model."""


def family_of(config: Mapping[str, Any], family: str | None, where: Path, likely: str = "") -> type[Forecaster]:
    """The family that a config belongs to.

    Args:
        config: the public config.
        family: name that the user gave, or None.
        where: file named in errors.
        likely: family that the plan beside the config names, asked first; nothing for none.

    Raises:
        TspruneError: no family recognises the config, or another one than the user named.
    """
    there = registry.names(PACKAGE)
    # A user's word is held against what all say; else whoever the files name is asked first.
    named = [] if family is not None else likeliest(config, there, likely)
    own = next((name for name in dict.fromkeys([*named, *there]) if _kind(name).recognises(config)), None)
    if family is None:
        if own is None:
            found = config.get("architectures") or config.get("model_type") or "nothing that names one"
            raise TspruneError(
                f"{where}: no family recognises this config ({found}); known families: {', '.join(there)}"
            )
        return _kind(own)
    wanted = _kind(registry.known(PACKAGE, family))
    if own is not None and _kind(own) is not wanted:
        raise TspruneError(f"{where}: this is a {own} model, not {family}; leave the family out or say {own}")
    return wanted


def likeliest(config: Mapping[str, Any], there: Sequence[str], told: str = "") -> list[str]:
    """Families that the files seem to name, the likeliest first.

    Args:
        config: the public config; a class in it mostly begins with the name of its family.
        there: all families.
        told: name of a family, or nothing.
    """
    words = [_plain(word) for word in _words(config)]
    fitting = [name for name in there if any(word.startswith(_plain(name)) for word in words)]
    first = [told] if told in there else []
    return list(dict.fromkeys([*first, *sorted(fitting, key=len, reverse=True)]))


def _words(config: Mapping[str, Any]) -> Iterator[str]:
    for entry in NAMING:
        said = config.get(entry)
        yield from (word for word in (said if isinstance(said, list) else [said]) if isinstance(word, str))


def _plain(word: str) -> str:
    return "".join(filter(str.isalnum, word)).lower()


def _kind(name: str) -> type[Forecaster]:
    kind: type[Forecaster] = importlib.import_module(f"{PACKAGE}.{name}").FAMILY
    return kind
