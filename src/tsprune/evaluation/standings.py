"""How the candidates of a run stand on its test windows: all against one reference, and the chosen one against all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from tsprune.evaluation.comparing import Options, compare, pair
from tsprune.evaluation.metrics import RowErrors
from tsprune.evaluation.timeblocks import Blocks
from tsprune.training_state import read_tensors, write_tensors

HEADLINE = ("mse", "mae")
"""The measures that are compared; the first one speaks."""


def standings(
    rows: Mapping[str, RowErrors], reference: str, chosen: str, blocks: Blocks, *, seed: int = 0
) -> dict[str, Any]:
    """Compare candidates in every headline measure.

    Args:
        rows: errors by name, all on the same rows; at least two.
        reference: whom all are compared with.
        chosen: the candidate that validation chose; it is compared with every other one.
        blocks: the units of the rows.
        seed: of the bootstrap.

    Returns:
        Plain data: `reference`; `measures`, by measure what `compare` gives; `chosen`, by measure and name of the other
        candidate what `pair` gives of the chosen one against it; `notes`. A measure without a denominator is left
        out, and a note says so.

    Raises:
        TspruneError: as in `compare`.
    """
    found: dict[str, Any] = {"reference": reference, "measures": {}, "chosen": {}, "notes": blocks.notes()}
    for measure in HEADLINE:
        if rows[chosen].value(measure) is None:
            found["notes"].append(f"{measure.upper()} was not compared: no target of the test windows is observed")
            continue
        options = Options(measure, seed=seed)
        draws = options.draws(rows, blocks)
        found["measures"][measure] = compare(rows, reference, blocks, options, draws)
        found["chosen"][measure] = {name: pair(chosen, name, draws) for name in rows if name != chosen}
    return found


def write_rows(path: Path, rows: RowErrors) -> None:
    """Keep the sums of every row, bit for bit; errors as in `write_tensors`."""
    names = [entry.name for entry in fields(RowErrors)]
    write_tensors(path, {name: torch.from_numpy(getattr(rows, name)) for name in names})


def read_rows(path: Path) -> RowErrors:
    """What `write_rows` kept; errors as in `read_tensors`."""
    kept, _ = read_tensors(path)
    return RowErrors(**{entry.name: kept[entry.name].numpy() for entry in fields(RowErrors)})
