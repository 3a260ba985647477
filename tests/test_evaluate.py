"""Evaluation over real windows: only targets are scored, batches do not matter, the target stays hidden."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tsprune.data.batch import Batch
from tsprune.data.panel import Panel, Series
from tsprune.data.split import Split
from tsprune.errors import TspruneError
from tsprune.evaluation.baselines.seasonal_naive import SeasonalNaive
from tsprune.evaluation.evaluate import Predictor, evaluate, examples, measure
from tsprune.evaluation.metrics import DECILES, naive_error
from tsprune.pruning import validation_loss

STEPS, SEASON = 200, 12


def make_panel(*, covariates: bool = False, missing: float = 0.0, count: int = 3, seed: int = 0) -> Panel:
    """Noisy monthly seasons at very different levels and scales."""
    import pandas as pd

    rng = np.random.default_rng(seed)
    series = []
    for index in range(count):
        wave = np.sin(2 * np.pi * np.arange(STEPS) / SEASON) + rng.normal(scale=0.3, size=STEPS)
        values = (wave * 10.0**index + 5 * index).astype(np.float32)
        values[rng.random(STEPS) < missing] = np.nan
        extra = {"price": rng.normal(size=STEPS).astype(np.float32) * 1e6} if covariates else {}
        promo = {"promo": rng.normal(size=STEPS + 30).astype(np.float32) * 1e6} if covariates else {}
        start = pd.Timestamp("2000-01-01")
        series.append(Series(f"s{index}", values, past=extra, known=promo, start=start))
    return Panel(tuple(series), frequency="MS")


def make_split(panel: Panel, grouping: str = "none") -> Split:
    return Split.make(panel, horizon=7, context=36, grouping=grouping)


class Noise(nn.Module):
    """Each row's forecast depends on that row alone; counts on having a mode, a loss and a device."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))
        self.batches: list[Batch] = []
        self.modes: list[bool] = []

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def forecast(self, batch: Batch, horizon: int, levels: Sequence[float]) -> Tensor:
        self.batches.append(batch)
        last = torch.nan_to_num(batch.context)[:, -horizon:] * self.weight
        return last[:, None, :] + torch.tensor(levels)[None, :, None]

    def loss(self, batch: Batch) -> Tensor:
        self.modes.append(self.training)
        assert batch.target is not None
        return torch.nan_to_num(batch.target).abs().mean(1)


def by_hand(model: Predictor, split: Split, windows) -> dict[str, float]:
    """Window by window from the series themselves, in original units."""
    squared, absolute, mase, loss, size = [], [], [], 0.0, 0.0
    for index in range(len(windows)):
        number, origin = int(windows.series_index[index]), int(windows.origin[index])
        values = split.panel.series[number].values.astype(float)
        train = values[: split.train_end[number]]
        mean, std = np.nanmean(train), np.nanstd(train)
        context = torch.tensor((values[origin - 36 : origin] - mean) / std).float()[None]
        scaled = model.forecast(Batch(context=context), 7, DECILES)[0].detach().double().numpy()
        truth = values[origin : origin + 7]
        seen = ~np.isnan(truth)
        if not seen.any():
            continue
        error = ((truth - mean) / std - scaled[4])[seen]
        squared += list(error**2)
        absolute += list(abs(error))
        forecast = scaled * std + mean
        steps = np.abs(train[SEASON:] - train[:-SEASON])
        mase.append(np.abs(truth - forecast[4])[seen].mean() / np.nanmean(steps))
        for level, path in zip(DECILES, forecast, strict=True):
            gap = (truth - path)[seen]
            loss += float(np.maximum(level * gap, (level - 1) * gap).sum())
        size += float(np.abs(truth[seen]).sum())
    return {
        "mse": float(np.mean(squared)),
        "mae": float(np.mean(absolute)),
        "mase": float(np.mean(mase)),
        "wql": 2 * loss / 9 / size,
    }


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("model", [SeasonalNaive(SEASON), Noise()])
def test_measures_equal_a_count_by_hand_from_the_series(missing, model):
    split = make_split(make_panel(missing=missing))
    windows = split.test()
    assert evaluate(model, windows, split) == pytest.approx(by_hand(model, split, windows), rel=1e-5)


