"""The machine in one line, for every number that was measured on it; never its name, its user or a path."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

_PACKAGES = ("tsprune", "torch", "numpy", "pandas", "safetensors", "huggingface_hub")


def machine_line(*, busy: bool = False, threads: int | None = None) -> str:
    """CPU, cores, memory, GPU if any, system, Python and torch, separated by commas.

    Args:
        busy: whether timings were taken while other programs were using the machine; then the line says so.
        threads: threads the timings used, or None to say nothing.
    """
    parts = [cpu_model(), f"{cores()} core{'s' * (cores() != 1)}", *_memory(), *_gpu()]
    parts += [f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}".strip()]
    parts += [f"Python {platform.python_version()}", f"torch {_version('torch')}"]
    if threads is not None:
        parts.append(f"timed on {threads} thread{'s' * (threads != 1)}")
    if busy:
        parts.append("BUSY while timing: other programs were running, latencies are not reliable")
    return ", ".join(part for part in parts if part)


def cpu_model() -> str:
    """Name of the processor, or its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip().lower() == "model name" and value.strip():
            return " ".join(value.split())
    return " ".join((platform.processor() or platform.machine() or "unknown CPU").split())


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def versions(more: Sequence[str] = ()) -> dict[str, str]:
    """Versions of Python and of the packages that decide about results; what is not installed is left out.

    Args:
        more: further packages.
    """
    found = {"python": platform.python_version()}
    for name in (*_PACKAGES, *more):
        if version := _version(name):
            found[name] = version
    return found


def cpu_seconds_of_others() -> float | None:
    """CPU seconds that everything but this process has used since start-up, all cores together.

    The difference of two readings is what the neighbours used in between. Unlike the load average it leaves
    out this process itself, so a training that has just ended does not count as a busy machine.

    Returns:
        None where the system has no /proc/stat.
    """
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
        user, nice, system, _idle, _wait, irq, soft, *rest = (int(part) for part in first.split()[1:])
        ticks = user + nice + system + irq + soft + (rest[0] if rest else 0)
        own = os.times()
        return ticks / os.sysconf("SC_CLK_TCK") - own.user - own.system
    except (OSError, ValueError, IndexError):
        return None


def free_memory() -> int:
    """Bytes that programs could still take without others being written to disk; half of all where nobody tells."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def load_average() -> float:
    """Mean number of running programs over the last minute, this one too; 0 where unknown."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return 0.0


def _memory() -> list[str]:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return []
    return [f"{size / 2**30:.0f} GiB memory"]


def _gpu() -> list[str]:
    import torch

    return [torch.cuda.get_device_name()] if torch.cuda.is_available() else []


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
