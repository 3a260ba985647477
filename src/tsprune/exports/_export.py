"""What writes a model in another form, and what it is told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from tsprune.data.batch import Batch
    from tsprune.models._forecaster import Forecaster
    from tsprune.progress import Progress

CALIBRATION = 128
"""Windows that a form is fitted to at most."""


@dataclass(frozen=True)
class Request:
    """One model to be written.

    Args:
        model: in eval mode, on the CPU; left as it was found.
        source: directory or name it was loaded from.
        out: an empty directory to write into; renamed into place by the caller when `write` returns.
        batches: windows on which what was written is compared with the model; at least one.
        horizon: steps to forecast.
        progress: told what happens.
        options: choices of one form, such as the bits of a quantised one.
        calibration: other windows, earlier ones of the same series, for forms that are fitted to what they will see.
        calibrated_on: where these came from, for people.
    """

    model: Forecaster
    source: str
    out: Path
    batches: Sequence[Batch]
    horizon: int
    progress: Progress
    options: Mapping[str, Any] = field(default_factory=dict)
    calibration: Sequence[Batch] = ()
    calibrated_on: str = ""


class Export(ABC):
    """A form in which a model can be written.

    Attributes:
        title: for people.
        calibrated: whether it is fitted to windows, see `Request.calibration`, and keeps a bound on its error.
    """

    title: ClassVar[str]
    calibrated: ClassVar[bool] = False

    def refusal(self, model: Forecaster) -> str:
        """Why a model cannot be written so, one sentence without a full stop; "" where it can."""
        return ""

    def usage(self, facts: Mapping[str, Any], name: str) -> str:
        """How what was written is used, as Markdown for the model card; "" where there is nothing to say.

        Args:
            facts: what `write` found, and `horizon`.
            name: `owner/name` on the hub, or that of the directory.
        """
        return ""

    @abstractmethod
    def write(self, request: Request) -> dict[str, Any]:
        """Write the model and check what was written; JSON-able facts: `files` with bytes, and what the check found.

        Raises:
            TspruneError: what was written does not reproduce the model, or an option is impossible.
        """
