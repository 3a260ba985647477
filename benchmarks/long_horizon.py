"""Shared by the benchmarks on the long-horizon sets: where they are, and how each is read and split."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from tsprune.evaluation.protocols import ltsf


@dataclass(frozen=True)
class DataSet(ltsf.DataSet):
    """How one set is read and split, as the protocol says, and the file it is in."""

    file: str = ""


PLAIN = ("exchange_rate", "electricity_7clients")
SETS = {
    name: DataSet(**asdict(one), file=f"{name}.csv{'' if name in PLAIN else '.gz'}") for name, one in ltsf.SETS.items()
}


def folder_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder with the long-horizon CSV files")


def require(folder: Path, names: list[str]) -> None:
    missing = [SETS[name].file for name in names if not (folder / SETS[name].file).is_file()]
    if missing:
        sys.exit(f"error: {folder} lacks {', '.join(missing)}; give the folder that holds the long-horizon sets")
