"""Processes that fit models to rows beside this one."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsprune.errors import TspruneError
from tsprune.evaluation.baselines._rowfits import Reasons, Request, ask, receive

_PROGRAM = "tsprune.evaluation.baselines._rowfits"


class Workers:
    """Started with the object, ended with it. Programs of their own: nothing of the caller is run again or forked.

    Args:
        count: number of processes, each on one thread.
    """

    def __init__(self, count: int) -> None:
        paths = os.pathsep.join(path for path in sys.path if path)
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        environment = {**os.environ, **threads, "PYTHONPATH": paths}
        self._running: list[subprocess.Popen[bytes]] = []
        self._end = weakref.finalize(self, _stop, self._running)
        for _ in range(count):
            self._running.append(
                subprocess.Popen(
                    [sys.executable, "-m", _PROGRAM],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=environment,
                )
            )

    def __len__(self) -> int:
        return len(self._running)

    def forecast_rows(self, request: Request, rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], Reasons]:
        """As `forecast_rows` of the module of that name, the rows dealt out evenly.

        Raises:
            TspruneError: a process has ended early, as when memory runs out.
        """
        # Dealt out in turn, since rows side by side are alike in what they cost.
        dealt = [np.arange(first, len(rows), len(self)) for first in range(len(self))]
        found = np.full((len(rows), len(request.levels), request.horizon), np.nan)
        reasons: Counter[str] = Counter()
        try:
            # Each reads its whole request before it answers, so that none waits for another.
            for process, own in zip(self._running, dealt, strict=True):
                ask(_open(process.stdin), request, rows[own])
            for process, own in zip(self._running, dealt, strict=True):
                answer = receive(_open(process.stdout))
                if answer is None:
                    raise BrokenPipeError
                reasons.update(answer[0])
                found[own] = answer[1]
        except (BrokenPipeError, ValueError):
            self._end()
            raise TspruneError(
                "a process that fits models to windows has ended early, such as for want of memory; give fewer "
                "--threads, then run the same command again"
            ) from None
        except BaseException:
            # A half-read answer would be taken for that to the next request.
            self._end()
            raise
        return found, dict(reasons)


def _open(stream: Any) -> Any:
    if stream is None:
        raise BrokenPipeError
    return stream


def _stop(running: list[subprocess.Popen[bytes]]) -> None:
    for process in running:
        process.kill()
        process.communicate()
    running.clear()
