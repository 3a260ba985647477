"""What the test windows can show: `comparison` of results.json, read for the verdict, the table and the HTML report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tsprune.report.words import SAME, Results, candidates_by_name, change, human, metric, number

MEASURES = ("mse", "mae")
"""The measures that are compared; the first one is the headline."""
Word = Literal["lower", "higher", "same", "open", "few", "untested"]


@dataclass(frozen=True)
class Evidence:
    """One candidate's test error against another's, and what may be said of it.

    Attributes:
        measure: "mse" or "mae".
        change: percent by which the error lies above the other one.
        ratio: of the errors.
        low: lower end of the interval of the ratio; NaN where there is no interval.
        high: upper end; infinite where there is none.
        level: confidence level.
        p_value: of the Diebold-Mariano test; NaN where there was none.
        word: "lower" or "higher" where interval and test say so and it is 1 % at least, "same" where they say so and
            it is less; "open" where they do not; "few" where there are too few windows for an interval; "untested"
            in results without a comparison.
    """

    measure: str
    change: float
    ratio: float
    low: float = math.nan
    high: float = math.nan
    level: float = 0.95
    p_value: float = math.nan
    word: Word = "untested"

    @property
    def shown(self) -> bool:
        """Whether it is more than chance."""
        return self.word in ("lower", "higher", "same")


def against(results: Results, other: str) -> dict[str, Evidence]:
    """The chosen candidate against another one by measure, only where both were measured."""
    found = candidates_by_name(results)
    own, base = found[str(results["chosen"])], found[other]
    pairs = _part(results.get("comparison"), "chosen")
    told = {}
    for measure in MEASURES:
        values = metric(own, "test", measure), metric(base, "test", measure)
        moved = change(*values)
        if not math.isnan(moved):
            ratio = values[0] / values[1] if values[1] else 1.0
            told[measure] = _evidence(measure, moved, ratio, _part(_part(pairs, measure), other))
    return told


def ranking(results: Results, measure: str = MEASURES[0]) -> dict[str, Evidence]:
    """Every candidate against the reference of the comparison in one measure, the best first; empty without one."""
    table = _part(_part(results.get("comparison"), "measures"), measure)
    entries = [entry for entry in table.get("ranking") or [] if isinstance(entry, Mapping)]
    return {str(entry["name"]): _evidence(measure, math.nan, math.nan, entry) for entry in entries}


def reference(results: Results) -> str:
    """Whom all candidates are compared with; empty where nothing was compared."""
    compared = _part(results.get("comparison"), "measures")
    return str(_part(results, "comparison").get("reference") or "") if compared else ""


def top_two(results: Results, measure: str = MEASURES[0]) -> str:
    """A sentence about the two lowest test errors, with the p-value; empty where nothing was compared."""
    table = _part(_part(results.get("comparison"), "measures"), measure)
    top = _part(table, "top")
    if not top:
        return ""
    first, second = (f'"{human(str(top[place]))}"' for place in ("first", "second"))
    evidence = _evidence(measure, math.nan, math.nan, {**top, "verdict": "better" if top["better"] else "undecided"})
    name = measure.upper()
    if not evidence.ratio < 1:
        return f"{first} and {second} share the lowest test {name}; neither is better."
    p = evidence.p_value
    tested = "no Diebold-Mariano test" if math.isnan(p) else f"Diebold-Mariano {p_text(p)}"
    interval = "no interval" if math.isnan(evidence.low) else f"{100 * evidence.level:g} % interval {ends(evidence)}"
    ratio = f"ratio {_plain(evidence.ratio, 3)}, {interval}"
    said = f"The lowest test {name} is that of {first}, before {second} ({ratio}, {tested})"
    return f"{said}: {first} is better." if top["better"] else f"{said}. That may be chance: neither is called better."


def span(evidence: Evidence, name: str = "ratio") -> str:
    """For example `ratio 0.998, 95 % interval 0.98 to 1.02`, without a name only `0.998, 0.98 to 1.02`.

    A test that disagrees with the interval is named, since nothing else would explain why nothing is called better.
    """
    start = f"{name} {_plain(evidence.ratio, 3)}".strip()
    if math.isnan(evidence.low):
        return start
    said = f"{start}, {f'{100 * evidence.level:g} % interval ' if name else ''}{ends(evidence)}"
    if evidence.word == "open" and not evidence.low <= 1 <= evidence.high:
        p = evidence.p_value
        said += ", but no Diebold-Mariano test" if math.isnan(p) else f", but Diebold-Mariano {p_text(p)}"
    return said


def ends(evidence: Evidence) -> str:
    """For example `0.98 to 1.02`, with more digits where two would hide on which side of 1 an end lies."""
    if math.isnan(evidence.low):
        return "none"
    known = [value for value in (evidence.low, evidence.high) if math.isfinite(value)]
    digits = 3 if any(0 < abs(value - 1) < 0.01 for value in known) else 2
    low = _plain(evidence.low, digits)
    return f"{low} to {_plain(evidence.high, digits)}" if math.isfinite(evidence.high) else f"{low} upwards"


def p_text(value: float) -> str:
    """For example `p 0.034`; a dash where there is none."""
    return "-" if math.isnan(value) else "p < 0.001" if value < 0.001 else f"p {value:.3f}"


def _plain(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if value < 1000 else f"{value:.1e}"


def _part(source: Any, key: str) -> Mapping[str, Any]:
    """A part of results that may be missing."""
    found = source.get(key) if isinstance(source, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _evidence(measure: str, moved: float, ratio: float, entry: Mapping[str, Any]) -> Evidence:
    """Evidence from what was stored of a pair; an empty entry was not tested."""
    if not entry:
        return Evidence(measure, moved, ratio)
    interval, said = _part(entry, "ratio"), entry.get("verdict")
    if not math.isnan(estimate := number(interval.get("estimate"))):
        moved, ratio = 100 * (estimate - 1), estimate
    low, high = number(interval.get("low")), number(interval.get("high"))
    # No upper end beside a lower one: the interval is open there.
    high = math.inf if math.isnan(high) and not math.isnan(low) else high
    word: Word = "few" if math.isnan(low) else "open"
    if said in ("better", "worse"):
        word = "same" if abs(moved) < SAME else "lower" if said == "better" else "higher"
    p_value = number(_part(entry, "diebold_mariano").get("p_value"))
    level = interval.get("level") or Evidence.level
    return Evidence(measure, moved, ratio, low, high, number(level), p_value, word)
