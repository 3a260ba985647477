"""The command `export`: a model in the form in which others run or load it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsprune.data.reading import ReadOptions
from tsprune.errors import TspruneError
from tsprune.flags import Chosen
from tsprune.progress import Progress
from tsprune.registry import known, names
from tsprune.settings import TaskSettings, option

if TYPE_CHECKING:
    from tsprune.data.batch import Batch
    from tsprune.models._forecaster import Forecaster

PACKAGE = "tsprune.exports"
LONGEST_DRAWN = 64
"""Steps that a model is asked for at most where neither it nor the user names a horizon."""


@dataclass(frozen=True)
class ExportSettings:
    """What to write, and where to."""

    format: str = option("onnx", f"Form to write: {', '.join(names(PACKAGE))}.")
    out: str = option("exported", "Directory for the export; an earlier export there is replaced.")
    windows: int = option(
        32, "Windows on which the export is compared with the model: of --data, else of series that are drawn."
    )
    bits: tuple[int, ...] = option((), "Bits of a weight, such as 8 or 8,6,5,4,3 (forms that store fewer).")
    base: str = option("", "Directory of the uncut model that a pruned one came from (forms that go back to it).")

    def __post_init__(self) -> None:
        """Refuse unknown forms and numbers that mean nothing."""
        object.__setattr__(self, "format", known(PACKAGE, self.format, "--format"))
        if self.windows < 1:
            raise TspruneError(f"--windows {self.windows} must be at least 1")
        if wrong := [bits for bits in self.bits if bits < 1]:
            raise TspruneError(f"--bits {wrong[0]} must be at least 1")

    @property
    def options(self) -> dict[str, Any]:
        """What the form is told, as far as it was given."""
        given = {"bits": self.bits, "base": self.base}
        return {name: value for name, value in given.items() if value}


def run_export(chosen: Chosen, quiet: bool) -> None:
    """Write a model in another form, such as one ONNX file that forecasts without tsprune, and check it."""
    from tsprune.exporting import FACTS, check_export_place, export, form_of
    from tsprune.models import load
    from tsprune.preparing import set_threads

    settings, task, progress = chosen.make(ExportSettings), chosen.make(TaskSettings), Progress(quiet)
    if task.device != "cpu":
        raise TspruneError(f"--device {task.device}: models are exported on the CPU; leave it out")
    out = check_export_place(Path(settings.out))
    set_threads(task.threads)
    model = load(task.model)
    if reason := form_of(settings.format).refusal(model):
        raise TspruneError(f"--format {settings.format}: {reason}")
    horizon, batches, notes = _windows(task, chosen.make(ReadOptions), model, settings.windows)
    for note in (*model.notes, *notes):
        progress.say(f"note: {note}")
    facts = export(
        model,
        settings.format,
        out,
        source=task.model,
        batches=batches,
        horizon=horizon,
        progress=progress,
        options=settings.options,
    )
    for note in facts.get("notes", ()):
        progress.say(f"note: {note}")
    if "parity" in facts:
        print(_parity_line(facts["parity"]))
    for name, size in facts["files"].items():
        print(f"{out / name}: {size:,} bytes")
    print(f"facts: {out / FACTS}")


def _windows(
    task: TaskSettings, reading: ReadOptions, model: Forecaster, count: int
) -> tuple[int, list[Batch], list[str]]:
    """Horizon, windows to compare on, and notes."""
    from tsprune.exports._drawn import drawn_batches
    from tsprune.preparing import prepare

    horizon = task.horizon or int(model.task.get("horizon") or 0)
    if task.data:
        ready = prepare(replace(task, horizon=horizon), reading, model=model)
        windows = ready.validation[0].thin(count)[0]
        return ready.horizon, [batch for _, batch in windows.batches(count)], list(ready.notes)
    notes = ["compared on drawn series; --data compares on yours"]
    if not horizon:
        horizon = min(model.native_horizon, LONGEST_DRAWN)
        notes.append(f"horizon {horizon}, as neither --horizon nor the model names one")
    context = task.context or model.context_length
    if context > model.context_length:
        raise TspruneError(
            f"--context {context} is more than the {model.context_length} steps that {task.model} can use; give "
            f"--context {model.context_length} or less"
        )
    return horizon, drawn_batches(count, context, horizon, task.seed), notes


def _parity_line(parity: Mapping[str, Any]) -> str:
    amplified = parity.get("amplified", ())
    said = f"{parity['cases']} comparisons with the model: at most {parity['worst']:.1e} of the forecasts' deviation"
    if not amplified:
        return said
    return (
        f"{said}; {len(amplified)} of them, where float32 itself is further from float64 than that, at most "
        f"{amplified[0]['difference']:.1e}"
    )
