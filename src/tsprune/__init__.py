"""tsprune: from a pretrained time-series foundation model to a smaller, faster specialist, with the proof beside it.

>>> import tsprune
>>> panel = tsprune.read("sales.csv")
>>> result = tsprune.specialize("mini", panel, horizon=24, out="run")

Everything heavy is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tsprune.__about__ import __version__
from tsprune.errors import TspruneError

if TYPE_CHECKING:
    from tsprune.data.batch import Batch
    from tsprune.data.panel import Panel
    from tsprune.data.reading import ReadOptions, read
    from tsprune.data.split import Split
    from tsprune.finetuning import finetune
    from tsprune.models import load, save
    from tsprune.plan import Plan
    from tsprune.predicting import predict
    from tsprune.pruning import prune
    from tsprune.slimming import slim
    from tsprune.specializing import specialize

_HOMES = {
    "Batch": "tsprune.data.batch",
    "Panel": "tsprune.data.panel",
    "Plan": "tsprune.plan",
    "ReadOptions": "tsprune.data.reading",
    "Split": "tsprune.data.split",
    "finetune": "tsprune.finetuning",
    "load": "tsprune.models",
    "predict": "tsprune.predicting",
    "prune": "tsprune.pruning",
    "read": "tsprune.data.reading",
    "save": "tsprune.models",
    "slim": "tsprune.slimming",
    "specialize": "tsprune.specializing",
}

__all__ = [
    "Batch",
    "Panel",
    "Plan",
    "ReadOptions",
    "Split",
    "TspruneError",
    "__version__",
    "finetune",
    "load",
    "predict",
    "prune",
    "read",
    "save",
    "slim",
    "specialize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tsprune' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
