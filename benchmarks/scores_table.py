"""Which score finds the units that can go? Against true removal, before tuning at four sizes, and after tuning.

    OMP_NUM_THREADS=1 python benchmarks/scores_table.py FOLDER [--sets ETTh1 ETTm2 weather sample] [--jobs 2]

The model is tuned briefly on each set, as in a run; all scores see the same weights and windows. Decided beforehand:
the score wins whose pruned models, repaired but not tuned, have the lowest mean log ratio of validation loss to that
of the uncut model, over sets, seeds (other scoring windows) and the four sizes. Test errors are shown and decide
nothing. Scores at one pass per unit (ablation) and the random control do not compete. Resumable: the same command
goes on.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from cells import Cell, Store, run
from long_horizon import SETS
from score_fidelity import chosen_units as sampled_units
from score_fidelity import ranks, spearman, true_changes
from tasks import (
    KINDS,
    SAMPLE,
    Setup,
    arguments,
    base,
    cut,
    errors,
    goal,
    idle,
    mean,
    provenance,
    scored,
    scoring_windows,
    setup_of,
    task,
    tuned_errors,
)

from tsprune.pruning import parameters_to_reach
from tsprune.registry import find, names
from tsprune.stages import write_json

KEEPS = (0.9, 0.8, 0.6, 0.4)
TUNED_KEEP = 0.6
FINALISTS = 4
# One pass per unit: the truth itself rather than an estimate, and too slow to be a default.
PER_UNIT = ("ablation",)
PARTNER = {"head": "head_norm", "ffn_channel": "activation"}
"""What stands in for the other kind where a score knows only one of the two."""


def kinds_of(score: str) -> tuple[str, ...] | None:
    """Kinds a score can do; None for all."""
    return getattr(find("tsprune.scores", score), "KINDS", None)


def recipes() -> dict[str, Callable[[Any, Any, int], tuple[dict, str]]]:
    """How each row of the table scores heads and channels: every score, alone or paired with a statistic.

    Scores of heads only are paired with `activation`, scores of channels only with `head_norm`. Their scales differ, so
    of both kinds the same share goes: a unit's score is its rank within its kind, times its parameters.
    """
    found: dict[str, Any] = {}
    for score in names("tsprune.scores"):
        can = kinds_of(score)
        if can is None or set(KINDS) <= set(can):
            found[score] = plain(score)
        elif "attention" in can:
            found[f"{score} (whole attentions)"] = plain(score, kinds=("attention",))
        elif "head" in can:
            found[f"{score} + {PARTNER['ffn_channel']}"] = paired(score, PARTNER["ffn_channel"])
        elif "ffn_channel" in can and score != PARTNER["ffn_channel"]:
            found[f"{PARTNER['head']} + {score}"] = paired(PARTNER["head"], score)
    return found | {"fisher, signed": plain("fisher", rank="signed")}


def plain(score: str, rank: str = "magnitude", kinds: tuple[str, ...] = KINDS) -> Any:
    return lambda model, batches, seed: (scored(model, batches, score, seed, kinds), rank)


def paired(heads: str, channels: str) -> Any:
    def score(model: Any, batches: Any, seed: int) -> tuple[dict, str]:
        groups, found = model.unit_groups(), {}
        for kind, name in zip(KINDS, (heads, channels), strict=True):
            values = scored(model, batches, name, seed, (kind,))
            placed = ranks(np.concatenate([v.numpy() for v in values.values()]))
            parts = torch.from_numpy((placed + 0.5) / len(placed)).split([len(v) for v in values.values()])
            found |= {n: p * groups[n].costs for n, p in zip(values, parts, strict=True)}
        return found, "magnitude"

    return score


def left_out() -> list[str]:
    """Scores that can do neither heads nor channels nor whole attentions, and so have no row on this model."""
    return [s for s in names("tsprune.scores") if not set(kinds_of(s) or KINDS) & {*KINDS, "attention"}]


def work(setup: Setup, cell: Cell) -> dict[str, Any]:
    what, name, *rest = cell
    return {"base": base_cell, "truth": truth_cell, "cut": cut_cell, "tuned": tuned_cell}[what](setup, name, *rest)


def base_cell(setup: Setup, name: str) -> dict[str, Any]:
    return errors(task(setup, name), base(setup, name))


def truth_cell(setup: Setup, name: str) -> dict[str, Any]:
    """Rank correlations of every score with the true change of the loss, unit by unit, within each kind."""
    channels, other = setup.options
    ready, model = task(setup, name), base(setup, name)
    windows = scoring_windows(setup, ready, 0)
    units = sampled_units(model, channels, 0)
    units["attention"] = [(g.name, 0) for g in model.unit_groups().values() if g.kind == "attention"]
    found: dict[str, Any] = {}
    for kind, some in units.items():
        truth = true_changes(model, windows, some)
        rows = {}
        for score in names("tsprune.scores"):
            if score in PER_UNIT or kind not in (kinds_of(score) or (kind,)):
                continue
            values = scored(model, windows, score, 0, (kind,))
            own = np.array([float(values[group][unit]) for group, unit in some])
            rows[score] = compared(own, truth)
        # How well the truth itself is known: the same from other windows.
        few = scoring_windows(with_windows(setup, other), ready, 1)
        rows["ablation"] = compared(true_changes(model, few, some), truth)
        found[kind] = {"units": len(some), "lowers_the_loss": float((truth < 0).mean()), "scores": rows}
    return found


def with_windows(setup: Setup, count: int) -> Setup:
    return replace(setup, score_windows=count)


def compared(score: Any, truth: Any) -> dict[str, float]:
    """By magnitude and with sign."""
    if len(np.unique(score)) < 2:
        return {"magnitude": 0.0, "signed": 0.0}  # All equal: no order at all.
    pairs = {"magnitude": spearman(np.abs(score), np.abs(truth)), "signed": spearman(score, truth)}
    return {key: round(value, 4) for key, value in pairs.items()}


def cut_cell(setup: Setup, name: str, recipe: str, seed: int) -> dict[str, Any]:
    """Errors of the pruned model before tuning at every size, with and without repair."""
    ready, model = task(setup, name), base(setup, name)
    windows = scoring_windows(setup, ready, seed)
    for_score = scoring_windows(with_windows(setup, setup.options[1]), ready, seed) if recipe in PER_UNIT else windows
    values, rank = recipes()[recipe](model, for_score, seed)
    found: dict[str, Any] = {}
    for keep in KEEPS:
        kept = parameters_to_reach(model, values, goal(model, keep), rank)
        rows = {label: errors(ready, cut(model, kept, windows, r)) for label, r in (("cut", False), ("repaired", True))}
        if rows["cut"]["parameters"] <= goal(model, keep):
            found[str(keep)] = rows
    return found


def tuned_cell(setup: Setup, name: str, recipe: str, seed: int) -> dict[str, Any]:
    """Errors after the same tuning for all; `uncut` is full fine-tuning."""
    ready, model = task(setup, name), base(setup, name)
    if recipe != "uncut":
        windows = scoring_windows(setup, ready, seed)
        values, rank = recipes()[recipe](model, windows, seed)
        model = cut(model, parameters_to_reach(model, values, goal(model, TUNED_KEEP), rank), windows)
    return tuned_errors(setup, ready, model, seed)


def before_tuning(sets: list[str], found: dict[Cell, dict], label: str) -> dict[str, Any]:
    """Per recipe: ratios to the uncut model, geometric means over sets and seeds, and the log mean that decides."""
    table: dict[str, Any] = {}
    for recipe in dict.fromkeys(cell[2] for cell in found if cell[0] == "cut"):
        row: dict[str, Any] = {}
        logs = []
        for keep in map(str, KEEPS):
            for metric in ("validation_loss", "test_mse"):
                ratios = [
                    math.log(entry[keep][label][metric] / found["base", cell[1]][metric])
                    for cell, entry in found.items()
                    if cell[0] == "cut" and cell[2] == recipe and cell[1] in sets and keep in entry
                ]
                if ratios:
                    row[f"{metric} at {keep}"] = round(math.exp(float(np.mean(ratios))), 4)
                if metric == "validation_loss":
                    logs += ratios
        row["runs"] = len(logs)
        row["all sizes"] = all(f"validation_loss at {keep}" in row for keep in KEEPS)
        row["mean log ratio"] = mean(logs) if logs else None
        table[recipe] = row
    return table


def closed(found: dict[Cell, dict], keep: float) -> dict[str, float]:
    """Share of the rise of the validation loss that least squares takes back, per recipe: mean over sets and seeds."""
    shares: dict[str, list[float]] = {}
    for (what, name, *rest), entry in found.items():
        if what == "cut" and str(keep) in entry:
            start = found["base", name]["validation_loss"]
            rise = entry[str(keep)]["cut"]["validation_loss"] - start
            if rise > 0:
                back = entry[str(keep)]["cut"]["validation_loss"] - entry[str(keep)]["repaired"]["validation_loss"]
                shares.setdefault(rest[0], []).append(back / rise)
    return {recipe: mean(values) for recipe, values in shares.items()}


def competing(table: dict[str, Any]) -> list[str]:
    """Recipes that may become the default, best first."""
    able = [r for r, row in table.items() if row["all sizes"] and r not in ("random", *PER_UNIT)]
    return sorted(able, key=lambda r: table[r]["mean log ratio"])


def after_tuning(found: dict[Cell, dict]) -> dict[str, Any]:
    """Per recipe: validation and test after tuning over those of the uncut model tuned alike, geometric means."""
    table: dict[str, Any] = {}
    for (what, name, *rest), entry in found.items():
        if what == "tuned":
            dense = found["tuned", name, "uncut", rest[1]]
            row = table.setdefault(rest[0], {"validation_loss": [], "test_mse": [], "parameters": []})
            for metric, values in row.items():
                values.append(math.log(entry[metric] / dense[metric]))
    return {r: {m: round(math.exp(float(np.mean(v))), 4) for m, v in row.items()} for r, row in table.items()}


def show(table: dict[str, Any]) -> None:
    for name, row in table.items():
        print(f"{name:<28} " + "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser, "scores_table")
    parser.add_argument("--sets", nargs="+", default=["ETTh1", "ETTm2", "weather", SAMPLE], choices=[*SETS, SAMPLE])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the scoring windows")
    parser.add_argument("--tuned-seeds", nargs="+", type=int, default=[0], help="of the runs after tuning")
    parser.add_argument("--channels", type=int, default=60, help="feed-forward channels switched off one by one")
    parser.add_argument("--ablation-windows", type=int, default=8, help="windows for ablation, at one pass per unit")
    given = parser.parse_args()
    # The bundled sample has one series; it takes part in the comparison with true removal only.
    sets = [name for name in given.sets if name != SAMPLE]
    setup = setup_of(given, given.sets, given.channels, given.ablation_windows)
    store = Store(given.work / "scores_table.jsonl", setup.identity())
    found: dict[Cell, dict] = {}

    def finish(cells: list[Cell]) -> None:
        found.update(run(work, setup, cells, store, given.jobs))

    finish([("base", name) for name in given.sets])
    slow = [("cut", name, recipe, given.seeds[0]) for recipe in PER_UNIT for name in sets]
    fast = [r for r in recipes() if r not in PER_UNIT]
    cells = [("cut", name, recipe, seed) for name in sets for recipe in fast for seed in given.seeds]
    finish([*slow, *(("truth", name) for name in given.sets), *cells])
    tables = {label: before_tuning(sets, found, label) for label in ("cut", "repaired")}
    order = competing(tables["repaired"])
    finalists = ["uncut", *order[:FINALISTS], "random"]
    finish([("tuned", name, recipe, seed) for seed in given.tuned_seeds for name in sets for recipe in finalists])
    tuned = after_tuning(found)
    summary = {
        "rule": "lowest mean log ratio of validation loss to the uncut model, repaired, over sets, seeds and sizes",
        "winner": order[0],
        "order": order,
        "best after tuning": min(order[:FINALISTS], key=lambda r: tuned[r]["validation_loss"]),
        "no row on this model": left_out(),
        "share of the rise that repair takes back": {str(k): closed(found, k) for k in (0.6, 0.4)},
        "before tuning, repaired": tables["repaired"],
        "before tuning, cut only": tables["cut"],
        "after tuning, over the uncut model tuned alike": tuned,
        "handed back untuned": idle(found),
        "rank correlation with true removal": {name: found["truth", name] for name in given.sets},
    }
    listed = [{"cell": list(cell), **entry} for cell, entry in found.items()]
    said = {"question": "Which score finds the units that can go?", "sets": sets, "seeds": given.seeds}
    write_json(given.out, said | {"summary": summary} | provenance(setup) | {"cells": listed})
    show(tables["repaired"])
    print(f"winner: {order[0]}; after tuning, over full fine-tuning:")
    show(tuned)
    print(f"handed back untuned by validation: {idle(found)}")


if __name__ == "__main__":
    main()
