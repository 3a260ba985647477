"""PatchTST from fresh weights: the small model that fine-tuned foundation models have to beat (arXiv 2211.14730).

Patches of 16 steps with a stride of 8, three layers, batch norms after the sums, learned positions, Adam at 1e-4 on the
squared error. The authors give two sizes: 16 wide with 4 heads and dropout 0.3 for the small hourly sets (ETTh1, ETTh2,
57 thousand training windows), 128 wide with 16 heads and dropout 0.2 for larger ones (ETTm1, ETTm2, 235 thousand); the
number of training windows decides here. Not as published: the last patch ends with the context (theirs repeats the last
value to get one more), attention scores are not handed on from layer to layer, and as everywhere here the validation
windows are those of the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tsprune.candidates._candidate import Candidate
from tsprune.candidates._scratch import Published, Recipe, refuse_covariates
from tsprune.candidates._starts import Fresh
from tsprune.errors import TspruneError

if TYPE_CHECKING:
    from tsprune.preparing import Prepared

PATCH, STRIDE = 16, 8
LARGE = 120_000
"""Training windows of single series from which on the larger size is taken, between ETTh and ETTm."""


def recipe(ready: Prepared, small: bool = False) -> Recipe:
    """Sizes and training for these data, or with `small` those for small ones whatever the data."""
    windows = ready.split.train()
    large = not small and len(windows) * windows.targets_per_window >= LARGE
    width, heads, hidden, dropout = (128, 16, 256, 0.2) if large else (16, 4, 128, 0.3)
    config = {
        "architectures": ["PatchTSTForPrediction"],
        "model_type": "patchtst",
        "num_input_channels": 1,
        "context_length": ready.split.context,
        "prediction_length": ready.horizon,
        "patch_length": PATCH,
        "patch_stride": STRIDE,
        "d_model": width,
        "num_hidden_layers": 3,
        "num_attention_heads": heads,
        "ffn_dim": hidden,
        "norm_type": "batchnorm",
        "pre_norm": False,
        "positional_encoding_type": "random",
        "positional_dropout": dropout,
        "path_dropout": dropout,
        "ff_dropout": dropout,
        "attention_dropout": 0.0,
        "head_dropout": 0.0,
        "pooling_type": None,
        "use_cls_token": False,
        "scaling": "std",
        "loss": "mse",
    }
    decay, patience = ("one cycle", 20) if large else ("a tenth lower each epoch after the fourth", 100)
    return Recipe("arXiv 2211.14730", config, 128, 100, patience, 1e-4, decay)


def refuse(flag: str, ready: Prepared) -> None:
    """Refuse covariates, and a context that holds no second patch."""
    refuse_covariates(flag, "patchtst", ready)
    if ready.split.context <= PATCH:
        raise TspruneError(
            f"{flag}: its patches are {PATCH} steps long and the context is {ready.split.context}; give a --context of "
            f"more than {PATCH}, or leave the candidate out"
        )


CANDIDATE = Candidate("patchtst_scratch", "PatchTST from scratch", Fresh(), Published("patchtst", recipe, refuse))
