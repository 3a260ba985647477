"""The open questions of prune-then-finetune, each a small grid on the bundled model.

    OMP_NUM_THREADS=1 python benchmarks/open_questions.py FOLDER [--questions rewinding few_shot ...] [--jobs 2]

All arms of a question start from the same briefly tuned weights (but for those of `scratch` and `few_shot`, see there),
lose units in one shot to the same size, are repaired, and are tuned with the same budget; validation keeps the best
step, test decides nothing. One seed by default, so a few percent are within noise: read arms against `random` and each
other. `hybrid` reads results/scores_table.json. Resumable: the same command goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from cells import Cell, Store, run
from long_horizon import SETS
from tasks import (
    KINDS,
    Setup,
    arguments,
    base,
    chosen_units,
    cut,
    dense,
    errors,
    idle,
    kept_model,
    latest,
    mean,
    provenance,
    scoring_windows,
    setup_of,
    task,
    tuned,
    tuned_errors,
)

from tsprune.budgets import keep_budget
from tsprune.models._forecaster import Forecaster
from tsprune.plan import Plan
from tsprune.plandiff import diff
from tsprune.preparing import Prepared
from tsprune.pruning import prune, validation_loss
from tsprune.registry import find
from tsprune.slimming import make_plan, slim
from tsprune.stability import scored as with_stability
from tsprune.stages import read_json, write_json

KEEP = 0.6
REFERENCES = ("dense", "fisher", "random")
Found = dict[str, Any]
plan_of = partial(make_plan, base_model="base")


def pruned(setup: Setup, ready: Prepared, model: Forecaster, seed: int, **more: Any) -> Forecaster:
    """One shot to a size, repaired; `keep`, `score` and so on as `chosen_units`."""
    kept = chosen_units(setup, ready, model, more.pop("keep", KEEP), seed=seed, **more)
    return cut(model, kept, scoring_windows(setup, ready, seed, more.get("windows")))


# ---- one function per question: the cell's arm decides


def reference(setup: Setup, name: str, arm: str, seed: int) -> Found:
    """What several questions compare with: the uncut model as it comes, tuned in full, pruned, and pruned at random."""
    ready, start = task(setup, name, seed), base(setup, name, seed)
    if arm == "before tuning":
        return errors(ready, start)
    if arm == "dense":
        return errors(ready, dense(setup, name, seed))
    return tuned_errors(setup, ready, pruned(setup, ready, start, seed, score=arm), seed)


def rewinding(setup: Setup, name: str, arm: str, seed: int) -> Found:
    """Scores from the fully tuned model; then rewound weights, or tuned ones, which see twice the training."""
    ready, start, full = task(setup, name, seed), base(setup, name, seed), dense(setup, name, seed)
    if arm == "dense, tuned twice":
        return tuned_errors(setup, ready, full, seed)
    kept = chosen_units(setup, ready, full, KEEP, seed=seed)
    before = chosen_units(setup, ready, start, KEEP, seed=seed)
    source = start if arm == "rewound" else full
    model = cut(source, kept, scoring_windows(setup, ready, seed))
    shared = diff(plan_of(start, kept), plan_of(start, before)).all
    return tuned_errors(setup, ready, model, seed) | {"kept_jaccard_with_scores_before_tuning": shared and shared.kept}


def stability(setup: Setup, name: str, arm: str, seed: int) -> Found:
    """Rank agreement of a score between random halves of the windows and between early and late ones."""
    ready, model = task(setup, name, seed), base(setup, name, seed)
    module, windows = find("tsprune.scores", arm), ready.train.windows
    chosen = windows.sample(4 * setup.score_windows, torch.Generator().manual_seed(seed))
    able = tuple(kind for kind in getattr(module, "KINDS", KINDS) if kind in KINDS)

    def batches_of(numbers: Any) -> list[Any]:
        return [ready.train.batch(chosen[numbers[first : first + 64]]) for first in range(0, len(numbers), 64)]

    _, found = with_stability(module, model, batches_of, windows.origin[chosen], kinds=able, seed=seed)
    return {kind: vars(agreement) for kind, agreement in found.items()}


def beyond(setup: Setup, name: str, arm: str, seed: int) -> Found:
    """`score keep`: a small share of the prunable parameters left."""
    score, keep = arm.split()
    ready = task(setup, name, seed)
    model = pruned(setup, ready, base(setup, name, seed), seed, keep=float(keep), score=score, of_prunable=True)
    return tuned_errors(setup, ready, model, seed)


def few_shot(setup: Setup, name: str, arm: str, seed: int) -> Found:
    """`what share`: only the latest share of the training windows, for the brief tuning, scores, repair and tuning."""
    what, share = arm.split()
    if float(share) >= 1:
        return reference(setup, name, "dense" if what == "dense" else "fisher", seed)
    ready = task(setup, name, seed)
    windows = latest(ready.train, float(share))

    def adapt() -> Forecaster:
        return tuned(setup, ready, ready.model, seed, steps=setup.adapt_steps, windows=windows)[0]

    start = kept_model(setup, f"few-{name}-{share}-{seed}", adapt) if setup.adapt_steps else ready.model
    model = start if what == "dense" else pruned(setup, ready, start, seed, windows=windows)
    return tuned_errors(setup, ready, model, seed, windows=windows) | {"windows": len(windows)}


def dropout(setup: Setup, name: str, arm: str, seed: int) -> Found:
    """Full fine-tuning with this rate of dropout."""
    ready = task(setup, name, seed)
    return tuned_errors(setup, ready, base(setup, name, seed), seed, dropout=float(arm))


def scratch(setup: Setup, name: str, arm: str, seed: int) -> Found:
    """A small network of the same family trained on the set alone, which should hold little that it does not need."""
    ready = task(setup, name, seed)
    start = from_scratch(setup, ready, name, seed)
    if arm == "before tuning":
        return errors(ready, start)
    model = start if arm == "dense" else pruned(setup, ready, start, seed, score=arm)
    return tuned_errors(setup, ready, model, seed)


def from_scratch(setup: Setup, ready: Prepared, name: str, seed: int) -> Forecaster:
    def make() -> Forecaster:
        torch.manual_seed(seed)
        sizes = {"d_model": 64, "d_kv": 16, "num_heads": 4, "d_ff": 256, "num_layers": 3}
        model = type(ready.model).from_config(ready.model.config | sizes)
        steps, rate = setup.options
        return tuned(setup, ready, model, seed, steps=steps, rates=(rate,))[0]

    return kept_model(setup, f"scratch-{'-'.join(map(str, setup.options))}-{name}-{seed}", make)


def ema(setup: Setup, name: str, arm: str, seed: int) -> Found:
    """The paper's schedule with this weight of the newest macro-batch, to the common size; then tuned."""
    ready, start = task(setup, name, seed), base(setup, name, seed)
    schedule = find("tsprune.schedules", "ema_online").SCHEDULE(ratio=0.2, ema=float(arm))
    outcome = prune(
        start, lambda number: scoring_windows(setup, ready, 1000 * seed + number), ready.steering, schedule=schedule,
        seed=seed, refit=True, budget=keep_budget(start, KEEP),
    )  # fmt: skip
    found = tuned_errors(setup, ready, slim(outcome.model, outcome.best.kept), seed)
    return found | {"rounds": len(outcome.rounds) - 1}


