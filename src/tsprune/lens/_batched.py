"""What windows say of a model under several ablations, of which as many share a forward pass as pays.

Letters: K ablations, N windows, R target rows, H steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from tsprune.blocks.gate import gates_set
from tsprune.data.batch import Batch
from tsprune.lens import _ablating as ablating
from tsprune.lens._ablating import Fills
from tsprune.lens._together import Together
from tsprune.models._forecaster import Forecaster, Kept
from tsprune.scores._taps import frozen

SLICE = 32
"""Ablations that a probe asks for at once, so that its progress shows and their forecasts fit into memory."""
T = TypeVar("T")
DIGITS = 5
"""Decimals of a growth that single precision knows, whatever else shares the pass."""


def losses_of(
    model: Forecaster,
    batches: Iterable[Batch],
    several: Sequence[Kept],
    fills: Fills | None = None,
    *,
    tokens: int | None = None,
) -> Tensor:
    """Loss of every window under each of several ablations: `[K, N]`, float64.

    Equal to `_ablating.losses` of each alone, up to rounding: a matrix product of another size rounds differently.

    Args:
        model: left as it was found.
        batches: windows with targets.
        several: units that stay, one for each ablation; units that are off already come back on in groups it names.
        fills: what the entries of gates are where their unit is off, the same for all ablations.
        tokens: context tokens that a pass may have for ablations to share it; None means as many as pay.

    Raises:
        TspruneError: no batch, an unknown unit, or fewer units than a group's floor.
    """

    def work(portion: Batch) -> Tensor:
        with frozen(model), torch.no_grad():
            return model.loss(portion).double().cpu()

    return _under(model, batches, several, fills, work, tokens)


def medians_of(
    model: Forecaster,
    batches: Iterable[Batch],
    several: Sequence[Kept],
    fills: Fills | None = None,
    *,
    tokens: int | None = None,
) -> Tensor:
    """Median forecasts of the target rows, as far as targets go, under each ablation: `[K, R, H]`, float64.

    As `losses_of`; forecasts that are rolled out along several paths are made one ablation after the other.
    """
    return _under(model, batches, several, fills, lambda portion: ablating.middle(model, portion), tokens)


def growths_of(
    model: Forecaster, batches: Iterable[Batch], several: Sequence[Kept], intact: float, fills: Fills | None = None
) -> list[float]:
    """How many times as large the mean loss is under each ablation, see `growth`.

    Rounded to what single precision knows, so that what does nothing has exactly 1, however many share its pass.
    """
    if not several:
        return []
    return growths(model, losses_of(model, batches, several, fills), intact)


def growths(model: Forecaster, off: Tensor, intact: float) -> list[float]:
    """The same of losses `[K, N]`."""
    return [round(ablating.growth(model, float(loss), intact), DIGITS) for loss in off.mean(1)]


def slices(wanted: Sequence[T]) -> Iterator[Sequence[T]]:
    """The same in order, some at a time."""
    return (wanted[first : first + SLICE] for first in range(0, len(wanted), SLICE))


def _under(
    model: Forecaster,
    batches: Iterable[Batch],
    several: Sequence[Kept],
    fills: Fills | None,
    work: Callable[[Batch], Tensor],
    tokens: int | None,
) -> Tensor:
    together = Together(model, tokens)
    masks = [model.gate_masks(kept) for kept in several]

    def step(portion: Batch) -> Tensor:
        with gates_set("fill", fills or {}):
            return together.values(portion, masks, work)

    return ablating.joined(model, batches, step, axis=1)
