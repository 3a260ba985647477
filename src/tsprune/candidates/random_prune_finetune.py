"""The control of the score: random units leave until the model is as small as the pruned one."""

from __future__ import annotations

from tsprune.candidates._candidate import Candidate
from tsprune.candidates._starts import OneShot
from tsprune.candidates._trainings import AsSet

CANDIDATE = Candidate(
    "random_prune_finetune",
    "pruned at random",
    OneShot("random-prune", "random", "the model cut at random to the size of the pruned one"),
    AsSet(),
)
