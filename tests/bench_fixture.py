"""Results of a grid for tests: 2 models, 3 data sets, 2 horizons, 8 candidates and 2 rivals, 3 seeds; all made up."""

from __future__ import annotations

import math
import random
from typing import Any

from tsprune.evaluation.comparing import overall

MODELS, DATA, HORIZONS, SEEDS = ["ttm", "chronos_bolt"], ["ETTh1", "ETTm1", "weather_hourly"], [96, 336], [0, 1, 2]
OWN = {  # candidate: kind, mean ratio to full fine-tuning, share of parameters, share of latency
    "zero_shot": ("zero_shot", 1.09, 1.0, 1.0),
    "full_finetuning": ("tuned", 1.0, 1.0, 1.0),
    "head_only": ("tuned", 1.03, 1.0, 1.0),
    "lora": ("tuned", 1.005, 1.0, 1.02),
    "random_prune_finetune": ("tuned", 1.04, 0.52, 0.63),
    "magnitude_prune_finetune": ("tuned", 1.015, 0.52, 0.62),
    "prune_then_finetune": ("tuned", 0.975, 0.52, 0.62),
    "specialist": ("specialist", 0.98, 0.6, 0.7),
}
RIVALS = {"seasonal_naive": ("baseline", 1.6), "dlinear": ("baseline", 1.06)}
_LEVELS = {"ETTh1": 0.38, "ETTm1": 0.33, "weather_hourly": 0.19}


def rows(
    data: list[str] = DATA, shares: tuple[float, ...] = (1.0,), models: list[str] = MODELS
) -> list[dict[str, Any]]:
    """One row per cell and seed."""
    draw = random.Random(7)
    found = []
    for name in data:
        for horizon in HORIZONS:
            for share in shares:
                level = _LEVELS.get(name, 0.5) * (1 + horizon / 1000) * (1 + 0.05 * math.log(1 / share))
                for model in models:
                    for candidate, (kind, ratio, kept, _) in OWN.items():
                        pull = draw.gauss(1, 0.015)
                        for seed in SEEDS:
                            error = level * ratio * pull * draw.gauss(1, 0.004) * (1.02 if model == "ttm" else 1)
                            size = int(kept * (805_280 if model == "ttm" else 8_652_672))
                            found.append(_row(model, name, horizon, share, candidate, kind, seed, error, size))
                for candidate, (kind, ratio) in RIVALS.items():
                    found.append(_row(None, name, horizon, share, candidate, kind, None, level * ratio, 0))
    return found


def _row(
    model: str | None, data: str, horizon: int, share: float, candidate: str, kind: str, seed: int | None,
    error: float, size: int,
) -> dict[str, Any]:  # fmt: skip
    errors = {"mse": error, "mae": 0.6 * math.sqrt(error), "mase": None, "wql": None, "smape": None}
    return {
        "model": model, "data": data, "protocol": "ltsf", "horizon": horizon, "context": 512, "share": share,
        "candidate": candidate, "kind": kind, "seed": seed, "validation": errors, "test": errors, "parameters": size,
        "flops": 100 * size, "notes": [],
    }  # fmt: skip


def latencies(busy: bool = False) -> list[dict[str, Any]]:
    """One per model, task and candidate, and per rival."""
    found = []
    for name in DATA:
        for horizon in HORIZONS:
            for model in MODELS:
                for candidate, (*_, speed) in OWN.items():
                    time = speed * (4.0 if model == "ttm" else 21.0) * (1 + horizon / 2000)
                    found.append(_latency(model, name, horizon, candidate, time, busy))
            found += [_latency(None, name, horizon, rival, 0.3, busy) for rival in RIVALS]
    return found


def _latency(model: str | None, data: str, horizon: int, candidate: str, time: float, busy: bool) -> dict[str, Any]:
    return {
        "model": model, "data": data, "horizon": horizon, "candidate": candidate, "latency_ms": time,
        "spread_ms": [0.97 * time, 1.06 * time], "batch": 1, "busy": busy,
    }  # fmt: skip


def comparisons() -> list[dict[str, Any]]:
    """What `comparing.compare` says, made up of means and an interval of 2.5 %."""
    found = []
    table = rows()
    for model in MODELS:
        for name in DATA:
            for horizon in HORIZONS:
                by_name: dict[str, list[float]] = {}
                for row in table:
                    if row["model"] in (model, None) and (row["data"], row["horizon"]) == (name, horizon):
                        by_name.setdefault(row["candidate"], []).append(row["test"]["mse"])
                found.append(
                    {
                        "model": model, "data": name, "horizon": horizon, "share": 1.0, "seeds": SEEDS,
                        "compared": _compared({one: sum(v) / len(v) for one, v in by_name.items()}),
                    }
                )  # fmt: skip
    return found


def _compared(means: dict[str, float]) -> dict[str, Any]:
    ranking = []
    for name in sorted(means, key=lambda one: means[one]):
        ratio = means[name] / means["full_finetuning"]
        low, high = ratio * 0.975, ratio * 1.027
        said = "better" if high < 1 else "worse" if low > 1 else "undecided"
        ranking.append(
            {
                "name": name,
                "value": {"estimate": means[name], "low": None, "high": None, "level": 0.95},
                "ratio": {"estimate": ratio, "low": low, "high": high, "level": 0.95},
                "win_rate": 0.5,
                "diebold_mariano": {"p_value": 0.01},
                "verdict": "reference" if name == "full_finetuning" else said,
            }
        )
    return {"measure": "mse", "level": 0.95, "reference": "full_finetuning", "ranking": ranking, "notes": []}


def summary(table: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Of `rows()`, or of other rows."""
    given = rows() if table is None else table
    models = list(dict.fromkeys(row["model"] for row in given if row["model"]))
    data = list(dict.fromkeys(row["data"] for row in given))
    measures = ["mse", "mae"]
    scopes = {**{model: [model] for model in models}, "all": models}
    return {
        "name": "long horizon",
        "measure": "mse",
        "measures": measures,
        "reference": "full_finetuning",
        "models": models,
        "data": data,
        "horizons": HORIZONS,
        "candidates": [*RIVALS, *OWN],
        "seeds": SEEDS,
        "protocols": [
            "Protocol ltsf: ETTh1, horizon 96. Train 12 months, validation 4, test 4; every window of the test part "
            "counts, the last incomplete batch too. Series are scaled by mean and deviation of the train part."
        ],
        "machine": "8 cores of an imaginary processor, 16 GiB",
        "versions": {"tsprune": "0.1", "torch": "2.9"},
        "settings": {"steps": 500, "learning_rates": [1e-4, 1e-3]},
        "missing": [],
        "overall": {
            measure: {scope: _overall(given, measure, own) for scope, own in scopes.items()} for measure in measures
        },
        "notes": ["All numbers are made up."],
    }


def _overall(table: list[dict[str, Any]], measure: str, models: list[str]) -> dict[str, Any]:
    seen: dict[str, dict[str, list[float]]] = {}
    sets: dict[str, str] = {}
    for model in models:
        for row in table:
            if row["model"] in (model, None) and row["share"] == 1.0:
                task = f"{model} {row['data']} {row['horizon']}"
                sets[task] = row["data"]
                seen.setdefault(task, {}).setdefault(row["candidate"], []).append(row["test"][measure])
    errors = {task: {name: sum(v) / len(v) for name, v in found.items()} for task, found in seen.items()}
    return overall(errors, "full_finetuning", data_sets=sets)
