"""What do pretrained forecasters not use? The lens on several models and sets, each finding beside its random control.

    OMP_NUM_THREADS=1 python benchmarks/redundancy.py FOLDER [--models chronos_bolt=DIR timer_xl=DIR moirai=DIR]
    python benchmarks/redundancy.py --collect

For every model and set, five cells: heads off one attention at a time and together (`heads`), layers and feed-forward
parts off (`layers`), SEND against leave-one-out (`send`), a share of the heads off by several orders (`cuts`), and how
much of the feed-forward parts is used at all (`idle`).
Validation windows only: what is chosen is chosen on the first ones, what is said is measured on later ones. Resumable:
the same command goes on. `--collect` makes the JSON, the figures and the tables of docs/redundancy.md of what is there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import Cell, Store, run
from long_horizon import SETS, require
from redundancy_facts import published, share_of, taken
from redundancy_pages import CELLS, LIMIT, trimmed, write_all
from torch import Tensor

from tsprune import lens
from tsprune.data.reading import ReadOptions, read
from tsprune.evaluation.machine import machine_line, versions
from tsprune.evaluation.timeblocks import Blocks
from tsprune.lens import _ablating as ablating
from tsprune.lens import _joint as joint
from tsprune.lens._probe import Study
from tsprune.lens._study import study_of
from tsprune.lens.heads_at import MAIN
from tsprune.lens.layer_sweep import Stack, stacks
from tsprune.models import fingerprint, load
from tsprune.preparing import prepare
from tsprune.scores import ablation, fisher
from tsprune.scores.stable_rank import stable_ranks
from tsprune.settings import TaskSettings
from tsprune.stages import read_json

NAMES = ("ETTh1", "ETTm2", "weather", "electricity_7clients")
BUNDLED = ("mini", "mini-moe")
SLOW = {"mini-moe": (14, 28)}
"""First and later windows where a pass takes long."""
SERIES = 7
"""Series of a set that are looked at; of more, so many are taken evenly."""
DRAWS, FEW = 10, 5
"""Random choices beside the informed ones."""
SHARES = {"middle": (0.3, 0.6), "all": (0.3,)}
"""Of the heads of the middle layers, and of all layers."""
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Setup:
    """What the cells of a model share; the folder and where the model lies decide nothing."""

    folder: str
    place: str
    model: str
    print: str
    context: int
    horizon: int
    windows: int
    later: int
    seed: int = 0

    def identity(self) -> dict[str, Any]:
        """What decides about results."""
        kept = {k: v for k, v in asdict(self).items() if k not in ("folder", "place", "model")}
        return kept | {
            "series": SERIES,
            "draws": DRAWS,
            "shares": {k: list(v) for k, v in SHARES.items()},
            "versions": versions(),
        }


@lru_cache(maxsize=1)
def study(setup: Setup, name: str) -> Study:
    """Model and windows of a set."""
    data = SETS[name]
    source = Path(setup.folder) / data.file
    options = ReadOptions(season=data.season, grid=data.grid)
    panel = read(source, options)
    if len(panel.ids) > SERIES:
        spread = np.linspace(0, len(panel.ids) - 1, SERIES).round().astype(int)
        panel = read(source, replace(options, value_columns=tuple(panel.ids[place] for place in spread)))
    settings = TaskSettings(
        data=str(source), model=setup.place, seed=setup.seed, threads=1, horizon=setup.horizon, context=setup.context,
        split=data.split,
    )  # fmt: skip
    return study_of(prepare(settings, options, panel=panel), setup.windows, setup.later)[0]


def work(setup: Setup, cell: Cell) -> dict[str, Any]:
    what, name = cell
    seen = study(setup, name)
    makers: dict[str, Callable[[Study], dict[str, Any]]] = {
        "heads": heads_cell, "layers": layers_cell, "send": send_cell, "cuts": cuts_cell,
        "idle": idle_cell,
    }  # fmt: skip
    return makers[what](seen) | {"windows": facts_of(seen)}


def facts_of(seen: Study) -> dict[str, Any]:
    """How many windows and origins there are."""
    blocks = seen.blocks
    said = blocks.describe() if isinstance(blocks, Blocks) else {}
    return {"first": ablating.windows(seen.first), "later": ablating.windows(seen.later), **said}


class Later:
    """Growth of the loss on the later windows, with its interval."""

    def __init__(self, seen: Study) -> None:
        self.seen, self.intact = seen, ablating.losses(seen.model, seen.later)

    def __call__(self, kept: Mapping[str, Sequence[int]]) -> dict[str, float | None]:
        """Of the model with only these units kept of these groups."""
        model = self.seen.model
        off = ablating.losses(model, self.seen.later, kept)
        found = joint.growth_interval(model, off, self.intact, self.seen.blocks, self.seen.seed)
        ends = (None, None) if found is None else (found.low, found.high)
        growth = ablating.growth(model, float(off.mean()), float(self.intact.mean()))
        named = dict(zip(("growth", "low", "high"), (growth, *ends), strict=True))
        return {key: ablating.number(value) for key, value in named.items()}


def heads_cell(seen: Study) -> dict[str, Any]:
    """The probe `heads_at`; and what its choices and those of the published rule do on later windows."""
    found = lens.find("heads_at").run(seen, str).to_json()
    facts, groups, later = found["facts"], ablating.groups_of(seen.model, "head"), Later(seen)
    rules = {"ours": facts["removable"][f"{MAIN:g}"]["alone"], "published": {}}
    for name, curves in facts["growth"].items():
        order, count = published(curves, LIMIT)
        rules["published"][name] = facts["orders"][name][order][:count]
    rows = {rule: _confirmed(seen, groups, gone, later) for rule, gone in rules.items()}
    return {"answer": found["answer"], "together": found["tables"][0], "facts": facts, "later": rows}


def _confirmed(seen: Study, groups: Mapping[str, Any], gone: Mapping[str, Sequence[int]], later: Later) -> dict:
    """Each attention without its heads alone, then all at once, beside as many random heads of each attention."""
    alone = {name: later(ablating.without(groups[name], heads)) for name, heads in gone.items() if heads}
    every = [(name, head) for name, heads in gone.items() for head in heads]
    every = joint.spare_essential(seen.model, groups, every)
    random = []
    for draw in range(FEW):
        generator = np.random.default_rng([seen.seed, draw, 41])
        chosen = [
            (name, int(head))
            for name, heads in gone.items()
            for head in generator.choice(groups[name].units, sum(1 for other, _ in every if other == name), False)
        ]
        random.append(later(joint.kept_without(groups, chosen))["growth"])
    return {
        "gone": {name: list(heads) for name, heads in gone.items()},
        "heads": {name: group.units for name, group in groups.items()},
        "alone": alone,
        "at once": later(joint.kept_without(groups, every)),
        "random": random,
    }


def layers_cell(seen: Study) -> dict[str, Any]:
    """The probe `layer_sweep`; and every layer and pair of layers of each stack on later windows, by part."""
    found = lens.find("layer_sweep").run(seen, str).to_json()
    later, rows = Later(seen), {}
    for stack in stacks(seen.model):
        rows[stack.path] = {
            part: {
                "alone": [later(stack.kept((layer, 1), part)) for layer in range(len(stack.layers))],
                "pairs": {
                    f"{one} {two}": later(stack.kept((one, 1), part) | stack.kept((two, 1), part))
                    for one, two in combinations(range(len(stack.layers)), 2)
                },
            }
            for part in stack.parts()
        }
        if "feed-forward" in rows[stack.path]:
            rows[stack.path]["feed-forward"]["all"] = later(stack.kept((0, len(stack.layers)), "feed-forward"))
    every: dict[str, list[int]] = {name: [] for name in ablating.groups_of(seen.model, "ffn")}
    return {"answer": found["answer"], "facts": found["facts"], "later": rows, "no feed-forward": later(every)}


def send_cell(seen: Study) -> dict[str, Any]:
    """The probe `send`."""
    found = lens.find("send").run(seen, str).to_json()
    return {"answer": found["answer"], "facts": found["facts"], "ranked": found["tables"][0]}


def idle_cell(seen: Study) -> dict[str, Any]:
    """The probe `sparsity`: how much of the feed-forward parts is used at all; idle ones cannot be missed."""
    found = lens.find("sparsity").run(seen, str).to_json()
    return {"answer": found["answer"], "networks": found["tables"][0]}


def cuts_cell(seen: Study) -> dict[str, Any]:
    """A share of the heads off, of the middle layers and of all, by several orders and at random.

    Only heads that weigh several keys take part, since the others have no spectrum of attention: all orders choose
    among the same.
    """
    model, later = seen.model, Later(seen)
    groups = ablating.groups_of(model, "head")
    orders, whole = scored(seen, groups), float(ablating.losses(model, seen.first).mean())
    able = {name for name, group in groups.items() if all(v == v for v in orders["attention stable rank"][name])}
    pools = {
        "middle": [n for n in groups if n in able and in_middle(n, stacks(model))],
        "all": [n for n in groups if n in able],
    }
    found: dict[str, Any] = {}
    for pool, names in pools.items():
        heads = [(name, head) for name in names for head in range(groups[name].units)]
        found[pool] = {"heads": len(heads), "attentions": names, "shares": {}}
        for share in SHARES[pool] if heads else ():
            count, rows = share_of(share, len(heads)), {}
            for order, chosen in _choices(seen, orders, heads, count).items():
                kept = joint.kept_without(groups, chosen)
                rows[order] = later(kept) | {"gone": [f"{name} {head}" for name, head in chosen]}
                if pool == "middle" and share == SHARES[pool][0]:
                    off = float(ablating.losses(model, seen.first, kept).mean())
                    rows[order]["first"] = ablating.number(ablating.growth(model, off, whole))
            found[pool]["shares"][f"{share:g}"] = {"count": count, "orders": rows}
    return found


def scored(seen: Study, groups: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Numbers of every head by what they are, from weights and first windows; NaN where a head has none."""
    model = seen.model
    spectra = {one.name: one.values for one in lens.find("attention_spectra").run(seen, str).measures}

    def listed(values: Mapping[str, Tensor]) -> dict[str, list[float]]:
        return {name: values[name].double().tolist() for name in groups}

    found = {
        "stable rank": {name: stable_ranks(model)[group.path].tolist() for name, group in groups.items()},
        "fisher": listed(fisher.scores(model, seen.first, kinds=("head",))),
        "leave-one-out": listed(ablation.scores(model, seen.first, kinds=("head",))),
    }
    for kind in ("stable rank", "effective rank"):
        found[f"attention {kind}"] = {
            name: [float("nan") if value is None else value for value in spectra[f"{kind} of attention"][group.path]]
            for name, group in groups.items()
        }
    return found


