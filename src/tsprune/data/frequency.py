"""The step between rows, found in the stamps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tsprune.data.steps import (
    DAY,
    SECOND,
    Ints,
    Step,
    is_month_end,
    is_month_start,
    month_numbers,
    month_step,
    time_step,
    weekdays,
)
from tsprune.errors import TspruneError

_MINUTE, _HOUR = 60 * SECOND, 3600 * SECOND
_ROUND_STEPS = np.array(
    [SECOND * n for n in (1, 2, 5, 10, 15, 20, 30)]
    + [_MINUTE * n for n in (1, 2, 3, 5, 10, 15, 20, 30)]
    + [_HOUR * n for n in (1, 2, 3, 4, 6, 8, 12)]
    + [DAY, 7 * DAY]
)


def infer_step(stamps: Ints, codes: Ints, numbered: bool, name: str) -> Step:
    """The step most rows keep.

    Args:
        stamps: `[R]`, sorted and distinct within each series.
        codes: series of every row `[R]`, sorted.
        numbered: stamps are plain numbers without a calendar.
        name: the source, for messages.

    Raises:
        TspruneError: if no series has two rows.
    """
    within = codes[1:] == codes[:-1]
    distances = np.diff(stamps)[within]
    if not len(distances):
        raise TspruneError(f"{name}: no series has two different stamps, so the step is unknown; give --frequency")
    usual = _most_frequent(distances)
    if numbered:
        return Step("time", usual, alias="")
    if usual >= 27 * DAY and (calendar := _calendar_step(stamps, within, distances)):
        return calendar
    if usual == DAY and _is_business(stamps, within):
        return Step("business", 1, alias="B")
    return time_step(_base(distances, usual), _usual_weekday(stamps, usual))


def check_one_frequency(stamps: Ints, codes: Ints, step: Step, ids: Sequence[str], source: str) -> None:
    """Refuse panels whose series have different steps.

    Raises:
        TspruneError: naming the series that differ.
    """
    within = codes[1:] == codes[:-1]
    owner = codes[1:][within]
    if not len(owner):
        return
    scale = month_numbers(stamps) if step.unit == "month" else stamps
    distances = np.diff(scale)[within]
    usual = step.count if step.unit != "business" else DAY
    borders = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
    least = np.minimum.reduceat(distances, borders)
    rows = np.diff(np.r_[borders, len(owner)])
    suspects = np.flatnonzero((least != usual) & (rows >= 3))
    odd = []
    for suspect in suspects:
        own = distances[borders[suspect] : borders[suspect] + rows[suspect]]
        # A sparse series skips steps unevenly; another frequency keeps its own step.
        if (least[suspect] > 0 and (own == least[suspect]).mean() > 0.9) or least[suspect] * 2 <= usual:
            odd.append(ids[int(owner[borders[suspect]])])
    if odd and len(odd) < len(borders):
        more = f" and {len(odd) - 5} more" if len(odd) > 5 else ""
        raise TspruneError(
            f"{source}: the usual step is {step.alias or step.count}, but {', '.join(odd[:5])}{more} keep "
            "another one; "
            "expected one frequency per file, split it by frequency"
        )


def _most_frequent(values: Ints) -> int:
    distinct, counts = np.unique(values, return_counts=True)
    return int(distinct[np.argmax(counts)])


def _calendar_step(stamps: Ints, within: NDArray[np.bool_], distances: Ints) -> Step | None:
    """A step of whole months, or None for steps of fixed length such as four weeks."""
    months = np.diff(month_numbers(stamps))[within]
    if (months <= 0).any() or (stamps % DAY != stamps[0] % DAY).any():
        return None
    firsts, ends = is_month_start(stamps), is_month_end(stamps)
    if not (firsts.all() or ends.all()):
        fixed = (distances == distances[0]).all() and len(distances) > 2
        if fixed or ((distances % (7 * DAY) == 0).all() and len(distances) > 2):
            return None
    days = stamps // DAY - (month_numbers(stamps).astype("M8[M]").astype("M8[D]").astype(np.int64))
    end = bool(ends.all() or (not firsts.all() and (days >= 25).all()))
    return month_step(_most_frequent(months), end, int(stamps[0]))


def _is_business(stamps: Ints, within: NDArray[np.bool_]) -> bool:
    days = weekdays(stamps)
    over_weekend = within & (np.diff(stamps // DAY) == 3) & (days[:-1] == 4)
    return not (days >= 5).any() and bool(over_weekend.any())


def _base(distances: Ints, usual: int) -> int:
    """The step underlying distances that are its multiples, also where gaps or jitter outnumber it."""
    off = (distances % usual != 0).mean()
    if off == 0:
        return usual
    common = int(np.gcd.reduce(distances))
    if usual // common <= 4 and (distances == common).mean() > 0.05:
        return common
    if off < 0.5 and usual in _ROUND_STEPS:
        return usual
    middle = float(np.median(distances))
    nearest = int(_ROUND_STEPS[np.argmin(np.abs(_ROUND_STEPS - middle))])
    return nearest if abs(nearest - middle) < 0.1 * nearest else usual


def _usual_weekday(stamps: Ints, usual: int) -> int:
    """A stamp on the most frequent weekday, which names weekly data."""
    if usual % (7 * DAY):
        return int(stamps[0])
    days = weekdays(stamps)
    return int(stamps[np.argmax(days == np.argmax(np.bincount(days)))])
