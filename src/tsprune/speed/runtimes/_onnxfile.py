"""An exported file, made once per model, and a session of ONNX Runtime over one."""

from __future__ import annotations

import importlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tsprune import registry
from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.exports._export import Export, Request
from tsprune.speed.runtimes._runtime import Forecast

if TYPE_CHECKING:
    from tsprune.progress import Progress
    from tsprune.speed.subject import Subject

MODEL = "model.onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
COMPARED = (1, 3)
"""Windows of the batches on which the export compares what it wrote with the model."""


def export_of() -> Export:
    """What writes the file."""
    found: Export = registry.find("tsprune.exports", "onnx").EXPORT
    return found


def library(name: str = "onnxruntime") -> Any:
    """ONNX Runtime, or a part of it, which has no types."""
    return importlib.import_module(name)


def refusal(subject: Subject, needed: str) -> str:
    """Why there is no file or session for a model on its device; `needed` is the provider that runs it."""
    onnxruntime = library()
    if needed not in onnxruntime.get_available_providers():
        return f"onnxruntime has no {needed} here; it has {', '.join(onnxruntime.get_available_providers())}"
    return export_of().refusal(subject.model)


def exported(subject: Subject, progress: Progress) -> Path:
    """The folder with `model.onnx`; written whole or not at all, once.

    Raises:
        TspruneError: the export refuses or does not reproduce the model.
    """
    folder = subject.folder / "onnx"
    if folder.exists():
        return folder
    partial = subject.folder / "onnx.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    batches = [subject.batch(windows).to("cpu") for windows in COMPARED]
    export_of().write(Request(subject.on_cpu(), subject.source, partial, batches, subject.horizon, progress))
    os.replace(partial, folder)
    return folder


def opened(path: Path, threads: int, provider: str) -> Forecast:
    """A session on so many threads.

    Its threads stop spinning when a call returns, since other runtimes take their turn then.

    Raises:
        TspruneError: the file wants an input that a batch does not have.
    """
    onnxruntime = library()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    inputs = [str(one.name) for one in session.get_inputs()]
    if strange := [name for name in inputs if name not in Batch.__dataclass_fields__]:
        known = ", ".join(Batch.__dataclass_fields__)
        raise TspruneError(f"{path.name} wants an input {strange[0]!r}; a batch has {known}")

    def forecast(batch: Batch) -> Tensor:
        fed: dict[str, Any] = {}
        for name in inputs:
            value = getattr(batch, name)
            if value is None:
                raise TspruneError(f"{path.name} wants an input {name!r}, which windows of this ladder do not have")
            fed[name] = value.cpu().numpy()
        return torch.from_numpy(session.run(None, fed)[0])

    return forecast


def size_of(folder: Path, *names: str) -> int:
    """Bytes of the files of that name, and of weights that lie beside them."""
    return sum(path.stat().st_size for path in folder.iterdir() if any(path.name.startswith(name) for name in names))
