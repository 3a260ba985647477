"""What `tsprune score` does once data and model are there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tsprune.amounts import byte_count
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster
from tsprune.preparing import Prepared
from tsprune.progress import Progress
from tsprune.registry import find
from tsprune.scores._memory import within_memory
from tsprune.settings import PruneSettings
from tsprune.stability import as_json, scored, told
from tsprune.stages import write_json


def check_score(settings: PruneSettings, kinds: Sequence[str]) -> None:
    """Refuse, before any work, kinds of units that the score has no value for.

    Args:
        settings: name the score.
        kinds: the kinds that are to be scored.

    Raises:
        TspruneError: such a kind; names those the score can do.
    """
    able = getattr(find("tsprune.scores", settings.score), "KINDS", None)
    if able is not None and (beyond := [kind for kind in kinds if kind not in able]):
        raise TspruneError(
            f"--units: the score {settings.score} has no value for units of kind {beyond[0]!r}, it can score "
            f"{', '.join(able)}; name only these, or choose another --score"
        )


def portions(model: Forecaster, batches: list[Batch], settings: PruneSettings) -> list[Batch]:
    """The batches, in smaller portions where `--max-memory` asks for them."""
    if not settings.max_memory:
        return batches
    limit = byte_count(settings.max_memory, "--max-memory")
    needs = find("tsprune.scores", settings.score).NEEDS
    return within_memory(model, batches, limit, needs=needs, kinds=settings.units)


def score_to(ready: Prepared, model: Forecaster, settings: PruneSettings, out: Path, progress: Progress) -> list[str]:
    """Score `model` on training windows, with the agreement of parts of them; writes `out`, returns what to print."""
    module = find("tsprune.scores", settings.score)
    windows = ready.macro_windows(1, settings.prune_windows)

    def batches_of(chosen: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> list[Batch]:
        return portions(model, ready.batches_of(windows[chosen]), settings)

    with progress.stage(f"score: {settings.score}", 1) as bar:
        found, agreement = scored(
            module,
            model,
            batches_of,
            window_times(ready, windows),
            kinds=settings.units,
            seed=ready.task.seed,
            rank=settings.rank,
        )
        bar.advance()
    groups = ready.model.unit_groups()
    content = {
        "schema": 1,
        "score": settings.score,
        "base_model": ready.task.model,
        "base_fingerprint": ready.identity["model"],
        "data_fingerprint": ready.identity["data"],
        "seed": ready.task.seed,
        "adapt_steps": settings.adapt_steps,
        "adapt_tuning": settings.adapt_tuning,
        "windows": len(windows),
        "stability": as_json(agreement),
        "groups": {name: {"kind": groups[name].kind, "scores": values.tolist()} for name, values in found.items()},
    }
    write_json(out, content)
    lowest = sorted((float(v), name, unit) for name, s in found.items() for unit, v in enumerate(s.tolist()))[:5]
    return [
        f"{sum(len(values) for values in found.values())} units in {len(found)} groups scored, written to {out}",
        "lowest: " + ", ".join(f"{name} {unit} ({value:.3g})" for value, name, unit in lowest),
        *(module.told(model, found) if hasattr(module, "told") else ()),
        *told(agreement, module.NEEDS),
    ]


def window_times(
    ready: Prepared, chosen: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """First step to forecast of each of the training windows with these numbers `[N]`.

    Nanoseconds since 1970 where the series have timestamps, else steps since the start of the series.
    """
    windows, panel = ready.train.windows, ready.panel
    stamps = [
        panel.horizon_timestamps(int(windows.series_index[number]), int(windows.origin[number]), 1)[0]
        for number in chosen.tolist()
    ]
    return np.array([getattr(stamp, "value", stamp) for stamp in stamps], np.int64)
