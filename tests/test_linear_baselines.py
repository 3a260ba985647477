"""NLinear and DLinear: ridge regression against brute force, missing targets, and what comes out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from rivals import CONTEXT, HORIZON, LINEAR, SEASON, class_of, fitted, panel, rough_rows, split_of
from tsprune.data.batch import Batch
from tsprune.data.panel import Panel, Series
from tsprune.data.split import Split
from tsprune.errors import TspruneError
from tsprune.evaluation.baselines import _linear, _moments
from tsprune.evaluation.baselines._linear import complete
from tsprune.evaluation.cost import flops, parameters
from tsprune.evaluation.evaluate import measure
from tsprune.evaluation.metrics import DECILES


def learnt_rows(name: str, split: Split) -> tuple[np.ndarray, np.ndarray, Any]:
    """Inputs with the intercept's 1, outputs less their centre, and what the map sees, row by row from the windows."""
    model, train = class_of(name), split.train()
    batch = train.batch(np.arange(len(train)))
    rows = complete(batch.context)
    centre = rows[:, -1:] if name == "nlinear" else torch.zeros(len(rows), 1)
    inputs = model.inputs(rows - centre).numpy()
    return np.c_[inputs, np.ones(len(inputs))], (batch.target.double() - centre).numpy(), centre


def ridge_by_hand(inputs: np.ndarray, outputs: np.ndarray, strength: float) -> np.ndarray:
    """Least squares with one further row per weight that pulls it to 0, `[P + 1]`."""
    seen = ~np.isnan(outputs)
    x, y = inputs[seen], outputs[seen]
    pull = math.sqrt(strength * (x[:, :-1] ** 2).sum(0).mean())
    rows = np.c_[pull * np.eye(x.shape[1] - 1), np.zeros(x.shape[1] - 1)]
    return np.linalg.lstsq(np.r_[x, rows], np.r_[y, np.zeros(len(rows))], rcond=None)[0]


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("missing", [0.0, 0.15])
@pytest.mark.parametrize("room", [2**28, 1])
def test_linear_map_is_ridge_regression_on_training_windows(
    name: str, missing: float, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_linear, "STRENGTHS", (0.03,))
    monkeypatch.setattr(_moments, "ROOM", room)
    monkeypatch.setattr(_moments, "ROWS", 50)
    split = split_of(panel(missing=missing))
    model = fitted(name, split)
    inputs, outputs, _ = learnt_rows(name, split)
    for step in range(HORIZON):
        expected = ridge_by_hand(inputs, outputs[:, step], 0.03)
        own = torch.cat([model.weight[step], model.bias[step : step + 1]]).numpy()
        np.testing.assert_allclose(own, expected, rtol=1e-7, atol=1e-9)
    assert any("lack targets" in note for note in model.remarks()) == (missing > 0)


