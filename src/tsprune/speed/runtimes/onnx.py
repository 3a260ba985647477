"""ONNX Runtime on the exported file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tsprune.speed.runtimes import _onnxfile
from tsprune.speed.runtimes._runtime import Forecast, Runtime

if TYPE_CHECKING:
    from tsprune.progress import Progress
    from tsprune.speed.subject import Subject


class Onnx(Runtime):
    """float32, all optimisations of the session; needs no torch where it is put to use."""

    title = "ONNX Runtime"
    packages = _onnxfile.PACKAGES
    extra = "onnx"

    def refusal(self, subject: Subject) -> str:
        """By what the export can write, and the devices that the installed ONNX Runtime has."""
        return _onnxfile.refusal(subject, _provider(subject))

    def prepare(self, subject: Subject, progress: Progress) -> None:
        """Export the model."""
        _onnxfile.exported(subject, progress)

    def open(self, subject: Subject, threads: int) -> Forecast:
        """A session."""
        return _onnxfile.opened(subject.folder / "onnx" / _onnxfile.MODEL, threads, _provider(subject))

    def imports(self) -> None:
        """ONNX Runtime alone."""
        _onnxfile.library()

    def bytes_on_disk(self, subject: Subject) -> int:
        """The exported file with its weights."""
        return _onnxfile.size_of(subject.folder / "onnx", _onnxfile.MODEL)


def _provider(subject: Subject) -> str:
    return "CUDAExecutionProvider" if subject.device.startswith("cuda") else "CPUExecutionProvider"


RUNTIME = Onnx()
