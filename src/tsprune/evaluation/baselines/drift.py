"""Drift: the line through the first and the last value (Hyndman and Athanasopoulos, Forecasting, chapter 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from tsprune.data.batch import Batch
from tsprune.evaluation.baselines import Baseline
from tsprune.evaluation.baselines._normal import check_request, normal_quantiles

if TYPE_CHECKING:
    from tsprune.data.split import Split


@dataclass(frozen=True)
class Drift(Baseline):
    """Continues each row's mean change per step from its last observed value.

    It is the forecast of a random walk with drift, and so are its normal quantiles. With the first and the last
    observed value T - 1 steps apart, the standard deviation k steps after the last one is s * sqrt(k * (1 + k / (T -
    1))). s is that of the changes from one step to the next around their mean, one degree of freedom being spent on
    the mean (FPP3, section 5.5). Values may be missing: a change over several steps then has as many times the
    variance, which takes nothing but the walk itself for granted, and steps count from the last value that is there.

    A row with one or two values has no spread to tell; one without any is forecast as 0, the mean on the z-scored
    scale, and the evaluation counts such rows.
    """

    @classmethod
    def fitted(cls, split: Split, season: int, *, steering: int = 512) -> Self:
        """Nothing is learnt; arguments and errors as in `Baseline.fitted`."""
        return cls()

    def forecast(self, batch: Batch, horizon: int, levels: Sequence[float]) -> Tensor:
        """Quantiles `[B, Q, H]` on the scale of the context.

        Raises:
            TspruneError: if the horizon is not positive or a level is not strictly between 0 and 1.
        """
        check_request(horizon, levels)
        values = batch.context.double()
        seen = ~torch.isnan(values)
        place = torch.arange(values.shape[1], device=values.device)
        # Numbers of the observed steps: the latest before each step, the first and the last of the row.
        latest = torch.where(seen, place, -1).cummax(dim=1).values
        before = torch.cat([latest.new_full((len(latest), 1), -1), latest[:, :-1]], dim=1)
        last, first = latest[:, -1], torch.where(seen, place, values.shape[1]).min(dim=1).values
        known = last >= 0
        last, first = last.clamp(min=0), first.clamp(max=values.shape[1] - 1)
        end, begin = (values.gather(1, at[:, None]).squeeze(1).nan_to_num(0.0) for at in (last, first))
        span = (last - first).clamp(min=0)
        slope = torch.where(span > 0, (end - begin) / span.clamp(min=1), torch.zeros_like(end))

        counts = seen & (before >= 0)
        gap = (place - before).clamp(min=1).double()
        change = values - values.gather(1, before.clamp(min=0)) - slope[:, None] * gap
        squared = torch.where(counts, change**2 / gap, torch.zeros_like(change)).sum(dim=1)
        variance = squared / (counts.sum(dim=1) - 1).clamp(min=1)

        ahead = values.shape[1] - 1 - last[:, None] + 1.0 + torch.arange(horizon, device=values.device)
        point = torch.where(known[:, None], end[:, None] + slope[:, None] * ahead, 0.0)
        sigma = (variance[:, None] * ahead * (1 + ahead / span.clamp(min=1)[:, None])).sqrt()
        return normal_quantiles(point, sigma, levels).to(batch.context.dtype)


BASELINE = Drift
