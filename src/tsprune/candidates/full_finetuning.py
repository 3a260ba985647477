"""The whole model, tuned: what pruning has to beat."""

from __future__ import annotations

from tsprune.candidates._candidate import Candidate
from tsprune.candidates._starts import Dense
from tsprune.candidates._trainings import AsSet

CANDIDATE = Candidate("full_finetuning", "whole", Dense(), AsSet())
