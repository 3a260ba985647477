"""The command `export`: a model in the form in which others run or load it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
    from tsprune.exports._card import About
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
    error_bound: float = option(
        0.0, "Share of float32's error that int8 may add (forms that are calibrated). Default: 0.01, which is 1 %."
    )
    base: str = option("", "Directory of the uncut model that a pruned one came from (forms that go back to it).")
    push: str = option("", "Upload the export to the Hugging Face hub, as OWNER/NAME; the repository is private.")
    public: bool = option(False, "Make the repository of --push public.")
    license: str = option("", "Licence of the model, such as apache-2.0, where that of the base is not known.")
    data_name: str = option(
        "", "What the model card calls the data the model was tuned on, instead of the file's name."
    )

    def __post_init__(self) -> None:
        """Refuse unknown forms and numbers that mean nothing."""
        object.__setattr__(self, "format", known(PACKAGE, self.format, "--format"))
        if not 0 <= self.error_bound < 1:
            raise TspruneError(
                f"--error-bound {self.error_bound:g} must lie between 0 and 1: it is a share, 0.01 is 1 %, and 0 takes "
                "the default"
            )
        if self.windows < 1:
            raise TspruneError(f"--windows {self.windows} must be at least 1")
        if wrong := [bits for bits in self.bits if bits < 1]:
            raise TspruneError(f"--bits {wrong[0]} must be at least 1")
        if self.push:
            from tsprune.publishing import check_repository

            check_repository(self.push)
        elif self.public:
            raise TspruneError("--public: without effect without --push OWNER/NAME; leave it out or give that")

    @property
    def options(self) -> dict[str, Any]:
        """What the form is told, as far as it was given."""
        given = {"bits": self.bits, "base": self.base, "error_bound": self.error_bound}
        return {name: value for name, value in given.items() if value}


def run_export(chosen: Chosen, quiet: bool) -> None:
    """Write a model in another form, such as one ONNX file that forecasts without tsprune, and check it."""
    from tsprune.exporting import CARD, FACTS, check_export_place, export, form_of
    from tsprune.exports._card import about_model
    from tsprune.models import load
    from tsprune.preparing import set_threads
    from tsprune.publishing import push

    settings, task, progress = chosen.make(ExportSettings), chosen.make(TaskSettings), Progress(quiet)
    if task.device != "cpu":
        raise TspruneError(f"--device {task.device}: models are exported on the CPU; leave it out")
    form = form_of(settings.format)
    if settings.error_bound and not form.calibrated:
        raise TspruneError(f"--error-bound: without effect on --format {settings.format}; leave it out")
    out = check_export_place(Path(settings.out))
    set_threads(task.threads)
    model = load(task.model)
    if reason := form.refusal(model):
        raise TspruneError(f"--format {settings.format}: {reason}")
    about = about_model(model, task.model, licence=settings.license, base=settings.base, data_name=settings.data_name)
    if settings.push:
        _may_be_pushed(about, settings.push)
    seen = _windows(task, chosen.make(ReadOptions), model, settings.windows, form.calibrated)
    for note in (*model.notes, *seen.notes):
        progress.say(f"note: {note}")
    facts = export(
        model,
        settings.format,
        out,
        source=task.model,
        batches=seen.batches,
        horizon=seen.horizon,
        progress=progress,
        options=settings.options,
        about=about,
        name=settings.push,
        calibration=seen.calibration,
        calibrated_on=seen.calibrated_on,
    )
    for note in facts.get("notes", ()):
        progress.say(f"note: {note}")
    if "parity" in facts:
        print(_parity_line(facts["parity"]))
    for name, size in facts["files"].items():
        print(f"{out / name}: {size:,} bytes")
    print(f"facts: {out / FACTS}")
    print(f"model card: {out / CARD}")
    if about.named_data:
        progress.say(f"note: the model card names the data {about.named_data!r}: check that you may publish the name")
    if settings.push:
        print(f"uploaded: {push(out, settings.push, public=settings.public, say=progress.say)}")


def _may_be_pushed(about: About, repository: str) -> None:
    """Refuse to publish weights of which nobody knows what may be done with them."""
    if not about.licence.known:
        vain = f" ({about.licence.told_by})" if about.licence.told_by else ""
        raise TspruneError(
            f"--push {repository}: the licence of the weights of {about.ancestors[-1].name} is not known{vain}; find "
            "out what their publisher allows and name it with --license NAME, such as apache-2.0, or leave --push out"
        )


@dataclass(frozen=True)
class Seen:
    """Windows that an export is compared on, and fitted to where its form is.

    Attributes:
        horizon: steps.
        batches: to compare on.
        notes: for people.
        calibration: other windows, earlier ones where they are the user's; none unless asked for.
        calibrated_on: where these came from, for people.
    """

    horizon: int
    batches: list[Batch]
    notes: list[str]
    calibration: list[Batch] = field(default_factory=list)
    calibrated_on: str = ""


def _windows(task: TaskSettings, reading: ReadOptions, model: Forecaster, count: int, calibrated: bool) -> Seen:
    """The windows: of the user's series where there are such, else drawn."""
    from tsprune.exports._drawn import DRAWN, drawn_batches, drawn_calibration
    from tsprune.exports._export import CALIBRATION
    from tsprune.preparing import prepare

    horizon = task.horizon or int(model.task.get("horizon") or 0)
    if task.data:
        ready = prepare(replace(task, horizon=horizon), reading, model=model)
        windows = ready.validation[0].thin(count)[0]
        batches = [batch for _, batch in windows.batches(count)]
        if not calibrated:
            return Seen(ready.horizon, batches, list(ready.notes))
        train = ready.train.windows.thin(CALIBRATION)[0] if len(ready.train) else ready.train.windows
        fitting = [batch for _, batch in train.batches(count)]
        return Seen(ready.horizon, batches, list(ready.notes), fitting, f"training windows of {Path(task.data).name}")
    notes = ["compared on drawn series; --data compares on yours"]
    if calibrated:
        notes = ["calibrated and compared on drawn series, which yours may not be like; --data FILE takes yours"]
    if not horizon:
        horizon = min(model.native_horizon, LONGEST_DRAWN)
        notes.append(f"horizon {horizon}, as neither --horizon nor the model names one")
    context = task.context or model.context_length
    if context > model.context_length:
        raise TspruneError(
            f"--context {context} is more than the {model.context_length} steps that {task.model} can use; give "
            f"--context {model.context_length} or less"
        )
    batches = drawn_batches(count, context, horizon, task.seed)
    if not calibrated:
        return Seen(horizon, batches, notes)
    return Seen(horizon, batches, notes, drawn_calibration(context, horizon, task.seed), DRAWN)


def _parity_line(parity: Mapping[str, Any]) -> str:
    amplified = parity.get("amplified", ())
    said = f"{parity['cases']} comparisons with the model: at most {parity['worst']:.1e} of the forecasts' deviation"
    if not amplified:
        return said
    return (
        f"{said}; {len(amplified)} of them, where float32 itself is further from float64 than that, at most "
        f"{amplified[0]['difference']:.1e}"
    )
