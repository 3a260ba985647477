"""ONNX Runtime with the weights of matrix products in 8 bits."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tsprune.speed.runtimes import _onnxfile
from tsprune.speed.runtimes._runtime import Forecast, Runtime

if TYPE_CHECKING:
    from tsprune.progress import Progress
    from tsprune.speed.subject import Subject

FOLDER = "onnx_int8"


class OnnxInt8(Runtime):
    """Dynamic quantisation of the exported file: int8 weights of MatMul, activations quantised at every call.

    Nothing is calibrated or tuned, so its forecasts differ; by how much is part of every row.
    """

    title = "ONNX Runtime, int8"
    exact = False
    packages = _onnxfile.PACKAGES
    extra = "onnx"

    def refusal(self, subject: Subject) -> str:
        """As the float32 file; its products run on CPUs only."""
        if subject.device != "cpu":
            return "dynamic quantisation runs on CPUs only"
        return _onnxfile.refusal(subject, "CPUExecutionProvider")

    def prepare(self, subject: Subject, progress: Progress) -> None:
        """Export the model, then quantise the file."""
        folder = subject.folder / FOLDER
        if (folder / _onnxfile.MODEL).exists():
            return
        source = _onnxfile.exported(subject, progress) / _onnxfile.MODEL
        folder.mkdir(exist_ok=True)
        partial = folder / f"partial-{_onnxfile.MODEL}"
        quantization = _onnxfile.library("onnxruntime.quantization")
        int8 = quantization.QuantType.QInt8
        with _quiet():
            quantization.quantize_dynamic(source, partial, op_types_to_quantize=["MatMul"], weight_type=int8)
        os.replace(partial, folder / _onnxfile.MODEL)

    def open(self, subject: Subject, threads: int) -> Forecast:
        """A session."""
        return _onnxfile.opened(subject.folder / FOLDER / _onnxfile.MODEL, threads, "CPUExecutionProvider")

    def imports(self) -> None:
        """ONNX Runtime alone."""
        _onnxfile.library()

    def bytes_on_disk(self, subject: Subject) -> int:
        """The quantised file."""
        return _onnxfile.size_of(subject.folder / FOLDER, _onnxfile.MODEL)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's advice to preprocess the file first, which the export did."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


RUNTIME = OnnxInt8()
