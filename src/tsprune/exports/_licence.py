"""The licence of weights: what their publisher said, and what may therefore be said of a model made from them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tsprune.errors import TspruneError
from tsprune.exports._lineage import Ancestor

BUNDLED_LICENCE = "Apache-2.0"
CARD = "README.md"
TEXTS = ("LICENSE", "LICENSE.md", "LICENSE.txt", "LICENCE", "LICENCE.md", "LICENCE.txt")
NOTICES = ("NOTICE", "NOTICE.md", "NOTICE.txt")
SILENT = ("", "unknown", "other", "none")
"""Names that name nothing."""
PERMISSIVE = ("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "unlicense", "cc0-1.0", "cc-by-4.0")
"""Those under which a changed model may be published under another licence, with the original one told."""
HUB = (
    *PERMISSIVE, "afl-3.0", "agpl-3.0", "apple-amlr", "artistic-2.0", "bigscience-bloom-rail-1.0",
    "bigscience-openrail-m", "bsd-3-clause-clear", "bsl-1.0", "cc", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0",
    "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0",
    "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cdla-permissive-2.0",
    "creativeml-openrail-m", "ecl-2.0", "epl-1.0", "epl-2.0", "eupl-1.1", "eupl-1.2", "gemma", "gfdl", "gpl",
    "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "llama2", "llama3", "mpl-2.0", "ms-pl", "odbl", "ofl-1.1",
    "openrail", "openrail++", "osl-3.0", "pddl", "postgresql", "wtfpl", "zlib",
)  # fmt: skip
"""Licences that the hub knows by an identifier."""
_MARKS = (
    (("attribution-noncommercial-sharealike 4.0",), "CC-BY-NC-SA-4.0"),
    (("attribution-noncommercial-noderivatives 4.0",), "CC-BY-NC-ND-4.0"),
    (("attribution-noncommercial 4.0",), "CC-BY-NC-4.0"),
    (("attribution-sharealike 4.0",), "CC-BY-SA-4.0"),
    (("attribution-noderivatives 4.0",), "CC-BY-ND-4.0"),
    (("attribution 4.0 international",), "CC-BY-4.0"),
    (("apache license", "version 2.0, january 2004"), "Apache-2.0"),
    (("permission is hereby granted, free of charge", '"as is"'), "MIT"),
    (("redistribution and use in source and binary forms", "neither the name"), "BSD-3-Clause"),
    (("redistribution and use in source and binary forms",), "BSD-2-Clause"),
)
"""Words that a licence's text holds, in lower case and with single blanks; the first match counts."""


@dataclass(frozen=True)
class Licence:
    """What a model may be used for.

    Args:
        name: as its publisher says it; "" where it is unknown.
        told_by: who says so, for people; of an unknown one, what was looked at in vain.
        base: licence of the weights it was made from, where the user gave another name.
        texts: files with licence and notices that go with the weights.
    """

    name: str = ""
    told_by: str = ""
    base: str = ""
    texts: tuple[Path, ...] = ()

    @property
    def known(self) -> bool:
        """Whether there is one to be told."""
        return bool(self.name)

    @property
    def commercial(self) -> bool:
        """Whether nothing in its name, nor in that of the base, keeps it from commercial use."""
        return not any(re.search(r"non-?commercial|-nc\b|research", name.lower()) for name in (self.name, self.base))

    def front_matter(self) -> dict[str, str]:
        """`license` as the hub spells it; of one that it does not know, `other` and `license_name`."""
        if not self.known:
            return {"license": "unknown"}
        found = identifier(self.name)
        return {"license": found} if found in HUB else {"license": "other", "license_name": found}


def identifier(name: str) -> str:
    """A licence's name in the hub's spelling: without remarks in brackets, in lower case, with hyphens."""
    plain = re.sub(r"\(.*?\)", "", name).strip().lower()
    return re.sub(r"[^a-z0-9.+]+", "-", plain).strip("-")