def in_middle(name: str, found: Sequence[Stack]) -> bool:
    """Whether a group is of a layer in the middle of its stack, as the probe `layer_sweep` has it."""
    for stack in found:
        edge = max(1, len(stack.layers) // 3)
        inside = stack.paths[edge : len(stack.paths) - edge]
        if len(stack.layers) > 2 and any(name.startswith(f"{path}.") for path in inside):
            return True
    return False


def _choices(
    seen: Study, orders: Mapping[str, Mapping[str, Sequence[float]]], heads: Sequence[joint.Head], count: int
) -> dict[str, list[joint.Head]]:
    """Heads that go, by order: both ends of every rank, the low end of what says how a head matters."""
    found = {}
    for order, values in orders.items():
        own = [values[name][head] for name, head in heads]
        found[f"{order}, low first"] = taken(heads, own, count)
        if "rank" in order:
            found[f"{order}, high first"] = taken(heads, [-value for value in own], count)
    for draw in range(DRAWS):
        generator = np.random.default_rng([seen.seed, draw, 43])
        found[f"random {draw}"] = [heads[int(place)] for place in generator.choice(len(heads), count, False)]
    return found


def setup_of(given: argparse.Namespace, label: str, place: str) -> Setup:
    """The setup of one model, with as much context as it can use up to what is asked."""
    model = load(place)
    first, later = SLOW.get(label, (given.windows, given.later))
    context = min(given.context, model.context_length)
    return Setup(str(given.folder), place, label, fingerprint(model), context, given.horizon, first, later)


def collected(setups: Mapping[str, Setup], work_folder: Path) -> dict[str, Any]:
    """All finished cells by model and set."""
    models: dict[str, Any] = {}
    for label, setup in setups.items():
        store, model = Store(work_folder / "cells.jsonl", setup.identity()), load(setup.place)
        sets: dict[str, Any] = {}
        for (what, name), found in store.found.items():
            sets.setdefault(name, {})[what] = trimmed(what, found)
        models[label] = {
            "family": model.family,
            "parameters": model.parameter_count(),
            "log_loss": model.log_loss,
            "context": setup.context,
            "settings": {key: value for key, value in setup.identity().items() if key != "versions"},
            "scored_steps": min(setup.horizon, model.native_horizon),
            "sets": {name: sets[name] for name in NAMES if name in sets},
        }
    return models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(), help="folder with the long-horizon CSV files")
    parser.add_argument("--models", nargs="*", default=[], metavar="NAME=DIR", help="models beside the bundled ones")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="models to measure now; all by default")
    parser.add_argument("--sets", nargs="+", default=list(NAMES), choices=list(SETS))
    parser.add_argument("--horizon", type=int, default=96)
    parser.add_argument("--context", type=int, default=512, help="at most; less where a model cannot use it")
    parser.add_argument("--windows", type=int, default=32, help="first windows, which measure and choose")
    parser.add_argument("--later", type=int, default=64, help="later windows, which confirm")
    parser.add_argument("--work", type=Path, default=Path("runs/redundancy"), help="cells that are done")
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--collect", action="store_true", help="measure nothing; write what is there")
    parser.add_argument("--draw", action="store_true", help="measure nothing; figures and tables from the JSON")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "redundancy.json")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where page and figures are")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.draw:
        known = read_json(given.out)
        write_all(known["models"], known["machine"], given.out, given.docs)
        return
    places = {name: name for name in BUNDLED} | dict(pair.split("=", 1) for pair in given.models)
    setups = {label: setup_of(given, label, place) for label, place in places.items()}
    if not given.collect:
        require(given.folder, given.sets)
        # The first model on all sets, then set by set, so that what there is when it is stopped can be compared.
        first, *others = given.only or setups
        order = [(first, name) for name in given.sets] + [(one, name) for name in given.sets for one in others]
        for label, name in order:
            store = Store(given.work / "cells.jsonl", setups[label].identity())
            print(f"{label} on {name}", flush=True)
            run(work, setups[label], [(what, name) for what in CELLS], store, given.jobs)
    write_all(collected(setups, given.work), machine_line(threads=1), given.out, given.docs)


if __name__ == "__main__":
    main()
