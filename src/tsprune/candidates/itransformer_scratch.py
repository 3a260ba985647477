"""iTransformer from fresh weights (arXiv 2310.06625): attention among the series of a window.

Eight heads, dropout 0.1, batches of 32 windows, Adam at 1e-4 on the squared error, at most 10 epochs with the rate
halved each time and a patience of 3. The authors give two layers 128 wide for ETTh2, ETTm1 and ETTm2 (256 or 512 for
ETTh1) and three layers 512 wide from 21 series on (weather, electricity); the number of series decides here. Not as
published: features of the time steps enter no tokens.

It forecasts all series of a window together, and candidates are only compared on the same windows: a run on several
series needs `--together`, and is refused without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tsprune.candidates._candidate import Candidate
from tsprune.candidates._scratch import Published, Recipe, refuse_covariates
from tsprune.candidates._starts import Fresh
from tsprune.errors import TspruneError

if TYPE_CHECKING:
    from tsprune.preparing import Prepared

MANY = 21
"""Series from which on the larger size is taken: those of weather."""


def recipe(ready: Prepared, small: bool = False) -> Recipe:
    """Sizes and training for these data, or with `small` those for few series whatever the data."""
    many = not small and len(ready.split.panel.series) >= MANY
    layers, width = (3, 512) if many else (2, 128)
    config = {
        "model": "iTransformer",
        "task_name": "long_term_forecast",
        "seq_len": ready.split.context,
        "pred_len": ready.horizon,
        "d_model": width,
        "n_heads": 8,
        "e_layers": layers,
        "d_ff": width,
        "dropout": 0.1,
        "activation": "gelu",
        "use_norm": True,
    }
    return Recipe("arXiv 2310.06625", config, 32, 10, 3, 1e-4, "halved each epoch after the second")


def refuse(flag: str, ready: Prepared) -> None:
    """Refuse series that are forecast each by itself, and covariates that are known ahead."""
    series = len(ready.split.panel.series)
    if series > 1 and ready.split.grouping != "all":
        raise TspruneError(
            f"{flag}: it forecasts all series of a window together and the {series} series of this run are forecast "
            "each by itself; add --together (with a family that can), or leave the candidate out"
        )
    refuse_covariates(flag, "itransformer", ready)


CANDIDATE = Candidate(
    "itransformer_scratch", "iTransformer from scratch", Fresh(), Published("itransformer", recipe, refuse)
)