def horizons(setup: Setup, name: str, arm: str, seed: int) -> Found:
    """Plans for the near and the far horizon, each from two draws of windows; what they share, and what each costs.

    Targets of training windows are cut to what the model gives in one pass, so the far horizon is that at most.
    """
    near, far = (int(steps) for steps in arm.split("-"))
    plans: dict[tuple[int, int], Plan] = {}
    losses: Found = {}
    start = base(setup, name, seed)
    ready = {steps: task(setup, name, seed, steps) for steps in (near, far)}
    for steps, draw in product((near, far), (0, 1)):
        kept = chosen_units(setup, ready[steps], start, KEEP, seed=10 * seed + draw)
        plans[steps, draw] = plan_of(start, kept)
    for judged in (near, far):
        own = {"uncut": validation_loss(start, ready[judged].steering)}
        for made in (near, far):
            model = cut(start, plans[made, 0].kept, scoring_windows(setup, ready[judged], seed))
            own[f"plan for {made}"] = validation_loss(model, ready[judged].steering)
        losses[f"at {judged}"] = own
    pairs = {
        f"{near} against {far}": diff(plans[near, 0], plans[far, 0]),
        f"{near}, other windows": diff(plans[near, 0], plans[near, 1]),
        f"{far}, other windows": diff(plans[far, 0], plans[far, 1]),
    }
    shared = {
        key: {k: v for k, v in found.to_dict().items() if k in ("all", "kinds", "groups")}
        for key, found in pairs.items()
    }
    return {"validation_loss": losses, "shared": shared, "target_steps": min(far, start.native_horizon)}


