"""Cut-offs in time and the windows between them; nothing else slices time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tsprune.data.panel import Panel
from tsprune.data.scaling import Scaler
from tsprune.data.windows import Grouping, WindowSet, cut_windows
from tsprune.data.words import listed, many
from tsprune.errors import TspruneError

Ints = NDArray[np.int64]

_ETT_MONTH = 30 * 24
_SPECS = "'auto', 'ratio 70/10/20', 'date 2018-01-01 2018-06-01', 'holdout', 'etth' or 'ettm'"


@dataclass(frozen=True)
class _Cuts:
    """Ends of the three parts, `[S]` each, and what to say about them."""

    name: str
    train: Ints
    validation: Ints
    test: Ints
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Split:
    """Three consecutive parts of every series.

    Windows of the train part lie in it entirely. Contexts of validation and test windows reach back across
    their border, targets never do. A series too short for a full context gets contexts padded with missing
    values on the left, with at least `min_context` steps of its own.

    Args:
        panel: the series that have windows in all three parts; indices of windows refer to it.
        horizon: steps H to forecast.
        context: steps L to look back.
        name: how the cut-offs were chosen.
        train_end: first step after the train part `[S]`.
        validation_end: first step after the validation part `[S]`.
        test_end: first step after the test part `[S]`.
        min_context: fewest steps before an origin.
        grouping: "none", or "all" for windows over all series at once.
        notes: what the user should hear: fallbacks, series left out, padding.
        train_share: share of the train windows of every series that is used, the latest ones. The scaler always sees
            the whole train part, as is usual where data are said to be few.
    """

    panel: Panel
    horizon: int
    context: int
    name: str
    train_end: Ints
    validation_end: Ints
    test_end: Ints
    min_context: int
    grouping: Grouping = "none"
    notes: tuple[str, ...] = ()
    train_share: float = 1.0

    @classmethod
    def make(
        cls,
        panel: Panel,
        horizon: int,
        context: int,
        spec: str = "auto",
        *,
        grouping: Grouping = "none",
        min_context: int | None = None,
        pad: bool = False,
    ) -> Split:
        """Split a panel.

        Args:
            panel: the series.
            horizon: steps H to forecast.
            context: steps L to look back.
            spec: "ratio 70/10/20" (of each series), "date A B" (validation from A, test from B on),
                "holdout" (the last horizon for test, the one before for validation), "etth" or "ettm"
                (12/4/4 months of 30 days), or "auto": 70/10/20, or holdout where that leaves most series
                without windows.
            grouping: "all" makes one window per origin over all series of an aligned panel.
            min_context: fewest steps before an origin; default a quarter of the horizon, at least 2, at most
                L.
            pad: allow a context longer than any series, padded with missing values.

        Raises:
            TspruneError: if a part is left without windows; the message gives the numbers.
        """
        if horizon < 1 or context < 1:
            raise TspruneError(f"--horizon is {horizon} and --context {context}, expected at least 1 step each")
        least = min(context, max(2, horizon // 4) if min_context is None else max(1, min_context))
        longest = int(panel.lengths.max())
        if longest < horizon + least:
            raise TspruneError(
                f"--horizon {horizon} is longer than the data allow: the longest series has {longest} steps, "
                f"a window needs {horizon + least} ({least} of context); {_shorter(longest)}"
            )
        cuts = _cut(panel, horizon, least, spec)
        usable = _usable(cuts, horizon, least)
        if grouping == "all" and not panel.aligned:
            raise TspruneError(
                "--together (grouping 'all') needs series over the same steps; these differ in start or length"
            )
        if not usable.any():
            raise TspruneError(_why_none(panel, cuts, horizon, least))
        _check_context(cuts, usable, horizon, context, pad)
        notes = (*cuts.notes, *_shortcomings(panel, cuts, usable, horizon, context, least))
        train, validation, test = (part[usable] for part in (cuts.train, cuts.validation, cuts.test))
        chosen = panel if usable.all() else panel.select(np.flatnonzero(usable).tolist())
        return cls(chosen, horizon, context, cuts.name, train, validation, test, least, grouping, notes)

    @cached_property
    def scaler(self) -> Scaler:
        """Mean and standard deviation of the train part of every series."""
        return Scaler.fit(self.panel, self.train_end)

    def train(self, stride: int = 1) -> WindowSet:
        """Windows that lie in the train part entirely; raises TspruneError if none holds a value."""
        last = self.train_end - self.horizon
        first = np.where(last >= self.context, self.context, self.min_context)
        windows = self._windows("train", first, last, stride)
        return windows if self.train_share == 1 else windows.latest(self.train_share)

    def validation(self, stride: int = 1) -> WindowSet:
        """Windows whose targets lie in the validation part; raises TspruneError if none holds a value."""
        first = np.maximum(self.train_end, self.min_context)
        return self._windows("validation", first, self.validation_end - self.horizon, stride)

    def test(self, stride: int = 1) -> WindowSet:
        """Windows whose targets lie in the test part; raises TspruneError if none holds a value."""
        first = np.maximum(self.validation_end, self.min_context)
        return self._windows("test", first, self.test_end - self.horizon, stride)

    def describe(self) -> dict[str, str]:
        """Name and borders in words, as in results.json; a border is the first step after its part."""
        borders = {
            "train_end": self.train_end,
            "validation_end": self.validation_end,
            "test_end": self.test_end,
        }
        found = {"name": self.name} | {key: self._words(ends) for key, ends in borders.items()}
        if self.train_share != 1:
            found["train_share"] = f"the latest {self.train_share:g} of the train windows"
        return found

    def _windows(self, part: str, first: Ints, last: Ints, stride: int) -> WindowSet:
        windows = cut_windows(
            self.panel,
            first,
            last,
            self.context,
            self.horizon,
            stride=stride,
            scaler=self.scaler,
            grouping=self.grouping,
        )
        if not len(windows):
            raise TspruneError(
                f"{self.name}: no {part} window holds a value "
                f"({'; '.join(windows.notes) or 'the part is too short'}); give "
                "a shorter --horizon or other cut-offs with --split"
            )
        return windows

    def _words(self, ends: Ints) -> str:
        low, high = int(ends.min()), int(ends.max())
        if low != high:
            return f"per series, step {low} to {high}"
        if not self.panel.aligned or self.panel.series[0].start is None:
            return f"step {low}"
        return f"{self.panel.horizon_timestamps(0, low, 1)[0]} (step {low})"


def _cut(panel: Panel, horizon: int, least: int, spec: str) -> _Cuts:
    words = spec.strip().split()
    kind = words[0].lower() if words else ""
    if kind == "auto" and len(words) == 1:
        return _automatic(panel, horizon, least)
    if kind == "holdout" and len(words) == 1:
        return _holdout(panel, horizon)
    if kind in ("etth", "ettm") and len(words) == 1:
        return _ett(panel, kind)
    if kind == "date" and len(words) in (3, 4):
        return _dates(panel, words[1:])
    if "/" in (text := words[-1] if kind == "ratio" or len(words) == 1 else ""):
        return _ratio(panel, text)
    raise TspruneError(f"--split {spec!r} is not known: expected {_SPECS}")


def _ratio(panel: Panel, text: str) -> _Cuts:
    try:
        shares = [int(part) for part in text.split("/")]
    except ValueError:
        shares = []
    if len(shares) != 3 or min(shares) < 1 or sum(shares) != 100:
        raise TspruneError(
            f"--split ratio {text!r}: expected three whole percentages that sum to 100, such as 70/10/20"
        )
    lengths = panel.lengths
    train = lengths * shares[0] // 100
    validation = lengths - lengths * shares[2] // 100
    notes = () if panel.aligned else ("every series is cut by its own length, so calendar dates of the parts differ",)
    return _Cuts(f"ratio {text}", train, validation, lengths, notes)


def _holdout(panel: Panel, horizon: int) -> _Cuts:
    lengths = panel.lengths
    return _Cuts("holdout: the last two horizons", lengths - 2 * horizon, lengths - horizon, lengths)


def _automatic(panel: Panel, horizon: int, least: int) -> _Cuts:
    ratio, holdout = _ratio(panel, "70/10/20"), _holdout(panel, horizon)
    by_ratio, by_holdout = (int(_usable(cuts, horizon, least).sum()) for cuts in (ratio, holdout))
    if by_ratio * 2 >= len(panel.series) or by_holdout <= by_ratio:
        return _renamed(ratio, "ratio 70/10/20 (auto)")
    note = (
        f"70/10/20 would leave windows of horizon {horizon} in only {by_ratio:,} of "
        f"{many(len(panel.series), 'series', 'series')}; "
        f"instead the last {horizon} steps of each series are the test part and the {horizon} before them "
        "the validation part"
    )
    return _renamed(holdout, "holdout: the last two horizons (auto)", note)


def _renamed(cuts: _Cuts, name: str, *notes: str) -> _Cuts:
    return _Cuts(name, cuts.train, cuts.validation, cuts.test, (*cuts.notes, *notes))


def _ett(panel: Panel, kind: str) -> _Cuts:
    month = _ETT_MONTH * (4 if kind == "ettm" else 1)
    borders = (12 * month, 16 * month, 20 * month)
    short = [(series.id, len(series)) for series in panel.series if len(series) < borders[2]]
    if short:
        raise TspruneError(
            f"--split {kind} needs {borders[2]} steps (12/4/4 months of 30 days: "
            f"{borders[0]}/{4 * month}/{4 * month}), but "
            f"series {short[0][0]!r} has {short[0][1]}; give --split ratio 70/10/20"
        )
    wanted = "15min" if kind == "ettm" else "h"
    notes = []
    if panel.frequency not in ("", wanted):
        notes.append(f"{kind} is meant for a step of {wanted}, the data have {panel.frequency}")
    rest = int(panel.lengths.max()) - borders[2]
    if rest:
        notes.append(f"{kind} leaves the last {many(rest, 'step')} unused, as published")
    train, validation, test = (np.full(len(panel.series), border, np.int64) for border in borders)
    months = "/".join(str(count * month) for count in (12, 4, 4))
    return _Cuts(f"{kind} {months}", train, validation, test, tuple(notes))


def _dates(panel: Panel, dates: list[str]) -> _Cuts:
    try:
        ends = [np.array([panel.steps_before(series, date) for series in panel.series], np.int64) for date in dates]
    except TspruneError as error:
        raise TspruneError(f"--split date {' '.join(dates)}: {error}; or give 'ratio 70/10/20' or 'holdout'") from None
    if len(dates) == 2:
        ends.append(panel.lengths)
    if (ends[0] > ends[1]).any() or (ends[1] > ends[2]).any():
        raise TspruneError(f"--split date {' '.join(dates)}: expected dates in ascending order")
    if not ends[0].any() or (ends[1] >= panel.lengths).all():
        span = [str(panel.timestamps(int(np.argmax(panel.lengths)))[place]) for place in (0, -1)]
        raise TspruneError(
            f"--split date {' '.join(dates)}: leaves no train or no test part, the longest series spans "
            f"{span[0]} to {span[1]}"
        )
    return _Cuts(f"date {' '.join(dates)}", ends[0], ends[1], ends[2])


def _usable(cuts: _Cuts, horizon: int, least: int) -> NDArray[np.bool_]:
    train = cuts.train - horizon >= least
    validation = cuts.validation - horizon >= np.maximum(cuts.train, least)
    return np.asarray(train & validation & (cuts.test - horizon >= np.maximum(cuts.validation, least)))


def _needed(cuts: _Cuts, horizon: int, least: int) -> str:
    return f"{horizon + least} steps in train and {horizon} in validation and in test" + (
        "" if cuts.name.startswith("holdout") else f" under {cuts.name}"
    )


def _shortcomings(
    panel: Panel, cuts: _Cuts, usable: NDArray[np.bool_], horizon: int, context: int, least: int
) -> list[str]:
    """What to say about series left out and contexts padded."""
    notes = []
    if not usable.all():
        out = [panel.ids[index] for index in np.flatnonzero(~usable)]
        notes.append(
            f"{many(len(out), 'series', 'series')} too short for windows in train, validation and test left "
            f"out: {listed(out)}; needed: {_needed(cuts, horizon, least)}"
        )
    padded = int((cuts.train[usable] - horizon < context).sum())
    if padded:
        notes.append(
            f"{many(padded, 'series', 'series')} of {int(usable.sum()):,} too short for a full context of "
            f"{context} steps in train; contexts there are padded on the left with missing values (at least "
            f"{least} steps are present)"
        )
    return notes


def _why_none(panel: Panel, cuts: _Cuts, horizon: int, least: int) -> str:
    best = int(np.argmax(panel.lengths))
    sizes = {
        "train": int(cuts.train[best]),
        "validation": int(cuts.validation[best] - cuts.train[best]),
        "test": int(cuts.test[best] - cuts.validation[best]),
    }
    needs = {"train": horizon + least, "validation": horizon, "test": horizon}
    lacking = [
        f"no {part} window ({sizes[part]} of {needs[part]} steps)" for part in sizes if sizes[part] < needs[part]
    ]
    length = int(panel.lengths[best])
    if length >= 3 * horizon + least and not cuts.name.startswith("holdout"):
        cure = "give --split holdout or a shorter --horizon"
    else:
        cure = _shorter(length)
    return (
        f"{cuts.name}: {', '.join(lacking)} for horizon {horizon} even in the longest series "
        f"({panel.ids[best]!r}, {length} steps); {cure}"
    )


def _shorter(length: int) -> str:
    """The longest horizon that leaves a window in each part of a series under hold-out."""
    fitting = [steps for steps in range(1, length // 3 + 1) if 3 * steps + max(2, steps // 4) <= length]
    return f"give a --horizon of at most {fitting[-1]}" if fitting else "more data are needed"


def _check_context(cuts: _Cuts, usable: NDArray[np.bool_], horizon: int, context: int, pad: bool) -> None:
    available = int((cuts.test - horizon)[usable].max())
    if context > available and not pad:
        fits = max(1, int((cuts.train - horizon)[usable].max()))
        raise TspruneError(
            f"--context {context} is longer than the data: at most {available} steps lie before a horizon of "
            f"{horizon}; give "
            f"--context {fits} or less, which also fits the train part"
        )
