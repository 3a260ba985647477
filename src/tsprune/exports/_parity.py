"""Whether what was written forecasts as the model does: over lengths, gaps and numbers of rows."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.models._forecaster import Forecaster

TOLERANCE = 1e-5
"""Largest difference, as a share of the standard deviation of the forecasts."""
AMPLIFIED = 4.0
"""Where the model's own rounding is larger than that: how many times its error, against float64, is accepted."""
ROWS = (1, 2, 5)
GAPS = ("none", "leading", "scattered", "all_missing")
Run = Callable[[NDArray[np.float32]], NDArray[Any]]
"""From a context `[B, L]` to quantiles `[B, Q, H]`."""


@dataclass(frozen=True)
class Case:
    """One comparison: a context `[B, L]` and what kind it is."""

    context: Tensor
    gaps: str

    @property
    def said(self) -> str:
        """For messages."""
        rows, length = self.context.shape
        return f"batch {rows}, length {length}, missing values: {self.gaps.replace('_', ' ')}"


def lengths(limit: int, patch: int) -> list[int]:
    """Short, odd, whole and broken patches, the longest, and more than that."""
    wanted = {1, min(7, limit), min(patch, limit), min(2 * patch + 1, limit), limit - limit // 3, limit, limit + 3}
    return sorted(length for length in wanted if length > 0)


def cases(batches: Sequence[Batch], limit: int, patch: int, seed: int = 0) -> Iterator[Case]:
    """Every length with every kind of gap; the numbers of rows take turns.

    Args:
        batches: whose contexts are cut, or repeated in front where they are too short.
        limit: steps of context that the model uses at most.
        patch: steps of a token.
        seed: of the scattered gaps.
    """
    draw = torch.Generator().manual_seed(seed)
    pool = [row for batch in batches for row in batch.context]
    offset = 0
    for number, (length, gaps) in enumerate(itertools.product(lengths(limit, patch), GAPS)):
        rows = ROWS[number % len(ROWS)]
        chosen = [_of_length(pool[(offset + row) % len(pool)], length) for row in range(rows)]
        offset += rows
        yield Case(_with_gaps(torch.stack(chosen), gaps, draw), gaps)


def _of_length(row: Tensor, length: int) -> Tensor:
    """The last steps of a row; one that is shorter is repeated, the other way round each time, so nothing jumps."""
    whole = row[~torch.isnan(row)].float() if bool(torch.isnan(row).any()) else row.float()
    whole = whole if len(whole) else torch.zeros(1)
    while len(whole) < length:
        whole = torch.cat([whole.flip(0), whole])
    return whole[len(whole) - length :]


def _with_gaps(context: Tensor, gaps: str, draw: torch.Generator) -> Tensor:
    context, length = context.clone(), context.shape[1]
    if gaps == "leading":
        # Not the same for all rows.
        for row, values in enumerate(context):
            values[: (length - 1) * (row + 1) // (len(context) + 1)] = torch.nan
    if gaps == "scattered":
        context[torch.rand(context.shape, generator=draw) < 0.3] = torch.nan
    if gaps == "all_missing":
        context[0] = torch.nan
    return context


@dataclass
class Parity:
    """Compares one written model with its original.

    Args:
        model: in float32.
        steps: to forecast.
        run: the written model.
        worst: largest share so far by the plain rule, of cases that keep it.
        amplified: cases that only keep the rule for rounding: what was compared, and the three shares.
        count: cases so far.
    """

    model: Forecaster
    steps: int
    run: Run
    worst: float = 0.0
    amplified: list[dict[str, Any]] | None = None
    count: int = 0

    @cached_property
    def exact(self) -> Forecaster:
        """The model in float64."""
        return copy.deepcopy(self.model).double()

    def check(self, case: Case) -> None:
        """Compare; the plain rule first, then that for rounding.

        Raises:
            TspruneError: another shape, numbers that are none, or a larger difference than both rules allow.
        """
        wanted = self.model.forecast(Batch(case.context), self.steps).double().numpy()
        found = np.asarray(self.run(case.context.numpy()), dtype=np.float64)
        if found.shape != wanted.shape or not np.isfinite(found).all():
            raise TspruneError(
                f"the exported graph gives shape {list(found.shape)} or values that are not finite, the model "
                f"{list(wanted.shape)} ({case.said}); nothing was kept"
            )
        self.count += 1
        share = _share(found, wanted, wanted)
        if share <= TOLERANCE:
            self.worst = max(self.worst, share)
            return
        exact = self.exact.forecast(Batch(case.context.double()), self.steps).numpy()
        own, theirs = _share(wanted, exact, exact), _share(found, exact, exact)
        if theirs > AMPLIFIED * own:
            raise TspruneError(
                f"the exported graph differs from the model by {share:.1e} of the forecasts' standard deviation, more "
                f"than {TOLERANCE:.0e} ({case.said}), and is {theirs:.1e} away from float64, the model {own:.1e}; "
                "nothing was kept"
            )
        said = {"case": case.said, "difference": share, "graph_to_float64": theirs, "model_to_float64": own}
        self.amplified = [*(self.amplified or []), said]

    def facts(self) -> dict[str, Any]:
        """What was found, JSON-able."""
        found: dict[str, Any] = {
            "cases": self.count,
            "rule": f"at most {TOLERANCE:.0e} of the standard deviation of each case's forecasts",
            "worst": self.worst,
        }
        if self.amplified:
            found["amplified_rule"] = (
                f"where float32 itself is further than that from float64, at most {AMPLIFIED:g} times as far from "
                "float64 as the model"
            )
            found["amplified"] = sorted(self.amplified, key=lambda case: -float(case["difference"]))
        return found


def _share(found: NDArray[Any], wanted: NDArray[Any], spread_of: NDArray[Any]) -> float:
    """Largest difference as a share of the standard deviation; the difference itself where there is no spread."""
    spread = float(np.std(spread_of))
    difference = float(np.abs(found - wanted).max())
    return difference / spread if spread > 0 else difference
