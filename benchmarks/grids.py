"""What a grid found, from its run directory into the repository: the rows, the summary, and a page in words.

    python benchmarks/grids.py runs/grid long_horizon

Writes `benchmarks/results/grids/NAME/` (rows, comparisons, latencies, summary) and `docs/grids/NAME.md`. Comparisons
are cut down to what the page shows: the ratio of every candidate with its interval, the test and the verdict.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from tsprune.benchcommand import sentences
from tsprune.report.words import human
from tsprune.stages import read_json, write_json, write_text

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("results.jsonl", "latency.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="directory of `tsprune bench`")
    parser.add_argument("name", help="of the grid's file in benchmarks/grids")
    given = parser.parse_args()
    if not (given.run / "summary.json").exists():
        sys.exit(f"error: {given.run} holds no summary.json; run `tsprune bench` first")
    if not (ROOT / f"benchmarks/grids/{given.name}.yaml").exists():
        sys.exit(f"error: there is no benchmarks/grids/{given.name}.yaml")
    kept = ROOT / "benchmarks/results/grids" / given.name
    kept.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        if (given.run / name).stat().st_size:
            shutil.copyfile(given.run / name, kept / name)
    summary = read_json(given.run / "summary.json")
    compared = [short(one) for one in read_json(given.run / "comparisons.json")]
    write_json(kept / "summary.json", summary)
    write_text(kept / "comparisons.json", "[\n" + ",\n".join(json.dumps(one) for one in compared) + "\n]\n")
    tables = given.run / "table.md"
    write_text(ROOT / f"docs/grids/{given.name}.md", page(given.name, summary, compared, tables))


def short(one: dict[str, Any]) -> dict[str, Any]:
    """A comparison without what can be computed from the rows."""
    compared = one["compared"]
    if "refused" in compared:
        return one
    ranking = [
        {
            "name": entry["name"],
            **{key: rounded(entry["ratio"][key]) for key in ("estimate", "low", "high")},
            "p": rounded(entry["diebold_mariano"]["p_value"]),
            "verdict": entry["verdict"],
        }
        for entry in compared["ranking"]
    ]
    facts = {key: compared[key] for key in ("measure", "reference", "level", "blocks")}
    return {**one, "compared": {**facts, "ranking": ranking}}


def rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def page(name: str, summary: dict[str, Any], compared: list[dict[str, Any]], tables: Path) -> str:
    lines = [f"# Grid {name}", "", f"`benchmarks/grids/{name}.yaml`; rows, comparisons and summary in "]
    lines[-1] += f"`benchmarks/results/grids/{name}/`, written by `benchmarks/grids.py`, as this page is."
    if summary["candidates"]:
        lines += ["", "## In one look", "", *(f"- {line}" for line in sentences(summary))]
        lines += ["", *verdicts(summary, compared), "", *sizes(summary)]
    if summary.get("transfer"):
        lines += transfer(summary)
    if summary.get("stability"):
        lines += stability(summary)
    if tables.exists():
        lines += ["", tables.read_text(encoding="utf-8").replace("### ", "## ")]
    if summary["missing"]:
        lines += ["", "## Missing", "", *(f"- {line}" for line in summary["missing"])]
    lines += ["", "## How", "", *(f"- {line}" for line in [*summary["notes"], *summary["protocols"]])]
    settings = ", ".join(f"{key} {value}" for key, value in summary["settings"].items())
    hours = f"{summary['seconds'] / 3600:.1f} hours of work on single threads"
    return "\n".join([*lines, "", f"Settings: {settings}. {summary['machine']}; {hours}.", ""])


def verdicts(summary: dict[str, Any], compared: list[dict[str, Any]]) -> list[str]:
    """In how many tasks a candidate is better or worse than the reference by interval and test."""
    counts: dict[str, dict[str, int]] = {}
    for one in compared:
        for entry in one["compared"].get("ranking", ()):
            by = counts.setdefault(entry["name"], {"better": 0, "worse": 0, "undecided": 0})
            if entry["verdict"] in by:
                by[entry["verdict"]] += 1
    reference = human(summary["reference"])
    lines = [f"Tasks in which the test windows show a difference to {reference} ({summary['measure'].upper()}):", ""]
    lines += ["| candidate | better | worse | undecided |", "|---|---|---|---|"]
    names = [name for name in summary["candidates"] if name in counts and name != summary["reference"]]
    return lines + [f"| {human(name)} | " + " | ".join(str(n) for n in counts[name].values()) + " |" for name in names]


def sizes(summary: dict[str, Any]) -> list[str]:
    """Parameters, operations and latency over the reference's."""
    what = ("parameters", "flops", "latency")
    shares = {
        n: [(by.get(n) or {}).get("parameters") for by in summary["sizes"].values()] for n in summary["candidates"]
    }
    cut = [name for name, found in shares.items() if any(abs(share - 1) > 0.01 for share in found if share)]
    lines = [f"Geometric means over tasks and seeds of what a model costs, over {human(summary['reference'])}:", ""]
    lines += ["| model | candidate | parameters | operations | latency |", "|---|---|---|---|---|"]
    for model, by in summary["sizes"].items():
        for name in [name for name in cut if name in by]:
            cells = [f"{by[name][key]:.2f}" if by[name][key] else "–" for key in what]
            lines.append(f"| {model} | {human(name)} | " + " | ".join(cells) + " |")
    if summary["latency_busy"]:
        lines += ["", "Other programs ran while latencies were measured: they are rough."]
    return lines


def transfer(summary: dict[str, Any]) -> list[str]:
    lines = []
    for model, found in summary["transfer"].items():
        for key, over in (("over_own_plan", "its own plan"), ("over_reference", human(summary["reference"]))):
            lines += ["", f"## {model}: test MSE with a plan from elsewhere over that with {over}", ""]
            lines += ["| plan of | " + " | ".join(found["targets"]) + " |", "|---" * (len(found["targets"]) + 1) + "|"]
            for source, values in zip(found["sources"], found[key], strict=True):
                lines.append(f"| {source} | " + " | ".join("–" if v is None else f"{v:.3f}" for v in values) + " |")
    return lines


def stability(summary: dict[str, Any]) -> list[str]:
    from tsprune.bench.recipes.stability import RECIPE

    told = RECIPE.told(summary)
    assert told is not None
    table = told[1][0]["table"]
    lines = ["", "## Agreement of scores", "", told[1][0]["text"][0], ""]
    lines += ["| " + " | ".join(table["head"]) + " |", "|---" * len(table["head"]) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in table["rows"]]


if __name__ == "__main__":
    main()
