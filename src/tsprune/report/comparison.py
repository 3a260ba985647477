"""The section of the HTML report that says which differences are more than chance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tsprune.report.evidence import MEASURES, Evidence, ends, p_text, ranking, reference, top_two
from tsprune.report.words import Results, number


def comparison_section(results: Results) -> dict[str, Any] | None:
    """What the template shows: `base`, `rows` per candidate, `sentences`, `notes`, `units`; None without a comparison.

    Every row has `name`, and by measure `ratio`, `interval`, `p`, `wins` and `word`, all as text.
    """
    base = reference(results)
    if not base:
        return None
    compared = results["comparison"]
    standing = {measure: ranking(results, measure) for measure in MEASURES}
    standing = {measure: found for measure, found in standing.items() if found}
    wins = {measure: _wins(compared["measures"][measure]) for measure in standing}
    first = next(iter(standing))
    rows = [
        {
            "name": name,
            "measures": [
                _cells(found[name], wins[measure].get(name, float("nan")), name == base)
                for measure, found in standing.items()
                if name in found
            ],
        }
        for name in standing[first]
    ]
    blocks = compared["measures"][first].get("blocks") or {}
    return {
        "base": base,
        "measures": [measure.upper() for measure in standing],
        "rows": rows,
        "standing": standing[first],
        "sentences": [sentence for measure in standing if (sentence := top_two(results, measure))],
        "notes": [str(note) for note in compared.get("notes") or []],
        "blocks": blocks,
        "none": all(e.word == "few" for name, e in standing[first].items() if name != base),
    }


def _wins(table: Mapping[str, Any]) -> dict[str, float]:
    return {str(entry["name"]): number(entry.get("win_rate")) for entry in table["ranking"]}


def _cells(evidence: Evidence, wins: float, is_base: bool) -> dict[str, str]:
    if is_base:
        return {"ratio": "1", "interval": "\u2013", "p": "\u2013", "wins": "\u2013", "word": "reference"}
    words = {"open": "not shown", "few": "too few windows", "same": f"{_side(evidence)}, < 1 %"}
    words |= {"lower": "better", "higher": "worse"}
    return {
        "ratio": f"{evidence.ratio:.3f}",
        "interval": ends(evidence),
        "p": p_text(evidence.p_value).removeprefix("p ").replace("-", "\u2013"),
        "wins": "\u2013" if wins != wins else f"{100 * wins:.0f} %",
        "word": words.get(evidence.word, evidence.word),
    }


def _side(evidence: Evidence) -> str:
    return "better" if evidence.ratio < 1 else "worse"