def licence_of(ancestors: Sequence[Ancestor], given: str = "") -> Licence:
    """The licence of a model: that of the nearest ancestor that states one.

    Args:
        ancestors: as `lineage` finds them.
        given: what the user says. It is needed where nothing is known, and may differ from what is known only where
            that is permissive; both are told then.

    Raises:
        TspruneError: the name given is none, or contradicts a licence that binds what is made from the weights.
    """
    given = _checked(given)
    stated = [_stated(one) for one in ancestors]
    # Of two texts of one name, that of the nearer model.
    texts = {path.name: path for one in reversed(stated) for path in one.texts}
    vain = "; ".join(one.told_by for one in stated if one.told_by and not one.known)
    found = next((one for one in stated if one.known), Licence("", vain))
    found = replace(found, texts=tuple(texts[name] for name in sorted(texts)))
    if not given:
        return found
    if not found.known:
        return replace(found, name=given, told_by="whoever published this model")
    if identifier(given) == identifier(found.name):
        return found
    if identifier(found.name) not in PERMISSIVE:
        raise TspruneError(
            f"--license {given}: the weights that this model was made from are under {found.name} ({found.told_by}), "
            "which is carried over; leave --license out. If their publisher allowed you more, export without --push, "
            f"correct {CARD} and upload it yourself"
        )
    return replace(found, name=given, told_by="whoever published this model", base=found.name)


def _checked(given: str) -> str:
    name = given.strip()
    if not given:
        return ""
    if identifier(name) in SILENT or not re.fullmatch(r"[\w.+() -]{1,80}", name):
        raise TspruneError(f"--license {given!r} names no licence; give one such as apache-2.0 or cc-by-nc-4.0")
    return name


def _stated(one: Ancestor) -> Licence:
    """What one model's publisher says; its family's list first, then its own card and licence file."""
    if one.bundled:
        return Licence(BUNDLED_LICENCE, "tsprune, which holds the model")
    texts = tuple(path for name in (*TEXTS, *NOTICES) if (path := one.file(name)) is not None)
    if one.checkpoint is not None and identifier(one.checkpoint.licence) not in ("not-stated", *SILENT):
        unsure = ", not verified" if "not verified" in f"{one.checkpoint.note} {one.checkpoint.licence}" else ""
        return Licence(one.checkpoint.licence, f"the list of `tsprune models`{unsure}", "", texts)
    card, text = _of_card(one.file(CARD)), next((path for path in texts if path.name in TEXTS), None)
    read = recognised(text.read_text(encoding="utf-8", errors="replace")) if text is not None else ""
    if card and read and identifier(card) != identifier(read):
        return Licence("", f"{CARD} of {one.name} says {card}, its {text and text.name} is {read}", "", texts)
    if card or read:
        where = " and ".join(name for name in (CARD if card else "", text.name if read and text else "") if name)
        return Licence(card or read, f"{where} of {one.name}", "", texts)
    if text is not None:
        return Licence("", f"{text.name} of {one.name} is none that tsprune recognises", "", texts)
    return Licence()


def recognised(text: str) -> str:
    """Name of the licence whose text this is, or "". Only well-known ones; the beginning and the words of the grant."""
    plain = " ".join(text.lower().split()).replace("\u201c", '"').replace("\u201d", '"')
    return next((name for marks, name in _MARKS if all(mark in plain for mark in marks)), "")


def _of_card(path: Path | None) -> str:
    """The licence in the front matter of a card, "" where there is none."""
    matter = front_matter(path.read_text(encoding="utf-8", errors="replace")) if path is not None else {}
    stated = matter.get("license")
    if isinstance(stated, list):
        stated = stated[0] if len(stated) == 1 else ""
    name = str(stated or "")
    if name.lower() == "other":
        name = str(matter.get("license_name") or "")
    return "" if name.lower() in SILENT else name


def front_matter(text: str) -> dict[str, Any]:
    """The YAML between the first two lines of `---`; empty where there is none or it cannot be read."""
    found = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    try:
        matter = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return {}
    return matter if isinstance(matter, dict) else {}
