"""What pruning leaves behind after every round, and which round is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite


@dataclass(frozen=True)
class Round:
    """State after one round.

    Args:
        round: 0 is the unpruned model.
        kept: units that stay, by group.
        parameters: parameters of the model cut accordingly.
        removed_share: share of the prunable parameters that is gone.
        validation_loss: mean training loss over the validation windows, before any tuning.
    """

    round: int
    kept: Mapping[str, list[int]]
    parameters: int
    removed_share: float
    validation_loss: float


def choose(rounds: Sequence[Round], tolerance: float) -> Round:
    """The smallest round within the tolerance of the lowest validation loss."""
    return min(within(rounds, tolerance), key=lambda r: (r.parameters, r.validation_loss))


def within(rounds: Sequence[Round], tolerance: float) -> list[Round]:
    """Rounds whose validation loss is within the tolerance of the lowest; without any finite loss, the first alone."""
    finite = [r for r in rounds if isfinite(r.validation_loss)]
    if not finite:
        return list(rounds[:1])
    best = min(r.validation_loss for r in finite)
    return [r for r in finite if r.validation_loss <= best + tolerance * abs(best)]


def late_rounds(rounds: Sequence[Round], tolerance: float) -> int:
    """How many rounds in a row, up to the newest, were outside the tolerance of the best when they came."""
    late = 0
    while late < len(rounds) - 1:
        until = rounds[: len(rounds) - late]
        if until[-1] in within(until, tolerance):
            break
        late += 1
    return late