@given(size=st.integers(1, 200), grouping=st.sampled_from(["none", "all"]), covariates=st.booleans())
@settings(max_examples=15, deadline=None)
def test_batch_size_does_not_change_a_bit(size, grouping, covariates):
    split = make_split(make_panel(covariates=covariates, missing=0.1), grouping)
    windows = split.validation()
    reference = evaluate(SeasonalNaive(SEASON), windows, split)
    assert evaluate(SeasonalNaive(SEASON), windows, split, batch_size=size) == reference


def test_covariate_rows_are_not_scored():
    plain, rich = make_split(make_panel()), make_split(make_panel(covariates=True))
    # The same target values, whatever the random covariates did to the generator.
    rich_panel = replace(
        rich.panel,
        series=tuple(
            replace(series, values=other.values)
            for series, other in zip(rich.panel.series, plain.panel.series, strict=True)
        ),
    )
    rich = make_split(rich_panel)
    assert rich.test().rows_per_window == 3
    model = SeasonalNaive(SEASON)
    assert evaluate(model, rich.test(), rich) == evaluate(model, plain.test(), plain)


def test_windows_over_all_series_score_every_series():
    together, alone = make_split(make_panel(), "all"), make_split(make_panel())
    model = SeasonalNaive(SEASON)
    found = evaluate(model, together.test(), together)
    assert found == pytest.approx(evaluate(model, alone.test(), alone), rel=1e-9)
    assert len(measure(model, together.test(), together).rows) == 3 * len(together.test())


def test_target_never_reaches_the_model_but_known_futures_do():
    split = make_split(make_panel(covariates=True))
    model = Noise()
    evaluate(model, split.test(), split)
    examples(model, split.test(), [0])
    assert model.batches
    for batch in model.batches:
        assert batch.target is None and batch.future is not None and batch.is_target is not None
        assert torch.isnan(batch.future[batch.is_target]).all()


def test_progress_reaches_the_number_of_windows():
    split = make_split(make_panel())
    windows = split.test()
    seen: list[tuple[int, int]] = []
    evaluate(SeasonalNaive(1), windows, split, batch_size=10, progress=lambda done, of: seen.append((done, of)))
    assert [done for done, _ in seen] == [*range(10, len(windows), 10), len(windows)]
    assert {of for _, of in seen} == {len(windows)}


def test_constant_train_part_is_left_out_of_mase_and_noted():
    panel = make_panel()
    flat = panel.series[0].values.copy()
    flat[:160] = 3.0
    panel = replace(panel, series=(replace(panel.series[0], values=flat), *panel.series[1:]))
    split = make_split(panel)
    windows = split.test()
    found = measure(SeasonalNaive(SEASON), windows, split)
    affected = int((windows.series_index == 0).sum())
    assert affected and any(f"leaves out {affected} of {len(windows)} windows" in note for note in found.notes)
    assert found.metrics["mase"] is not None and math.isfinite(found.metrics["mase"])


def test_context_without_observed_values_is_counted():
    panel = make_panel(count=1)
    values = panel.series[0].values.copy()
    split = make_split(panel)
    origin = int(split.test().origin[-1])
    values[origin - 36 : origin] = np.nan
    panel = replace(panel, series=(replace(panel.series[0], values=values),))
    windows = replace(split.test(), panel=panel)
    spoilt = replace(split, panel=panel)
    windows = replace(windows, scaler=spoilt.scaler)
    notes = measure(SeasonalNaive(SEASON), windows, spoilt).notes
    assert any("1 of" in note and "no observed value in their context" in note for note in notes)


def test_zero_targets_give_no_wql_however_large_the_series_was():
    panel = make_panel(count=1)
    values = np.abs(panel.series[0].values) * 1000 + 7
    split = make_split(panel)
    values[int(split.test().origin[0]) :] = 0.0
    split = make_split(replace(panel, series=(replace(panel.series[0], values=values),)))
    assert evaluate(SeasonalNaive(SEASON), split.test(), split)["wql"] is None


