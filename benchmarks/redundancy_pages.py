"""The JSON of `redundancy.py`, the figures, and the tables inside docs/redundancy.md."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import redundancy_figures as figures
from readme import row
from redundancy_facts import grown, heads_summary, orders_summary, over_models, send_summary
from redundancy_layers import cuts_summary, feedforward_summary, layers_summary

from tsprune.errors import TspruneError
from tsprune.evaluation.machine import versions
from tsprune.lens._orders import ABLATION, FISHER, HIGH, LOW
from tsprune.report.canvas import BLUE, GREY, ORANGE
from tsprune.stages import write_text

LIMIT = 1.01
CELLS = ("heads", "layers", "send", "cuts", "idle")
KINDS = {"chronos2": "encoder", "moirai": "encoder", "chronos_bolt": "encoder-decoder"}
"""Of what kind a family is; the others are decoder-only."""
EITHER, TWO = "stable rank, either direction", "random, the better of two"
ORDER_ROWS = (LOW, HIGH, EITHER, TWO, "a random order", FISHER, ABLATION)
CUT_ROWS = (
    "stable rank, low first", "stable rank, high first", "attention stable rank, low first",
    "attention stable rank, high first", "attention effective rank, low first", "attention effective rank, high first",
    "fisher, low first", "leave-one-out, low first", "random",
)  # fmt: skip
CHOSEN_ROWS = (
    "stable rank, direction by first windows", "attention stable rank, direction by first windows",
    "the better of two random draws on first windows",
)  # fmt: skip
CUT_DRAWN = tuple(name for name in (*CUT_ROWS, *CHOSEN_ROWS) if not name.startswith("attention effective"))
FORWARD_ROWS = (
    "one feed-forward part off", "one attention off", "two feed-forward parts at random", "two attentions at random",
    "the most needed feed-forward part", "all feed-forward parts off",
)  # fmt: skip


def summed(models: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that tables and figures say, by model."""
    return {
        label: {
            "heads": heads_summary(one["sets"], LIMIT),
            "orders": orders_summary(one["sets"]),
            "send": send_summary(one["sets"]),
            "layers": layers_summary(one["sets"]),
            "feed-forward": feedforward_summary(one["sets"]),
            "cuts": cuts_summary(one["sets"]),
        }
        for label, one in models.items()
        if all(any(what in cells for cells in one["sets"].values()) for what in CELLS)
    }


def write_all(models: Mapping[str, Any], machine: str, out: Path, docs: Path) -> None:
    """Write the JSON, the figures and the tables.

    Raises:
        TspruneError: no model has all cells of a set, or the page has no place for a table.
    """
    models = short(models)  # First of all, so that the JSON gives the same page again.
    found = summed(models)
    if not found:
        raise TspruneError("no model has all kinds of cells yet; run benchmarks/redundancy.py FOLDER first")
    overall = {what: over_models(found, what) for what in ("orders", "cuts", "send")}
    content = {
        "question": "What do pretrained forecasters not use?",
        "missing": missing(models),
        "overall": overall,
        "summary": found,
        "machine": machine,
        "versions": versions(),
        "models": models,
    }
    write_text(out, written(short(content)))
    folder = docs / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, drawing in drawn(found).items():
        (folder / f"redundancy_{name}.svg").write_text(figures.standing_alone(drawing), encoding="utf-8")
    page = docs / "redundancy.md"
    page.write_text(filled(page.read_text(encoding="utf-8"), tables(models, found, content)), encoding="utf-8")


def written(content: Mapping[str, Any]) -> str:
    """As JSON: what is summed up for people to read, the cells of each model and set on one line."""
    rest, models = {k: v for k, v in content.items() if k != "models"}, content["models"]
    parts = []
    for label, one in models.items():
        sets = [
            f"{json.dumps(name)}: {json.dumps(cells, separators=(',', ':'), allow_nan=False)}"
            for name, cells in one["sets"].items()
        ]
        facts = json.dumps({k: v for k, v in one.items() if k != "sets"}, allow_nan=False)
        joined = ",\n".join(sets)
        parts.append(f'{json.dumps(label)}: {facts[:-1]}, "sets": {{\n{joined}\n}}}}')
    joined = ",\n".join(parts)
    return f'{json.dumps(rest, indent=1, allow_nan=False)[:-2]},\n "models": {{\n{joined}\n}}\n}}\n'


