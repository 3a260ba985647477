"""Jobs on a Ray cluster: an existing one, or one that is started on this machine."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from tsprune.bench.jobs import Done, Job
from tsprune.bench.runners.processes import Handed, Task
from tsprune.bench.work import run_job
from tsprune.errors import TspruneError

LOCAL = "local"


def check() -> None:
    """Raise TspruneError where Ray is not installed."""
    try:
        import ray  # noqa: F401
    except ImportError:
        raise TspruneError("--ray needs the package ray; install it with: pip install 'tsprune[ray]'") from None


def run(content: Mapping[str, Any], tasks: Sequence[Task], handed: Handed, workers: int, address: str = LOCAL) -> None:
    """Do jobs on a cluster, at most `workers` at a time, one core each; as `processes.run` otherwise.

    Data and models are read by the workers, from the paths of the grid; results come back by Ray, so that only this
    process writes them. Unfinished work stays on the machine that did it.

    Args:
        content: the grid as plain data.
        tasks: what to do.
        handed: told of results.
        workers: jobs at a time; 0 as many as the cluster takes.
        address: of the cluster; `auto` finds the one this machine belongs to, `local` starts one here.

    Raises:
        TspruneError: Ray is not installed, or the cluster cannot be reached.
    """
    check()
    import ray

    ours = not ray.is_initialized()
    if ours:
        start: dict[str, Any] = {"num_cpus": workers or None} if address == LOCAL else {"address": address}
        try:
            ray.init(**start, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR) if (
                address == LOCAL
            ) else ray.init(**start, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise TspruneError(
                f"--ray {address}: no cluster could be reached ({' '.join(str(error).split())[:200]}); start one with "
                "'ray start --head', or give --ray local"
            ) from None
    try:
        _run(content, tasks, handed, workers or int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]
    finally:
        if ours:
            ray.shutdown()


def _run(content: Mapping[str, Any], tasks: Sequence[Task], handed: Handed, workers: int) -> None:
    import ray

    remote = ray.remote(num_cpus=1, max_retries=1)(run_job)
    grid: Any = ray.put(dict(content))
    left = iter(tasks)
    waiting: dict[Any, Job] = {}

    def more() -> None:
        if (task := next(left, None)) is not None:
            waiting[remote.remote(grid, *task)] = task[0]

    for _ in range(workers):
        more()
    try:
        while waiting:
            for reference in ray.wait(list(waiting), num_returns=1)[0]:
                job = waiting.pop(reference)
                found: Done | Exception
                try:
                    found = ray.get(reference)
                except Exception as error:
                    # Ray wraps what a task raised; the cause is what matters to people.
                    cause = getattr(error, "cause", None)
                    found = cause if isinstance(cause, Exception) else error
                handed(job, found)
                more()
    except BaseException:
        for reference in waiting:
            ray.cancel(reference, force=True)
        raise
