"""Shared by the benchmarks that measure many small cells: run them in several processes, keep what is done.

A cell is a tuple of names and numbers. Its result is one line of a JSON-lines file under the digest of the settings,
written as soon as it is there, so that a run that is stopped goes on where it was.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from tsprune.stages import digest

Cell = tuple[Any, ...]
Work = Callable[[Any, Cell], dict[str, Any]]


class Store:
    """Finished cells of one run of settings, in a file that may hold those of others too."""

    def __init__(self, path: Path, settings: Any) -> None:
        self.path, self.key = path, digest(settings)
        self.found: dict[Cell, dict[str, Any]] = {}
        for entry in self._lines():
            if entry["settings"] == self.key:
                self.found[tuple(entry["cell"])] = entry["found"]

    def _lines(self) -> Iterator[dict[str, Any]]:
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    yield json.loads(line)
                except ValueError:
                    continue  # The last line of a run that was killed while writing it.

    def add(self, cell: Cell, found: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.found[cell] = found
        cut_off = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            line = json.dumps({"settings": self.key, "cell": cell, "found": found})
            file.write(("\n" if cut_off else "") + line + "\n")


def run(work: Work, setup: Any, cells: Sequence[Cell], store: Store, jobs: int) -> dict[Cell, dict[str, Any]]:
    """Results of all cells; those that are not stored are computed, `jobs` at a time, one thread each."""
    missing = [cell for cell in dict.fromkeys(cells) if cell not in store.found]
    started, done = time.monotonic(), 0
    if missing:
        # Read by the processes when they import torch.
        os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(jobs, len(missing)), context) as pool:
            waiting: dict[Future[dict[str, Any]], Cell] = {pool.submit(timed, work, setup, c): c for c in missing}
            try:
                while waiting:
                    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                        cell, found = waiting.pop(future), future.result()
                        store.add(cell, found)
                        done += 1
                        left = (time.monotonic() - started) / done * len(waiting)
                        name = " ".join(str(part) for part in cell)
                        print(
                            f"{done}/{len(missing)} {name}: {found['seconds']} s, about {left:.0f} s left", flush=True
                        )
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return {cell: store.found[cell] for cell in cells}


def timed(work: Work, setup: Any, cell: Cell) -> dict[str, Any]:
    """In a process of the pool: the result with the time it took."""
    import torch

    torch.set_num_threads(1)
    started, processor = time.monotonic(), time.process_time()
    found = work(setup, cell)
    # Wall time tells when a run ends, processor time what the cell costs, whoever else is on the machine.
    taken = {"seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - processor}
    return found | {name: round(value, 1) for name, value in taken.items()}