@pytest.mark.parametrize("name", LINEAR)
def test_linear_forecast_and_its_quantiles_follow_from_map_and_residuals(name: str) -> None:
    split = split_of(panel(missing=0.05))
    model = fitted(name, split)
    inputs, outputs, _ = learnt_rows(name, split)
    weights = np.c_[model.weight.numpy(), model.bias.numpy()].T
    residuals = outputs - inputs @ weights
    windows = split.test()
    batch = windows.batch(np.arange(9))
    rows = complete(batch.context)
    centre = rows[:, -1:] if name == "nlinear" else torch.zeros(9, 1)
    point = np.c_[type(model).inputs(rows - centre).numpy(), np.ones(9)] @ weights + centre.numpy()
    found = model.forecast(batch, HORIZON, (0.5, 0.2)).double().numpy()
    np.testing.assert_allclose(found[:, 0], point, rtol=1e-5, atol=1e-6)
    apart = np.nanquantile(residuals, 0.2, axis=0) - np.nanquantile(residuals, 0.5, axis=0)
    np.testing.assert_allclose(found[:, 1] - found[:, 0], np.tile(apart, (9, 1)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LINEAR)
def test_validation_chooses_the_strength_of_the_ridge(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    split = split_of(panel(steps=90))
    chosen = fitted(name, split)
    errors = {}
    for strength in _linear.STRENGTHS:
        monkeypatch.setattr(_linear, "STRENGTHS", (strength,))
        errors[strength] = measure(fitted(name, split), split.validation(), split).metrics["mse"]
    best = min(errors, key=lambda strength: errors[strength])
    assert f"ridge {best:g} of" in chosen.remarks()[0]


def test_dlinear_sees_the_centred_moving_average_and_the_rest() -> None:
    row = torch.randn(1, 40, generator=torch.Generator().manual_seed(3)).double()
    values = row[0].tolist()
    padded = [values[0]] * 12 + values + [values[-1]] * 12
    trend = [sum(padded[place : place + 25]) / 25 for place in range(40)]
    found = class_of("dlinear").inputs(row)[0]
    torch.testing.assert_close(found[:40], torch.tensor(trend, dtype=torch.float64))
    torch.testing.assert_close(found[40:], row[0] - found[:40])


def test_nlinear_follows_the_level() -> None:
    model = fitted("nlinear", split_of(panel()))
    rows = rough_rows()[:3]
    low, high = (model.forecast(Batch(one), HORIZON, DECILES) for one in (rows, rows + 100))
    torch.testing.assert_close(high, low + 100, rtol=1e-5, atol=1e-4)


def test_linear_baselines_are_counted_and_refuse_other_sizes() -> None:
    split = split_of(panel())
    nlinear, dlinear = (fitted(name, split) for name in LINEAR)
    assert parameters(nlinear) == HORIZON * (CONTEXT + 1)
    assert parameters(dlinear) == HORIZON * (2 * CONTEXT + 1)
    assert flops(nlinear, CONTEXT, HORIZON) == 2 * HORIZON * CONTEXT
    for context, horizon in ((CONTEXT + 1, HORIZON), (CONTEXT, HORIZON + 1)):
        with pytest.raises(TspruneError, match="fitted on a context of 12 and a horizon of 4"):
            nlinear.forecast(Batch(torch.zeros(1, context)), horizon, (0.5,))
    torch.testing.assert_close(
        nlinear.forecast(Batch(rough_rows()), 2, DECILES), nlinear.forecast(Batch(rough_rows()), 4, DECILES)[..., :2]
    )


def test_series_that_say_nothing_and_steps_that_never_come_are_survived() -> None:
    flat = Panel((Series("flat", np.full(80, 3, np.float32)), Series("flat too", np.full(80, 5, np.float32))))
    # The train part holds one window, which lacks the last step.
    values = panel().series[0].values[: CONTEXT + 3 * HORIZON].copy()
    values[CONTEXT + HORIZON - 1] = np.nan
    for name in LINEAR:
        model = fitted(name, split_of(flat))
        assert (model.forecast(Batch(torch.full((1, CONTEXT), 2.0)), HORIZON, DECILES) == 2 * (name == "nlinear")).all()
        single = fitted(name, split_of(Panel((Series("one", values),)), spec="holdout"))
        assert any("1 step of the horizon never occur" in note for note in single.remarks())
        assert (single.weight[-1] == 0).all() and (single.weight[0] != 0).any()


def test_short_series_are_padded_and_groups_are_taken_apart() -> None:
    made = panel()
    short = Series("short", made.series[0].values[:20], start=made.series[0].start)
    mixed = split_of(Panel((*made.series, short), frequency="h", period=SEASON), spec="holdout")
    assert any("padded" in note for note in mixed.notes)
    for name in LINEAR:
        alone, together = (fitted(name, split_of(made, grouping=grouping)) for grouping in ("none", "all"))
        torch.testing.assert_close(alone.weight, together.weight)
        assert torch.isfinite(fitted(name, mixed).weight).all()
