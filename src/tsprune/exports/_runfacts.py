"""The run that a model came out of, where its results still lie beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsprune.candidates import SCRATCH
from tsprune.errors import TspruneError
from tsprune.report.words import candidates_by_name, number
from tsprune.stages import read_json

if TYPE_CHECKING:
    from tsprune.models._forecaster import Forecaster

MODEL, RESULTS = "model", "results.json"
"""Where a run keeps the model it hands back, and what it found."""


@dataclass(frozen=True)
class RunFacts:
    """What a run found, and which of its candidates the exported model is.

    Args:
        results: content of `results.json`.
        kept: name of the candidate whose model was handed back: the chosen one, or the best network where a baseline
            was chosen.
    """

    results: Mapping[str, Any]
    kept: str

    @property
    def protocol(self) -> Mapping[str, Any]:
        """How the numbers came about; empty where the results do not say."""
        found = self.results.get("protocol")
        return found if isinstance(found, Mapping) else {}

    @property
    def candidate(self) -> Mapping[str, Any]:
        """The results of the model that was handed back."""
        return candidates_by_name(self.results)[self.kept]

    @property
    def base(self) -> str:
        """Name or directory of the model that the run started from; "" where this one owes nothing to it."""
        return "" if self.kept.endswith(SCRATCH) else str(self.protocol.get("model") or "")

    def other_than(self, model: Forecaster) -> str:
        """Why these cannot be the results of a model, or "": sizes and horizons are compared."""
        told = number(self.candidate.get("parameters"))
        if told != model.parameter_count():
            return f"they are of a model with {told:,.0f} parameters, this one has {model.parameter_count():,}"
        horizon = self.protocol.get("horizon")
        if (own := model.task.get("horizon")) != horizon:
            return f"they are of a model for horizon {horizon}, this one says {own}"
        return ""


def run_facts(source: str) -> RunFacts | None:
    """The results of the run whose `model/` the source is; None for any other directory or name.

    Raises:
        TspruneError: there are results, but damaged ones.
    """
    directory = Path(source).expanduser()
    # Made absolute, so that "." inside the directory is known too.
    path = directory.absolute().parent / RESULTS if directory.is_dir() else directory
    if not directory.is_dir() or directory.resolve().name != MODEL or not path.is_file():
        return None
    from tsprune.specializing import kept_model

    results = read_json(path)
    if not isinstance(results, Mapping) or not isinstance(results.get("candidates"), list):
        raise TspruneError(
            f"{path}: holds no candidates, so these are no results of a run; restore the file or move it"
        )
    try:
        found = candidates_by_name(results)
        kept = kept_model(str(results["chosen"]), {n: {"metrics": c["validation"]} for n, c in found.items()})
    except (KeyError, TypeError) as error:
        raise TspruneError(f"{path}: entry {error} is missing or damaged; restore the file or move it") from None
    return RunFacts(results, kept)