def short(value: Any) -> Any:
    """Numbers of five digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: short(entry) for key, entry in value.items()}
    return [short(entry) for entry in value] if isinstance(value, list | tuple) else value


def trimmed(what: str, cell: Mapping[str, Any]) -> dict[str, Any]:
    """A cell without what the seed says anyway: orders of heads, and which heads made a share."""
    found = dict(cell)
    if what == "heads":
        found["facts"] = {key: value for key, value in cell["facts"].items() if key != "orders"}
    if what == "cuts":
        for pool in ("middle", "all"):
            shares = {
                share: entry
                | {"orders": {o: {k: v for k, v in one.items() if k != "gone"} for o, one in entry["orders"].items()}}
                for share, entry in cell[pool]["shares"].items()
            }
            found[pool] = {**cell[pool], "shares": shares}
    return found


def missing(models: Mapping[str, Any]) -> list[str]:
    """What has not been measured, by model."""
    every = list(dict.fromkeys(name for one in models.values() for name in one["sets"]))
    found = []
    for label, one in models.items():
        gone = {name: [what for what in CELLS if what not in one["sets"].get(name, {})] for name in every}
        said = [name + f" ({', '.join(what)})" * (len(what) < len(CELLS)) for name, what in gone.items() if what]
        found += [f"{label} on {', '.join(said)}"] if said else []
    return found


def drawn(found: Mapping[str, Any]) -> dict[str, str]:
    """The figures by name."""
    rules = {
        "published": ("published rule", BLUE),
        "published, random orders": ("published rule, random orders", GREY),
        "ours": ("no limit exceeded on the way, four orders", ORANGE),
    }
    stacks = {
        f"{label}{'' if len(one['layers']) == 1 else ', ' + stack.partition('.')[0]}": parts
        for label, one in found.items()
        for stack, parts in one["layers"].items()
    }

    def column(what: str, rows: Sequence[str], pick: Any) -> dict[str, list[Any]]:
        return {label: [pick(one[what], name) for name in rows] for label, one in found.items()}

    def cut(one: Mapping[str, Any], name: str) -> Any:
        return one.get("middle", {}).get("0.3", {}).get("growth", {}).get(name)

    return {
        "heads": figures.kept_by_attention(
            {label: one["heads"]["attentions"] for label, one in found.items()}, rules, "heads"
        ),
        "orders": figures.dots(
            ORDER_ROWS, column("orders", ORDER_ROWS, lambda one, name: one["orders"].get(name, {}).get("ratio")),
            "area under the curve of the loss, over that of random orders", "orders", controls=(TWO, "a random order"),
        ),
        "send": figures.correlations(
            {f"{label}: {name}": one["send"][name] for label, one in found.items() for name in one["send"]},
            "rank correlation with leave-one-out (in brackets: attentions)", "send",
        ),
        "layers": figures.by_depth(stacks, "layers"),
        "cuts": figures.dots(
            CUT_DRAWN, column("cuts", CUT_DRAWN, cut),
            "growth of the loss, 30 % of the middle layers' heads off", "cuts",
            controls=("random", CHOSEN_ROWS[-1]), limits=(0.9, 1.8),
        ),
        "feedforward": figures.dots(
            FORWARD_ROWS, column("feed-forward", FORWARD_ROWS, lambda one, name: one[name]),
            "growth of the loss", "feedforward", controls=FORWARD_ROWS[2:4],
        ),
    }  # fmt: skip


def filled(page: str, blocks: Mapping[str, str]) -> str:
    """The page with its tables renewed."""
    for name, block in blocks.items():
        mark = rf"<!-- table: {name} -->.*?<!-- end of table -->"
        if not re.search(mark, page, flags=re.S):
            raise TspruneError(f"docs/redundancy.md has no place for {name!r}; add <!-- table: {name} --> and its end")
        text = f"<!-- table: {name} -->\n{block}\n<!-- end of table -->"
        page = re.sub(mark, lambda _, text=text: text, page, flags=re.S)  # type: ignore[misc]
    return page


def change(spread: Mapping[str, Any] | None) -> str:
    """Growth as a change with its interval."""
    if spread is None:
        return "–"
    # Adding 0 turns -0.0 into 0.0.
    middle, *ends = (
        None if spread[key] is None else round(100 * (spread[key] - 1), 1) + 0.0 for key in ("mean", "low", "high")
    )
    return f"{middle:+.1f} %" if None in ends else f"{middle:+.1f} % ({ends[0]:+.1f} to {ends[1]:+.1f})"


def total(values: Sequence[float]) -> str:
    """A mean of counts."""
    return f"{sum(values) / len(values):.1f}"


def tables(models: Mapping[str, Any], found: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, str]:
    """Blocks of Markdown by name."""
    overall = content["overall"]
    made = {
        "models": _models(models),
        "heads": _heads(found),
        "attentions": _attentions(found),
        "orders": _orders(found, overall["orders"]),
        "cuts": _cuts(found, overall["cuts"]),
        "layers": _layers(found),
        "send": _send(found, overall["send"]),
        "feedforward": _feedforward(models, found),
        "machine": [f"{content['machine']}. Missing: {'; '.join(content['missing']) or 'nothing'}."],
    }
    return {name: "\n".join(lines) for name, lines in made.items()}


def _models(models: Mapping[str, Any]) -> list[str]:
    lines = row("model", "family", "kind", "parameters", "sets", "windows that measure, later ones", "origins later",
                "steps scored", head=True)  # fmt: skip
    for label, one in models.items():
        if not one["sets"]:
            continue
        cells = [cell["windows"] for by in one["sets"].values() for cell in by.values()]
        seen = sorted({(f"{w['first']}, {w['later']}", w.get("units")) for w in cells})
        sizes, units = ("; ".join(dict.fromkeys(str(value) for value in column)) for column in zip(*seen, strict=True))
        kind = KINDS.get(one["family"], "decoder-only")
        lines += row(f"`{label}`", one["family"], kind, f"{one['parameters'] / 1e6:.1f} M", len(one["sets"]), sizes,
                     units, one["scored_steps"])  # fmt: skip
    return lines


def _heads(found: Mapping[str, Any]) -> list[str]:
    lines = row("model", "heads", "kept, published rule", "same rule, random orders", "kept, our rule",
                "same rule, random orders", "published choice, one attention at a time, later windows: within 1 %",
                "interval beyond 1 %", head=True)  # fmt: skip
    for label, one in found.items():
        sets = list(one["heads"]["sets"].values())
        heads = sets[0]["heads"]
        rules = ("published", "published, random orders", "ours", "ours, random orders")
        kept = [total([heads - entry["gone"][rule] for entry in sets]) for rule in rules]
        within, refuted, of = (
            sum(entry["later"]["published"][key] for entry in sets) for key in ("within", "refuted", "choices")
        )
        lines += row(f"`{label}`", heads, *kept, f"{within} of {of}", refuted)
    lines += ["", *row("model", "published choices of all attentions at once", "as many at random", "ours at once",
                       "as many at random", "kept, tried together", "without the rest", "as many at random",
                       head=True)]  # fmt: skip
    for label, one in found.items():
        sets = list(one["heads"]["sets"].values())
        cells = []
        for rule in ("published", "ours"):
            later = [entry["later"][rule] for entry in sets]
            cells += [change(grown([entry["at once"]["growth"] for entry in later])),
                      change(grown([entry["random"] for entry in later]))]  # fmt: skip
        cells.append(total([sets[0]["heads"] - entry["together"]["gone"] for entry in sets]))
        cells += [change(grown([entry["together"][key] for entry in sets])) for key in ("growth", "random")]
        lines += row(f"`{label}`", *cells)
    return lines


def _attentions(found: Mapping[str, Any]) -> list[str]:
    lines = row("model", "attention", "heads", "published", "published, random orders", "ours", "ours, random orders",
                head=True)  # fmt: skip
    for label, one in found.items():
        for path, entry in one["heads"]["attentions"].items():
            kept = [
                " ".join(f"{v:.1f}" if isinstance(v, float) else str(v) for v in entry[rule].values())
                for rule in ("published", "published, random orders", "ours", "ours, random orders")
            ]
            lines += row(f"`{label}`", figures.place_name(path), entry["heads"], *kept)
    return lines


def _orders(found: Mapping[str, Any], overall: Mapping[str, Any]) -> list[str]:
    lines = row("order", *(f"`{label}`" for label in found), "all models", "better than random in", head=True)
    for name in ORDER_ROWS:
        entries = [one["orders"]["orders"].get(name) for one in found.values()]
        cells = [change(entry and entry["ratio"]) for entry in entries]
        better, of = (sum(entry[key] for entry in entries if entry) for key in ("better", "of"))
        wins = f"{better} of {of}" if name not in (EITHER, TWO) else "by construction"
        lines += row(name, *cells, change(overall.get(name)), wins)
    lines += ["", *row("model", "attentions", "low first better than high first", "same direction on all sets",
                       "same for two random orders", head=True)]  # fmt: skip
    for label, one in found.items():
        facts = one["orders"]["directions"]
        lines += row(f"`{label}`", facts["attentions"], f"{facts['low first']} of {facts['of']}",
                     facts["same direction on all sets"], f"{facts['same for two random orders']:.1f}")  # fmt: skip
    return lines


def _send(found: Mapping[str, Any], overall: Mapping[str, Any]) -> list[str]:
    lines = row("model", "ranking", "attentions", "by set", "mean (interval over sets)", "random, 95 % of rankings",
                head=True)  # fmt: skip
    for label, one in found.items():
        for name, entry in one["send"].items():
            values = " ".join(f"{value:.2f}" for value in entry["by set"].values())
            random = "{:.2f} to {:.2f}".format(*entry["random"])
            lines += row(f"`{label}`", name, entry["attentions"], values, correlation(entry["mean"]), random)
    for name, middle in overall.items():
        lines += row("all, mean", name, "", f"{middle['sets']} sets", correlation(middle), "around 0")
    return lines


def correlation(middle: Mapping[str, Any]) -> str:
    """A mean correlation with its interval, no further than correlations go."""
    text = f"{middle['mean']:.2f}"
    return text if middle["low"] is None else f"{text} ({max(-1, middle['low']):.2f} to {min(1, middle['high']):.2f})"


def _layers(found: Mapping[str, Any]) -> list[str]:
    lines = row("model, stack", "off", "one middle layer over one of the others", "less on",
                "middle pair off", "a random pair off", "rank of the middle pair by set", head=True)  # fmt: skip
    for label, one in found.items():
        for stack, parts in one["layers"].items():
            for part, entry in parts.items():
                if "middle" not in entry:
                    continue
                less = f"{entry['sets where the middle matters less']} of {entry['sets']} sets"
                pair = entry.get("pair")
                both = [change(pair["middle"]), change(pair["random"])] if pair else ["–", "–"]
                ranks = " ".join(map(str, pair["rank"].values())) + f" of {pair['of']}" if pair else "–"
                where = f"`{label}`" if len(one["layers"]) == 1 else f"`{label}`, {stack.partition('.')[0]}"
                lines += row(where, part, change(entry["middle over others"]), less, *both, ranks)
    return [*lines, "", *_layer_totals(found)]


def _layer_totals(found: Mapping[str, Any]) -> list[str]:
    """Over all stacks and sets, and what chance gives."""
    lines = []
    for part in ("attention", "feed-forward", "both"):
        entries = [parts[part] for one in found.values() for parts in one["layers"].values() if "middle" in parts[part]]
        less, of = (sum(entry[key] for entry in entries) for key in ("sets where the middle matters less", "sets"))
        ranks = [rank for entry in entries for rank in entry["pair"]["rank"].values()] if entries[0].get("pair") else []
        text = f"- {part} off: one middle layer is missed less than one of the others in {less} of {of} cases"
        if ranks:
            pairs = entries[0]["pair"]["of"]
            first = ranks.count(1)
            text += f"; the middle pair is the least missed of {pairs} pairs in {first} (by chance {of / pairs:.1f})"
        lines.append(f"{text}.")
    return lines


def _cuts(found: Mapping[str, Any], overall: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    titles = {"middle 0.3": "30 % of the middle layers' heads off", "middle 0.6": "60 % of them off",
              "all 0.3": "30 % of the heads of all layers off"}  # fmt: skip
    for key, title in titles.items():
        pool, share = key.split()
        parts = {label: one["cuts"].get(pool, {}).get(share) for label, one in found.items()}
        heads = [f"`{label}` ({part['gone']} of {part['heads']})" for label, part in parts.items() if part]
        lines += ["", f"**{title}**", "", *row("order", *heads, "all models, over random", "better than random in",
                                                head=True)]  # fmt: skip
        names = [*CUT_ROWS, *(CHOSEN_ROWS if key == "middle 0.3" else ())]
        for name in names:
            cells = [change(part["growth"].get(name)) for part in parts.values() if part]
            wins = sum(part["better than random"].get(name, 0) for part in parts.values() if part)
            of = sum(len(part["over random by set"].get(name, ())) for part in parts.values() if part)
            over = [change(overall.get(f"{key}: {name}")), f"{wins} of {of}"] if name != "random" else ["0", "–"]
            lines += row(name, *cells, *over)
        range_of = [f"{change(grown([p['lowest draw']]))} to {change(grown([p['highest draw']]))}"
                    for p in parts.values() if p]  # fmt: skip
        lines += row("random, range of all draws", *range_of, "", "")
    return lines[1:]


def _feedforward(models: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    lines = row("model", "kind", *FORWARD_ROWS, "one feed-forward part over one attention", "idle channels", head=True)
    by_stack = []
    for label, one in found.items():
        facts = one["feed-forward"]
        stacks = [f"{name.partition('.')[0]} {change(value)}" for name, value in facts["all of a stack off"].items()]
        by_stack += [f"All of one stack off in `{label}`: {', '.join(stacks)}."] if len(stacks) > 1 else []
        lines += row(f"`{label}`", KINDS.get(models[label]["family"], "decoder-only"),
                     *(change(facts[name]) for name in FORWARD_ROWS), change(facts["feed-forward over attention"]),
                     f"{100 * facts['idle channels']['mean']:.0f} %")  # fmt: skip
    return [*lines, "", *by_stack]
