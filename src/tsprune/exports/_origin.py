"""Where a model's weights come from, and under which licence."""

from __future__ import annotations

from typing import Any

from tsprune.exports._licence import licence_of
from tsprune.exports._lineage import lineage
from tsprune.models._forecaster import Forecaster

UNKNOWN = "not known here; that of the base model's weights applies"


def origin(model: Forecaster, source: str) -> dict[str, Any]:
    """`base_model`, the public or bundled name where it is known, and `licence`.

    Args:
        model: what its family publishes is looked up.
        source: directory or name it was loaded from; a plan in the directory, or results of the run beside it, name
            the model that it came from. Of other directories only the last part of the path is told.
    """
    ancestors = lineage(model, source)
    licence = licence_of(ancestors)
    return {"base_model": ancestors[-1].name, "licence": licence.name or UNKNOWN}
