"""Shared by the benchmarks on the long-horizon sets: where they are, and how each is read and split."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DataSet:
    """One set: file, split, season in steps (0 = from the frequency), and whether rows are kept as they stand."""

    file: str
    split: str
    season: int = 0
    grid: str = "regular"


# weather has a repeated stamp and a gap; the published protocol counts rows. The dates of exchange_rate are synthetic,
# so its naive forecast is the last value.
SETS = {
    "ETTh1": DataSet("ETTh1.csv.gz", "etth"),
    "ETTh2": DataSet("ETTh2.csv.gz", "etth"),
    "ETTm1": DataSet("ETTm1.csv.gz", "ettm"),
    "ETTm2": DataSet("ETTm2.csv.gz", "ettm"),
    "weather": DataSet("weather.csv.gz", "ratio 70/10/20", grid="rows"),
    "exchange_rate": DataSet("exchange_rate.csv", "ratio 70/10/20", season=1),
    "electricity_7clients": DataSet("electricity_7clients.csv", "ratio 70/10/20"),
}


def folder_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder with the long-horizon CSV files")


def require(folder: Path, names: list[str]) -> None:
    missing = [SETS[name].file for name in names if not (folder / SETS[name].file).is_file()]
    if missing:
        sys.exit(f"error: {folder} lacks {', '.join(missing)}; give the folder that holds the long-horizon sets")
