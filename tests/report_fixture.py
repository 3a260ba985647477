"""A realistic run for the report's tests: numbers of a small model on hourly load, all made up."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

from tsprune.report import ForecastExample

_ERRORS = {  # name: validation (mse, mae, mase, wql), test (same), parameters, flops, latency, spread
    "seasonal_naive": ((0.512, 0.471, 1.21, 0.118), (0.548, 0.489, 1.26, 0.124), 0, 0, 0.08, [0.07, 0.09]),
    "zero_shot": (
        (0.401, 0.402, 0.98, 0.094),
        (0.428, 0.415, 1.02, 0.099),
        8_652_672,
        512_000_000,
        21.4,
        [20.9, 22.3],
    ),
    "full_finetuning": (
        (0.372, 0.385, 0.93, 0.089),
        (0.402, 0.401, 0.97, 0.094),
        8_652_672,
        512_000_000,
        21.5,
        [21.0, 22.6],
    ),
    "random_prune_finetune": (
        (0.388, 0.394, 0.96, 0.092),
        (0.419, 0.411, 1.00, 0.097),
        5_210_112,
        309_000_000,
        13.9,
        [13.5, 14.6],
    ),
    "prune_then_finetune": (
        (0.365, 0.380, 0.92, 0.087),
        (0.388, 0.392, 0.95, 0.091),
        5_188_608,
        307_000_000,
        13.7,
        [13.4, 14.2],
    ),
}
_NAMES = ("mse", "mae", "mase", "wql")


def results() -> dict[str, Any]:
    """A run in which pruning paid; change the copy to make it lose, and compare it anew with `compared`."""
    return compared(_bare())


def compared(base: dict[str, Any], spread: float = 0.01, **stored: Any) -> dict[str, Any]:
    """A copy with the comparison that errors such as these would have.

    Args:
        base: a run; candidates whose test error is missing are left out of the comparison.
        spread: intervals reach from `1 - spread` to `1 + spread` times the ratio; what they exclude is significant. 0
            stands for too few windows for an interval.
        stored: replaces parts of the comparison.
    """
    changed = copy.deepcopy(base)
    measures, pairs, chosen = {}, {}, changed["chosen"]
    for measure in ("mse", "mae"):
        errors = {c["name"]: c["test"].get(measure) for c in changed["candidates"]}
        known = {n: float(e) for n, e in errors.items() if e is not None and math.isfinite(e) and e > 0}
        if len(known) < 2 or "full_finetuning" not in known:
            continue
        order = sorted(known, key=lambda name: known[name])
        first, second = order[:2]
        top = _pair(known[first] / known[second], spread)
        measures[measure] = {
            "measure": measure,
            "level": 0.95,
            "reference": "full_finetuning",
            "rows": 640,
            "blocks": {"unit": "origins", "units": 80, "overlap": 2, "block_length": 5},
            "ranking": [
                {"name": name, "win_rate": 0.5, **_pair(known[name] / known["full_finetuning"], spread)}
                | ({"verdict": "reference"} if name == "full_finetuning" else {})
                for name in order
            ],
            "top": {"first": first, "second": second, **top, "better": top["verdict"] == "better"},
            "notes": [],
        }
        own = known.get(chosen)
        pairs[measure] = {n: _pair(own / e, spread) for n, e in known.items() if own is not None and n != chosen}
    whole = {"reference": "full_finetuning", "measures": measures, "chosen": pairs, "notes": []}
    changed["comparison"] = whole | stored
    return changed


def _pair(ratio: float, spread: float) -> dict[str, Any]:
    low, high = (ratio * (1 - spread), ratio * (1 + spread)) if spread else (None, None)
    said = "better" if high is not None and high < 1 else "worse" if low is not None and low > 1 else "undecided"
    p_value = 0.4 if said == "undecided" else 0.0004
    return {
        "ratio": {"estimate": ratio, "low": low, "high": high, "level": 0.95},
        "diebold_mariano": {"difference": ratio - 1, "statistic": 1.0, "p_value": p_value, "units": 80, "lags": 1},
        "verdict": said,
    }


def _bare() -> dict[str, Any]:
    candidates = [
        {
            "name": name,
            "validation": dict(zip(_NAMES, v, strict=True)),
            "test": dict(zip(_NAMES, t, strict=True)),
            "parameters": p,
            "flops": f,
            "latency_ms": ms,
            "latency_spread_ms": list(spread),
            "notes": "",
        }
        for name, (v, t, p, f, ms, spread) in _ERRORS.items()
    ]
    candidates[0]["notes"] = "repeats the last season of 24 steps"
    return {
        "schema": 1,
        "protocol": {
            "data": "load_hourly.csv",
            "fingerprint": "9f2c" + "0a1b" * 15,
            "model": "chronos-bolt-tiny",
            "horizon": 48,
            "context": 512,
            "frequency": "h",
            "season": 24,
            "split": {
                "name": "ratio 0.7/0.1/0.2",
                "train_end": "2023-09-12 23:00:00",
                "validation_end": "2023-10-19 11:00:00",
                "test_end": "2023-12-31 23:00:00",
            },
            "windows": {"train": 5440, "validation": 318, "test": 640},
            "strides": {"train": 8, "validation": 24, "test": 24},
            "scale": "z-score fitted on train, per series",
            "series": 8,
            "threads": 2,
            "latency_batch": 8,
            "machine": "x86_64, 2 cores, 8 GiB, Linux 6.1",
            "inferred": {
                "layout": "long",
                "id column": "meter",
                "timestamp column": "time",
                "value column": "load_kw",
                "frequency": "h (hourly)",
                "covariates": "none",
            },
            "repairs": [
                "series M-104: 3 missing timestamps put on the grid as missing values",
                "series M-017: 2 duplicate timestamps, last value kept",
            ],
            "pretraining_overlap": "unknown: the corpora list does not name this source",
            "leakage": [
                {"guard": "scaler", "verdict": "ok", "words": "mean and deviation of 8 series are those of train"},
                {"guard": "copies", "verdict": "ok", "words": "no series holds values of another one"},
                {"guard": "pretraining", "verdict": "unknown", "words": "the corpora list does not name this source"},
            ],
        },
        "candidates": candidates,
        "chosen": "prune_then_finetune",
        "verdict": "",
        "equivalence": {"max_abs_difference": 1.9e-6, "relative": 2.1e-6, "relative_float64": 3e-15, "windows": 64},
        "seed": 0,
        "versions": {"tsprune": "0.1.0", "torch": "2.13.0", "numpy": "2.3.4", "python": "3.11.7"},
        "timings": {
            "read": 0.8,
            "zero_shot": 14.2,
            "full_finetuning": 412.0,
            "prune": 151.3,
            "prune_finetune": 305.9,
            "test": 38.4,
        },
        "pruning": {
            "rounds": [
                {"round": i, "removed_share": s, "parameters": int(8_652_672 * (1 - s)), "validation_loss": v}
                for i, (s, v) in enumerate(
                    zip(
                        (0.0, 0.08, 0.16, 0.24, 0.32, 0.4, 0.48, 0.56),
                        (0.201, 0.2, 0.197, 0.195, 0.196, 0.194, 0.203, 0.221),
                        strict=True,
                    )
                )
            ],
            "best_round": 5,
        },
        "search": {
            name: [
                {"learning_rate": rate, "steps": 200, "best_step": step, "validation_loss": loss + shift}
                for rate, step, loss in ((1e-5, 900, 0.195), (5e-5, 600, 0.186), (2e-4, 150, 0.191))
            ]
            for name, shift in (
                ("full_finetuning", 0.0),
                ("random_prune_finetune", 0.006),
                ("prune_then_finetune", -0.004),
            )
        },
    }


def plan() -> dict[str, Any]:
    """A plan for an encoder-decoder of 4 + 4 layers with a whole layer, attention and FFN removed."""
    rng = random.Random(7)
    groups: dict[str, Any] = {}

    def add(name: str, units: int, kept: int) -> None:
        groups[name] = {
            "kind": name.rpartition("/")[2],
            "units": units,
            "kept": sorted(rng.sample(range(units), kept)),
        }

    for stack in ("encoder", "decoder"):
        for i in range(4):
            layer = f"{stack}.block.{i}"
            attentions = ["0.self_attention"] + (["1.cross_attention"] if stack == "decoder" else [])
            add(f"{layer}/layer", 1, 0 if (stack, i) == ("decoder", 2) else 1)
            for part in attentions:
                add(
                    f"{layer}.layer.{part}/attention",
                    1,
                    0 if (stack, i, part[0]) == ("encoder", 3, "0") else 1,
                )
                add(f"{layer}.layer.{part}/head", 4, rng.choice((1, 2, 3, 4, 4)))
            add(f"{layer}.layer.2.mlp/ffn", 1, 0 if (stack, i) == ("encoder", 0) else 1)
            add(f"{layer}.layer.2.mlp/ffn_channel", 1024, rng.randint(200, 1024))
    return {
        "schema": 1,
        "base_model": "chronos-bolt-tiny",
        "base_fingerprint": "ab" * 32,
        "family": "chronos_bolt",
        "score": "taylor",
        "schedule": "iterative",
        "data_fingerprint": "9f" * 32,
        "seed": 0,
        "parameters": {"before": 8_652_672, "after": 5_188_608},
        "flops": {"before": 512_000_000, "after": 307_000_000},
        "groups": groups,
    }


def units() -> dict[str, Any]:
    """Unit groups of the whole model with the cost of one unit."""
    cost = {"head": 65_536, "ffn_channel": 512, "attention": 262_144, "ffn": 524_288, "layer": 786_432}
    return {
        name: {"kind": g["kind"], "units": g["units"], "parameters": cost[g["kind"]]}
        for name, g in plan()["groups"].items()
    }


def forecasts(count: int = 6) -> list[ForecastExample]:
    """Daily waves with noise; the second series has gaps."""
    made = []
    for k in range(count):
        rng = random.Random(k)
        wave = [
            math.sin(2 * math.pi * (t + 3 * k) / 24) * (1 + 0.2 * k) + 0.05 * k + rng.gauss(0, 0.18)
            for t in range(96 + 48)
        ]
        history, truth = wave[:96], wave[96:]
        if k == 1:
            history[40:52] = [math.nan] * 12
        middle = [math.sin(2 * math.pi * (96 + t + 3 * k) / 24) * (1 + 0.19 * k) + 0.05 * k for t in range(48)]
        spread = [0.2 + 0.006 * t for t in range(48)]
        made.append(
            ForecastExample(
                f"M-{100 + k}",
                "2023-10-21 00:00:00",
                history,
                truth,
                {
                    q: [m + z * s for m, s in zip(middle, spread, strict=True)]
                    for q, z in ((0.1, -1.3), (0.5, 0.0), (0.9, 1.3))
                },
                {"zero_shot": [0.8 * m + 0.1 for m in middle]},
            )
        )
    return made


def with_error(base: dict[str, Any], name: str, part: str, **errors: float | None) -> dict[str, Any]:
    """A copy of `base` in which one candidate's errors are replaced, compared anew."""
    changed = copy.deepcopy(base)
    next(c for c in changed["candidates"] if c["name"] == name)[part].update(errors)
    return compared(changed)
