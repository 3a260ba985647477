"""Plain torch, operation by operation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from tsprune import registry
from tsprune.data.batch import Batch
from tsprune.evaluation.cost import finish
from tsprune.speed.runtimes._runtime import Forecast, Runtime

if TYPE_CHECKING:
    from tsprune.speed.subject import Subject


class Eager(Runtime):
    """The model as it is loaded; threads are torch's own."""

    title = "eager torch"

    def imports(self) -> None:
        """Every family, so that whichever the checkpoint belongs to has been imported."""
        for name in registry.names("tsprune.models"):
            registry.find("tsprune.models", name)

    def open(self, subject: Subject, threads: int) -> Forecast:
        """The model's own forecast."""
        model = subject.model

        def forecast(batch: Batch) -> Tensor:
            found = model.forecast(batch, subject.horizon)
            finish(found)
            return found

        return forecast


RUNTIME = Eager()