def transfer(setup: Setup, name: str, arm: str, seed: int) -> Found:
    """The structure found on another set (the arm), cut from and repaired on this one; before any tuning."""
    ready, start = task(setup, name, seed), base(setup, name, seed)
    own = plan_of(start, chosen_units(setup, ready, start, KEEP, seed=seed))
    other = own
    if arm == "random":
        other = plan_of(start, chosen_units(setup, ready, start, KEEP, seed=seed, score="random"))
    elif arm != name:
        other = plan_of(start, chosen_units(setup, task(setup, arm, seed), base(setup, arm, seed), KEEP, seed=seed))
    model = cut(start, other.kept, scoring_windows(setup, ready, seed))
    shared = diff(own, other).to_dict()
    return errors(ready, model) | {"shared": {"all": shared["all"], "kinds": shared["kinds"]}}


WORK: dict[str, Callable[[Setup, str, str, int], Found]] = {
    "reference": reference, "rewinding": rewinding, "stability": stability, "beyond": beyond, "few_shot": few_shot,
    "dropout": dropout, "scratch": scratch, "ema": ema, "horizons": horizons, "transfer": transfer,
}  # fmt: skip
ASKED = {
    "hybrid": "Does a hybrid of statistics and loss beat either alone?",
    "rewinding": "Does it help to prune after fine-tuning, rewind the weights and train again?",
    "stability": "Do early and late windows score units alike?",
    "beyond": "Does it hold beyond 90 % of the prunable parameters removed?",
    "few_shot": "What does pruning do with 20, 50 and 100 % of the training windows?",
    "dropout": "Is pruning more than tuned dropout?",
    "scratch": "Does the method flatter anything on a network trained from scratch, of little sparsity?",
    "ema": "What does the weight of the newest macro-batch do?",
    "horizons": "Which units go at a near and at a far horizon?",
    "transfer": "Does a structure found on one set serve another?",
}


def cells_of(question: str, given: argparse.Namespace) -> list[Cell]:
    """Cells of a question beyond the reference, as (question, set, arm, seed)."""
    arms = {
        "rewinding": ["rewound", "pruned after tuning, tuned again", "dense, tuned twice"],
        "beyond": [f"{score} {keep}" for keep in given.beyond for score in ("fisher", "random")],
        # What makes the model that others start from comes first.
        "few_shot": [f"{what} {share}" for what in ("dense", "pruned") for share in given.shares],
        "dropout": [str(rate) for rate in given.dropout],
        "scratch": ["before tuning", "dense", "fisher", "random"],
    }
    sets: dict[str, tuple[list[str], list[str]]] = {q: (given.sets, arms[q]) for q in arms}
    sets["stability"] = (given.all_sets, given.stable_scores)
    sets["ema"] = (["weather"], [str(weight) for weight in given.ema])
    sets["horizons"] = (["ETTm2"], ["96-720"])
    sets["transfer"] = (given.all_sets, [*given.all_sets, "random"])
    if question == "hybrid":
        return []
    names, own = sets[question]
    return [(question, name, arm, seed) for name in names for arm in own for seed in given.seeds]


