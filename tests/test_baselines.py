"""Baselines: numbers against brute force and the library itself, gaps, rows that must not mix, and the ways to them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch

import report_fixture as fixture
import tsprune
from rivals import CONTEXT, HORIZON, LIBRARY, SEASON, class_of, fitted, library, panel, rough_rows, split_of
from rowsums import rows_of
from running import SMALL, called, no_figures
from tsprune.data.batch import Batch
from tsprune.data.panel import Panel, Series
from tsprune.errors import TspruneError
from tsprune.evaluation import baselines
from tsprune.evaluation.baselines._statistical import FEW, Statistical
from tsprune.evaluation.baselines._workers import Workers
from tsprune.evaluation.baselines.drift import Drift
from tsprune.evaluation.baselines.seasonal_naive import SeasonalNaive
from tsprune.evaluation.cost import threads_set
from tsprune.evaluation.metrics import DECILES
from tsprune.evaluation.standings import read_rows, write_rows
from tsprune.proof import MEASURED, measured
from tsprune.report import verdict
from tsprune.report.figures import size_figure
from tsprune.stages import read_json

# ---- All of them


@pytest.mark.parametrize("name", baselines.names())
def test_quantiles_are_finite_ordered_and_each_row_stands_alone(name: str) -> None:
    model = fitted(name, split_of(panel()))
    batch = Batch(rough_rows())
    levels = (0.9, 0.05, 0.5, 0.3)
    found = model.forecast(batch, HORIZON, levels)
    assert found.shape == (batch.rows, len(levels), HORIZON) and found.dtype == torch.float32
    assert torch.isfinite(found).all()
    ordered = found[:, [1, 3, 2, 0]]
    assert (ordered.diff(dim=1) >= 0).all()
    alone = [model.forecast(Batch(batch.context[row : row + 1]), HORIZON, levels) for row in range(batch.rows)]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.forecast(batch, HORIZON, (0.3,))[:, 0], found[:, 3])


@pytest.mark.parametrize("name", baselines.names())
def test_the_test_part_is_not_learnt_from(name: str) -> None:
    whole = panel(missing=0.1)
    first = split_of(whole)
    spoilt = [series.values.copy() for series in whole.series]
    for values, end in zip(spoilt, first.validation_end, strict=True):
        values[end:] = 1e6
    series = tuple(Series(s.id, v, start=s.start) for s, v in zip(whole.series, spoilt, strict=True))
    models = [fitted(name, split) for split in (first, split_of(Panel(series, frequency="h", period=SEASON)))]
    batch = first.train().batch([0, 5, 40])
    one, other = (model.forecast(batch, HORIZON, DECILES) for model in models)
    assert torch.equal(one, other)


@pytest.mark.parametrize("name", baselines.names())
@pytest.mark.parametrize(("horizon", "levels"), [(0, (0.5,)), (HORIZON, (0.0,)), (HORIZON, (0.5, 1.0))])
def test_impossible_requests_are_refused(name: str, horizon: int, levels: tuple[float, ...]) -> None:
    with pytest.raises(TspruneError, match=r"horizon is 0|must lie strictly between"):
        fitted(name, split_of(panel())).forecast(Batch(rough_rows()), horizon, levels)


# ---- Drift


def drift_by_hand(row: list[float], horizon: int, level: float) -> list[float]:
    """The definition with plain numbers: a walk whose change over k steps has mean k c and variance k s^2."""
    seen = [(place, value) for place, value in enumerate(row) if not math.isnan(value)]
    if not seen:
        return [0.0] * horizon
    (first, begin), (last, end) = seen[0], seen[-1]
    slope = (end - begin) / (last - first) if last > first else 0.0
    pairs = list(zip(seen, seen[1:], strict=False))
    residuals = [(b - a - slope * (q - p)) / math.sqrt(q - p) for (p, a), (q, b) in pairs]
    spread = math.sqrt(sum(e**2 for e in residuals) / max(len(residuals) - 1, 1))
    out = []
    for step in range(1, horizon + 1):
        ahead = len(row) - 1 - last + step
        sigma = spread * math.sqrt(ahead * (1 + ahead / max(last - first, 1)))
        out.append(end + slope * ahead + NormalDist().inv_cdf(level) * sigma)
    return out


@pytest.mark.parametrize("level", [0.1, 0.5, 0.8])
def test_drift_equals_its_closed_form(level: float) -> None:
    rows = rough_rows()
    found = Drift().forecast(Batch(rows), 5, [level])[:, 0].tolist()
    for row, own in zip(rows.tolist(), found, strict=True):
        assert own == pytest.approx(drift_by_hand(row, 5, level), abs=1e-5)


def test_drift_without_gaps_is_the_line_through_both_ends() -> None:
    values = np.cumsum(np.random.default_rng(1).normal(0.3, 1, 30))
    batch = Batch(torch.tensor(values)[None])
    found = Drift().forecast(batch, 3, (0.5, NormalDist().cdf(1)))[0].numpy()
    slope = (values[-1] - values[0]) / 29
    np.testing.assert_allclose(found[0], values[-1] + slope * np.arange(1, 4))
    steps = np.arange(1, 4)
    # The mean change takes one degree of freedom: of T - 1 changes T - 2 are left.
    expected = np.std(np.diff(values), ddof=1) * np.sqrt(steps * (1 + steps / 29))
    np.testing.assert_allclose(found[1] - found[0], expected)


# ---- The library's models


def positive_rows() -> torch.Tensor:
    """Contexts in which multiplicative forms are possible `[B, 30]`."""
    values = [panel(count=3, level=level).series[place].values[:30] for level in (3.0, 40.0) for place in range(3)]
    return torch.from_numpy(np.stack(values)).double()


@pytest.mark.parametrize("name", LIBRARY)
def test_numbers_are_those_of_the_library_on_the_same_values(name: str) -> None:
    made = getattr(library(), LIBRARY[name])(season_length=SEASON)
    rows = torch.cat([positive_rows(), positive_rows() - 20])
    location, scale = torch.full((12,), 17.0), torch.full((12,), 4.0)
    state = np.random.get_state()[1].copy()
    scaled = Batch(((rows - 17) / 4), location=location, scale=scale)
    found = class_of(name)(SEASON).forecast(scaled, 5, (0.1, 0.5, 0.7)).double() * 4 + 17
    plain = class_of(name)(SEASON).forecast(Batch(rows), 5, (0.1, 0.5, 0.7))
    for place, row in enumerate(rows.numpy()):
        np.random.seed(0)
        expected = made.forecast(y=row, h=5, level=[40, 80])
        point = expected["mean"]
        wanted = [np.minimum(expected["lo-80"], point), point, np.maximum(expected["hi-40"], point)]
        np.testing.assert_allclose(plain[place].numpy(), wanted, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found[place].numpy(), wanted, rtol=1e-5, atol=1e-5)
    np.random.seed(5)
    state = np.random.get_state()[1].copy()
    class_of(name)(SEASON).forecast(Batch(rows[:2]), 5, (0.1,))
    assert (np.random.get_state()[1] == state).all()


@pytest.mark.parametrize("name", LIBRARY)
def test_windows_are_fitted_in_the_units_of_the_data(name: str) -> None:
    split = split_of(panel(), context=24)
    windows = split.test()
    made = getattr(library(), LIBRARY[name])(season_length=SEASON)
    batch = windows.batch([0, len(windows) - 1])
    found = fitted(name, split).forecast(batch, HORIZON, (0.5,))[:, 0].numpy()
    own = windows.scaler.inverse(found, windows.target_series([0, len(windows) - 1]))
    for place, values in enumerate(windows.contexts([0, len(windows) - 1])):
        expected = made.forecast(y=values.astype(np.float64), h=HORIZON)["mean"]
        np.testing.assert_allclose(own[place], expected, rtol=1e-5)


@pytest.mark.parametrize("name", LIBRARY)
def test_rows_that_cannot_be_fitted_are_seasonal_naive_and_said(name: str) -> None:
    library()
    rows = rough_rows()
    model = class_of(name)(SEASON)
    found = model.forecast(Batch(rows), HORIZON, DECILES)
    naive = SeasonalNaive(SEASON).forecast(Batch(rows), HORIZON, DECILES)
    same = [row for row in range(len(rows)) if torch.equal(found[row], naive[row])]
    assert {4, 6} <= set(same) and 0 not in same
    said = model.remarks()
    assert said[0].startswith("a model per window by statsforecast ")
    # The row without any value is no attempt: the evaluation counts it.
    assert any(f"{len(set(same) - {6, 3})} windows could not be fitted" in line for line in said)
    assert model.remarks() == said[:1]


def test_leading_gaps_are_left_out_and_later_ones_filled() -> None:
    library()
    row = positive_rows()[:1]
    model = class_of("auto_theta")(SEASON)
    padded = torch.cat([torch.full((1, 7), math.nan), row], dim=1)
    torch.testing.assert_close(
        model.forecast(Batch(padded), 3, DECILES), model.forecast(Batch(row), 3, DECILES).to(padded.dtype)
    )
    gap, line = row.clone(), row.clone()
    gap[0, 10] = math.nan
    line[0, 10] = (row[0, 9] + row[0, 11]) / 2
    torch.testing.assert_close(model.forecast(Batch(gap), 3, DECILES), model.forecast(Batch(line), 3, DECILES))


def test_rows_that_are_no_target_are_not_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    library()
    asked: list[int] = []

    def counted(self: Statistical, request: Any, rows: Any) -> Any:
        asked.append(len(rows))
        return np.full((len(rows), len(request.levels), request.horizon), 5.0), {}

    monkeypatch.setattr(Statistical, "_found", counted)
    targets = torch.tensor([True, False, True])
    found = class_of("auto_ets")(1).forecast(Batch(rough_rows()[:3], is_target=targets), 2, (0.5,))
    assert asked == [2]
    assert (found[targets] == 5).all() and (found[1] != 5).all()


def test_several_processes_give_the_same_numbers() -> None:
    library()
    rows = torch.from_numpy(np.random.default_rng(0).normal(10, 1, (FEW + 1, 16)))
    rows[5, :14] = math.nan
    model = class_of("auto_theta")(4)
    with threads_set(1):
        alone = model.forecast(Batch(rows), 3, DECILES), model.remarks()
    assert model._workers is None
    with threads_set(2):
        shared = model.forecast(Batch(rows), 3, DECILES), model.remarks()
    assert isinstance(model._workers, Workers) and len(model._workers) == 2
    assert torch.equal(alone[0], shared[0]) and alone[1] == shared[1]
    running = model._workers._running[0]
    running.kill()
    running.wait()
    with threads_set(2), pytest.raises(TspruneError, match="has ended early"):
        model.forecast(Batch(rows), 3, DECILES)


def test_cost_is_said_in_models_and_time() -> None:
    library()
    split = split_of(panel())
    windows = split.test()
    assert fitted("auto_theta", split).cost(windows).startswith(f"fits a model to each of {len(windows)} windows, 0.0")
    assert fitted("drift", split).cost(windows) == fitted("nlinear", split).cost(windows) == ""


@pytest.mark.parametrize("name", LIBRARY)
def test_missing_library_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TspruneError, match=rf"{name} needs .* pip install 'tsprune\[baselines\]'"):
        baselines.check(["drift", name])


# ---- Commands


def test_evaluate_scores_the_baselines_that_are_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = ["evaluate", "--data", "wide.csv", "--model", "chronos2", "--horizon", "8"]
    code, out, err = called([*task, "--baselines", "drift,dlinear", "--out", "m.json"], capsys)
    assert code == 0 and "fit baselines" in err
    stored = read_json(Path("m.json"))
    assert list(stored["models"]) == ["drift", "dlinear", "chronos2"]
    assert "chosen on validation" in stored["models"]["dlinear"]["notes"][0]
    assert "note: fitted in closed form" in out
    usual = called(task, capsys)
    assert "fit baselines" not in usual[2]
    assert [line.split()[0] for line in usual[1].splitlines()[1:]] == ["seasonal_naive", "chronos2"]


@pytest.mark.parametrize("command", ["evaluate", "specialize"])
def test_unknown_baseline_lists_the_known(command: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = called([command, "--data", "missing.csv", "--baselines", "drift,prophet"], capsys)
    assert code != 0
    assert "--baselines: 'prophet' is not among the baselines; known: auto_ets, auto_theta, dlinear, drift" in err


@pytest.fixture(scope="module")
def run(filled: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A run with two more baselines, and what it needs to be started again."""
    settings = SMALL | {"data": str(filled / "wide.csv"), "rounds": 1, "out": filled / "run"}
    settings |= {"baselines": ("seasonal-naive", "drift", "nlinear", "drift")}
    with no_figures():
        tsprune.specialize(str(filled / "chronos2"), **settings)
    yield filled, settings


