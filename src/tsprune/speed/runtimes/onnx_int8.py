"""ONNX Runtime on the exported file in int8."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

from tsprune.speed.runtimes import _onnxfile
from tsprune.speed.runtimes._runtime import Forecast, Runtime

if TYPE_CHECKING:
    from tsprune.progress import Progress
    from tsprune.speed.subject import Subject

FOLDER = "onnx_int8"
WINDOWS = 32
"""Windows that hold the file to its bound, as many as the command `export` takes unless told otherwise."""


class OnnxInt8(Runtime):
    """The file that the export of that name writes where it is given no data: calibrated on drawn series.

    Its forecasts differ; by how much on the windows of the ladder, which are unlike those series, is part of every row.
    """

    title = "ONNX Runtime, int8"
    exact = False
    packages = _onnxfile.PACKAGES
    extra = "onnx"

    def refusal(self, subject: Subject) -> str:
        """As the float32 file; its products run on CPUs only."""
        if subject.device != "cpu":
            return "its int8 products run on CPUs only"
        return _onnxfile.refusal(subject, "CPUExecutionProvider") or _form().EXPORT.refusal(subject.model)

    def prepare(self, subject: Subject, progress: Progress) -> None:
        """Export the model, then write its file in int8."""
        from tsprune.exports._drawn import DRAWN, drawn_batches, drawn_calibration
        from tsprune.exports._export import Request

        folder = subject.folder / FOLDER
        if folder.exists():
            return
        source = _onnxfile.exported(subject, progress)
        partial = subject.folder / f"{FOLDER}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        judging = drawn_batches(WINDOWS, subject.context, subject.horizon)
        fitting = drawn_calibration(subject.context, subject.horizon)
        _form().from_float32(
            Request(
                subject.on_cpu(), subject.source, partial, judging, subject.horizon, progress,
                calibration=fitting, calibrated_on=DRAWN,
            ),
            source,
        )  # fmt: skip
        os.replace(partial, folder)

    def open(self, subject: Subject, threads: int) -> Forecast:
        """A session."""
        return _onnxfile.opened(subject.folder / FOLDER / _onnxfile.MODEL, threads, "CPUExecutionProvider")

    def imports(self) -> None:
        """ONNX Runtime alone."""
        _onnxfile.library()

    def bytes_on_disk(self, subject: Subject) -> int:
        """The file in int8."""
        return _onnxfile.size_of(subject.folder / FOLDER, _onnxfile.MODEL)


def _form() -> Any:
    """What writes the file; imported late, since a process that only runs one needs none of it."""
    from tsprune.exports import onnx_int8

    return onnx_int8


RUNTIME = OnnxInt8()
