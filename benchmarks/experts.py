"""Does a mixture of experts get faster as the work that is routed to experts falls?

    OMP_NUM_THREADS=1 python benchmarks/experts.py [--repeats 15]

Models of three sizes: the bundled mini-moe, and random weights at the public sizes of Time-MoE 50M and of Moirai-MoE
small. Each is cut by expert, by hidden channel of every expert, and by both (drawn by seed; a router sends a token to
as many experts as before, so fewer experts alone are not less work, only fewer and fuller groups of tokens), and timed
in turns on one thread in eager torch. Work is the operations of one forecast. Linux, five minutes.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
# The public sizes are those of the contract tests.
sys.path.insert(0, str(ROOT))

from tsprune.evaluation.cost import flops, latency  # noqa: E402
from tsprune.evaluation.machine import machine_line, versions  # noqa: E402
from tsprune.models import load  # noqa: E402
from tsprune.models._forecaster import Forecaster  # noqa: E402
from tsprune.registry import find  # noqa: E402
from tsprune.slimming import slim  # noqa: E402
from tsprune.stages import write_json  # noqa: E402

SHARES = {
    "uncut": (1.0, 1.0),
    "half of the experts": (0.5, 1.0),
    "half of the channels": (1.0, 0.5),
    "half of both": (0.5, 0.5),
    "half of the experts, a quarter of the channels": (0.5, 0.25),
}
"""Share of the experts of every mixture, and of the hidden channels of every expert, that stays."""
BATCHES = (1, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results" / "experts.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found, busy = {}, False
    for name, model, context, horizon in models():
        cut = {label: variant(model, *shares) for label, shares in SHARES.items()}
        entry: dict[str, Any] = {"context": context, "horizon": horizon, "variants": {}}
        for batch in BATCHES:
            times = latency(cut, batch, context, horizon, repeats=given.repeats)
            whole, work = times["uncut"].median_ms, flops(model, context, horizon, batch)
            for label, time in times.items():
                busy = busy or time.busy
                row = {
                    "work": round(flops(cut[label], context, horizon, batch) / work, 4),
                    "latency": round(time.median_ms / whole, 4),
                    **{key: round(value, 3) for key, value in asdict(time).items()},
                }
                told = entry["variants"].setdefault(label, {"parameters": cut[label].parameter_count()})
                told[f"batch {batch}"] = row
                print(
                    f"{name}, batch {batch}, {label}: {row['work']:.2f} of the work, {row['latency']:.2f} of the time "
                    f"({time.median_ms:.1f} ms){'  BUSY' * time.busy}",
                    flush=True,
                )
        found[name] = entry
    machine = machine_line(busy=busy, threads=1)
    question = "Does a mixture of experts get faster as the work that is routed to experts falls?"
    write_json(given.out, {"question": question, "models": found, "machine": machine, "versions": versions()})


def models() -> list[tuple[str, Forecaster, int, int]]:
    """Name, model, context and horizon (one pass) of each."""
    torch.manual_seed(0)
    sizes = (("time_moe", "time_moe 50M", 128, 64), ("moirai_moe", "moirai moe small", 512, 16))
    found = [("mini-moe", load("mini-moe"), 288, 64)]
    for family, named, context, horizon in sizes:
        public = importlib.import_module(f"tests.families.{family}").FAMILY.public
        config = next(dict(one.config) for one in public if one.name == named)
        model = find("tsprune.models", family).FAMILY.from_config(config).eval()
        found.append((f"{named}, random weights", model, context, horizon))
    return found


def variant(model: Forecaster, experts: float, channels: float) -> Forecaster:
    """The model with so much of every mixture and of every expert's hidden channels; the rest is whole."""
    draw = torch.Generator().manual_seed(0)
    kept = {}
    for name, group in model.unit_groups().items():
        share = experts if group.kind == "expert" else channels if is_of_an_expert(name, group.kind) else 1.0
        if share < 1:
            count = max(group.floor, round(share * group.units))
            kept[name] = sorted(torch.randperm(group.units, generator=draw)[:count].tolist())
    return slim(model, kept) if kept else copy.deepcopy(model)


def is_of_an_expert(name: str, kind: str) -> bool:
    return kind == "ffn_channel" and ".experts." in name


if __name__ == "__main__":
    main()