def test_specialize_compares_further_baselines(run: tuple[Path, dict[str, Any]]) -> None:
    results = read_json(run[0] / "run" / "results.json")
    found = {entry["name"]: entry for entry in results["candidates"]}
    assert list(found)[:4] == ["seasonal_naive", "drift", "nlinear", "zero_shot"] and len(found) == 7
    assert found["nlinear"]["parameters"] == 8 * (results["protocol"]["context"] + 1)
    assert found["drift"]["parameters"] == found["drift"]["flops"] == 0
    assert "training windows" in found["nlinear"]["notes"]
    errors = {name: entry["validation"]["mse"] for name, entry in found.items()}
    assert results["chosen"] == min(errors, key=lambda name: errors[name])
    assert (run[0] / "run" / "model" / "model.safetensors").exists()


def test_other_baselines_measure_anew_and_the_same_resume(
    run: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, settings = run
    stages = folder / "run" / "stages"

    def refuse(*arguments: Any, **more: Any) -> None:
        raise AssertionError("nothing is left to do")

    with no_figures(), monkeypatch.context() as patch:
        patch.setattr("tsprune.specializing.measured", refuse)
        patch.setattr("tsprune.specializing.open_test", refuse)
        tsprune.specialize(str(folder / "chronos2"), **settings)
    before = {path.name for path in stages.iterdir()}
    assert not list(stages.glob(f"*/{MEASURED}"))
    with no_figures():
        tsprune.specialize(str(folder / "chronos2"), **settings | {"baselines": ()})
    added = {path.name for path in stages.iterdir()} - before
    assert {name.rsplit("-", 1)[0] for name in added} == {"validate", "test"}
    names = [entry["name"] for entry in json.loads((folder / "run" / "results.json").read_text())["candidates"]]
    assert "zero_shot" in names and "drift" not in names and "seasonal_naive" not in names
    inputs = [read_json(stages / name / "done.json")["inputs"]["baselines"] for name in sorted(added)]
    assert inputs == [[], []]


def test_what_was_measured_before_a_kill_is_kept(tmp_path: Path) -> None:
    from tsprune.preparing import prepare
    from tsprune.progress import Progress
    from tsprune.settings import TaskSettings

    ready = prepare(TaskSettings(horizon=HORIZON, context=CONTEXT), panel=panel())
    (tmp_path / MEASURED).mkdir()
    for name in ("drift", "seasonal_naive"):
        (tmp_path / MEASURED / f"{name}.json").write_text('{"metrics": {"mse": 7.0}, "notes": []}', encoding="utf-8")
    # What an older version measured has no rows, and is measured again.
    write_rows(tmp_path / MEASURED / "drift.safetensors", rows_of([7.0]))
    models = {"drift": Drift(), "seasonal_naive": SeasonalNaive(SEASON)}
    with Progress(quiet=True).stage("validate", 2) as bar:
        found = measured(tmp_path, ready, models, ready.validation[0], bar)
    assert found["drift"]["metrics"]["mse"] == 7
    assert found["seasonal_naive"] == read_json(tmp_path / MEASURED / "seasonal_naive.json")
    rows = read_rows(tmp_path / MEASURED / "seasonal_naive.safetensors")
    assert found["seasonal_naive"]["metrics"] == rows.metrics() and found["seasonal_naive"]["metrics"]["mse"] != 7


# ---- Report


def with_rivals(**errors: float) -> dict[str, Any]:
    """The fixture's run with further baselines of these test MSEs."""
    results = fixture.results()
    naive = results["candidates"][0]
    for name, error in errors.items():
        size = 1536 if name.endswith("linear") else 0
        results["candidates"].insert(
            1, naive | {"name": name, "parameters": size, "test": naive["test"] | {"mse": error}}
        )
    return fixture.compared(results)


def test_verdict_compares_with_the_best_baseline() -> None:
    text = verdict(with_rivals(drift=0.9, nlinear=0.35))
    assert "and MSE 11 % higher and MAE 19 % lower compared with NLinear" in text.replace("MAE 20 %", "MAE 19 %")
    assert "does not clearly beat NLinear on test" in text and "rift" not in text
    assert verdict(with_rivals(drift=0.9)) == verdict(fixture.results())


@pytest.mark.parametrize(
    "name, cost", [("nlinear", "It has 1.54 k parameters"), ("auto_ets", "It keeps no parameters")]
)
def test_verdict_admits_that_a_baseline_was_chosen(name: str, cost: str) -> None:
    results = fixture.compared(with_rivals(**{name: 0.2}) | {"chosen": name})
    text = verdict(results)
    human = {"nlinear": "NLinear", "auto_ets": "AutoETS"}[name]
    assert f"{cost}: no pretrained model is needed." in text
    assert f"no model was preferred to {human}" in text and f"validation preferred {human}" in text


def test_figure_draws_baselines_without_parameters_as_levels() -> None:
    drawn = size_figure(with_rivals(drift=3.0, auto_ets=0.39, nlinear=0.4), "size")
    assert "drift: 3.0000, above this range" in drawn and "AutoETS" in drawn
    assert "NLinear, 0.080 ms" in drawn


def test_registry_holds_what_the_settings_name() -> None:
    assert set(baselines.DEFAULT) <= set(baselines.names())
    assert {"auto_ets", "auto_theta", "dlinear", "drift", "nlinear", "seasonal_naive"} <= set(baselines.names())
    assert all(issubclass(class_of(name), baselines.Baseline) for name in baselines.names())