def references(given: argparse.Namespace) -> list[Cell]:
    """What several questions compare with, for the questions that are asked."""
    names = set(given.sets) if set(given.questions) & {"rewinding", "beyond", "few_shot", "dropout"} else set()
    names |= {"weather"} if "ema" in given.questions else set()
    return [("reference", name, arm, seed) for name in sorted(names) for arm in REFERENCES for seed in given.seeds]


def first(given: argparse.Namespace) -> list[Cell]:
    """Cells that make the models that other cells start from, so that no two processes make the same one."""
    names = sorted({*given.sets, *given.all_sets, "weather", "ETTm2"})
    made = [("reference", name, "before tuning", seed) for name in names for seed in given.seeds]
    if "scratch" in given.questions:
        made += [("scratch", name, "before tuning", seed) for name in given.sets for seed in given.seeds]
    return made


def work(setup: Setup, cell: Cell) -> Found:
    question, name, arm, seed = cell
    return WORK[question](setup, name, arm, seed)


def table(question: str, found: dict[Cell, Found], given: argparse.Namespace) -> Found:
    """Per set and arm: test MSE and validation loss over those of the question's own dense arm, mean over seeds."""
    rows: Found = {}
    sets = {cell[1] for cell in found if cell[0] == question}
    for (asked, name, arm, seed), entry in found.items():
        wanted = asked == question or (asked == "reference" and question not in ("scratch", "transfer"))
        if not wanted or name not in sets or "test_mse" not in entry:
            continue
        whole = found.get(dense_cell(question, name, arm, seed))
        if whole is None:
            continue
        label = f"{asked}: {arm}" if asked == "reference" else arm
        row = rows.setdefault(name, {}).setdefault(label, {"test_mse": [], "validation_loss": [], "parameters": []})
        for metric in ("test_mse", "validation_loss"):
            row[metric].append(entry[metric] / whole[metric])
        row["parameters"].append(entry["parameters"])
    return {n: {a: {m: mean(v) for m, v in row.items()} for a, row in own.items()} for n, own in rows.items()}


def dense_cell(question: str, name: str, arm: str, seed: int) -> Cell:
    """The arm that a row is divided by: the model tuned in full on the same windows."""
    if question == "few_shot" and " " in arm and arm.split()[0] in ("dense", "pruned"):
        return ("few_shot", name, f"dense {arm.split()[1]}", seed)
    if question == "scratch":
        return ("scratch", name, "dense", seed)
    return ("transfer", name, name, seed) if question == "transfer" else ("reference", name, "dense", seed)


def answer(question: str, found: dict[Cell, Found], given: argparse.Namespace) -> Found:
    said: Found = {"question": ASKED[question]}
    if question == "hybrid":
        return said | hybrid(given.out.with_name("scores_table.json"))
    own = {cell: entry for cell, entry in found.items() if cell[0] == question}
    if question == "stability":
        return said | {f"{c[1]}, {c[2]}, seed {c[3]}": entry for c, entry in own.items()}
    if question == "horizons":
        return said | {f"{c[1]}, seed {c[3]}": shared_units(entry) for c, entry in own.items()}
    over = "the plan found on the set itself" if question == "transfer" else "full fine-tuning"
    said |= {f"over {over}": table(question, found, given)}
    if question == "dropout":
        said["chosen by validation"] = best_dropout(found, given)
    return said


