"""Guards against leakage: what a model must not have learned from, checked before anything is trained or judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from tsprune.data.panel import Panel, Series
from tsprune.data.split import Split
from tsprune.data.windows import WindowSet
from tsprune.data.words import listed, many
from tsprune.errors import TspruneError
from tsprune.evaluation.copies import Copy, find_copies
from tsprune.evaluation.giveaways import Giveaway, find_giveaways
from tsprune.evaluation.overlap import pretraining_overlap

if TYPE_CHECKING:
    from tsprune.models._forecaster import Forecaster

Ints = NDArray[np.int64]
SCALER, WINDOWS, COPIES, COVARIATES, PRETRAINING = "scaler", "windows", "copies", "covariates", "pretraining"
PARTS = ("train", "validation", "test")
NO_COPIES = "no series holds values of another one"
_LOOKED_AT = 3


class Finding(TypedDict):
    """What one guard says, as in `results.json`.

    Keys:
        guard: scaler, windows, copies, covariates or pretraining.
        verdict: "ok", "found" (a leak), or "unknown".
        words: what was looked at or found, and what to do about it; one sentence without a full stop.
    """

    guard: str
    verdict: Literal["ok", "found", "unknown"]
    words: str


def check(split: Split, model: Forecaster, parts: Mapping[str, WindowSet] | None = None) -> list[Finding]:
    """All guards, one finding each: scaler, windows, copies of series, covariates, pretraining.

    Args:
        split: the cut-offs, with panel, horizon and scaler.
        model: says what it was pretrained on.
        parts: the windows really used, by part; those of the split where left out.

    Raises:
        TspruneError: a part of the split holds no window.
    """
    if parts is None:
        parts = {"train": split.train(), "validation": split.validation(), "test": split.test()}
    return [*check_cutting(split, parts), *check_data(split), check_pretraining(split.panel, model)]


def check_cutting(split: Split, parts: Mapping[str, WindowSet]) -> list[Finding]:
    """The guards over what tsprune itself does: scaler and windows."""
    return [_scaler(split, parts), _windows(split, parts)]


def check_data(split: Split) -> list[Finding]:
    """The guards over the data: copies of series, covariates that hold the target."""
    return [_copies(split), _covariates(split)]


def check_pretraining(panel: Panel, model: Forecaster) -> Finding:
    """Whether the model may have seen the data: "found" for yes, "ok" for no."""
    answer, why = pretraining_overlap(panel, model.pretraining_corpora)
    verdicts: dict[str, Literal["ok", "found", "unknown"]] = {"yes": "found", "no": "ok", "unknown": "unknown"}
    return Finding(guard=PRETRAINING, verdict=verdicts[answer], words=why)


def refuse_own(findings: Sequence[Finding]) -> None:
    """Stop where tsprune itself would leak; that cannot happen to data, so it is an error of ours.

    Raises:
        TspruneError: the scaler or the windows reach beyond their part.
    """
    for finding in findings:
        if finding["guard"] in (SCALER, WINDOWS) and finding["verdict"] == "found":
            raise TspruneError(f"{finding['words']}; this is an error in tsprune, please report it")


def data_notes(findings: Sequence[Finding], allowed: bool) -> list[str]:
    """What to say about the data before a run: copies of series, and leaking covariates that the user lets pass.

    Raises:
        TspruneError: a covariate holds the target, and that was not allowed.
    """
    notes = []
    for finding in findings:
        leaking, words = finding["verdict"] == "found", finding["words"]
        if finding["guard"] == COVARIATES and leaking and not allowed:
            raise TspruneError(f"{words}; or give --allow-leakage to go on all the same")
        if leaking and finding["guard"] in (COPIES, COVARIATES):
            notes.append(f"LEAKAGE: {words}")
        elif finding["guard"] == COPIES and words != NO_COPIES:
            notes.append(words)
    return notes


def _finding(guard: str, wrong: str, fine: str) -> Finding:
    return Finding(guard=guard, verdict="found" if wrong else "ok", words=wrong or fine)


def _columns(series: Series) -> list[NDArray[np.float32]]:
    """Target and covariates in the order of the scaler's columns."""
    return [series.values, *series.past.values(), *series.known.values()]


