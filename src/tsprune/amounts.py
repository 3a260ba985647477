"""Amounts as people write them."""

from __future__ import annotations

import re

from tsprune.errors import TspruneError

SHORTHAND = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def byte_count(text: str, flag: str) -> int:
    """Bytes of an amount of memory such as 500MB, 2 GB or 1.5GiB.

    Args:
        text: a positive number and its unit.
        flag: named in the message.

    Raises:
        TspruneError: no such amount.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B\s*", text, re.IGNORECASE)
    count = int(float(found[1]) * SHORTHAND.get(found[2].upper(), 0)) if found else 0
    if count < 1:
        raise TspruneError(f"{flag} {text!r} is no amount of memory; give a number with its unit, such as 500MB or 2GB")
    return count
