"""The user's series, validated."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tsprune.data.steps import Step, parse_frequency, show
from tsprune.errors import TspruneError

if TYPE_CHECKING:
    import pandas as pd

    from tsprune.data.reading import ReadOptions

FloatArray = NDArray[np.float32]
_NOTHING: Mapping[str, FloatArray] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Series:
    """One series on a regular grid.

    Args:
        id: name, unique within its panel.
        values: target `[T]`, float32, NaN = missing.
        past: past covariates by name, each `[T]`.
        known: covariates known ahead by name, each `[T + K]` with the same `K >= 0`.
        start: stamp of the first step, or None when the panel has no timestamps.
        stamps: stamp of every step `[T + K]` as datetime64[us], only where the rows were kept as they stand.

    Raises:
        TspruneError: if an array has the wrong shape or type.
    """

    id: str
    values: FloatArray
    past: Mapping[str, FloatArray] = field(default_factory=lambda: _NOTHING)
    known: Mapping[str, FloatArray] = field(default_factory=lambda: _NOTHING)
    start: pd.Timestamp | None = None
    stamps: NDArray[np.datetime64] | None = None

    def __post_init__(self) -> None:
        for name, array in (("values", self.values), *self.past.items(), *self.known.items()):
            if array.ndim != 1 or array.dtype != np.float32:
                raise TspruneError(
                    f"series {self.id!r}: {name!r} is {array.dtype} {list(array.shape)}, expected float32 [steps]"
                )
        if any(len(array) != len(self) for array in self.past.values()):
            raise TspruneError(f"series {self.id!r}: past covariates must have its length of {len(self)} steps")
        if len({len(array) for array in self.known.values()} - {len(self) + self.known_ahead}) > 0:
            raise TspruneError(f"series {self.id!r}: known covariates differ in length from each other")
        if self.known_ahead < 0:
            raise TspruneError(f"series {self.id!r}: known covariates end before its {len(self)} steps do")

    def __len__(self) -> int:
        return len(self.values)

    @property
    def known_ahead(self) -> int:
        """Steps K that the known covariates reach beyond the end of the target."""
        return len(next(iter(self.known.values()))) - len(self) if self.known else 0


@dataclass(frozen=True, eq=False)
class Panel:
    """All series of one source, with everything that was inferred or repaired on the way.

    Args:
        series: the series; ids are unique, all carry the same covariate names.
        frequency: pandas offset alias of one step, or "" when unknown.
        repairs: one line for every change made to the data and every observation the user should hear about.
        inferred: what was inferred, in words, by topic (layout, columns, frequency, ...).
        source: where the data come from, for people.
        period: season in steps where the user gave one, 0 to take it from the frequency.

    Raises:
        TspruneError: for an empty panel, repeated ids, or covariates that only some series have.
    """

    series: tuple[Series, ...]
    frequency: str = ""
    repairs: tuple[str, ...] = ()
    inferred: Mapping[str, str] = field(default_factory=dict)
    source: str = "memory"
    period: int = 0

    def __post_init__(self) -> None:
        if not self.series:
            raise TspruneError(f"{self.source}: no series is left, expected at least one")
        ids = [series.id for series in self.series]
        if len(set(ids)) < len(ids):
            twice = next(name for name in ids if ids.count(name) > 1)
            raise TspruneError(f"{self.source}: the id {twice!r} names two series, expected unique ids")
        for series in self.series:
            if tuple(series.past) != self.past_names or tuple(series.known) != self.known_names:
                raise TspruneError(f"{self.source}: series {series.id!r} has other covariates than {ids[0]!r}")

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, options: ReadOptions | None = None) -> Panel:
        """The same as `read(frame, options)`."""
        from tsprune.data.reading import read

        return read(frame, options)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Ids in the order of `series`."""
        return tuple(series.id for series in self.series)

    @property
    def past_names(self) -> tuple[str, ...]:
        """Names of the past covariates."""
        return tuple(self.series[0].past)

    @property
    def known_names(self) -> tuple[str, ...]:
        """Names of the covariates known ahead."""
        return tuple(self.series[0].known)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Steps T of every series `[S]`."""
        return np.array([len(series) for series in self.series], np.int64)

    @cached_property
    def aligned(self) -> bool:
        """Whether all series cover exactly the same steps."""
        first = self.series[0]
        return all(
            len(other) == len(first) and other.start == first.start and _same(other.stamps, first.stamps)
            for other in self.series
        )

    @cached_property
    def step(self) -> Step | None:
        """The step behind `frequency`, None when unknown."""
        return parse_frequency(self.frequency) if self.frequency else None

    def season(self) -> int:
        """Season in steps: the user's, or a day for sub-daily data, 7 daily, 5 business, 52, 12, 4; 1 otherwise."""
        if self.period:
            return self.period
        return self.step.season if self.step else 1

    def timestamps(self, series: Series | int) -> pd.Index:
        """Stamps of every step of a series `[T]`: a DatetimeIndex, or a RangeIndex when there are none."""
        chosen = self.series[series] if isinstance(series, int) else series
        return self.horizon_timestamps(chosen, 0, len(chosen))

    def horizon_timestamps(self, series: Series | int, origin: int, horizon: int) -> pd.Index:
        """Stamps of `horizon` steps from `origin` on `[H]`, beyond the end of the series where need be."""
        import pandas as pd

        chosen = self.series[series] if isinstance(series, int) else series
        if chosen.start is None or self.step is None:
            return pd.RangeIndex(origin, origin + horizon)
        return pd.DatetimeIndex(self._stamps(chosen, origin, horizon).astype("M8[us]"))

    def steps_before(self, series: Series | int, moment: str) -> int:
        """How many steps of a series lie before a moment such as "2018-01-01".

        Raises:
            TspruneError: if the panel has no timestamps or the moment cannot be read.
        """
        chosen = self.series[series] if isinstance(series, int) else series
        if chosen.start is None or self.step is None:
            raise TspruneError(f"the date {moment!r} means nothing here: {self.source} has no timestamps")
        try:
            stamp = np.datetime64(moment, "us").astype(np.int64)
        except ValueError:
            raise TspruneError(f"{moment!r} is not a date, expected the form 2018-01-31 or 2018-01-31T12:00") from None
        return int(np.searchsorted(self._stamps(chosen, 0, len(chosen)), stamp))

    def select(self, indices: Sequence[int]) -> Panel:
        """A panel of some of the series, without copying values."""
        return replace(self, series=tuple(self.series[index] for index in indices))

    def fingerprint(self) -> str:
        """sha256 of ids, values, covariates, starts and frequency; where the data came from plays no part."""
        digest = hashlib.sha256(f"panel 1 {self.frequency!r} {len(self.series)}".encode())
        for series in self.series:
            digest.update(f"\n{series.id!r} {series.start} {len(series)}".encode())
            for name, array in (("", series.values), *series.past.items(), *series.known.items()):
                digest.update(f"\n{name!r} {len(array)}\n".encode())
                # Any NaN is as good as another, whatever its bits.
                digest.update(np.where(np.isnan(array), np.float32(np.nan), array).astype("<f4").tobytes())
            if series.stamps is not None:
                digest.update(series.stamps.astype("<i8").tobytes())
        return digest.hexdigest()

    def missing_share(self) -> float:
        """Share of target values that are missing."""
        missing = sum(int(np.isnan(series.values).sum()) for series in self.series)
        return missing / max(1, int(self.lengths.sum()))

    def describe(self) -> list[str]:
        """Short lines for the terminal: what the panel holds, what was inferred, what was repaired."""
        low, high = int(self.lengths.min()), int(self.lengths.max())
        length = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        frequency = f"frequency {self.frequency} (season {self.season()})" if self.frequency else "frequency unknown"
        lines = [
            f"{len(self.series):,} series of {length} steps from {self.source}",
            f"{self._span()}, {frequency}",
        ]
        lines.append(f"missing: {self.missing_share():.2%} of {int(self.lengths.sum()):,} values")
        for words, names in (("past covariates", self.past_names), ("known covariates", self.known_names)):
            if names:
                lines.append(f"{words}: {', '.join(names)}")
        lines += [f"inferred {topic}: {words}" for topic, words in self.inferred.items()]
        return lines + [f"note: {line}" for line in self.repairs]

    def _span(self) -> str:
        dated = [series for series in self.series if series.start is not None]
        if not dated or self.step is None:
            return "no timestamps: steps are numbered"
        firsts = [self._stamps(series, 0, 1)[0] for series in dated]
        lasts = [self._stamps(series, len(series) - 1, 1)[0] for series in dated if len(series)]
        return f"{show(min(firsts))} to {show(max(lasts))}"

    def _stamps(self, series: Series, first: int, count: int) -> NDArray[np.int64]:
        if series.start is None or self.step is None:
            raise TspruneError(f"series {series.id!r} has no timestamps")
        if series.stamps is None:
            start = int(series.start.to_datetime64().astype("M8[us]").astype(np.int64))
            return self.step.stamps(start, first, count)
        own = series.stamps.astype("M8[us]").astype(np.int64)
        beyond = max(0, first + count - len(own))
        # Beyond the rows there is only the usual step to go by.
        later = self.step.stamps(int(own[-1]), 1, beyond)
        return np.concatenate([own, later])[first : first + count]


def _same(one: NDArray[np.datetime64] | None, two: NDArray[np.datetime64] | None) -> bool:
    if one is None or two is None:
        return one is two
    return one is two or bool(np.array_equal(one, two))