def _scaler(split: Split, parts: Mapping[str, WindowSet]) -> Finding:
    """Mean and deviation of every column, worked out again from the raw values of the train part alone."""
    scaler, panel = split.scaler, split.panel
    wrong = ""
    measured: dict[tuple[int, int], tuple[float, float]] = {}
    for row, series in enumerate(panel.series):
        end = int(split.train_end[row])
        for place, column in enumerate(_columns(series)):
            # Covariates that many series share are measured once.
            key = (column.__array_interface__["data"][0], end)
            if key not in measured:
                measured[key] = _moments(column[:end].astype(np.float64))
            mean, spread = measured[key]
            # What hardly varies is scaled by 1: there the deviation is rounding.
            close = 1e-6 * (abs(mean) + spread) + 1e-12
            fits = abs(scaler.std[row, place] - spread) <= close or (
                scaler.std[row, place] == 1 and spread <= 1e-6 * abs(mean)
            )
            if not (fits and abs(scaler.mean[row, place] - mean) <= close):
                wrong = f"the scaler of series {series.id!r} is not that of its train part alone (column {place})"
    for name, windows in parts.items():
        own = windows.scaler
        if own is None or not (np.array_equal(own.mean, scaler.mean) and np.array_equal(own.std, scaler.std)):
            wrong = f"the {name} windows are not scaled by the split's scaler"
    fine = f"mean and deviation of {many(len(panel.series), 'series', 'series')} are those of the train part alone"
    return _finding(SCALER, wrong, fine)


def _moments(raw: NDArray[np.float64]) -> tuple[float, float]:
    seen = raw[np.isfinite(raw)]
    if not len(seen):
        return 0.0, 0.0
    mean = float(seen.sum()) / len(seen)
    return mean, float(np.sqrt(np.mean((seen - mean) ** 2)))


def _windows(split: Split, parts: Mapping[str, WindowSet]) -> Finding:
    """No target outside its part, and contexts that end where targets begin."""
    begins = {"train": np.zeros_like(split.train_end), "validation": split.train_end, "test": split.validation_end}
    ends = {"train": split.train_end, "validation": split.validation_end, "test": split.test_end}
    wrong = ""
    for name, windows in parts.items():
        begin, end = begins[name], ends[name]
        if windows.grouping == "all":
            begin, end = begin.max(keepdims=True), end.min(keepdims=True)
        first = windows.origin.astype(np.int64)
        outside = (first < begin[windows.series_index]) | (first + windows.horizon > end[windows.series_index])
        if outside.any():
            bad = int(np.flatnonzero(outside)[0])
            wrong = (
                f"{int(outside.sum()):,} of {many(len(windows), f'{name} window')} have targets outside the {name} "
                f"part, such as steps {first[bad]} to {first[bad] + windows.horizon - 1} of series "
                f"{split.panel.ids[windows.series_index[bad]]!r}, whose part ends before step "
                f"{end[windows.series_index[bad]]}"
            )
        elif (beyond := _reaches(windows)) is not None:
            wrong = f"the context of {name} window {beyond} does not end at its origin"
    counts = ", ".join(f"{len(windows):,} {name}" for name, windows in parts.items())
    return _finding(WINDOWS, wrong, f"every target lies in its own part ({counts} windows)")


