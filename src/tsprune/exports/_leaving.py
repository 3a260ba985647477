"""Which products stay in float32, so that the error stays within a bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

Errors = Mapping[str, float]
"""What `graph_errors` says."""


@dataclass(frozen=True)
class Left:
    """The choice.

    Attributes:
        names: products that stay in float32 for the bound's sake, the one that was left first in front.
        alone: by product, the error when it alone is in int8; empty where none had to be left.
    """

    names: tuple[str, ...] = ()
    alone: Mapping[str, float] | None = None


def excess(errors: Errors) -> float:
    """Error beyond that of float32, as a share of it: the largest of what was lost and what is expected to be.

    A change that by chance makes these very forecasts better still counts as what it would add to the squared error if
    it had nothing to do with it.
    """
    lost = [errors[name] - 1 for name in ("mse_ratio", "quantile_loss_ratio") if name in errors]
    found = max(errors["moved"], *lost)
    return found if math.isfinite(found) else math.inf


def left_in_float32(
    names: Sequence[str],
    work: Mapping[str, int],
    bound: float,
    alone: Callable[[str], float],
    together: Callable[[Collection[str]], float],
) -> Left | None:
    """As few products as it takes, most sensitive first.

    Only where all of them together exceed the bound is each measured alone. They are then ordered by error for each
    multiplication that float32 will have to do, and a bisection over that order finds how many must stay.

    Args:
        names: of the products that may be in int8.
        work: multiplications of each.
        bound: largest error allowed.
        alone: the error when one product alone is in int8.
        together: the error when these are.

    Returns:
        None where not even one may be in int8.
    """
    if not names:
        return None
    if together(names) <= bound:
        return Left()
    found = {name: alone(name) for name in names}
    order = sorted(names, key=lambda name: -found[name] / max(1, work[name]))
    low, high = 1, len(order)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if together(order[middle:]) <= bound else (middle + 1, high)
    return None if low == len(order) else Left(tuple(order[:low]), found)