def shared_units(entry: Found) -> Found:
    """The losses, and Jaccard indices against chance by kind and by layer."""
    said: Found = {"validation loss": entry["validation_loss"]}
    for pair, found in entry["shared"].items():
        rows = {"all": found["all"], **found["kinds"], **found["groups"]}
        for what in ("kept", "removed"):
            said[f"{pair}, {what}"] = {key: rounded(row[what], row[f"{what}_by_chance"]) for key, row in rows.items()}
    return said


def rounded(index: float | None, chance: float | None) -> str:
    return " against ".join("-" if value is None else f"{value:.2f}" for value in (index, chance)) + " by chance"


def best_dropout(found: dict[Cell, Found], given: argparse.Namespace) -> Found:
    """Per set and seed: full fine-tuning at the rate that validates best, beside the pruned model."""
    chosen: Found = {}
    for name, seed in product(given.sets, given.seeds):
        rates = {"0": found["reference", name, "dense", seed]}
        rates |= {str(r): found["dropout", name, str(r), seed] for r in given.dropout}
        best = min(rates, key=lambda rate: rates[rate]["validation_loss"])
        pruned_one = found["reference", name, "fisher", seed]
        chosen[f"{name} {seed}"] = {"rate": best, "test_mse": rates[best]["test_mse"], "pruned": pruned_one["test_mse"]}
    return chosen


def hybrid(path: Path) -> Found:
    """From the scores' table: the hybrid beside what it is made of."""
    if not path.exists():
        return {"missing": f"run benchmarks/scores_table.py first; {path.name} is not there"}
    summary = read_json(path)["summary"]
    before, after = summary["before tuning, repaired"], summary["after tuning, over the uncut model tuned alike"]
    names = [name for name in ("hybrid", "fisher", "wanda", "head_norm + activation", "random") if name in before]
    return {
        "mean log ratio of validation loss before tuning": {name: before[name]["mean log ratio"] for name in names},
        "after tuning, over full fine-tuning": {name: after[name] for name in names if name in after},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser, "open_questions")
    parser.add_argument("--questions", nargs="+", default=list(ASKED), choices=list(ASKED))
    parser.add_argument("--sets", nargs="+", default=["ETTh1", "ETTm2"], choices=list(SETS))
    parser.add_argument("--all-sets", nargs="+", default=["ETTh1", "ETTm2", "weather"], choices=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--beyond", nargs="+", type=float, default=[0.2, 0.1, 0.05], help="shares kept of the prunable")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.2, 0.5, 1.0], help="of the training windows")
    parser.add_argument("--dropout", nargs="+", type=float, default=[0.1, 0.2, 0.3])
    parser.add_argument("--ema", nargs="+", type=float, default=[0.1, 0.5, 0.9])
    parser.add_argument("--stable-scores", nargs="+", default=["fisher", "taylor_abs", "wanda", "hybrid"])
    parser.add_argument("--scratch-steps", type=int, default=600)
    parser.add_argument("--scratch-rate", type=float, default=2e-3)
    given = parser.parse_args()
    names = [*given.sets, *given.all_sets, "weather", "ETTm2"]
    setup = setup_of(given, names, given.scratch_steps, given.scratch_rate)
    store = Store(given.work / "open_questions.jsonl", setup.identity())
    cells = [cell for question in given.questions for cell in cells_of(question, given)]
    found: dict[Cell, Found] = {}
    for some in (first(given), references(given), cells):
        found |= run(work, setup, some, store, given.jobs)
    answers = {question: answer(question, found, given) for question in given.questions}
    whole = {"answers": answers, "handed back untuned": idle(found), **provenance(setup)}
    write_json(given.out, whole | {"cells": [{"cell": list(cell), **entry} for cell, entry in found.items()]})
    for said in answers.values():
        print(f"\n{said.pop('question')}")
        show(said)


def show(said: Any, indent: str = "  ") -> None:
    """Nested dictionaries, the innermost on one line."""
    for key, value in said.items():
        if isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values()):
            print(f"{indent}{key}")
            show(value, indent + "  ")
        else:
            print(f"{indent}{key}: {value}")


if __name__ == "__main__":
    main()
