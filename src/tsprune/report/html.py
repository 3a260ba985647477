"""The report: one HTML file that needs nothing but itself."""

from __future__ import annotations

import math
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsprune.candidates import PRUNED, SCRATCH
from tsprune.errors import TspruneError
from tsprune.report import figures
from tsprune.report.comparison import comparison_section
from tsprune.report.evidence import against, ends
from tsprune.report.figures import ForecastExample
from tsprune.report.protocol import protocol_words
from tsprune.report.removal import removal_map
from tsprune.report.table import AGAINST, COLUMNS
from tsprune.report.verdict import verdict
from tsprune.report.words import (
    CONTROLS,
    Results,
    candidates_by_name,
    count_text,
    error_text,
    human,
    number,
    percent,
    references,
    seconds,
)

if TYPE_CHECKING:
    from markupsafe import Markup

SECTIONS = (
    ("verdict", "Verdict"),
    ("results", "Results"),
    ("comparison", "What is more than chance"),
    ("forecasts", "Forecasts against truth"),
    ("removed", "What was removed, layer by layer"),
    ("rounds", "Pruning rounds"),
    ("search", "Learning-rate search"),
    ("size", "Accuracy against size"),
    ("data", "What was inferred and repaired"),
    ("protocol", "Protocol"),
    ("equivalence", "Masked against slim"),
    ("time", "Time spent"),
)
_LONG = {"val.": "validation", "params": "parameters"}
"""Headers the terminal has no room for."""
SEARCHED = {"weight_decay": "weight decay", "dropout": "dropout"}
"""What optuna searches beside the learning rate."""


def write_report(
    path: str | os.PathLike[str],
    results: Results,
    plan: Mapping[str, Any] | None = None,
    forecasts: Sequence[ForecastExample] = (),
    units: Mapping[str, Any] | None = None,
) -> Path:
    """Write the report as one self-contained HTML file: no network, no scripts, figures as inline SVG.

    The file appears whole or not at all, and the same input gives the same bytes.

    Args:
        path: where to write; missing folders are made, an existing file is replaced.
        results: content of results.json, schema 1. Missing parts are named as missing.
        plan: content of plan.json, schema 1, or None if nothing was pruned.
        forecasts: test windows to draw, forecasts by the chosen candidate.
        units: see :func:`tsprune.report.removal.removal_map`.

    Returns:
        The path written.

    Raises:
        TspruneError: the chosen candidate is unknown, a plan group is malformed, or the path is a folder.
    """
    target = Path(path)
    if target.is_dir():
        raise TspruneError(f"report: {target} is a folder, expected a file; add a name such as report.html")
    _write_whole(target, render(results, plan, forecasts, units))
    return target


def render(
    results: Results,
    plan: Mapping[str, Any] | None,
    forecasts: Sequence[ForecastExample],
    units: Mapping[str, Any] | None,
) -> str:
    """The HTML text of the report; arguments and errors as in :func:`write_report`."""
    from jinja2 import Environment, StrictUndefined

    files = resources.files(__package__).joinpath("templates")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        error=lambda v: error_text(number(v), "–"),
        count=lambda v: count_text(number(v), "–"),
        duration=lambda v: seconds(number(v), "–"),
        human=human,
    )
    template = environment.from_string(files.joinpath("report.html.j2").read_text(encoding="utf-8"))
    # The style sheet is ours and holds no user text.
    style = _markup(files.joinpath("report.css").read_text(encoding="utf-8"))
    return template.render(style=style, **_context(results, plan, forecasts, units))


