"""docs/spat.md: tables and figure of the cells of `spat.py`, between marks in a page with answers by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from matplotlib.figure import Figure
from readme import row
from redundancy_figures import _bare, standing_alone
from spat_table import RULES, chosen, log_ratios, percent

from tsprune.errors import TspruneError
from tsprune.report.canvas import BLUE, GREY, ORANGE, plainly, svg
from tsprune.stages import write_text

DOCS = Path(__file__).resolve().parent.parent / "docs"
WORDS = {"send": "SEND", "leave_one_out": "leave-one-out", "random": "random"}
NETWORKS = {"patchtst": "PatchTST", "itransformer": "iTransformer"}
COLORS = {"send": BLUE, "leave_one_out": ORANGE, "random": GREY}
Rows = Sequence[Mapping[str, Any]]


def write(found: Mapping[str, Any], docs: Path = DOCS) -> None:
    """Tables and figure into the page.

    Raises:
        TspruneError: the page has no place for one of them.
    """
    rows = found["cells"]
    blocks = {"rules": rules(found["summary"]), "sets": sets(rows), "scores": scores(rows)}
    blocks["more"], blocks["machine"] = more(found), f"{found['machine']}."
    page = (docs / "spat.md").read_text(encoding="utf-8")
    for name, block in blocks.items():
        mark = rf"<!-- table: {name} -->.*?<!-- end of table -->"
        if not re.search(mark, page, flags=re.S):
            raise TspruneError(f"docs/spat.md has no place for {name!r}; add <!-- table: {name} --> and its end")
        text = f"<!-- table: {name} -->\n{block}\n<!-- end of table -->"
        page = re.sub(mark, lambda _, text=text: text, page, flags=re.S)
    write_text(docs / "spat.md", page)
    (docs / "figures").mkdir(exist_ok=True)
    write_text(docs / "figures" / "spat.svg", standing_alone(curves(rows)))


def signed(value: float | None) -> str:
    """A change in percent."""
    return "–" if value is None else f"{value:+.1f} %"


def ranged(entry: Mapping[str, Any], metric: str) -> str:
    """A change with its interval, where there is one."""
    low, high = entry.get(f"{metric}_low"), entry.get(f"{metric}_high")
    spread = "" if low is None else f" ({low:+.1f} to {high:+.1f})"
    return f"{signed(entry[metric])}{spread}"


def rules(summary: Mapping[str, Any]) -> str:
    """Every rule and number, all tasks and each network."""
    labels = [("all", "all"), *((n, w) for n, w in NETWORKS.items() if n in summary)]
    head = ["dropped", "MSE", "MAE", "operations", "parameters", *(f"MSE, {word}" for _, word in labels[1:])]
    lines = row(*head, head=True)
    for name, entry in summary["all"].items():
        own = [ranged(summary[network][name], "mse") for network, _ in labels[1:]]
        cost = [signed(entry[metric]) for metric in ("flops", "parameters")]
        shown = (
            name.replace("send's one", "the one by SEND")
            .replace("send,", "SEND,")
            .replace("leave_one_out", "leave-one-out")
        )
        lines += row(shown, ranged(entry, "mse"), ranged(entry, "mae"), *cost, *own)
    return "\n".join(lines)


def sets(rows: Rows) -> str:
    """MSE by network and set: the whole network, and over it what rules drop, mean over seeds with their spread."""
    lines = row(
        "network", "set", "seeds", "attentions", "MSE whole, tuned", "one by SEND", "one by leave-one-out",
        "one at random", "all attentions", "heads, as many operations", head=True,
    )  # fmt: skip
    for (network, name), some in grouped(rows).items():
        whole = [r["sets"][""]["tuned"]["mse"] for r in some]

        def over(pick: Any, some: Rows = some) -> str:
            values = [percent(pick(r)) for r in some]
            return f"{mean(values):+.1f} % ± {pstdev(values):.1f}"

        cells = [over(lambda r, rule=rule: log_ratios(r, chosen(r, rule, 1), "tuned")["mse"]) for rule in RULES]
        cells.append(over(lambda r: log_ratios(r, chosen(r, "random", len(r["modules"])), "tuned")["mse"]))
        cells.append(over(lambda r: math.log(r["heads"]["tuned"]["mse"] / r["sets"][""]["tuned"]["mse"])))
        count = len(some[0]["modules"])
        lines += row(NETWORKS.get(network, network), name, len(some), count, f"{mean(whole):.4f}", *cells)
    return "\n".join(lines)


def scores(rows: Rows) -> str:
    """SEND and leave-one-out of every attention, seed by seed."""
    lines = row("network", "set", "seed", "SEND × 10⁶, first to last layer", "loss without it", head=True)
    for r in rows:
        send = ", ".join(f"{1e6 * value:.3g}" for value in r["send"])
        alone = ", ".join(f"{value:+.4f}" for value in r["leave_one_out"])
        lines += row(NETWORKS.get(r["network"], r["network"]), r["set"], r["seed"], send, alone)
    return "\n".join(lines)


def more(found: Mapping[str, Any]) -> str:
    """Single facts."""
    summary = found["summary"]
    lines = [
        f"- SEND and leave-one-out drop the same attention first in {summary['same_first_choice']:.0%} of the "
        f"{len(found['cells'])} networks (by chance {summary['same_first_choice_by_chance']:.0%}); SEND of both halves "
        f"of the calibration windows names the same one in {summary['send_first_is_stable']:.0%}.",
    ]
    for rule, counts in summary["number_by_validation"].items():
        lines.append(
            f"- Attentions dropped where validation chooses how many, {WORDS[rule]}: {', '.join(map(str, counts))}."
        )
    if "elsewhere" in summary:
        moved = summary["elsewhere"]
        lines.append(
            "- On a set it was not trained on (ETTh1 to ETTh2, ETTm1 and weather to ETTm2, no more training), without "
            f"the lowest SEND over whole: MSE {ranged(moved, 'mse')}, MAE {ranged(moved, 'mae')}."
        )
    return "\n".join(lines)


def grouped(rows: Rows) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Seeds of every network and set."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for r in rows:
        found.setdefault((r["network"], r["set"]), []).append(r)
    return found


@plainly
def curves(rows: Rows) -> str:
    """MSE against operations as attentions go, a panel for each network and set, mean over seeds."""
    groups = grouped(rows)
    across = 3
    down = math.ceil(len(groups) / across)
    figure = Figure(figsize=(8.4, 0.5 + 2.3 * down), layout="constrained")
    said = []
    for place, ((network, name), some) in enumerate(groups.items()):
        axes = figure.add_subplot(down, across, place + 1)
        _bare(axes)
        axes.axhline(0, color=GREY, linewidth=1)
        for rule in reversed(RULES):
            points = [_point(some, rule, count) for count in range(len(some[0]["modules"]) + 1)]
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, color=COLORS[rule], marker="o", markersize=3.5, linewidth=1.5, label=WORDS[rule])
            said.append(f"{network} {name} {WORDS[rule]}: {', '.join(f'{y:+.1f}' for y in ys)}")
        heads = [_over(r["heads"]["tuned"], r["sets"][""]["tuned"]) for r in some]
        axes.plot([mean(x for x, _ in heads)], [mean(y for _, y in heads)], "x", color="#2f7d4f", label="single heads")
        axes.set_title(f"{NETWORKS.get(network, network)}, {name}", fontsize=9, loc="left")
        axes.invert_xaxis()
        if place % across == 0:
            axes.set_ylabel("change of MSE, %", fontsize=8)
        if place // across == down - 1:
            axes.set_xlabel("operations left, %", fontsize=8)
        if not place:
            axes.legend(fontsize=7, frameon=False)
    return svg(figure, "spat", "Change of the MSE in percent as attentions are dropped. " + "; ".join(said) + ".")


def _point(some: Rows, rule: str, count: int) -> tuple[float, float]:
    ratios = [log_ratios(r, chosen(r, rule, count), "tuned") for r in some]
    return 100 * math.exp(mean(one["flops"] for one in ratios)), percent(mean(one["mse"] for one in ratios))


def _over(own: Mapping[str, float], whole: Mapping[str, float]) -> tuple[float, float]:
    return 100 * own["flops"] / whole["flops"], percent(math.log(own["mse"] / whole["mse"]))
