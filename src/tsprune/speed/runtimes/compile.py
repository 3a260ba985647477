"""torch.compile with its usual backend, one graph for every size of batch."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch._dynamo
from torch import Tensor

from tsprune.data.batch import Batch
from tsprune.evaluation.cost import finish
from tsprune.speed.runtimes._runtime import Forecast, Runtime

if TYPE_CHECKING:
    from tsprune.speed.subject import Subject

# The usual 8 graphs of one piece of code are soon used up by several models and batches.
_ROOMY: Any = torch._dynamo.config.patch({"recompile_limit": 256, "fail_on_recompile_limit_hit": True})


class Compiled(Runtime):
    """The forecast of one pass, compiled at the first call for each size; that takes up to a minute."""

    title = "torch.compile"
    asked = True
    crowded = "compiling takes more memory than forecasting"

    def missing(self) -> str:
        """It generates C++ for CPUs and builds it on the spot."""
        if shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++"):
            return ""
        return "needs a C++ compiler (g++ or clang++), none was found"

    def open(self, subject: Subject, threads: int) -> Forecast:
        """Compiled anew; code that torch would give up to compile raises instead of running as it is."""
        model = subject.model
        predict: Any = torch.compile(model.predict, dynamic=False)
        compiled: set[int] = set()

        def forecast(batch: Batch) -> Tensor:
            # Settings are only needed while compiling, and putting them on takes time.
            first = batch.rows not in compiled
            with _compiling() if first else nullcontext(), torch.no_grad():
                found: Tensor = predict(batch, subject.horizon)
            compiled.add(batch.rows)
            finish(found)
            return found

        return forecast


@contextmanager
def _compiling() -> Iterator[None]:
    """Room for graphs, and no word of the places where a graph ends: what is slow shows in the times."""
    logger = logging.getLogger("torch._dynamo")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with _ROOMY:
            yield
    finally:
        logger.setLevel(level)


RUNTIME = Compiled()
