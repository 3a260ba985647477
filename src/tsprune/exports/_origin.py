"""Where a model's weights come from, and under which licence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tsprune.models._forecaster import Forecaster
from tsprune.models._loading import BUNDLED
from tsprune.models._weightfiles import PLAN
from tsprune.plan import Plan

UNKNOWN = "not known here; that of the base model's weights applies"
BUNDLED_LICENCE = "Apache-2.0"


def origin(model: Forecaster, source: str) -> dict[str, Any]:
    """`base_model`, the public or bundled name where it is known, and `licence`.

    Args:
        model: what its family publishes is looked up.
        source: directory or name it was loaded from; a directory with a plan names the model that was cut. Of other
            directories only the last part of the path is told.
    """
    name, plan = source, Path(source) / PLAN
    if plan.is_file():
        name = Plan.read(plan).base_model or name
    if name in BUNDLED:
        return {"base_model": name, "licence": BUNDLED_LICENCE}
    for checkpoint in model.checkpoints:
        if name.split("@")[0] == checkpoint.name:
            return {"base_model": name, "licence": checkpoint.licence}
    return {
        "base_model": Path(name).name if Path(name).exists() or Path(name).is_absolute() else name,
        "licence": UNKNOWN,
    }
