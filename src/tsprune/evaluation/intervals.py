"""Confidence intervals of error measures, and of the ratio of two models' errors, by a block bootstrap.

Letters: U units, C columns, B replicates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsprune.errors import TspruneError
from tsprune.evaluation.metrics import RowErrors
from tsprune.evaluation.student import two_sided_quantile
from tsprune.evaluation.timeblocks import Blocks

REPLICATES = 2000
LEVEL = 0.95

_Floats = NDArray[np.float64]
_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        estimate: the measure or ratio over all rows; None where it has no denominator.
        low: lower end; None where there is no interval.
        high: upper end; None where there is no interval, or no upper end.
        level: confidence level.
        note: why there is no interval, or ""; one line.
    """

    estimate: float | None
    low: float | None
    high: float | None
    level: float
    note: str = ""

    def excludes(self, value: float) -> bool:
        """Whether the interval is there and the value lies outside of it."""
        above = self.high is not None and self.high < value
        return above or (self.low is not None and self.low > value)

    def to_json(self) -> dict[str, Any]:
        """As plain data; the note only where there is one."""
        return {key: value for key, value in asdict(self).items() if key != "note" or value}


class Draws:
    """Replicates of several models' errors, drawn once for all of them, and the intervals that follow.

    The intervals are those of `interval` and `ratio_interval`, bit for bit.

    Args:
        models: errors by name, all on the same rows.
        blocks: the units of these rows.
        measure: one of `metrics.MEASURES`.
        level: confidence level between 0 and 1.
        replicates: how many times to draw.
        seed: of the draws; the same seed gives the same intervals.

    Raises:
        TspruneError: for an unknown measure, rows of other windows, or a level or number that means nothing.
    """

    def __init__(
        self,
        models: Mapping[str, RowErrors],
        blocks: Blocks,
        measure: str,
        *,
        level: float = LEVEL,
        replicates: int = REPLICATES,
        seed: int = 0,
    ) -> None:
        self.models, self.blocks, self.measure, self.level = models, blocks, measure, level
        self._values = {name: rows.value(measure) for name, rows in models.items()}
        sums = blocks.sums(np.stack(shared_terms(measure, *models.values()), axis=1))
        *drawn, self._total = resample(sums, blocks.length, replicates, seed).T
        self._drawn = dict(zip(models, drawn, strict=True))

    def interval(self, name: str) -> Interval:
        """Interval of the measure of one model."""
        with np.errstate(divide="ignore", invalid="ignore"):
            values = self._drawn[name] / self._total
        return stretched(self._values[name], values, self.blocks.stretches, self.level)

    def ratio(self, name: str, other: str) -> Interval:
        """Interval of a model's error over that of another one."""
        one, two = self._drawn[name], self._drawn[other]
        with np.errstate(divide="ignore", invalid="ignore"):
            # The denominators are the same on both sides.
            values = np.where(one == two, 1.0, one / two)
        estimate = quotient(self._values[name], self._values[other])
        return stretched(estimate, values, self.blocks.stretches, self.level)


