"""Linear forecasts of long horizons (Zeng et al., arXiv 2205.13504), fitted in closed form instead of by steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsprune.blocks.patching import fill_gaps
from tsprune.data.batch import Batch
from tsprune.data.words import many
from tsprune.errors import TspruneError
from tsprune.evaluation.baselines import Baseline
from tsprune.evaluation.baselines._moments import ROWS, Moments, ridge
from tsprune.evaluation.baselines._normal import check_request

if TYPE_CHECKING:
    from tsprune.data.split import Split
    from tsprune.data.windows import WindowSet

STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Strengths of the ridge that validation chooses from, see `ridge`."""
RESIDUALS = 4096
"""Training rows at most whose residuals give the quantiles."""


class Linear(nn.Module, Baseline):
    """One linear map from context to horizon, shared by all series; what goes into it is the subclass's.

    The map solves ridge regression over every window of the train part, by normal equations in float64. Its strength
    is the one with the lowest mean squared error on validation windows, so that it follows from the data how many
    windows there are to learn from. The forecast itself is the median; around it lie, for each step, the quantiles of
    the residuals on training windows, centred on their median.

    Gaps in a context are filled as by `fill_gaps`, what is missing before its first value by that value. Rows
    without any value in the context are not learnt from, and are forecast as if every value were 0, the mean on the
    z-scored scale. A row that lacks some targets is learnt from for the steps that are there.

    Args:
        weight: `[H, P]`, P being the number of inputs.
        bias: `[H]`.
        residuals: `[R, H]`, what the forecasts lack to the targets, NaN = missing.
        context: steps L that a row must have.
        notes: what to say about the fit.
    """

    def __init__(self, weight: Tensor, bias: Tensor, residuals: Tensor, context: int, notes: Sequence[str]) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.register_buffer("residuals", residuals)
        self.residuals: Tensor
        self.context, self.notes = context, tuple(notes)
        self._offsets: dict[tuple[float, ...], Tensor] = {}

    @staticmethod
    @abstractmethod
    def inputs(rows: Tensor) -> Tensor:
        """What the map sees `[n, P]` of complete, centred rows `[n, L]`; linear in the rows."""

    @staticmethod
    @abstractmethod
    def centre(rows: Tensor) -> Tensor:
        """What is taken off complete rows `[n, L]` first and added to the forecast in the end `[n, 1]`."""

    @classmethod
    def fitted(cls, split: Split, season: int, *, steering: int = 512) -> Self:
        """Arguments and errors as in `Baseline.fitted`; the season plays no part."""
        train = split.train()
        moments = Moments.of(train, cls._rows)
        # Inputs are linear in the rows, so the rows' sums give theirs; the intercept's 1 stays as it is.
        lift = F.pad(cls.inputs(torch.eye(split.context, dtype=torch.float64)), (0, 1, 0, 1))
        lift[-1, -1] = 1.0
        maps = torch.zeros(len(STRENGTHS), lift.shape[1], split.horizon, dtype=torch.float64)
        for steps, gram in moments.grams():
            if bool((moments.seen[steps] > 0).all()):
                maps[:, :, steps] = ridge(lift.T @ gram @ lift, lift.T @ moments.cross[:, steps], STRENGTHS)
        errors = cls._errors(split.validation().thin(steering)[0], lift @ maps)
        best = int(torch.argmin(errors))
        residuals = cls._residuals(train, (lift @ maps)[best])
        found = maps[best].T.contiguous()
        notes = [_fit_note(moments, STRENGTHS[best]), *_lacking_notes(moments)]
        return cls(found[:, :-1].contiguous(), found[:, -1].contiguous(), residuals, split.context, notes)

    def forecast(self, batch: Batch, horizon: int, levels: Sequence[float]) -> Tensor:
        """Quantiles `[B, Q, H]` on the scale of the context.

        Raises:
            TspruneError: the context or the horizon is not what the map was fitted for, or a level is not strictly
                between 0 and 1.
        """
        check_request(horizon, levels)
        if batch.context.shape[1] != self.context or horizon > len(self.bias):
            raise TspruneError(
                f"a linear baseline fitted on a context of {self.context} and a horizon of {len(self.bias)} steps was "
                f"given a context of {batch.context.shape[1]} and a horizon of {horizon}; fit another one"
            )
        rows = complete(batch.context)
        centre = self.centre(rows)
        weight, bias = self.weight[:horizon], self.bias[:horizon]
        point = F.linear(self.inputs(rows - centre), weight, bias) + centre
        quantiles = point[:, None, :] + self._spread(tuple(levels))[:, :horizon]
        return quantiles.to(batch.context.dtype)

    def remarks(self) -> list[str]:
        """How the map was fitted."""
        return list(self.notes)

    def _spread(self, levels: tuple[float, ...]) -> Tensor:
        """Quantiles of the residuals less their median `[Q, H]`; of all steps together where a step has none."""
        if levels not in self._offsets:
            wanted = self.residuals.new_tensor([*levels, 0.5])
            own, pooled = (torch.nanquantile(r, wanted, dim=0) for r in (self.residuals, self.residuals.flatten()))
            found = torch.where(torch.isnan(own), pooled[:, None], own).nan_to_num(0.0)
            self._offsets[levels] = found[:-1] - found[-1]
        return self._offsets[levels]

    @classmethod
    def _rows(cls, batch: Batch) -> tuple[Tensor, Tensor]:
        """Centred inputs `[n, L]` and outputs `[n, H]` of the rows to learn from, in float64."""
        context, target = batch.context, batch.target
        if target is None:
            raise TspruneError("a linear baseline learns from windows with targets, these have none")
        usable = ~torch.isnan(context).all(dim=1) & ~torch.isnan(target).all(dim=1)
        rows = complete(context[usable])
        centre = cls.centre(rows)
        return rows - centre, target[usable].double() - centre

    @classmethod
    def _errors(cls, windows: WindowSet, maps: Tensor) -> Tensor:
        """Sums of squared errors `[S]` of maps `[S, L + 1, H]` over windows."""
        total = torch.zeros(len(maps), dtype=torch.float64)
        for _, batch in windows.batches(max(1, ROWS // windows.rows_per_window)):
            rows = cls._rows(batch)
            total += torch.stack([(_lack(rows, one) ** 2).nansum() for one in maps])
        return total

    @classmethod
    def _residuals(cls, windows: WindowSet, found: Tensor) -> Tensor:
        """Targets less forecasts of evenly spread training rows, `[R, H]`."""
        chosen = windows.thin(max(1, RESIDUALS // windows.targets_per_window))[0]
        batches = chosen.batches(max(1, ROWS // windows.rows_per_window))
        return torch.cat([_lack(cls._rows(batch), found) for _, batch in batches])


def complete(context: Tensor) -> Tensor:
    """Context `[B, L]` in float64 without missing values: gaps filled, the first value repeated to its left."""
    filled = fill_gaps(context.double())
    first = (~torch.isnan(filled)).to(torch.uint8).argmax(dim=1, keepdim=True)
    return torch.where(torch.isnan(filled), filled.gather(1, first), filled).nan_to_num(0.0)


def _lack(rows: tuple[Tensor, Tensor], found: Tensor) -> Tensor:
    """Outputs less what a map `[L + 1, H]` gives, `[n, H]`."""
    inputs, outputs = rows
    return outputs - (inputs @ found[:-1] + found[-1])


def _fit_note(moments: Moments, strength: float) -> str:
    return (
        f"fitted in closed form on {many(moments.rows, 'training window')}, ridge {strength:g} of the inputs' mean "
        "square, chosen on validation"
    )


def _lacking_notes(moments: Moments) -> list[str]:
    """What to say where targets are missing."""
    partial, void = int((moments.seen < moments.rows).sum()), int((moments.seen == 0).sum())
    notes = []
    if partial:
        fewest = int(moments.seen.min())
        notes.append(
            f"some training windows lack targets, so that the maps of {many(partial, 'step')} were fitted on fewer of "
            f"them, {fewest:,} at least"
        )
    if void:
        notes.append(f"{many(void, 'step')} of the horizon never occur in training; their maps are left at 0")
    return notes
