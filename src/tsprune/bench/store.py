"""What is finished of a grid: a folder for each key, with a JSON and a file of tensors for each candidate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tsprune.bench.jobs import Arrays, Done, Job
from tsprune.errors import TspruneError
from tsprune.stages import read_json, write_json
from tsprune.training_state import read_tensors, write_tensors

CELLS, WORK = "cells", "work"
ARRAYS = "safetensors"


class Store:
    """Finished cells below a directory; a cell is written whole or not at all."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def missing(self, key: str, job: Job) -> Job | None:
        """What of a job is still to be done; None if nothing is."""
        wanted = tuple(name for name in job.wanted if not self._has(key, name))
        return job.only(wanted) if wanted else None

    def add(self, key: str, done: Done) -> None:
        """Keep what a job gave back."""
        for name, result in done.results.items():
            if result.arrays:
                tensors = {part: torch.from_numpy(np.array(value)) for part, value in result.arrays.items()}
                path = self._path(key, name, ARRAYS)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_tensors(path, tensors)
            facts = {"plan": result.plan, "seconds": round(result.seconds, 3), "protocol": result.protocol}
            facts["benchmark"] = [dict(row) for row in result.benchmark]
            # The JSON comes last: with it the cell is there.
            write_json(self._path(key, name, "json"), {"row": dict(result.row), **facts, "arrays": bool(result.arrays)})
        for name, reason in done.refused.items():
            write_json(self._path(key, name, "json"), {"refused": reason})

    def get(self, key: str, name: str) -> dict[str, Any] | None:
        """Row, plan, seconds and protocol of a cell, or the reason why it cannot be; None if it is not there."""
        return dict(read_json(self._path(key, name, "json"))) if self._has(key, name) else None

    def arrays(self, key: str, name: str) -> Arrays:
        """Errors and blocks of a cell."""
        path = self._path(key, name, ARRAYS)
        try:
            return {part: value.numpy() for part, value in read_tensors(path)[0].items()}
        except TspruneError as error:
            raise TspruneError(f"{error}; remove the folder {path.parent} and run the same command") from None

    def work(self, key: str) -> Path:
        """Where the unfinished job of a key works."""
        return self.directory / WORK / key

    def _has(self, key: str, name: str) -> bool:
        return self._path(key, name, "json").is_file()

    def _path(self, key: str, name: str, ending: str) -> Path:
        return self.directory / CELLS / key / f"{name}.{ending}"


def rows_text(rows: Sequence[dict[str, Any]]) -> str:
    """The tidy file: one JSON object per line."""
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
