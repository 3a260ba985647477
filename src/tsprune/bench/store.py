"""What is finished of a grid: a folder for each key, with a JSON and an array file for each candidate."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tsprune.bench.jobs import Arrays, Done, Job
from tsprune.errors import TspruneError
from tsprune.stages import read_json, unwritable, write_json

CELLS, WORK = "cells", "work"


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
                _write_arrays(self._path(key, name, "npz"), result.arrays)
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
        path = self._path(key, name, "npz")
        try:
            with np.load(path, allow_pickle=False) as found:
                return {name: found[name] for name in found.files}
        except (OSError, ValueError, KeyError) as error:
            raise TspruneError(
                f"{path}: cannot be read ({error}); remove its folder and run the same command"
            ) from None

    def work(self, key: str) -> Path:
        """Where the unfinished job of a key works."""
        return self.directory / WORK / key

    def _has(self, key: str, name: str) -> bool:
        return self._path(key, name, "json").is_file()

    def _path(self, key: str, name: str, ending: str) -> Path:
        return self.directory / CELLS / key / f"{name}.{ending}"


def _write_arrays(path: Path, arrays: Arrays) -> None:
    """An array file, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(buffer.getvalue())
        os.replace(partial, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        partial.unlink(missing_ok=True)


def rows_text(rows: Sequence[dict[str, Any]]) -> str:
    """The tidy file: one JSON object per line."""
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