def interval(
    rows: RowErrors,
    blocks: Blocks,
    measure: str,
    *,
    level: float = LEVEL,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Interval:
    """Interval of an error measure of one model; arguments and errors as in `ratio_interval`."""
    drawn = Draws({"": rows}, blocks, measure, level=level, replicates=replicates, seed=seed)
    return drawn.interval("")


def ratio_interval(
    rows: RowErrors,
    reference: RowErrors,
    blocks: Blocks,
    measure: str,
    *,
    level: float = LEVEL,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Interval:
    """Interval of a model's error over that of a reference on the same windows.

    Units are drawn in blocks of consecutive ones, around the end to the beginning (circular block bootstrap, Politis
    and Romano 1992; block length: `Blocks.length`), the same for both models. Every replicate is the measure itself,
    a ratio of sums over what was drawn. The interval is the percentile interval, stretched on the log scale around
    the estimate, since few blocks show too little spread: by sqrt(m / (m - 1)) and Student's t with m - 1 degrees of
    freedom over the normal quantile, m being the number of blocks that the units hold. That carries over what
    Hesterberg (2015, expanded percentile intervals) does for independent observations.

    Args:
        rows: errors of the model.
        reference: errors of the other model, on the same rows.
        blocks: the units of these rows.
        measure: one of `metrics.MEASURES`.
        level: confidence level between 0 and 1.
        replicates: how many times to draw.
        seed: of the draws; the same seed gives the same interval.

    Raises:
        TspruneError: for an unknown measure, rows of other windows, or a level or number that means nothing.
    """
    pair = {"one": rows, "two": reference}
    drawn = Draws(pair, blocks, measure, level=level, replicates=replicates, seed=seed)
    return drawn.ratio("one", "two")


def quotient(first: float | None, second: float | None) -> float | None:
    """A ratio of errors: 1 where both are 0, None where only the second is 0 or one is unknown."""
    if first is None or second is None:
        return None
    if second == 0:
        return 1.0 if first == 0 else None
    return first / second


def resample(sums: _Floats, length: int, replicates: int = REPLICATES, seed: int = 0) -> _Floats:
    """Sums over units that were drawn with replacement in circular blocks.

    Every replicate consists of U units: whole blocks, and one shorter block where they do not fit. Draws depend on
    U, the length and the seed alone, so that models can be resampled one after the other.

    Args:
        sums: sums of each unit, in order `[U, C]`.
        length: units per block, from 1 to U.
        replicates: B.
        seed: of the draws.

    Returns:
        `[B, C]`.

    Raises:
        TspruneError: for a length or number of replicates out of range.
    """
    count = len(sums)
    if not 1 <= length <= count or replicates < 1:
        raise TspruneError(
            f"{replicates} replicates of blocks of {length} units, expected at least 1 replicate and 1 to {count} units"
        )
    whole, rest = divmod(count, length)
    generator = np.random.default_rng(seed)
    block, remainder = circular_sums(sums, length), circular_sums(sums, rest)
    out = np.empty((replicates, sums.shape[1]))
    chunk = max(1, _AT_ONCE // (whole + 1))
    for first in range(0, replicates, chunk):
        starts = generator.integers(0, count, (min(chunk, replicates - first), whole + 1))
        part = out[first : first + len(starts)]
        for column in range(sums.shape[1]):
            part[:, column] = block[:, column][starts[:, :whole]].sum(axis=1) + remainder[:, column][starts[:, whole]]
    return out


def circular_sums(values: _Floats, length: int) -> _Floats:
    """Sums over `length` consecutive rows from every row on, around the end to the beginning `[U, C]`."""
    total, power, size, done = np.zeros_like(values), values, 1, 0
    # Doubling rather than differences of running sums, in which small blocks after large ones would lose their digits.
    while done < length:
        if length & size:
            total = total + np.roll(power, -done, axis=0)
            done += size
        power = power + np.roll(power, -size, axis=0)
        size *= 2
    return total


def shared_terms(measure: str, *models: RowErrors) -> list[_Floats]:
    """Numerators of every model, and last the denominator they share, all `[R]`.

    Raises:
        TspruneError: if the models were not scored on the same rows.
    """
    terms = [rows.terms(measure) for rows in models]
    for other in terms[1:]:
        if not np.array_equal(other.denominator, terms[0].denominator):
            raise TspruneError(
                f"the errors are of different windows ({len(terms[0].denominator)} and {len(other.denominator)} rows); "
                "score all models on the same windows and split"
            )
    return [*(one.numerator for one in terms), terms[0].denominator]


def stretched(estimate: float | None, values: _Floats, stretches: float, level: float = LEVEL) -> Interval:
    """The stretched percentile interval of replicates `[B]` of something positive around its estimate.

    Args:
        estimate: over all units.
        values: the same over what was drawn.
        stretches: how many blocks the units hold, `Blocks.stretches`.
        level: confidence level between 0 and 1.
    """
    if not 0 < level < 1:
        raise TspruneError(f"the confidence level is {level}, expected a number between 0 and 1, such as 0.95")
    if estimate is None:
        return Interval(None, None, None, level, "the measure has no denominator here")
    if stretches < 2:
        return Interval(estimate, None, None, level, "fewer than two independent stretches of windows: no interval")
    usable = values[~np.isnan(values)]
    if len(usable) < len(values):
        return Interval(estimate, None, None, level, "in some replicates the measure has no denominator: no interval")
    if estimate == 0 or (usable == estimate).all():
        return Interval(estimate, estimate, estimate, level)
    factor = math.sqrt(stretches / (stretches - 1)) * two_sided_quantile(level, stretches - 1)
    tail = (1 - level) / 2
    factor /= NormalDist().inv_cdf(1 - tail)
    with np.errstate(divide="ignore"):
        logs = np.log(usable / estimate)
    # No interpolation: between a finite value and log 0 there is nothing.
    low = float(np.quantile(logs, tail, method="lower"))
    high = float(np.quantile(logs, 1 - tail, method="higher"))
    upper = estimate * _exp(factor * high)
    return Interval(estimate, estimate * _exp(factor * low), upper if math.isfinite(upper) else None, level)


def _exp(value: float) -> float:
    return math.inf if value > 700 else math.exp(value)
