"""Jobs in processes of this machine, one thread each; a single one without a process of its own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from tsprune.bench.jobs import Done, Job
from tsprune.bench.work import run_job
from tsprune.errors import TspruneError

Task = tuple[Job, str]
"""A job and the directory where it works."""
Handed = Callable[[Job, Done | Exception], None]
"""Told of every job that has ended, in the order in which they end."""


def run(content: Mapping[str, Any], tasks: Sequence[Task], handed: Handed, workers: int, address: str = "") -> None:
    """Do jobs; what goes wrong in one of them is handed on and stops no other.

    Args:
        content: the grid as plain data.
        tasks: what to do.
        handed: told of results.
        workers: processes at a time.
        address: has no meaning here.
    """
    if workers == 1:
        for job, place in tasks:
            handed(job, _tried(content, job, place))
        return
    with _one_thread(), ProcessPoolExecutor(min(workers, len(tasks)), multiprocessing.get_context("spawn")) as pool:
        left = iter(tasks)
        waiting: dict[Future[Done], Job] = {}

        def more() -> None:
            # One at a time, so that an interrupt finds few jobs that were promised.
            if (task := next(left, None)) is not None:
                waiting[pool.submit(run_job, content, *task)] = task[0]

        for _ in range(workers):
            more()
        try:
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    job = waiting.pop(future)
                    error = future.exception()
                    if isinstance(error, BrokenProcessPool):
                        raise error
                    handed(job, future.result() if error is None else _plain(error))
                    more()
        except BrokenProcessPool:
            raise TspruneError(
                "a worker process died, which is mostly for want of memory; run the same command again, with fewer "
                "--jobs if it happens again: what is finished is kept"
            ) from None
        except BaseException:
            for process in list((pool._processes or {}).values()):
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _tried(content: Mapping[str, Any], job: Job, place: str) -> Done | Exception:
    try:
        return run_job(content, job, place)
    except Exception as error:
        return error


def _plain(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else RuntimeError(repr(error))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Processes read these variables when they import torch."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
