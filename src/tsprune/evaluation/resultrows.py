"""Result rows of benchmarks in the files that their leaderboards read."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from tsprune.errors import TspruneError


def write_rows(path: str | PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows to a CSV file, such as GIFT-Eval's `all_results.csv` or the summaries of fev.

    A file that is not there gets a header first. None becomes an empty cell, a list is written as Python writes it,
    which is how fev's leaderboards expect quantile levels.

    Raises:
        TspruneError: if rows differ in their columns, from each other or from what the file has.
    """
    place = Path(path)
    if not rows:
        return
    names = list(rows[0])
    if odd := next((row for row in rows if list(row) != names), None):
        raise TspruneError(f"{place}: rows have other columns: {', '.join(sorted(set(odd) ^ set(names))) or 'order'}")
    there = place.is_file() and place.stat().st_size > 0
    if there:
        with place.open(encoding="utf-8", newline="") as file:
            header = next(csv.reader(file), [])
        if header != names:
            differing = ", ".join(sorted(set(header) ^ set(names))) or "their order"
            raise TspruneError(f"{place}: has other columns than the new rows ({differing}); write to another file")
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not there:
            writer.writerow(names)
        writer.writerows([[row[name] for name in names] for row in rows])
