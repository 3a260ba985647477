"""What probes of heads share: which attentions a model has, and numbers by head in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from torch import Tensor

from tsprune.blocks.attention import Attention
from tsprune.data.batch import Batch
from tsprune.models._forecaster import Forecaster
from tsprune.scores._work import count_windows

ByUnit = dict[str, list[float | None]]
"""Numbers of the units of each block, by its path; None where a unit has none."""


@dataclass(frozen=True)
class Unit:
    """The number of one unit.

    Args:
        path: of its block.
        unit: its number in the block.
        value: what was measured.
    """

    path: str
    unit: int
    value: float

    def __str__(self) -> str:
        return f"head {self.unit} of {self.path}"


def attentions(model: Forecaster) -> dict[str, Attention]:
    """Every attention that has heads, by path, in network order."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Attention) and module.heads}


def without_heads(model: Forecaster) -> str:
    """Why a probe of heads does not apply; "" where it does."""
    if attentions(model):
        return ""
    return f"this model of family {model.family} has no attention heads, so there is nothing to look at"


def windows_in(batches: Sequence[Batch]) -> int:
    """Windows of all batches together."""
    return sum(map(count_windows, batches))


def listed(values: Tensor) -> list[float | None]:
    """`[U]` as numbers of 8 digits, None in place of NaN."""
    return [None if value != value else float(f"{value:.8g}") for value in values.tolist()]


def rising(values: Mapping[str, Sequence[float | None]]) -> list[Unit]:
    """Every unit that has a number, the lowest first, equal ones in network order."""
    found = [
        Unit(path, unit, value) for path, own in values.items() for unit, value in enumerate(own) if value is not None
    ]
    return sorted(found, key=lambda one: one.value)


def middle(units: Sequence[Unit]) -> float:
    """The median of numbers that are there."""
    return median(one.value for one in units)


def by_block(values: Mapping[str, Sequence[float | None]]) -> dict[str, float | None]:
    """The median of the units of each block, None for a block without a number."""
    there = {path: [value for value in own if value is not None] for path, own in values.items()}
    return {path: median(own) if own else None for path, own in there.items()}