def _write_whole(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    try:
        with draft.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def _markup(text: str) -> Markup:
    from markupsafe import Markup

    return Markup(text)


def _context(
    results: Results,
    plan: Mapping[str, Any] | None,
    forecasts: Sequence[ForecastExample],
    units: Mapping[str, Any] | None,
) -> dict[str, Any]:
    found = candidates_by_name(results)
    protocol: Mapping[str, Any] = results.get("protocol") or {}
    pruning: Mapping[str, Any] = results.get("pruning") or {}
    section = comparison_section(results)
    removal = removal_map(plan, units) if plan is not None and (plan.get("groups") or units) else None
    return {
        "sections": SECTIONS,
        "results": results,
        "protocol": protocol,
        "chosen": str(results["chosen"]),
        "verdict": _units_bound(results.get("verdict") or verdict(results)),
        "facts": _facts(results, found, str(results["chosen"])),
        "table": _table(results),
        "comparison": section,
        "ratio_svg": _markup(_ratios(section, str(results["chosen"]))) if section else "",
        "forecasts": [_example(e, i) for i, e in enumerate(forecasts)],
        "others": sorted({human(n) for e in forecasts for n in e.other}),
        "plan": plan,
        "removal": removal,
        "removal_svg": _markup(figures.removal_figure(removal, "removal")) if removal and removal.rows else "",
        "kinds": [asdict(k) for k in removal.kinds] if removal else [],
        "pruning": pruning,
        "rounds_svg": _markup(figures.rounds_figure(pruning, "rounds")) if pruning.get("rounds") else "",
        "search": _search(results),
        "optuna": any("weight_decay" in t for tries in (results.get("search") or {}).values() for t in tries),
        "scratch": any(name.endswith(SCRATCH) for name in results.get("search") or {}),
        "size_svg": _markup(figures.size_figure(results, "size")),
        "repairs": list(protocol.get("repairs") or []),
        "inferred": dict(protocol.get("inferred") or {}),
        "protocol_words": protocol.get("words") or (protocol_words(results) if protocol.get("split") else ""),
        "protocol_rows": _protocol_rows(results, protocol),
        "windows": _windows(protocol),
        "guards": _guards(protocol),
        "equivalence": results.get("equivalence") or {},
        "timings": _timings(results),
        "versions": dict(results.get("versions") or {}),
    }


def _units_bound(text: str) -> str:
    """No line break between a number and its unit."""
    return re.sub(r"(?<=\d) (?=%|(?:ms|k|M|G)\b)", "\u00a0", text)


def _ratios(section: Mapping[str, Any], chosen: str) -> str:
    return figures.ratio_figure(section["standing"], section["base"], chosen, "ratios")


def _facts(results: Results, found: Mapping[str, Results], chosen: str) -> list[dict[str, str]]:
    """Key figures under the verdict; what may be chance, or is below 1 %, is never shown as a gain."""
    own, facts = found[chosen], []
    for reference in references(found):
        told = against(results, reference).get("mse") if reference != chosen else None
        if told is not None:
            label = f"test MSE against {human(reference)}"
            if told.word in ("lower", "higher"):
                value = f"{'−' if told.word == 'lower' else '+'}{percent(told.change)}"
            elif told.word == "same":
                value = "about the same"
            else:
                value = f"ratio {told.ratio:.3f}"
                label += {
                    "open": f": no difference shown, interval {ends(told)}",
                    "few": ": too few windows to tell",
                    "untested": ", not tested against chance",
                }[told.word]
            facts.append({"value": value, "label": label})
    base = found.get("zero_shot") or found.get("full_finetuning")
    if base is not None and chosen in (PRUNED, *CONTROLS):
        for key, label in (
            ("parameters", "of the unpruned model's parameters"),
            ("latency_ms", "of the unpruned model's latency"),
        ):
            before, after = number(base.get(key)), number(own.get(key))
            if before > 0 and after > 0:
                facts.append({"value": f"{100 * after / before:.0f} %", "label": label})
    return facts


def _table(results: Results) -> dict[str, Any]:
    """Header and rows of the results table, all columns but the comparison, which has a section of its own."""
    columns = [c for c in COLUMNS if c.key not in ("latency", AGAINST)]
    rows = [
        {
            "name": name,
            "cells": [c.cell(candidate) for c in columns],
            "notes": str(candidate.get("notes") or ""),
        }
        for name, candidate in candidates_by_name(results).items()
    ]
    return {
        "columns": [{"top": _LONG.get(c.top, c.top), "name": _LONG.get(c.name, c.name)} for c in columns],
        "rows": rows,
    }


def _example(example: ForecastExample, index: int) -> dict[str, Any]:
    svg = _markup(figures.forecast_figure(example, f"forecast{index}"))
    return {
        "series": example.series,
        "window": example.window,
        "svg": svg,
        "low": example.level(0.1),
        "middle": example.level(0.5),
        "high": example.level(0.9),
    }


def _search(results: Results) -> list[dict[str, Any]]:
    """What was tried per candidate; `best` marks the lowest validation loss, `more` is what optuna searched besides."""
    tables = []
    for name, tries in (results.get("search") or {}).items():
        losses = [number(t.get("validation_loss")) for t in tries]
        known = [v for v in losses if not math.isnan(v)]
        best = losses.index(min(known)) if known else -1
        more = [key for key in SEARCHED if any(key in t for t in tries)]
        rows = [
            {
                "rate": f"{number(t.get('learning_rate')):.1e}",
                "step": t.get("best_step"),
                "steps": t.get("steps"),
                "loss": loss,
                "best": i == best,
                "more": [_tried(t.get(key)) for key in more],
                "pruned": t.get("pruned") is True,
            }
            for i, (t, loss) in enumerate(zip(tries, losses, strict=True))
        ]
        own = (results.get("trained") or {}).get(name) or {}
        told = [str(own[key]) for key in ("start", "training", "budget") if own.get(key)]
        tables.append({"name": name, "rows": rows, "how": "; ".join(told), "more": [SEARCHED[key] for key in more]})
    return tables


def _tried(value: Any) -> str:
    """A weight decay or a dropout as it stands in the table."""
    return "own" if value is None else "–" if math.isnan(number(value)) else f"{number(value):g}"


def _protocol_rows(results: Results, protocol: Mapping[str, Any]) -> list[tuple[str, str]]:
    split = protocol.get("split") or {}
    rows = [
        ("data", protocol.get("data")),
        ("data fingerprint", protocol.get("fingerprint")),
        ("model", protocol.get("model")),
        ("possible pretraining overlap", protocol.get("pretraining_overlap")),
        ("series", protocol.get("series")),
        ("frequency, season", _joined(protocol.get("frequency") or "none", protocol.get("season"), " steps")),
        ("context, horizon", _joined(protocol.get("context"), protocol.get("horizon"), " steps")),
        ("split", split.get("name")),
        ("scale of the errors", protocol.get("scale")),
        ("seed", results.get("seed")),
        ("machine", protocol.get("machine")),
        ("threads of the run", protocol.get("threads")),
        (
            "latency: batch, threads",
            _joined(protocol.get("latency_batch"), protocol.get("latency_threads", protocol.get("threads")), ""),
        ),
    ]
    return [(name, "not recorded" if value is None or value == "" else str(value)) for name, value in rows]


def _joined(first: Any, second: Any, unit: str) -> str | None:
    if first is None and second is None:
        return None
    return ", ".join("not recorded" if v is None else str(v) for v in (first, second)) + unit


def _windows(protocol: Mapping[str, Any]) -> list[dict[str, Any]]:
    split, counts = protocol.get("split") or {}, protocol.get("windows") or {}
    strides = protocol.get("strides") or {}
    return [
        {
            "part": part,
            "end": split.get(f"{part}_end"),
            "windows": counts.get(part),
            "stride": strides.get(part),
        }
        for part in ("train", "validation", "test")
    ]


_GUARDS = {
    "scaler": "scaler fitted on the train part alone",
    "windows": "targets within their part",
    "copies": "copies of series across the cut-offs",
    "covariates": "target among the covariates",
    "pretraining": "data in the pretraining corpus",
}
_VERDICTS = {"ok": "no leak", "found": "LEAK FOUND", "unknown": "unknown"}


def _guards(protocol: Mapping[str, Any]) -> list[dict[str, str]]:
    """What each guard against leakage looked at, and what it says."""
    rows = []
    for finding in protocol.get("leakage") or []:
        guard, verdict = str(finding.get("guard")), str(finding.get("verdict"))
        said = "possible" if (guard, verdict) == ("pretraining", "found") else _VERDICTS.get(verdict, verdict)
        rows.append({"guard": _GUARDS.get(guard, guard), "verdict": said, "words": str(finding.get("words") or "")})
    return rows


def _timings(results: Results) -> list[dict[str, Any]]:
    """Stages with seconds and their share of the total in percent."""
    spent = {str(k): number(v) for k, v in (results.get("timings") or {}).items()}
    total = sum(v for v in spent.values() if not math.isnan(v))
    rows = [
        {"stage": human(k), "seconds": v, "share": 0.0 if math.isnan(v) or not total else 100 * v / total}
        for k, v in spent.items()
    ]
    return rows + ([{"stage": "total", "seconds": total, "share": 100.0}] if rows else [])
