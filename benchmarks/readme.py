"""The picture and the table of the README and the page about the minis, from committed JSON.

python benchmarks/readme.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from tsprune.report.words import NAMES

ROOT = Path(__file__).parent.parent
MARKS = {
    "zero_shot": ("o", "#9aa0a6"),
    "full_finetuning": ("s", "#1f3b57"),
    "random_prune_finetune": ("v", "#c9a227"),
    "prune_then_finetune": ("D", "#1a73b8"),
}


def main() -> None:
    found = json.loads((ROOT / "benchmarks/results/specialize.json").read_text(encoding="utf-8"))
    picture(found["runs"])
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    block = f"<!-- table: benchmarks/results/specialize.json -->\n{table(found)}\n<!-- end of table -->"
    readme.write_text(
        re.sub(r"<!-- table: .*?<!-- end of table -->", lambda _: block, text, flags=re.S), encoding="utf-8"
    )
    path = ROOT / "benchmarks/results/minis.json"
    (ROOT / "docs/minis.md").write_text(minis(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")


def minis(found: dict) -> str:
    families, horizon = found["families"], found["horizon"]
    first = next(iter(families.values()))
    sets = [name for name in first["zero_shot"] if name != "summary"]
    lines = [
        "# Small models of further families, pretrained here",
        "",
        "Each was made by one command on simulated and public series, none of them among the sets below.",
        f"Horizon {horizon}, test parts of the long-horizon protocol, evenly spread windows. `time_moe` is inside the",
        "package as `mini-moe`; the others are made by their command, which also continues where it was stopped.",
        "Script: `benchmarks/minis.py`, JSON: `benchmarks/results/minis.json`; `benchmarks/readme.py` writes this.",
        "",
        *row("family", "parameters", "context", "made by", head=True),
    ]  # fmt: skip
    for name, one in families.items():
        lines += row(f"`{name}`", f"{one['parameters'] / 1e6:.2f} M", one["context"], f"`{one['recipe']}`")
    lines += ["", "## Without tuning", "", "MSE over that of seasonal naive; below 1 is better.", ""]
    lines += row("family", *sets, "better on", "geometric mean", head=True)
    for name, one in families.items():
        ratios = [f"{one['zero_shot'][place]['ratio']['mse']:.3f}" for place in sets]
        told = one["zero_shot"]["summary"]
        wins = f"{told['wins_mse']:.0f} of {len(sets)}"
        lines += row(f"`{name}`", *ratios, wins, f"{told['geometric_mean_mse_ratio']:.3f}")
    lines += ["", "## Specialised", "", "Test MSE of `tsprune specialize`, validation's choice in bold; one seed.", ""]
    names = present(first["specialize"]["runs"])
    lines += row("family", "set", *names.values(), "parameters left", head=True)
    for name, one in families.items():
        for run in one["specialize"]["runs"]:
            entries = {c["name"]: c for c in run["candidates"]}
            marks = {candidate: "**" * (run["chosen"] == candidate) for candidate in names}
            cells = [f"{mark}{entries[who]['test']['mse']:.3f}{mark}" for who, mark in marks.items()]
            left = entries["prune_then_finetune"]["parameters"] / entries["full_finetuning"]["parameters"]
            lines += row(f"`{name}`", run["set"], *cells, f"{left:.0%}")
    return "\n".join([*lines, "", f"{found['machine']}.", ""])


def row(*cells: object, head: bool = False) -> list[str]:
    """A row of a Markdown table; a head with the rule under it."""
    text = "| " + " | ".join(str(cell) for cell in cells) + " |"
    return [text, "|" + "---|" * len(cells)] if head else [text]


def present(runs: list[dict]) -> dict[str, str]:
    """Shown names of the candidates that the runs have, in the order of the table."""
    there = {candidate["name"] for run in runs for candidate in run["candidates"]}
    return {name: shown for name, shown in NAMES.items() if name in there}


def table(found: dict) -> str:
    sets = list(dict.fromkeys(run["set"] for run in found["runs"]))
    horizon = found["runs"][0]["protocol"]["horizon"]
    lines = [
        f"`mini`, horizon {horizon}, test MSE on z-scored series (validation's choice in bold), and what models cost:",
        "",
        "| candidate | " + " | ".join(sets) + " | parameters | latency, batch 1 |",
        "|---|" + "---|" * (len(sets) + 2),
    ]
    for name, shown in present(found["runs"]).items():
        cells, sizes, times = [], [], []
        for one in sets:
            runs = [run for run in found["runs"] if run["set"] == one]
            entries = [next(c for c in run["candidates"] if c["name"] == name) for run in runs]
            mean = sum(e["test"]["mse"] for e in entries) / len(entries)
            bold = "**" if all(run["chosen"] == name for run in runs) else ""
            cells.append(f"{bold}{mean:.3f}{bold}")
            sizes += [e["parameters"] / 1e6 for e in entries]
            times += [e["latency_ms"] for e in entries]
        size = "-" if not max(sizes) else span(sizes, ".2f", " M")
        lines.append(f"| {shown} | " + " | ".join(cells) + f" | {size} | {span(times, '.1f', ' ms')} |")
    machine = found["runs"][0]["protocol"]["machine"]
    seeds = len({run["seed"] for run in found["runs"]})
    lines += [
        "",
        f"{seeds} seed{'s' * (seeds > 1)} per set, so a few percent are within noise. Eager torch; {machine}. "
        "Script: `benchmarks/specialize.py`, JSON: `benchmarks/results/specialize.json`.",
    ]
    return "\n".join(lines)


def span(values: list[float], form: str, unit: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return f"{low}{unit}" if low == high else f"{low}-{high}{unit}"


def picture(runs: list[dict]) -> None:
    plt.rcParams.update({"svg.hashsalt": "tsprune", "font.size": 9})
    sets = list(dict.fromkeys(run["set"] for run in runs))
    figure, axes = plt.subplots(1, len(sets), figsize=(2.7 * len(sets), 2.7), sharex=True)
    for axis, one in zip(list(axes), sets, strict=True):
        for name, (mark, colour) in MARKS.items():
            entries = [next(c for c in run["candidates"] if c["name"] == name) for run in runs if run["set"] == one]
            xs, ys = [e["parameters"] / 1e6 for e in entries], [e["test"]["mse"] for e in entries]
            axis.scatter(xs, ys, marker=mark, color=colour, s=46, label=NAMES[name], zorder=3)
        axis.set_title(one, fontsize=9)
        axis.set_xlabel("parameters, M")
        axis.margins(0.25)
        axis.grid(alpha=0.3)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0].set_ylabel("test MSE (lower is better)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    target = ROOT / "docs" / "accuracy_size.svg"
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main()
