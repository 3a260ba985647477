"""Pruned by the score, then tuned: what a run is for."""

from __future__ import annotations

from tsprune.candidates._candidate import Candidate
from tsprune.candidates._starts import Rounds
from tsprune.candidates._trainings import AsSet

CANDIDATE = Candidate("prune_then_finetune", "pruned", Rounds(), AsSet())
