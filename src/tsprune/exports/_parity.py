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
"""Largest difference, as a share of the standard deviation of each row's forecasts."""
AMPLIFIED = 4.0
"""Where float32 itself is further than that from float64: how many times its error is accepted. Runtimes compute
exponentials by shorter series than torch, so the same network rounds up to about three times as much in them."""
DRAWS = 4
"""Models with the last digits of their weights changed, which say with the model how large that error may be."""
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

    Rows do not see each other, so each is measured by its own forecasts: by their standard deviation over levels and
    steps. Neighbours in float32 count as equal: of a series far from zero compared with its spread, the forecasts
    cannot say more.

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
        """Compare; the plain rule first, then that for rounding, which all rows of a case must keep then.

        Raises:
            TspruneError: another shape, numbers that are none, or a larger difference than both rules allow.
        """
        wanted = self._forecast(self.model, case)
        found = np.asarray(self.run(case.context.numpy()), dtype=np.float64)
        if found.shape != wanted.shape or not np.isfinite(found).all():
            raise TspruneError(
                f"the exported graph gives shape {list(found.shape)} or values that are not finite, the model "
                f"{list(wanted.shape)} ({case.said}); nothing was kept"
            )
        self.count += 1
        differences = np.abs(found - wanted)
        differences[differences <= _spacing(wanted)] = 0.0
        shares = differences.max((1, 2)) / _units(wanted, case.context)
        if shares.max() <= TOLERANCE:
            self.worst = max(self.worst, float(shares.max()))
            return
        exact = self._forecast(self.exact, case)
        units = _units(exact, case.context)
        theirs = np.abs(found - exact).max((1, 2)) / units
        own = self._rounding(case, wanted, exact) / units
        beyond = np.where(shares > TOLERANCE, theirs / own, 0.0)
        row = int(beyond.argmax())
        if beyond[row] > AMPLIFIED:
            raise TspruneError(
                f"the exported graph differs from the model by {shares[row]:.1e} of the standard deviation of row "
                f"{row}'s forecasts, more than {TOLERANCE:.0e} ({case.said}), and is {theirs[row]:.1e} away from "
                f"float64, the model {own[row]:.1e}; nothing was kept"
            )
        row = int(shares.argmax())
        self.amplified = [
            *(self.amplified or []),
            {
                "case": case.said,
                "difference": float(shares[row]),
                "graph_to_float64": float(theirs[row]),
                "model_to_float64": float(own[row]),
            },
        ]

    def _forecast(self, model: Forecaster, case: Case) -> NDArray[Any]:
        return model.forecast(Batch(case.context.to(model.dtype)), self.steps).double().numpy()

    def _rounding(self, case: Case, wanted: NDArray[Any], exact: NDArray[Any]) -> NDArray[Any]:
        """How far float32 is from float64 in each row `[B]`, at least what its numbers are apart.

        What the model itself is away is one draw of its rounding, which may be small by chance, and is larger where
        two samples change their order or a token its expert; so models with other last digits say it with it.
        """
        drawn = (self._forecast(_redrawn(self.model, seed), case) for seed in range(DRAWS))
        away = [np.abs(forecast - exact).max((1, 2)) for forecast in (wanted, *drawn)]
        found: NDArray[Any] = np.stack([*away, _spacing(exact).max((1, 2))]).max(0)
        return found

    def facts(self) -> dict[str, Any]:
        """What was found, JSON-able."""
        found: dict[str, Any] = {
            "cases": self.count,
            "rule": f"at most {TOLERANCE:.0e} of the standard deviation of each row's forecasts",
            "worst": self.worst,
        }
        if self.amplified:
            found["amplified_rule"] = (
                f"where float32 itself is further than that from float64, at most {AMPLIFIED:g} times as far from "
                f"float64 as the model, or as it is with the last digit of its weights changed, the furthest of {DRAWS}"
            )
            found["amplified"] = sorted(self.amplified, key=lambda case: -float(case["difference"]))
        return found


@torch.no_grad()
def _redrawn(model: Forecaster, seed: int) -> Forecaster:
    """The model with every weight moved to the next number of its type: up, down or not at all, as the seed has it."""
    draw = torch.Generator().manual_seed(seed)
    made = copy.deepcopy(model)
    for weight in made.parameters():
        ways = torch.randint(-1, 2, weight.shape, generator=draw).to(weight)
        weight.copy_(torch.nextafter(weight, weight + ways))
    return made


def _units(forecasts: NDArray[Any], context: Tensor) -> NDArray[Any]:
    """What the differences of each row `[B]` are measured in: the standard deviation of its forecasts.

    Where all of them are equal, as a single one is, that of its context; else 1.
    """
    units: NDArray[Any] = forecasts.std((1, 2))
    for row in np.flatnonzero(units == 0):
        values = context[row][~torch.isnan(context[row])].double()
        units[row] = (values.std(correction=0).item() if len(values) else 0.0) or 1.0
    return units


def _spacing(values: NDArray[Any]) -> NDArray[Any]:
    """From each number to the next one of float32."""
    found: NDArray[Any] = np.spacing(np.abs(values).astype(np.float32)).astype(np.float64)
    return found
