"""Does the Fisher score rank units as their true removal does? On the bundled model and the bundled sample.

    OMP_NUM_THREADS=1 python benchmarks/score_fidelity.py [--windows 128] [--channels 150] [--model mini] [--seed 0]

Every head and a seeded sample of feed-forward channels is switched off alone, and the change of the mean training loss
over the same windows is compared by rank with the score. Random scores are the control.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tsprune.data.batch import Batch
from tsprune.evaluation.machine import machine_line, versions
from tsprune.models import fingerprint
from tsprune.models._forecaster import Forecaster
from tsprune.preparing import prepare
from tsprune.pruning import validation_loss
from tsprune.scores.fisher import scores
from tsprune.settings import TaskSettings

Unit = tuple[str, int]
Values = NDArray[np.float64]
RANDOM_DRAWS = 200
HERE = Path(__file__).resolve().parent


def ranks(values: Values) -> Values:
    """Ranks from 0; equal values get the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((2 * ends - counts - 1) / 2)[inverse]


def spearman(a: Values, b: Values) -> float:
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def chosen_units(model: Forecaster, channels: int, seed: int) -> dict[str, list[Unit]]:
    """All heads, and a sample of the channels of all layers."""
    units: dict[str, list[Unit]] = {"head": [], "ffn_channel": []}
    for name, group in model.unit_groups().items():
        if group.kind in units:
            units[group.kind] += [(name, unit) for unit in range(group.units)]
    count = len(units["ffn_channel"])
    picked = np.random.default_rng(seed).choice(count, size=min(channels, count), replace=False)
    units["ffn_channel"] = [units["ffn_channel"][place] for place in np.sort(picked)]
    return units


def true_changes(model: Forecaster, windows: list[Batch], units: list[Unit]) -> Values:
    """Change of the mean loss when each unit alone is switched off."""
    base, groups = validation_loss(model, windows), model.unit_groups()
    changes = []
    for name, unit in units:
        with model.masked({name: [other for other in range(groups[name].units) if other != unit]}):
            changes.append(validation_loss(model, windows) - base)
    return np.array(changes)


def compare(score: Values, change: Values, seed: int) -> dict[str, float]:
    """Rank correlations of magnitudes, of signed values, and of random numbers (mean and deviation over draws)."""
    draw = np.random.default_rng(seed)
    control = [spearman(draw.random(len(change)), np.abs(change)) for _ in range(RANDOM_DRAWS)]
    found = {
        "units": len(change),
        "fisher_magnitude": spearman(np.abs(score), np.abs(change)),
        "fisher_signed": spearman(score, change),
        "random_mean": float(np.mean(control)),
        "random_deviation": float(np.std(control)),
        "share_whose_removal_lowers_the_loss": float((change < 0).mean()),
    }
    return {name: round(value, 4) for name, value in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--channels", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "score_fidelity.json")
    given = parser.parse_args()
    started = time.monotonic()
    ready = prepare(TaskSettings(model=given.model, seed=given.seed, threads=1))
    model, windows = ready.model, ready.macro_batch(1, given.windows)
    units = chosen_units(model, given.channels, given.seed)
    scored = scores(model, windows)
    kinds = {}
    for kind, some in units.items():
        score = np.array([float(scored[name][unit]) for name, unit in some])
        change = true_changes(model, windows, some)
        kinds[kind] = compare(score, change, given.seed)
    report = {
        "question": "Does the Fisher score rank units as their true removal does?",
        "model": given.model,
        "model_fingerprint": fingerprint(model),
        "data": ready.panel.source,
        "data_fingerprint": ready.panel.fingerprint(),
        "windows": sum(batch.rows for batch in windows) // ready.train.windows.rows_per_window,
        "context": ready.split.context,
        "horizon": ready.split.horizon,
        "loss": validation_loss(model, windows),
        "spearman": kinds,
        "seed": given.seed,
        "seconds": round(time.monotonic() - started, 1),
        "machine": machine_line(threads=torch.get_num_threads()),
        "versions": versions(),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"{'kind':<12} {'units':>5} {'|fisher|':>9} {'signed':>7} {'random':>15}")
    for kind, row in kinds.items():
        control = f"{row['random_mean']:.2f} +- {row['random_deviation']:.2f}"
        print(
            f"{kind:<12} {row['units']:>5} {row['fisher_magnitude']:>9.3f} {row['fisher_signed']:>7.3f} {control:>15}"
        )
    print(f"{report['seconds']} s; {report['machine']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
