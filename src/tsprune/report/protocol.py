"""The protocol of a run in words: how data were cut, what was measured on what scale, and what decided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tsprune.report.evidence import MEASURES
from tsprune.report.words import Results

_PARTS = ("train", "validation", "test")
_HEADLINE = " and ".join(measure.upper() for measure in MEASURES)
_NONE = "not recorded"


def protocol_words(results: Results) -> str:
    """The protocol as one paragraph, from the facts in `protocol`, `pruning`, `seed` and `comparison`."""
    facts: Mapping[str, Any] = results.get("protocol") or {}
    split = facts.get("split") or {}
    ends = ", ".join(f"{part} before {split.get(f'{part}_end', _NONE)}" for part in _PARTS)
    windows = ", ".join(f"{_count(facts, part)} for {part} ({_stride(facts, part)})" for part in _PARTS)
    said = [
        f"Split {split.get('name', _NONE)}, in time: {ends}.",
        f"Context {facts.get('context', _NONE)} and horizon {facts.get('horizon', _NONE)} steps; windows: {windows}.",
        "Contexts reach back before a border, targets do not.",
        "Each series is z-scored with mean and standard deviation of its train part.",
        f"Headline: {_HEADLINE}, on that scale, over all observed steps of all windows and series alike.",
        "MASE divides by the seasonal-naive error of the train part, WQL is in the units of the data.",
        _decided(results),
        *_compared(results),
        f"One seed, {results.get('seed', _NONE)}.",
    ]
    return " ".join(said)


def protocol_line(results: Results) -> str:
    """The same in one short line, for the terminal."""
    facts: Mapping[str, Any] = results.get("protocol") or {}
    split = facts.get("split") or {}
    return (
        f"protocol: {split.get('name', _NONE)} in time, test from {split.get('validation_end', _NONE)} on, "
        f"{_count(facts, 'test')} test windows ({_stride(facts, 'test')}); z-scored by train; headline {_HEADLINE}; "
        f"validation decided, test was opened once; seed {results.get('seed', _NONE)}"
    )


def _count(facts: Mapping[str, Any], part: str) -> str:
    count = (facts.get("windows") or {}).get(part)
    return f"{count:,}" if isinstance(count, int) else _NONE


def _stride(facts: Mapping[str, Any], part: str) -> str:
    return f"stride {(facts.get('strides') or {}).get(part, _NONE)}"


def _decided(results: Results) -> str:
    """What validation was used for; a budget takes the choice of the round away from it."""
    budget = (results.get("pruning") or {}).get("budget")
    kept = (
        f"Pruning went down to a budget ({budget}); validation" if budget else "Validation decided how much to prune,"
    )
    verb = " decided" if budget else ""
    return (
        f"{kept}{verb} the learning rates, when tuning stopped, and the candidate; the test part was opened once, last."
    )


def _compared(results: Results) -> list[str]:
    """How differences were told from chance; nothing where they were not."""
    tables = list(((results.get("comparison") or {}).get("measures") or {}).values())
    if not tables:
        return []
    blocks = tables[0].get("blocks") or {}
    unit, count, length = (blocks.get(key, "?") for key in ("unit", "units", "block_length"))
    drawn = f"{count} {unit}" + (f" in blocks of {length}" if unit == "origins" else "")
    return [
        f"An error is called lower or higher only where a bootstrap over the test windows ({drawn}) and a "
        f"Diebold-Mariano test both say so, at {100 * float(tables[0].get('level') or 0.95):g} %."
    ]
