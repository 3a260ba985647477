"""The whole model, tuned through low-rank adapters (arXiv 2106.09685); needs the extra `tsprune[lora]`."""

from __future__ import annotations

from tsprune.candidates._candidate import Candidate
from tsprune.candidates._starts import Dense
from tsprune.candidates._trainings import InMode

CANDIDATE = Candidate("lora", "adapters", Dense(), InMode("lora"))
