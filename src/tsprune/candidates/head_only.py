"""The whole model, of which the forecast head alone is tuned."""

from __future__ import annotations

from tsprune.candidates._candidate import Candidate
from tsprune.candidates._starts import Dense
from tsprune.candidates._trainings import InMode

CANDIDATE = Candidate("head_only", "head only", Dense(), InMode("head"))
