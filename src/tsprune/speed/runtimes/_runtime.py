"""What a runtime is asked and what it gives back."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from tsprune.data.batch import Batch

if TYPE_CHECKING:
    from tsprune.progress import Progress
    from tsprune.speed.subject import Subject

Forecast = Callable[[Batch], Tensor]
"""Quantiles `[B, Q, H]` of a batch at the model's own levels; returns once they are there."""


class Runtime(ABC):
    """A way to run a model's forecasts.

    Attributes:
        title: for people.
        exact: whether it must reproduce the forecasts of plain torch; where not, its difference is shown.
        asked: whether it runs only when it is named, since it takes long.
        crowded: why its memory is not measured, one sentence without a full stop; "" where it is.
        packages: what it needs beyond what tsprune itself needs.
        extra: the extra of tsprune that brings these.
    """

    title: ClassVar[str]
    exact: ClassVar[bool] = True
    asked: ClassVar[bool] = False
    crowded: ClassVar[str] = ""
    packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""

    def missing(self) -> str:
        """Why it cannot run here at all, one sentence without a full stop; "" where it can. Imports nothing."""
        absent = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if not absent:
            return ""
        return f"needs {' and '.join(absent)}, not installed here; pip install 'tsprune[{self.extra}]'"

    def refusal(self, subject: Subject) -> str:
        """Why it cannot run this model on this device, one sentence without a full stop; "" where it can."""
        return ""

    def prepare(self, subject: Subject, progress: Progress) -> None:
        """Write what `open` needs into the subject's folder; nothing where that is there already.

        Raises:
            TspruneError: the model cannot be written in the form that the runtime needs.
        """
        return None

    @abstractmethod
    def open(self, subject: Subject, threads: int) -> Forecast:
        """A callable that forecasts on so many threads, torch's own number being set around it by the caller.

        Called in the process that measures times, and in fresh ones that measure memory.
        """

    def imports(self) -> None:
        """Import all that `open` will import: the process that measures memory takes this off."""
        return None

    def bytes_on_disk(self, subject: Subject) -> int:
        """Size of the files that this runtime reads."""
        return subject.checkpoint_bytes
