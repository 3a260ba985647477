"""Which families there are, what they can do, and which public checkpoints they read."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsprune import registry

if TYPE_CHECKING:
    from tsprune.models._forecaster import Forecaster

PACKAGE = "tsprune.models"
ABILITIES = {
    "multivariate": "related series",
    "past_covariates": "past covariates",
    "known_covariates": "known covariates",
    "missing_values": "missing values",
    "quantiles": "quantiles",
}


def describe(name: str) -> dict[str, Any]:
    """What is known about one family, as JSON-shaped data.

    Args:
        name: of a family in `tsprune.models`.

    Returns:
        `family`, `about` (one sentence), `abilities`, `losses`, `pretraining_corpora` (None: unknown), `checkpoints`
        (`name`, `millions`, `licence` of the weights, `note`), and `presets` that `tsprune pretrain` knows.
    """
    module = registry.find(PACKAGE, name)
    kind: type[Forecaster] = module.FAMILY
    able = kind.capabilities
    folder = Path(__file__).parent / "bundled" / "configs"
    presets = [path.stem.removeprefix(f"{kind.family}-") for path in sorted(folder.glob(f"{kind.family}-*.json"))]
    return {
        "family": kind.family,
        "about": (module.__doc__ or "").strip().split("\n")[0],
        "abilities": [words for ability, words in ABILITIES.items() if getattr(able, ability)],
        "losses": list(kind.objectives),
        "pretraining_corpora": None if kind.pretraining_corpora is None else list(kind.pretraining_corpora),
        "checkpoints": [asdict(checkpoint) for checkpoint in kind.checkpoints],
        "presets": presets,
    }
