"""Memory and loading time, each measured in a fresh process that only loads a model and forecasts.

    python -m tsprune.speed.alone '{"runtime": "eager", ...}'

prints one line of JSON. Memory is the highest resident size of that process less what it had after its imports
(`VmHWM` and `VmRSS` of Linux; what getrusage calls maxrss begins at the size of the parent).
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tsprune.errors import TspruneError

FORECASTS = 3
_STATUS = Path("/proc/self/status")
_MARK = "measured: "


@dataclass(frozen=True)
class Alone:
    """What one process took.

    Attributes:
        imports_s: seconds of the imports, torch above all, and of one garbage collection after them.
        first_s: seconds after the imports until the first forecast was there: reading the files and forecasting once.
        first_cpu_s: processor time of the same, of all threads; neighbours on the machine disturb it less.
        imports_mib: resident size after the imports; None where the system does not tell.
        peak_mib: highest resident size beyond it, weights included; None where the system does not tell.
    """

    imports_s: float
    first_s: float
    first_cpu_s: float
    imports_mib: float | None
    peak_mib: float | None


def alone(
    runtime: str, source: str, folder: Path, *, context: int, horizon: int, windows: int, threads: int,
    device: str = "cpu", window_rows: int = 1,
) -> Alone:  # fmt: skip
    """Load and forecast in a process of its own.

    Args:
        runtime: name of the runtime, whose files are in the folder.
        source: of the model.
        folder: of the model, see `Subject`.
        context: steps of context L.
        horizon: steps of forecast H.
        windows: rows of the batch.
        threads: of torch and of the runtime.
        device: where it runs; memory is that of the host all the same.
        window_rows: series of a window.

    Raises:
        TspruneError: the process failed; the last line that it wrote is the reason.
    """
    order = {
        "runtime": runtime, "source": source, "folder": str(folder), "context": context, "horizon": horizon,
        "windows": windows, "threads": threads, "device": device, "window_rows": window_rows,
    }  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tsprune.speed.alone", json.dumps(order)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = [line.removeprefix(_MARK) for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if done.returncode or not lines:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise TspruneError(f"a process that only loads {source} and forecasts failed: {said}")
    return Alone(**json.loads(lines[-1]))


def measure(order: dict[str, Any]) -> Alone:
    """What `alone` asks of the new process."""
    started = time.perf_counter()
    import torch

    from tsprune import models  # noqa: F401
    from tsprune.speed import runtimes
    from tsprune.speed.subject import Subject

    runtime = runtimes.find(order["runtime"])
    runtime.imports()
    torch.set_num_threads(order["threads"])
    subject = Subject(
        order["source"], order["source"], Path(order["folder"]), order["context"], order["horizon"], order["device"],
        order["window_rows"],
    )  # fmt: skip
    # The batch is the caller's; making it also starts what torch starts once per process.
    batch = subject.batch(order["windows"])
    # Walking all that was imported takes as long as loading a small model, and would hit one or another by chance.
    gc.collect()
    imported, worked, before = time.perf_counter(), time.process_time(), resident("VmRSS")
    forecast = runtime.open(subject, order["threads"])
    forecast(batch)
    first_s, first_cpu_s = time.perf_counter() - imported, time.process_time() - worked
    for _ in range(FORECASTS - 1):
        forecast(batch)
    peak = resident("VmHWM")
    beyond = None if peak is None or before is None else max(0.0, peak - before)
    return Alone(imported - started, first_s, first_cpu_s, before, beyond)


def resident(field: str) -> float | None:
    """`VmRSS` (now) or `VmHWM` (highest) of this process in MiB; None where there is no such file."""
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:")), None)


if __name__ == "__main__":
    print(_MARK + json.dumps(asdict(measure(json.loads(sys.argv[1])))))
