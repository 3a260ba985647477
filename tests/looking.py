"""Studies of a model for probes of the lens, without data behind them, and a count of the passes that they take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from tsprune import lens
from tsprune.data.batch import Batch
from tsprune.lens._probe import Findings, Measure, Study
from tsprune.models._forecaster import Forecaster


def study_of(model: Forecaster, batches: Sequence[Batch]) -> Study:
    """Windows to look at a model on; there are no later ones."""
    ready: Any = SimpleNamespace(model=model, horizon=3)
    return Study(ready, batches, ())


def look(name: str, model: Forecaster, batches: Sequence[Batch], tick: Callable[[str], None] = str) -> Findings:
    """What a probe finds."""
    return lens.find(name).run(study_of(model, batches), tick)


def measure(findings: Findings, name: str) -> Measure:
    """The measure of that name."""
    (found,) = (one for one in findings.measures if one.name == name)
    return found


@contextmanager
def rows_passed(model: Forecaster) -> Iterator[list[int]]:
    """Rows of every batch whose loss is asked for."""
    found: list[int] = []
    losses = model.row_losses

    def counted(batch: Batch) -> Tensor:
        found.append(batch.rows)
        return losses(batch)

    model.row_losses = counted  # type: ignore[method-assign]
    try:
        yield found
    finally:
        del model.row_losses