def _reaches(windows: WindowSet) -> int | None:
    """The first of a few windows whose context, as a model gets it, is not the values before its origin."""
    if not len(windows):
        return None
    for number in np.unique(np.linspace(0, len(windows) - 1, _LOOKED_AT).astype(int)).tolist():
        batch = windows.batch([number])
        rows = batch.context.numpy()
        if batch.is_target is not None:
            rows = rows[batch.is_target.numpy()]
        origin = int(windows.origin[number])
        for row, index in zip(rows, windows.target_series([number]).tolist(), strict=True):
            values = windows.panel.series[index].values[max(0, origin - windows.context) : origin]
            known = np.concatenate([np.full(windows.context - len(values), np.nan, np.float32), values])
            if windows.scaler is not None:
                known = windows.scaler.transform(known[None], [index])[0]
            if not np.allclose(row, known, rtol=1e-5, atol=1e-6, equal_nan=True):
                return int(number)
    return None


def _copies(split: Split) -> Finding:
    """Series that hold later parts of each other."""
    panel = split.panel
    found = find_copies([series.values for series in panel.series])
    leaks = [words for copy in found if (words := _leak(split, copy))]
    if leaks:
        pairs = "1 pair of series is a copy" if len(leaks) == 1 else f"{len(leaks):,} pairs of series are copies"
        return Finding(
            guard=COPIES,
            verdict="found",
            words=f"{pairs} of each other, moved across the cut-offs: {listed(leaks, 3)}; keep one of each pair, or "
            "cut all series at the same dates with --split 'date TRAIN_END VALIDATION_END'",
        )
    lengths = panel.lengths
    twice = [
        f"{panel.ids[copy.one]!r} and {panel.ids[copy.other]!r}"
        for copy in found
        if 2 * (copy.last - copy.first) >= min(lengths[copy.one], lengths[copy.other])
    ]
    if twice:
        words = f"{many(len(twice), 'pair')} of series hold the same values in the same parts and count twice: "
        return Finding(guard=COPIES, verdict="ok", words=words + listed(twice, 3))
    return Finding(guard=COPIES, verdict="ok", words=NO_COPIES)


def _leak(split: Split, copy: Copy) -> str:
    """What a copy gives away, "" where the same values lie in the same part of both series."""
    ends = (split.train_end, split.validation_end, split.test_end)
    one = tuple(int(end[copy.one]) for end in ends)
    # Both in steps of the first series.
    other = tuple(int(end[copy.other]) + copy.shift for end in ends)
    low, high = copy.first + copy.shift, copy.last + copy.shift
    names = (split.panel.ids[copy.one], split.panel.ids[copy.other])
    for later, earlier in ((2, 0), (2, 1), (1, 0)):
        for mine, its, (own, its_name) in ((one, other, names), (other, one, names[::-1])):
            first = max(low, mine[later - 1])
            last = min(high, mine[later], its[earlier])
            if first < last:
                return (
                    f"{many(last - first, 'step')} of the {PARTS[later]} part of {own!r} are in the "
                    f"{PARTS[earlier]} part of {its_name!r}"
                )
    return ""


def _covariates(split: Split) -> Finding:
    """Covariates from which the targets can be read off."""
    found = find_giveaways(split.panel, split.horizon, split.train_end)
    names = (*split.panel.past_names, *split.panel.known_names)
    fine = f"no covariate holds the target: {listed(names)}" if names else "there are no covariates"
    if not found:
        return Finding(guard=COVARIATES, verdict="ok", words=fine)
    return Finding(guard=COVARIATES, verdict="found", words="; ".join(_giveaway(one, split.horizon) for one in found))


def _giveaway(found: Giveaway, horizon: int) -> str:
    when = "at the same step"
    if found.lead:
        when = f"{many(abs(found.lead), 'step')} {'later' if found.lead > 0 else 'earlier'}"
    what = f"column {found.column!r} is exactly the target {when}, up to scale and offset (series "
    what += listed([repr(name) for name in found.series], 3) + ")"
    if not found.known:
        return f"past covariate: {what}: it tells the future; leave it out of --past-covariates or move it back in time"
    cure = f"it is not known {horizon} steps ahead; "
    if found.lead > 0:
        return f"known covariate: {what}: {cure}leave it out of --known-covariates or move it back in time"
    return f"known covariate: {what}: {cure}move it from --known-covariates to --past-covariates"
