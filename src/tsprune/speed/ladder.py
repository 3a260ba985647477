"""The whole ladder: models on runtimes over batches, threads and devices, to `latency.json` and its page."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tsprune.__about__ import __version__
from tsprune.errors import TspruneError
from tsprune.evaluation import machine
from tsprune.progress import Progress
from tsprune.speed import runtimes
from tsprune.speed.alone import alone
from tsprune.speed.batches import SHARE, Largest, largest_batch
from tsprune.speed.rungs import TOLERANCE, Setting, rows_of, said
from tsprune.speed.runtimes._runtime import Runtime
from tsprune.speed.subject import Subject, short_names

if TYPE_CHECKING:
    from tsprune.latencycommand import LatencySettings

SCHEMA = 1
USUAL_CONTEXT, USUAL_HORIZON = 512, 64
LOADS = 3
"""Fresh processes in which loading is timed; the median counts."""
_PACKAGES = ("onnx", "onnxruntime")


def climb(
    settings: LatencySettings, progress: Progress, *, clock: Callable[[], int] = time.perf_counter_ns
) -> dict[str, Any]:
    """Measure every model on every runtime.

    Files that runtimes need are written into a temporary folder and removed at the end.

    Args:
        settings: models, the first of which is the one that the others are compared with, and all options.
        progress: told what happens.
        clock: nanoseconds.

    Returns:
        The content of `latency.json`.

    Raises:
        TspruneError: a model, runtime, device, context or horizon that cannot be had.
    """
    chosen, notes = _runtimes(settings.runtimes)
    with tempfile.TemporaryDirectory(prefix="tsprune-latency-") as work:
        by_device = {device: _subjects(settings, Path(work), device) for device in dict.fromkeys(settings.devices)}
        tables: list[dict[str, Any]] = []
        loads: list[dict[str, Any]] = []
        for device, subjects in by_device.items():
            refused = _prepared(subjects, chosen, progress)
            found = _settings(settings, subjects, device, progress)
            steps = len(found)
            with progress.stage(f"latency on {device}", steps) as bar:
                for setting in found:
                    rows = rows_of(subjects, chosen, refused, setting, settings.repeats, clock=clock)
                    tables.append(_table(setting, rows))
                    bar.advance(f"batch {setting.windows}, threads {setting.threads}")
            if settings.alone:
                _add_memory(tables, subjects, chosen, device, progress)
                loads += _loads(tables, subjects, chosen, device, progress)
    first = next(iter(by_device.values()))
    notes += _strangers(first)
    return {
        "schema": SCHEMA,
        "tsprune": __version__,
        "reference": first[0].name,
        "context": first[0].context,
        "horizon": first[0].horizon,
        "repeats": settings.repeats,
        "tolerance": TOLERANCE,
        "models": [_about(subject) for subject in first],
        "runtimes": {name: {"title": one.title, "exact": one.exact} for name, one in chosen.items()},
        "tables": tables,
        "loads": loads,
        "busy": any(table["busy"] for table in tables),
        "notes": notes,
        "machine": machine.machine_line(busy=any(table["busy"] for table in tables)),
        "versions": machine.versions(_PACKAGES),
    }


def _runtimes(names: Sequence[str]) -> tuple[dict[str, Runtime], list[str]]:
    """The runtimes by name, the reference first, and what to say of those that are left out."""
    wanted = list(names) or [name for name in runtimes.names() if not runtimes.find(name).asked]
    notes = []
    found: dict[str, Runtime] = {}
    for name in dict.fromkeys((runtimes.REFERENCE, *wanted)):
        runtime = runtimes.find(name)
        why = runtime.missing()
        if why and names:
            raise TspruneError(f"--runtimes {name}: {why}; leave it out")
        if why:
            notes.append(f"{runtime.title} is left out: it {why}.")
        else:
            found[name] = runtime
    if names and runtimes.REFERENCE not in names:
        notes.append(f"{found[runtimes.REFERENCE].title} is always timed: the others are compared with it.")
    notes += [f"Memory of {one.title} is not measured: {one.crowded}." for one in found.values() if one.crowded]
    if not names:
        asked = [one for one in runtimes.names() if runtimes.find(one).asked]
        notes.append(f"Only when asked for by --runtimes: {', '.join(asked)}, which takes up to a minute per row.")
    return found, notes


def _strangers(subjects: Sequence[Subject]) -> list[str]:
    """What to say of models whose times are no matter of pruning."""
    dense = subjects[0]
    return [
        f"{one.name} is of the family {one.model.family}, {dense.name} of {dense.model.family}: what its column "
        "'pruning' says is how the two networks compare."
        for one in subjects[1:]
        if one.model.family != dense.model.family
    ]


def _subjects(settings: LatencySettings, work: Path, device: str) -> list[Subject]:
    """The models, loaded on the device, with one context and horizon for all."""
    found = []
    for place, (name, source) in enumerate(zip(short_names(settings.models), settings.models, strict=True)):
        folder = work / str(place)
        folder.mkdir(exist_ok=True)
        found.append(Subject(name, source, folder, settings.context, settings.horizon, device))
    models = [subject.model for subject in found]
    tuned = [model.task for model in models]
    context = settings.context or _common(tuned, "context")
    context = context or min(USUAL_CONTEXT, *(model.context_length for model in models))
    horizon = settings.horizon or _common(tuned, "horizon")
    horizon = horizon or min(USUAL_HORIZON, *(model.native_horizon for model in models))
    for subject in found:
        if settings.context > subject.model.context_length:
            raise TspruneError(
                f"--context {context} is longer than the {subject.model.context_length} steps that {subject.name} "
                "looks at; give at most as many"
            )
        subject.context, subject.horizon, subject.window_rows = context, horizon, subject.model.window_rows
    return found


def _common(tasks: Sequence[Mapping[str, Any]], name: str) -> int:
    """What all models were tuned for, or 0."""
    values = {task.get(name) for task in tasks}
    (value, *others) = values
    return value if isinstance(value, int) and not others else 0


def _prepared(
    subjects: Sequence[Subject], chosen: Mapping[str, Runtime], progress: Progress
) -> dict[tuple[str, str], str]:
    """Why a model does not run on a runtime, by names of both; the files of the others are written."""
    refused: dict[tuple[str, str], str] = {}
    for name, runtime in chosen.items():
        for subject in subjects:
            try:
                why = runtime.refusal(subject)
                if not why:
                    runtime.prepare(subject, progress)
            except Exception as error:
                # As when it is opened: one runtime's failure is a row, not the end.
                why = said(error)
            if why:
                refused[subject.name, name] = why
                progress.say(f"note: {subject.name} on {runtime.title}: {why}")
    return refused


def _settings(settings: LatencySettings, subjects: Sequence[Subject], device: str, progress: Progress) -> list[Setting]:
    """Batches times threads; threads of the host make no difference worth a table on another device."""
    threads = [machine.cores() if text == "all" else int(text) for text in settings.threads]
    threads = list(dict.fromkeys(threads if device == "cpu" else threads[:1]))
    largest: Largest | None = None
    if "max" in settings.batches:
        largest = _largest(subjects[0], device, max(threads))
        progress.say(f"largest batch on {device}: {largest.windows}, as {largest.why}")
    found: dict[tuple[int, int], Setting] = {}
    for text in settings.batches:
        windows, why = (largest.windows, largest.why) if text == "max" and largest else (int(text), "")
        for number in threads:
            earlier = found.get((windows, number))
            found[windows, number] = Setting(device, windows, number, why or (earlier.why if earlier else ""))
    return list(found.values())


def _largest(subject: Subject, device: str, threads: int) -> Largest:
    """The largest batch of the first model on plain torch, with the most threads."""
    import resource

    import torch

    from tsprune.evaluation.cost import threads_set

    unit = 1 if sys.platform == "darwin" else 1024
    gpu = device.startswith("cuda")

    def high() -> float:
        if gpu:
            return float(torch.cuda.max_memory_allocated(device))
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)

    free = torch.cuda.mem_get_info(device)[0] if gpu else machine.free_memory()
    before = high()
    with threads_set(threads):
        forecast = runtimes.find(runtimes.REFERENCE).open(subject, threads)
        return largest_batch(lambda windows: forecast(subject.batch(windows)), lambda: high() - before, SHARE * free)


def _table(setting: Setting, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "device": setting.device,
        "windows": setting.windows,
        "threads": setting.threads,
        "why": setting.why,
        "busy": any(row["busy"] for row in rows),
        "rows": rows,
    }


def _add_memory(
    tables: Sequence[dict[str, Any]], subjects: Sequence[Subject], chosen: Mapping[str, Runtime], device: str,
    progress: Progress,
) -> None:  # fmt: skip
    """Peaks of memory, once per model, runtime and batch, into the rows of all threads; on the CPU only."""
    known = {subject.name: subject for subject in subjects}
    wanted: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for table in tables:
        for row in table["rows"] if table["device"] == device == "cpu" else ():
            if not row["error"] and not chosen[row["runtime"]].crowded:
                wanted.setdefault((row["model"], row["runtime"], table["windows"]), []).append(row)
    with progress.stage("memory in fresh processes", len(wanted)) as bar:
        for (model, runtime, windows), rows in wanted.items():
            found = _alone(known[model], runtime, windows)
            for row in rows:
                row["peak_mib"] = found.peak_mib
            bar.advance(f"{model} on {runtime}")


def _loads(
    tables: Sequence[dict[str, Any]], subjects: Sequence[Subject], chosen: Mapping[str, Runtime], device: str,
    progress: Progress,
) -> list[dict[str, Any]]:  # fmt: skip
    """From disk to the first forecast of one window, for every model on every runtime that has a row."""
    timed = {
        (row["model"], row["runtime"])
        for table in tables
        for row in table["rows"]
        if table["device"] == device and not row["error"] and not chosen[row["runtime"]].crowded
    }
    found = []
    with progress.stage("loading in fresh processes", len(timed) * LOADS) as bar:
        for subject in subjects:
            for name, runtime in chosen.items():
                if (subject.name, name) not in timed:
                    continue
                all_of_it = []
                for _ in range(LOADS):
                    all_of_it.append(_alone(subject, name, 1))
                    bar.advance(f"{subject.name} on {name}")
                found.append(
                    {
                        "model": subject.name,
                        "runtime": name,
                        "device": device,
                        "first_s": median(one.first_s for one in all_of_it),
                        "spread_s": [min(one.first_s for one in all_of_it), max(one.first_s for one in all_of_it)],
                        "first_cpu_s": median(one.first_cpu_s for one in all_of_it),
                        "imports_s": median(one.imports_s for one in all_of_it),
                        "bytes_on_disk": runtime.bytes_on_disk(subject),
                    }
                )
    return found


def _alone(subject: Subject, runtime: str, windows: int) -> Any:
    return alone(
        runtime, subject.source, subject.folder, context=subject.context, horizon=subject.horizon, windows=windows,
        threads=1, device=subject.device, window_rows=subject.window_rows,
    )  # fmt: skip


def _about(subject: Subject) -> dict[str, Any]:
    model = subject.model
    return {
        "name": subject.name,
        "source": subject.source,
        "family": model.family,
        "parameters": model.parameter_count(),
        "flops": subject.flops,
        "checkpoint_bytes": subject.checkpoint_bytes,
        "cut": bool(model.kept),
    }
