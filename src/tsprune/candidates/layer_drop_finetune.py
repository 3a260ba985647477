"""Whole layers leave until the model is as small as the pruned one, or one layer below.

The ranking is that of the schedule `layer_drop`, in one shot: by the measured rise of the training loss when a layer
alone is switched off, so that a layer without which the loss is lower goes first.
"""

from __future__ import annotations

from tsprune.candidates._candidate import Candidate
from tsprune.candidates._starts import OneShot
from tsprune.candidates._trainings import AsSet

CANDIDATE = Candidate(
    "layer_drop_finetune",
    "fewer layers",
    OneShot(
        "layer-drop",
        "ablation",
        "the model without the layers that matter least, down to the size of the pruned one",
        rank="signed",
        units=("layer",),
    ),
    AsSet(),
)
