"""The control that looks at no data: the units with the smallest weights leave."""

from __future__ import annotations

from tsprune.candidates._candidate import Candidate
from tsprune.candidates._starts import OneShot
from tsprune.candidates._trainings import AsSet

CANDIDATE = Candidate(
    "magnitude_prune_finetune",
    "pruned by magnitude",
    OneShot("magnitude-prune", "magnitude", "the model cut by the size of its weights to the size of the pruned one"),
    AsSet(),
)
