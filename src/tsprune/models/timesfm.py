"""TimesFM (google/timesfm-*): a decoder over patches that forecasts mean and deciles of a whole horizon at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, cast

from tsprune.models._forecaster import Checkpoint
from tsprune.models._timesfm import NEWER, PatchDecoder, generation
from tsprune.models._timesfm2 import TimesFM2
from tsprune.models._timesfm2_5 import TimesFM25


class TimesFM(PatchDecoder):
    """Both networks of the family; a config builds the one that it describes."""

    pretraining_corpora = TimesFM2.pretraining_corpora

    checkpoints = (
        Checkpoint("google/timesfm-2.0-500m-pytorch", 498.83, "Apache-2.0"),
        Checkpoint("google/timesfm-2.5-200m-transformers", 231.29, "Apache-2.0"),
    )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A model with fresh weights, of 2.5 where the config says so, else of 1.0 and 2.0."""
        kind = TimesFM25 if generation(config) == NEWER else TimesFM2
        return cast(Self, kind(config))


FAMILY = TimesFM
