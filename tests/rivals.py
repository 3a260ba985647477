"""A small panel and rough contexts that the tests of baselines share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tsprune.data.panel import Panel, Series
from tsprune.data.split import Split
from tsprune.evaluation import baselines

CONTEXT, HORIZON, SEASON = 12, 4, 6
LIBRARY = {"auto_ets": "AutoETS", "auto_theta": "AutoTheta"}
LINEAR = ("nlinear", "dlinear")


def library() -> Any:
    return pytest.importorskip("statsforecast.models", reason="the extra tsprune[baselines] is not installed")


def class_of(name: str) -> Any:
    if name in LIBRARY:
        library()
    return baselines.registry.find("tsprune.evaluation.baselines", name).BASELINE


def panel(*, count: int = 2, steps: int = 160, missing: float = 0.0, level: float = 20.0, seed: int = 0) -> Panel:
    """Seasons with a trend and noise at different levels, all positive where the level is high."""
    rng = np.random.default_rng(seed)
    series = []
    for index in range(count):
        wave = np.sin(2 * np.pi * np.arange(steps) / SEASON + index) + np.arange(steps) / 50
        values = (level * (index + 1) + wave * (index + 1) + rng.normal(scale=0.4, size=steps)).astype(np.float32)
        values[rng.random(steps) < missing] = np.nan
        series.append(Series(f"s{index}", values, start=pd.Timestamp("2024-01-01")))
    return Panel(tuple(series), frequency="h", period=SEASON)


def split_of(made: Panel, **changes: Any) -> Split:
    return Split.make(made, **({"horizon": HORIZON, "context": CONTEXT, "spec": "ratio 70/10/20"} | changes))


def fitted(name: str, split: Split) -> Any:
    return class_of(name).fitted(split, SEASON)


def rough_rows() -> torch.Tensor:
    """Whole, gappy, padded, constant, nearly empty and empty contexts `[B, L]`."""
    rows = torch.randn(7, CONTEXT, generator=torch.Generator().manual_seed(0))
    rows[1, [3, 4, 11]] = math.nan
    rows[2, :5] = math.nan
    rows[3] = 1.5
    rows[4, :-1] = math.nan
    rows[5, [0, 1, 2, 4, 5, 6, 7, 8, 10, 11]] = math.nan
    rows[6] = math.nan
    return rows
