"""Does it pay to let several ablations share a forward pass, and up to how many tokens?

    OMP_NUM_THREADS=1 python benchmarks/ablation_batches.py [MODEL ...] [--rounds 9] [--windows 8 64] [--limits 512]

Eight heads off, one at a time, on random walks of 256 steps: one pass each, or as many in a pass as a limit on its
context tokens allows. Both take turns within a round; a ratio is processor time of the shared passes over that of the
single ones, of one round, and the median of the rounds is what counts. The row "usual" is the limit that is built in.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tsprune.data.batch import Batch
from tsprune.evaluation.machine import machine_line, versions
from tsprune.lens import _ablating as ablating
from tsprune.lens._batched import losses_of
from tsprune.lens._together import TOKENS, Together
from tsprune.models import load
from tsprune.models._forecaster import Forecaster
from tsprune.stages import write_json

WINDOWS = (1, 4, 8, 16, 32, 64)
CONTEXT, HORIZON, ABLATIONS = 256, 16, 8
LIMITS = (256, 512, 1024, 2048)
HERE = Path(__file__).resolve().parent


def seconds(work: Callable[[], object]) -> float:
    """Processor time of this process."""
    started = time.process_time()
    work()
    return time.process_time() - started


def measured(model: Forecaster, windows: int, tokens: int | None, rounds: int) -> dict[str, Any]:
    """Ratios of shared to single passes."""
    draw = torch.Generator().manual_seed(windows)
    walks = torch.randn(windows, CONTEXT + HORIZON, generator=draw).cumsum(1)
    batch = Batch(walks[:, :CONTEXT], walks[:, CONTEXT:])
    groups = list(ablating.groups_of(model, "head").values())
    several = [ablating.without(groups[n % len(groups)], [n // len(groups)]) for n in range(ABLATIONS)]

    def single() -> None:
        losses_of(model, [batch], several, tokens=1)

    def shared() -> None:
        losses_of(model, [batch], several, tokens=tokens)

    single(), shared()
    ratios = []
    for number in range(rounds):
        order = (single, shared) if number % 2 else (shared, single)
        taken = {work: seconds(work) for work in order}
        ratios.append(taken[shared] / taken[single])
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75)).round(3).tolist()
    at_once = min(ABLATIONS, Together(model, tokens).at_once(batch))
    return {"windows": windows, "at_once": at_once, "ratio": middle, "q1": low, "q3": high}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["mini"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--windows", nargs="*", type=int, default=list(WINDOWS))
    parser.add_argument("--limits", nargs="*", type=int, default=list(LIMITS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name in given.models:
        model = load(name).eval()
        known = (
            name if not Path(name).exists() else f"{model.family} of {model.parameter_count() / 1e6:.1f} M parameters"
        )
        found[known] = {}
        for limit in (None, *given.limits):
            rows = [measured(model, windows, limit, given.rounds) for windows in given.windows]
            rows = [row for row in rows if limit is None or row["at_once"] > 1]
            found[known]["usual" if limit is None else str(limit)] = rows
            for row in rows:
                print(known, limit or "usual", row, flush=True)
    write_json(
        HERE / "results" / "ablation_batches.json",
        {"machine": machine_line(threads=1), "versions": versions(), "usual": TOKENS["cpu"], "rounds": given.rounds,
         "context": CONTEXT, "ablations": ABLATIONS, "models": found},
    )  # fmt: skip


if __name__ == "__main__":
    main()
