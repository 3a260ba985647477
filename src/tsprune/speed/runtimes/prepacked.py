"""Plain torch with the weights laid out beforehand for the CPU's matrix kernels."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from torch import Tensor

from tsprune import registry
from tsprune.blocks.prepacked import available
from tsprune.data.batch import Batch
from tsprune.evaluation.cost import finish
from tsprune.speed.runtimes import REFERENCE
from tsprune.speed.runtimes._runtime import Forecast, Runtime

if TYPE_CHECKING:
    from tsprune.models._forecaster import Forecaster
    from tsprune.speed.subject import Subject


class Prepacked(Runtime):
    """The model's own forecast inside `model.prepacked()`, as evaluation and `tsprune forecast` run it."""

    title = "eager torch, prepacked"

    def missing(self) -> str:
        """It needs oneDNN in torch."""
        return "" if available() else "needs a torch with oneDNN, this one has none"

    def refusal(self, subject: Subject) -> str:
        """Weights are laid out for CPUs only."""
        return "" if subject.device == "cpu" else "weights are laid out for CPUs only"

    def imports(self) -> None:
        """As plain torch."""
        eager: Runtime = registry.find("tsprune.speed.runtimes", REFERENCE).RUNTIME
        eager.imports()

    def open(self, subject: Subject, threads: int) -> Forecast:
        """The forecast of a twin that shares the model's weights: the model itself stays plain for other runtimes."""
        return _LaidOut(subject.model, subject.horizon)


class _LaidOut:
    """A model whose weights are laid out at the first call and stay so."""

    def __init__(self, model: Forecaster, horizon: int) -> None:
        self.model = sharing(model)
        self.horizon = horizon
        # Kept, since it ends with its last reference.
        self.scope = self.model.prepacked()
        self.scope.__enter__()

    def __call__(self, batch: Batch) -> Tensor:
        found = self.model.forecast(batch, self.horizon)
        finish(found)
        return found


def sharing(model: Forecaster) -> Forecaster:
    """A twin with modules of its own around the same tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    found: Forecaster = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    return found


RUNTIME = Prepacked()
