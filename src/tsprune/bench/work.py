"""What all kinds of jobs do: data and model made ready under the grid's protocol, and models measured by it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from tsprune.__about__ import __version__
from tsprune.bench.jobs import Arrays, Done, Job, Result, entries, packed
from tsprune.bench.spec import DataEntry, ModelEntry, Spec
from tsprune.candidates._candidate import AS_PUBLISHED, Shorter
from tsprune.candidates._workshop import Workshop
from tsprune.data.panel import Panel
from tsprune.data.split import Split
from tsprune.data.windows import Grouping
from tsprune.evaluation.cost import flops, parameters
from tsprune.evaluation.evaluate import Evaluation, Predictor
from tsprune.evaluation.metrics import MEASURES, RowErrors
from tsprune.evaluation.protocols._protocol import Protocol
from tsprune.evaluation.timeblocks import Blocks
from tsprune.models import fingerprint, load
from tsprune.models._forecaster import Forecaster
from tsprune.preparing import Prepared, prepare
from tsprune.progress import Progress
from tsprune.registry import find
from tsprune.settings import FinetuneSettings, PruneSettings
from tsprune.stages import Run, digest

KINDS = "tsprune.bench.kinds"
NEUTRAL = "mini"
"""The model that stands in a task whose model plays no part."""


def run_job(content: Mapping[str, Any], job: Job, place: str) -> Done:
    """Do a job, in whatever process.

    Args:
        content: the grid as plain data.
        job: what to do.
        place: directory for what is unfinished; a job that was begun there goes on.
    """
    import torch

    from tsprune.bench.spec import of

    torch.set_num_threads(1)
    done: Done = find(KINDS, job.kind).run(of(content), job, Path(place))
    return done


def key_of(spec: Spec, job: Job) -> str:
    """Under which a job's results are kept: everything that decides them but the candidates themselves."""
    model, entry = entries(spec, job)
    protocol = spec.protocol_of(entry, job.horizon)
    inputs: dict[str, Any] = {"tsprune": __version__, "kind": job.kind, "protocol": protocol.to_json()}
    inputs |= {"data": print_of(spec, entry, job.horizon), "share": job.share, "seed": job.seed, "more": job.more}
    # Settings that are not given stand for defaults, as everywhere.
    inputs["settings"] = {**spec.settings, **(model.settings if model else {}), **entry.settings}
    if model is None:
        inputs["settings"] = {key: value for key, value in inputs["settings"].items() if key in _FRESH}
        fresh = {key: value for key, value in spec.scratch.items() if key != "seeds"}
        inputs["scratch"] = fresh if job.kind == "scratch" else {}
    else:
        inputs["model"] = _print_of(model.path)
    return digest(inputs)


# Settings that matter where no pretrained model does.
_FRESH = ("context", "validation_windows", "batch_size", "together", "device")


@lru_cache(maxsize=16)
def _print_of(path: str) -> str:
    return fingerprint(load(path))


def panel_of(spec: Spec, entry: DataEntry, horizon: int) -> Panel:
    """The data set; the last few that were read are held."""
    protocol, source = spec.protocol_of(entry, horizon), spec.source(entry)
    key = _reading(protocol, source)
    if key not in _READ:
        while len(_READ) >= _HELD:
            _READ.pop(next(iter(_READ)))
        _READ[key] = protocol.read(source)
        _PRINTS[key] = _READ[key].fingerprint()
    return _READ[key]


def forget() -> None:
    """Read data and models again, as a new run does: files may have changed since the last one."""
    _READ.clear()
    _PRINTS.clear()
    _print_of.cache_clear()


def print_of(spec: Spec, entry: DataEntry, horizon: int) -> str:
    """The fingerprint of a data set, which is read for it once in a process."""
    key = _reading(spec.protocol_of(entry, horizon), spec.source(entry))
    if key not in _PRINTS:
        panel_of(spec, entry, horizon)
    return _PRINTS[key]


def _reading(protocol: Protocol, source: str) -> str:
    """What decides what is read: neither the horizon nor which windows count."""
    said = protocol.to_json()
    return digest([{key: value for key, value in said.items() if key not in _JUDGING}, source])


_JUDGING = ("horizon", "stride", "rules", "cuts", "headline")
_HELD = 4
_READ: dict[str, Panel] = {}
_PRINTS: dict[str, str] = {}