def test_model_that_gives_nan_is_refused():
    class Broken:
        def forecast(self, batch: Batch, horizon: int, levels: Sequence[float]) -> Tensor:
            return torch.full((batch.rows, len(levels), horizon), math.nan)

    split = make_split(make_panel())
    with pytest.raises(TspruneError, match="not finite"):
        evaluate(Broken(), split.test(), split)


def test_windows_that_do_not_belong_to_the_split_are_refused():
    split, other = make_split(make_panel()), make_split(make_panel(seed=1))
    with pytest.raises(TspruneError, match="another panel"):
        evaluate(SeasonalNaive(1), other.test(), split)
    with pytest.raises(TspruneError, match="not scaled"):
        evaluate(SeasonalNaive(1), replace(split.test(), scaler=None), split)
    with pytest.raises(TspruneError, match="scaled otherwise"):
        evaluate(SeasonalNaive(1), replace(split.test(), scaler=other.scaler), split)


def test_no_window_and_no_batch_are_refused():
    split = make_split(make_panel())
    with pytest.raises(TspruneError, match="no window"):
        evaluate(SeasonalNaive(1), split.test().subset([]), split)
    with pytest.raises(TspruneError, match="batch_size is 0"):
        evaluate(SeasonalNaive(1), split.test(), split, batch_size=0)


@pytest.mark.parametrize("training", [True, False])
def test_validation_loss_is_the_mean_over_windows_in_evaluation_mode(training):
    split = make_split(make_panel())
    windows = split.validation()
    model = Noise().train(training)
    expected = np.abs(windows.batch(np.arange(len(windows))).target.numpy().astype(float)).mean()
    assert validation_loss(model, [batch for _, batch in windows.batches(7)]) == pytest.approx(expected, rel=1e-6)
    assert not any(model.modes) and model.training is training


@pytest.mark.parametrize("grouping", ["none", "all"])
def test_examples_are_in_the_units_of_the_data(grouping):
    split = make_split(make_panel(), grouping)
    windows = split.test()
    which = [0, len(windows) * windows.targets_per_window - 1]
    naive = SeasonalNaive(SEASON)
    first, last = examples(naive, windows, which, others={"last value": SeasonalNaive(1)}, levels=(0.1, 0.5, 0.9))
    assert (first.series, last.series) == ("s0", "s2")
    values = split.panel.series[2].values
    origin = int(windows.origin[-1])
    np.testing.assert_allclose(last.truth, values[origin : origin + 7])
    np.testing.assert_allclose(last.history, values[origin - 14 : origin])
    np.testing.assert_allclose(last.quantiles[0.5], values[origin - 12 : origin - 5], rtol=1e-4)
    np.testing.assert_allclose(last.other["last value"], [values[origin - 1]] * 7, rtol=1e-4)
    assert last.window == str(split.panel.timestamps(2)[origin])
    assert list(last.quantiles) == [0.1, 0.5, 0.9]


def test_history_of_an_example_can_be_none_or_longer_than_the_context():
    windows = make_split(make_panel()).test()
    assert examples(SeasonalNaive(1), windows, [0], history=0)[0].history == []
    assert len(examples(SeasonalNaive(1), windows, [0], history=999)[0].history) == 36


@pytest.mark.parametrize("row", [-1, 10**6])
def test_example_that_does_not_exist_is_refused(row):
    with pytest.raises(TspruneError, match=f"example {row} does not exist"):
        examples(SeasonalNaive(1), make_split(make_panel()).test(), [row])


def test_mase_uses_the_season_of_the_panel_and_the_train_part_only():
    split = make_split(make_panel(count=1))
    windows = split.test()
    rows = measure(SeasonalNaive(SEASON), windows, split).rows
    train = split.panel.series[0].values[: int(split.train_end[0])]
    scale = split.scaler.std[0, 0]
    expected = rows.absolute / rows.observed * scale / naive_error(train, SEASON)
    np.testing.assert_allclose(rows.scaled, expected)
