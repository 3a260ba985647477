"""Seasonal naive: the last season, again and again (Hyndman and Athanasopoulos, Forecasting, chapter 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from tsprune.data.batch import Batch
from tsprune.errors import TspruneError
from tsprune.evaluation.baselines import Baseline
from tsprune.evaluation.baselines._normal import check_request, normal_quantiles

if TYPE_CHECKING:
    from tsprune.data.split import Split


@dataclass(frozen=True)
class SeasonalNaive(Baseline):
    """Repeats the last season of each row's context; season 1 repeats the last value.

    A phase that is missing in the last season is taken from the latest earlier season that has it; if none
    has, from the last observed value. A row without any observed value is forecast as 0, the mean on the
    z-scored scale; the evaluation counts such rows.

    Quantiles are normal around the point. Their standard deviation is the root mean square of the seasonal
    differences inside the context times sqrt(k), k being the seasons between the value that is repeated and
    the step it is repeated for. Where no two values lie a season apart, the standard deviation of the
    observed context stands in.

    Args:
        season: season in steps.

    Raises:
        TspruneError: if the season is not positive.
    """

    season: int

    def __post_init__(self) -> None:
        if self.season < 1:
            raise TspruneError(f"season is {self.season}, expected a positive number of steps")

    @classmethod
    def fitted(cls, split: Split, season: int, *, steering: int = 512) -> Self:
        """Nothing is learnt; arguments and errors as in `Baseline.fitted`."""
        return cls(season)

    def forecast(self, batch: Batch, horizon: int, levels: Sequence[float]) -> Tensor:
        """Quantiles `[B, Q, H]` on the scale of the context.

        Raises:
            TspruneError: if the horizon is not positive or a level is not strictly between 0 and 1.
        """
        check_request(horizon, levels)
        context = batch.context
        point, seasons = self._repeat(context, horizon)
        sigma = self._spread(context)[:, None] * seasons.sqrt()
        return normal_quantiles(point, sigma, levels)

    def _repeat(self, context: Tensor, horizon: int) -> tuple[Tensor, Tensor]:
        """The repeated values `[B, H]` and how many seasons each of them is old `[B, H]`."""
        rows, length = context.shape
        season = self.season
        padding = context.new_full((rows, -length % season if length else season), float("nan"))
        # Newest season first; column p holds the values at phase p of the forecast.
        table = torch.cat([padding, context], dim=1).view(rows, -1, season).flip(1)
        age = (~torch.isnan(table)).to(torch.uint8).argmax(dim=1)
        values = table.gather(1, age[:, None]).squeeze(1)
        last, since = _last_observed(context)
        step = torch.arange(horizon, device=context.device)
        phase = step % season
        point = values[:, phase]
        seasons = age[:, phase] + 1 + step // season
        lost = torch.isnan(point)
        late = (since[:, None] + step + season - 1) // season
        point = torch.where(lost, last[:, None].expand_as(point), point)
        return point, torch.where(lost, late, seasons).to(context.dtype)

    def _spread(self, context: Tensor) -> Tensor:
        """Standard deviation of one season's change `[B]`, 0 where nothing tells."""
        change = context[:, self.season :] - context[:, : max(0, context.shape[1] - self.season)]
        squared, pairs = torch.nansum(change**2, dim=1), (~torch.isnan(change)).sum(1)
        seen = (~torch.isnan(context)).sum(1).clamp(min=1)
        middle = torch.nansum(context, dim=1) / seen
        around = torch.nansum((context - middle[:, None]) ** 2, dim=1) / seen
        return torch.where(pairs > 0, squared / pairs.clamp(min=1), around).sqrt()


def _last_observed(context: Tensor) -> tuple[Tensor, Tensor]:
    """The last observed value of each row `[B]`, 0 if it has none, and how long ago it was."""
    if not context.shape[1]:
        empty = context.new_zeros(context.shape[0])
        return empty, torch.ones_like(empty, dtype=torch.int64)
    since = (~torch.isnan(context)).flip(1).to(torch.uint8).argmax(dim=1)
    last = context.gather(1, (context.shape[1] - 1 - since)[:, None]).squeeze(1)
    return torch.nan_to_num(last, nan=0.0), since + 1


BASELINE = SeasonalNaive