def readies(
    spec: Spec, job: Job, *, context: int = 0, neutral: bool = False
) -> Iterator[tuple[Prepared, PruneSettings, FinetuneSettings]]:
    """Data and model of a job, one per fold of its protocol.

    Args:
        spec: the grid.
        job: of which.
        context: instead of the one set.
        neutral: whether the model plays no part.
    """
    model, entry = entries(spec, job)
    chosen = ModelEntry(NEUTRAL, NEUTRAL) if neutral or model is None else model
    more: dict[str, Any] = {"train_share": job.share, "seed": job.seed or 0}
    more |= {"context": context} if context else {}
    task, pruning, tuning = spec.sections(chosen, entry, **more)
    protocol, panel = spec.protocol_of(entry, job.horizon), panel_of(spec, entry, job.horizon)
    task = replace(task, horizon=protocol.horizon)
    loaded = load(chosen.path, device=task.device)
    if neutral and not task.context:
        # What the model can use is no reason for a baseline to see less.
        task = replace(task, context=min(loaded.context_length, max(1, int(panel.lengths.max()) - protocol.horizon)))
    fold, folds = 0, 1
    while fold < folds:
        found: list[Split] = []

        def cut(panel: Panel, context: int, grouping: Grouping, found: list[Split] = found, fold: int = fold) -> Split:
            found += protocol.splits(panel, context, grouping=grouping)
            return found[fold]

        yield prepare(task, panel=panel, model=loaded, cut=cut), pruning, tuning
        fold, folds = fold + 1, len(found)


@contextmanager
def workshop(
    ready: Prepared,
    pruning: PruneSettings,
    tuning: FinetuneSettings,
    place: Path,
    fold: int,
    shorter: Shorter = AS_PUBLISHED,
) -> Iterator[Workshop]:
    """Where the candidates of a fold are made; what is finished below `place` is taken as it stands."""
    workplace = Run(place / f"fold-{fold}", warn=lambda text: None)
    try:
        base = {"tsprune": __version__, **ready.identity}
        yield Workshop(ready, pruning, tuning, workplace, base, Progress(quiet=True), shorter)
    finally:
        workplace.close()


def measured(protocol: Protocol, ready: Prepared, model: Predictor) -> dict[str, Evaluation]:
    """A model on validation and test windows; what steered it is not asked again."""
    from tsprune.evaluation.evaluate import measure

    size = ready.task.batch_size
    return {
        "validation": measure(model, ready.validation[0], ready.split, batch_size=size),
        "test": protocol.measure(model, ready.split, "test", batch_size=size),
    }


def result_of(
    protocol: Protocol,
    folds: list[tuple[Prepared, Predictor, dict[str, Evaluation]]],
    kind: str,
    more: Mapping[str, Any],
    *,
    plan: str = "",
    started: float = 0.0,
) -> Result:
    """A row and its errors from what was measured, fold by fold.

    Args:
        protocol: by which it was judged.
        folds: data, model and evaluations of every fold; sizes are those of the last one, which would be used.
        kind: `tuned`, `scratch`, `zero_shot` or `baseline`.
        more: entries of the row that belong to the kind.
        plan: JSON text.
        started: when the work began, by `time.monotonic`.
    """
    ready, model, _ = folds[-1]
    test = RowErrors.joined([found["test"].rows for _, _, found in folds])
    validation = RowErrors.joined([found["validation"].rows for _, _, found in folds])
    windows = [protocol.windows(one.split) for one, _, _ in folds]
    context, horizon = ready.split.context, ready.horizon
    notes = [note for _, _, found in folds for note in found["test"].notes]
    row = {
        "protocol": protocol.name,
        "context": context,
        "kind": kind,
        "windows": {"validation": len(validation), "test": len(test), "train": len(ready.train)},
        "validation": _values(validation),
        "test": _values(test),
        "parameters": parameters(model),
        "flops": flops(model, context, horizon),
        **more,
        "notes": list(dict.fromkeys(notes)),
    }
    arrays: Arrays = packed(test, Blocks.of(windows))
    said = protocol.describe([one.split for one, _, _ in folds])
    seconds = time.monotonic() - started if started else 0.0
    return Result(row, arrays, plan, seconds, said, benchmark_rows(protocol, folds, model))


def benchmark_rows(
    protocol: Protocol, folds: list[tuple[Prepared, Predictor, dict[str, Evaluation]]], model: Predictor
) -> tuple[dict[str, Any], ...]:
    """Result rows in the form of the benchmark that the protocol is of, if any; the model is named when written."""
    made, forecast = getattr(protocol, "result_rows", None), getattr(protocol, "forecasts", None)
    if made is None or forecast is None:
        return ()
    found = [forecast(one, ready.split, batch_size=ready.task.batch_size) for ready, one, _ in folds]
    return tuple(made(found, ""))


def _values(rows: RowErrors) -> dict[str, float | None]:
    found = {name: rows.value(name) for name in MEASURES}
    return {name: value if value is not None and math.isfinite(value) else None for name, value in found.items()}


def on_device(folder: Path, ready: Prepared) -> Forecaster:
    """A tuned model of a stage."""
    return load(folder / "model", device=ready.task.device)
