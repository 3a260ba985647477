"""Pretrained minis of further families: made, compared with seasonal naive, and specialised.

    OMP_NUM_THREADS=1 python benchmarks/minis.py FOLDER --corpus CORPUS [--families chronos_bolt ...] [--jobs 2]

Every model is made by `tsprune pretrain` with the recipe below (what is finished or begun under runs/pretrain is taken
up). Then, cell by cell in `--jobs` processes: zero-shot errors on the seven long-horizon sets, and `tsprune specialize`
on two of them. Latencies that were measured while another process ran are marked busy. Resumable.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import specialize
import zero_shot
from cells import Cell, Store, run
from long_horizon import SETS, folder_argument, require

from tsprune.evaluation.machine import machine_line, versions
from tsprune.models import fingerprint, load
from tsprune.pretraining import preset
from tsprune.settings import FinetuneSettings
from tsprune.stages import read_json, write_json

RECIPES = {
    "chronos_bolt": ("--steps", "6000", "--decay-steps", "2000"),
    "timer_xl": ("--steps", "5000", "--decay-steps", "1700"),
    "ttm": ("--steps", "4000", "--decay-steps", "1400"),
    "moirai": ("--steps", "2400", "--decay-steps", "900"),
    "time_moe": ("--steps", "2000", "--decay-steps", "800", "--batch", "32"),
}
"""What `tsprune pretrain --size mini` is given for each family, beside the corpus; the rest are its defaults."""
TUNED_ON = ("ETTh1", "ETTm2")
SHORTER = FinetuneSettings(steps=100, search_steps=20)
TUNING = {
    "chronos_bolt": SHORTER,
    "moirai": SHORTER,
    "time_moe": FinetuneSettings(steps=100, search_steps=20, batch=16),
}
"""Where a step costs more than in the others: fewer or smaller ones, for every candidate of the family alike."""
WINDOWS = {"chronos_bolt": 800, "moirai": 2000, "time_moe": 2000}
"""Test windows at most where a long horizon takes many passes: quantile paths, or one value at a time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder_argument(parser)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of series to pretrain on")
    parser.add_argument("--families", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--horizon", type=int, default=96)
    parser.add_argument("--windows", type=int, default=5000, help="test windows at most per set, evenly spread")
    parser.add_argument("--models", type=Path, default=Path("runs/pretrain"), help="a folder for each family")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"), help="cells that are done, and runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results" / "minis.json")
    given = parser.parse_args()
    require(given.folder, list(SETS))
    with ThreadPoolExecutor(given.jobs) as pool:
        for _ in pool.map(lambda family: pretrain(family, given.corpus, given.models / family), given.families):
            pass
    prints = {family: fingerprint(load(given.models / family / "model")) for family in given.families}
    setup: dict[str, Any] = {name: str(getattr(given, name)) for name in ("folder", "models", "work")}
    for family in given.families:
        setup |= {"horizon": given.horizon, "windows": min(given.windows, WINDOWS.get(family, given.windows))}
        cells: list[Cell] = [("zero-shot", family, name) for name in SETS]
        cells += [("specialize", family, name) for name in TUNED_ON]
        settings = [prints[family], given.horizon, setup["windows"], repr(TUNING.get(family)), versions()]
        found = run(work, setup, cells, Store(given.work / "minis.jsonl", settings), given.jobs)
        add(given.out, family, given.models / family, found, setup)


def pretrain(family: str, corpus: Path, out: Path) -> None:
    """One command for each; it goes on where it stands, and a finished one is left as it is."""
    if (out / "model" / "config.json").exists():
        return
    command = [sys.executable, "-m", "tsprune", "pretrain", "--family", family, "--size", "mini", "--threads", "1"]
    command += ["--corpus", str(corpus), "--out", str(out), *RECIPES[family]]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def work(setup: dict[str, Any], cell: Cell) -> dict[str, Any]:
    what, family, name = cell
    model, folder = str(Path(setup["models"]) / family / "model"), Path(setup["folder"])
    if what == "zero-shot":
        return zero_shot.one(folder, name, model, setup["horizon"], setup["windows"])
    asked = argparse.Namespace(
        folder=folder, model=model, label=f"{family} mini", horizon=setup["horizon"], windows=setup["windows"],
        threads=1, head_steps=0,
    )  # fmt: skip
    out = Path(setup["work"]) / "minis" / f"{family}-{name}"
    return specialize.one(asked, name, 0, out, TUNING.get(family, FinetuneSettings()))


def add(out: Path, family: str, place: Path, found: dict[Cell, dict[str, Any]], setup: dict[str, Any]) -> None:
    """Write what was found of a family beside what the file has of others."""
    known = read_json(out)["families"] if out.exists() else {}
    rows = {name: entry for (what, _, name), entry in found.items() if what == "zero-shot"}
    runs = [{"set": name, **entry} for (what, _, name), entry in found.items() if what == "specialize"]
    model = load(place / "model")
    known[family] = {
        "recipe": " ".join(["tsprune pretrain --family", family, "--size mini --corpus CORPUS", *RECIPES[family]]),
        "parameters": model.parameter_count(),
        "context": model.context_length,
        "native_horizon": model.native_horizon,
        "test_windows": setup["windows"],
        "tuning": asdict(TUNING.get(family, FinetuneSettings())),
        "config": preset(family, "mini"),
        "zero_shot": rows | {"summary": zero_shot.summary(rows)},
        "specialize": {"summary": specialize.summary(runs), "runs": runs},
    }
    order = {name: known[name] for name in RECIPES if name in known}
    told = {"horizon": setup["horizon"], "machine": machine_line(threads=1)}
    write_json(out, {**told, "versions": versions(), "families": order})
    print(f"{family}: {zero_shot.summary(rows)}\n{specialize.summary(runs)}", flush=True)


if __name__ == "__main__":
    main()
