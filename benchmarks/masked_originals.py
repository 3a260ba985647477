"""Do the original packages load a masked export unchanged, and forecast what our slim model forecasts?

    python benchmarks/masked_originals.py --originals PYTHON [--models mini DIRECTORY random:moirai ...] [--cuts 3]

PYTHON is the interpreter of an environment with the original packages, see originals.py. Every model is cut at random
in all ways that its family has but whole experts: heads, query/key pairs, value entries, hidden channels, channels of
maps, whole branches and a layer. Each cut is written by the form `masked`, loaded by the original class, which must be
filled by the file and nothing else, and run on the same series as our slim model. `random:CASE` is a model of random
weights at the sizes of a public checkpoint; CASE is a name of originals_cases.py, mostly that of a family. Exits with 1
when outputs are apart.

With --add what OUT holds of other models stays, so that several environments can each add their originals.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from originals import MOST_APART, Failed, Missing, Originals, differences
from originals_cases import CASES, CONTEXT, random_model, series
from safetensors.torch import load_file, save_file

from tsprune.data.batch import Batch
from tsprune.evaluation.machine import load_average, machine_line, versions
from tsprune.exports._export import Request
from tsprune.exports.masked import EXPORT
from tsprune.models import load
from tsprune.models._forecaster import Forecaster
from tsprune.progress import Progress
from tsprune.slimming import slim
from tsprune.stages import read_json, write_json

ROWS, STEPS, RANDOM = 8, 64, "random:"
WHOLE = ("attention", "ffn", "layer")
SHARES = {"head": 0.6, "kv_group": 0.8, "qk_pair": 0.7, "value_dim": 0.7, "ffn_channel": 0.5}
"""Share of the units that stay; nine in ten of the channels, branches and layers."""


def random_cut(model: Forecaster, seed: int) -> Forecaster:
    """A slim model that lost units of every kind; every other channel group of the residual width goes by an index."""
    draw = np.random.default_rng(seed)
    kept: dict[str, list[int]] = {}
    for name, group in model.unit_groups().items():
        if group.kind == "expert":
            continue
        stays = draw.random(group.units) < SHARES.get(group.kind, 0.9)
        if group.kind not in WHOLE and not stays.any():
            stays[draw.integers(group.units)] = True
        kept[name] = [int(unit) for unit in np.flatnonzero(stays)]
    channels = [name for name in kept if name.endswith(("/in_channel", "/out_channel"))]
    return slim(model, kept, channels[::2])


def one(model: Forecaster, name: str, theirs: Originals, seed: int, folder: Path) -> dict[str, Any]:
    """Cut, write, load in the original, compare; `name` is that of the case."""
    case = CASES[name]
    smaller = random_cut(model, seed)
    inputs = case.inputs(model.config, ROWS)
    out = folder / f"cut{seed}"
    out.mkdir()
    batch = Batch(series(ROWS, min(CONTEXT, model.context_length)))
    written = EXPORT.write(Request(smaller, name, out, [batch], STEPS, Progress(quiet=True)))
    given, returned = folder / "inputs.safetensors", folder / "outputs.safetensors"
    save_file(inputs, given)
    told = theirs.ask("load", name=name, directory=str(out))
    theirs.ask("forward", inputs=str(given), outputs=str(returned))
    with torch.no_grad():
        shown = case.shown(smaller, inputs, case.forward(smaller, inputs))
        untouched = case.shown(model, inputs, case.forward(model, inputs))
    found = differences(shown, load_file(returned))
    moved = max(float((shown[key] - untouched[key]).double().std() / untouched[key].double().std()) for key in shown)
    return {
        "original": told["original"],
        "parameters": {"whole": model.parameter_count(), **written["parameters"], "original": told["parameters"]},
        "units": sum(group.units for group in smaller.unit_groups().values()),
        "moved_by_the_cut": round(moved, 4),
        "round_trip": written["difference"],
        "apart_from_the_original": found,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--originals", required=True, metavar="PYTHON")
    parser.add_argument("--models", nargs="+", default=["mini"], help="models of families with an original")
    parser.add_argument("--cuts", type=int, default=3, help="random cuts of each model")
    parser.add_argument("--add", action="store_true", help="keep what OUT holds of other models")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "masked_originals.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    theirs = Originals(given.originals)
    found: dict[str, Any] = {}
    kept = read_json(given.out)["models"] if given.add and given.out.is_file() else {}
    failed = {}
    try:
        for source in given.models:
            random = source.startswith(RANDOM)
            model = random_model(CASES[source.removeprefix(RANDOM)]) if random else load(source)
            name = source.removeprefix(RANDOM) if random else model.family
            for seed in range(given.cuts):
                with tempfile.TemporaryDirectory() as folder:
                    try:
                        cell = one(model, name, theirs, seed, Path(folder))
                    except (Failed, Missing) as error:
                        failed[f"{name} {seed}"] = str(error)
                        continue
                weights = {"weights": "random" if random else "pretrained", "packages": theirs.versions}
                found.setdefault(name, weights)[f"cut {seed}"] = cell
                sizes, apart = cell["parameters"], cell["apart_from_the_original"]["relative"]
                print(
                    f"{name:<13} cut {seed}: {sizes['slim']} of {sizes['whole']} parameters, "
                    f"{cell['original']} apart by {apart:.1e} of the deviation",
                    flush=True,
                )
    finally:
        theirs.close()
    facts = {
        "question": "Do the original packages load a masked export unchanged and give the slim model's forecasts?",
        "most_apart": MOST_APART,
        "models": kept | found,
        "failed": failed,
        "machine": machine_line(busy=load_average() > 1.5, threads=1),
        "versions": versions(),
    }
    write_json(given.out, facts)
    for name, reason in failed.items():
        print(f"{name}: FAILED: {reason}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
