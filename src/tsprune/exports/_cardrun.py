"""What a card says from a run's results: tuning, data, protocol and the table with intervals.

Names of series and columns, and values, never come into a card: who publishes it may not be free to show them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tsprune.exports._markdown import code, table
from tsprune.exports._runfacts import RunFacts
from tsprune.report.comparison import comparison_section
from tsprune.report.protocol import protocol_words
from tsprune.report.verdict import verdict
from tsprune.report.words import (
    candidates_by_name,
    count_text,
    error_text,
    human,
    metric,
    milliseconds,
    number,
)

CHECK_NAME = "Before publishing, check that you may name these data; the name stands here and nowhere else."
UNTUNED = "zero_shot"


def tuning_lines(run: RunFacts | None, base: str, unknown: str) -> list[str]:
    """Which candidate of the run it is, and what became of the choice."""
    if run is None:
        return [f"Whether and how it was tuned is unknown: {unknown}."]
    said = f"It is the candidate “{human(run.kept)}” of a run of tsprune"
    if run.kept == UNTUNED:
        said += f": the weights of {code(base)} as they came, not tuned"
    chosen = str(run.results["chosen"])
    lines = [f"{said}."]
    if chosen != run.kept:
        lines.append(
            f"**Validation chose “{human(chosen)}”, which is no network**; this is the best network of the run."
        )
    return lines


def data_section(run: RunFacts | None, name: str, unknown: str) -> str:
    """Which series, as numbers; their name alone tells whose they are."""
    if run is None:
        return f"Unknown: {unknown}."
    facts = run.protocol
    split: Mapping[str, Any] = facts.get("split") or {}
    ends = [
        f"{part} before {split[f'{part}_end']}" for part in ("train", "validation", "test") if f"{part}_end" in split
    ]
    verb = "judged on" if run.kept == UNTUNED else "tuned and judged on"
    lines = [
        f"- {verb.capitalize()}: {code(name or 'a table')}, {facts.get('series', 'an unknown number of')} series",
        f"- Frequency {code(str(facts.get('frequency', 'unknown')))}, season of {facts.get('season', '?')} steps",
        f"- Span: {', '.join(ends) or 'unknown'}; where the series begin is not recorded",
        f"- Repairs and remarks on reading: {len(facts.get('repairs') or ())}, told in the report of the run",
        f"- Were they in the base's pretraining? {str(facts.get('pretraining_overlap') or 'unknown').split(':')[0]}",
        "",
        "No value of the series is part of this repository.",
        "",
        f"<!-- {CHECK_NAME} -->",
    ]
    return "\n".join(lines)


def protocol_section(run: RunFacts | None) -> str:
    """The protocol in words, and what the guards against leaks found."""
    if run is None:
        return ""
    words = str(run.protocol.get("words") or protocol_words(run.results))
    guards = [f"{g.get('guard')}: {g.get('verdict')}" for g in run.protocol.get("leakage") or ()]
    return words + (f"\n\nGuards against leaks: {', '.join(guards)}." if guards else "")


def results_section(run: RunFacts | None, title: str) -> str:
    """The verdict, and the table with intervals."""
    if run is None:
        return "Unknown. Judge it on your own series before relying on it, for example with `tsprune evaluate`."
    results, protocol = run.results, run.protocol
    compared = comparison_section(results)
    standing = {} if compared is None else {row["name"]: row["measures"][0] for row in compared["rows"]}
    head = ["candidate", "validation MSE", "test MSE", "test MAE"]
    if compared is not None:
        base, measure = human(compared["base"]), compared["measures"][0]
        head += [f"{measure} ratio to {base}", "interval", "p", ""]
    rows = [_row(run, name, found, standing) for name, found in candidates_by_name(results).items()]
    head += ["parameters", "latency ms"]
    lines = [str(results.get("verdict") or verdict(results)), "", *table(head, rows), ""]
    lines.append(f"Bold is this model. Errors: {protocol.get('scale', 'scale unknown')}.")
    if compared is not None:
        level = results["comparison"]["measures"][compared["measures"][0].lower()].get("level", 0.95)
        lines.append(
            f"Ratios of test errors with {100 * float(level):g} % bootstrap intervals and the p-value of a "
            "Diebold-Mariano test; better or worse is said where both agree."
        )
    else:
        lines.append("Without a comparison on the test windows, so no difference is called more than chance.")
    batch, machine = protocol.get("latency_batch", "?"), protocol.get("machine", "unknown machine")
    lines.append(f"Latency at batch {batch} of the model in torch ({machine}).")
    lines.append(f"Measured before the export to “{title}”; how far that moves forecasts is told below.")
    return "\n".join(lines)


def _row(run: RunFacts, name: str, found: Mapping[str, Any], standing: Mapping[str, Mapping[str, str]]) -> list[str]:
    own = name == run.kept
    cells = [human(name), error_text(metric(found, "validation", "mse"))]
    cells += [error_text(metric(found, "test", measure)) for measure in ("mse", "mae")]
    if standing:
        told = standing.get(name)
        cells += [told[key] for key in ("ratio", "interval", "p", "word")] if told else ["-"] * 4
    cells += [count_text(number(found.get("parameters"))), milliseconds(number(found.get("latency_ms")))]
    return [f"**{cell}**" if own and cell else cell for cell in cells]
