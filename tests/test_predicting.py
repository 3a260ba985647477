"""Forecasts after the end of the data: from files, in processes of their own, and from Python."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import tiny
import tsprune
from running import called, finished, wide
from tsprune.errors import TspruneError

QUANTILES = ["0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9"]


def forecast(
    frame: pd.DataFrame, capsys: pytest.CaptureFixture[str], *flags: str, model: str = "chronos2"
) -> pd.DataFrame:
    """What `tsprune predict` writes for a table."""
    frame.to_csv("data.csv", index=False)
    code, out, err = called(["predict", model, "--data", "data.csv", "--out", "out.csv", *flags], capsys)
    assert code == 0, err
    assert "written to out.csv" in out
    return pd.read_csv("out.csv")


@pytest.mark.parametrize("model", tiny.FAMILIES)
def test_file_has_a_row_per_series_and_step(model: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = forecast(wide(), capsys, "--horizon", "5", model=model)
    assert list(found.columns) == ["id", "timestamp", *QUANTILES]
    assert found["id"].tolist() == ["a"] * 5 + ["b"] * 5
    expected = pd.date_range("2024-01-11", periods=5, freq="h")
    for _, rows in found.groupby("id"):
        assert pd.to_datetime(rows["timestamp"]).tolist() == expected.tolist()
    assert np.isfinite(found[QUANTILES].to_numpy()).all()


@pytest.mark.parametrize(
    ("frequency", "first"),
    [("D", "2024-01-31"), ("MS", "2026-07-01"), ("W-SUN", "2024-08-04"), ("15min", "2024-01-01 07:30:00")],
)
def test_timestamps_go_on_in_the_step_of_the_data(
    frequency: str, first: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = wide(1, 30)
    frame["date"] = pd.date_range("2024-01-01", periods=30, freq=frequency)
    found = forecast(frame, capsys, "--horizon", "3")
    stamps = pd.to_datetime(found["timestamp"])
    assert stamps.tolist() == pd.date_range(frame["date"].iloc[-1], periods=4, freq=frequency)[1:].tolist()
    assert stamps.iloc[0] == pd.Timestamp(first)


def test_default_horizon_is_a_season_and_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide().to_csv("data.csv", index=False)
    code, out, err = called(["predict", "chronos2", "--data", "data.csv"], capsys)
    assert code == 0
    assert "24 steps each" in out and (place / "forecast.csv").exists()
    assert "note: horizon 24: one season" in err
    assert "longer than the 16 steps" in err


def test_levels_become_columns_in_their_order(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = forecast(wide(), capsys, "--horizon", "2", "--levels", "0.5", "--levels", "0.15,0.9")
    assert list(found.columns) == ["id", "timestamp", "0.5", "0.15", "0.9"]
    usual = forecast(wide(), capsys, "--horizon", "2")
    assert found["0.5"].tolist() == usual["0.5"].tolist()
    # 0.15 lies a third of the way from the model's 0.1 to its 0.25.
    between = usual["0.1"] + (usual["0.2"] - usual["0.1"]) / 2
    assert found["0.15"].to_numpy() == pytest.approx(between.to_numpy(), rel=1e-5)


def test_order_of_the_rows_does_not_matter(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = wide().melt("date", var_name="id", value_name="y")
    ordered = forecast(long, capsys, "--horizon", "4")
    mixed = forecast(long.sample(frac=1, random_state=1), capsys, "--horizon", "4")
    pd.testing.assert_frame_equal(
        mixed.sort_values(["id", "timestamp"], ignore_index=True),
        ordered.sort_values(["id", "timestamp"], ignore_index=True),
    )


def test_missing_end_is_not_forecast_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = wide()
    frame.loc[len(frame) - 4 :, "a"] = np.nan
    found = forecast(frame, capsys, "--horizon", "3")
    assert set(found["timestamp"]) == {f"2024-01-11 0{hour}:00:00" for hour in range(3)}
    whole = forecast(wide(), capsys, "--horizon", "3")
    assert found.query("id == 'b'")["0.5"].tolist() == whole.query("id == 'b'")["0.5"].tolist()
    assert found.query("id == 'a'")["0.5"].tolist() != whole.query("id == 'a'")["0.5"].tolist()


def test_series_that_end_at_different_times_go_on_from_their_own_ends(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = wide().melt("date", var_name="id", value_name="y")
    long = long[(long["id"] == "a") | (long["date"] < "2024-01-10")]
    found = forecast(long, capsys, "--horizon", "2")
    firsts = found.groupby("id")["timestamp"].first()
    assert firsts["a"] == "2024-01-11 00:00:00"
    assert firsts["b"] == "2024-01-10 00:00:00"


def test_rows_without_timestamps_are_numbered_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = forecast(wide()[["a", "b"]], capsys, "--horizon", "3")
    assert list(found.columns) == ["id", "step", *QUANTILES]
    assert found["step"].tolist() == [240, 241, 242] * 2


def test_history_shorter_than_a_patch_is_enough(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = forecast(wide(1, 5), capsys, "--horizon", "2")
    assert np.isfinite(found[QUANTILES].to_numpy()).all()


def test_context_limits_what_is_seen(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = forecast(wide().tail(20), capsys, "--horizon", "2")
    limited = forecast(wide(), capsys, "--horizon", "2", "--context", "20")
    pd.testing.assert_frame_equal(cut, limited)
    assert forecast(wide(), capsys, "--horizon", "2")["0.5"].tolist() != cut["0.5"].tolist()


def test_known_covariate_reaches_the_forecast(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = wide(2, 248)
    frame.loc[240:, "a"] = np.nan
    flags = ["--horizon", "8", "--value-columns", "a", "--known-covariates", "b"]
    found = forecast(frame, capsys, *flags)
    assert found["timestamp"].iloc[0] == "2024-01-11 00:00:00"
    assert len(found) == 8
    frame.loc[240:, "b"] += 9
    assert forecast(frame, capsys, *flags)["0.5"].tolist() != found["0.5"].tolist()
    frame.head(243).to_csv("data.csv", index=False)
    code, _, err = called(["predict", "chronos2", "--data", "data.csv", *flags], capsys)
    assert code == 2
    assert "'b' lacks 5 steps" in err


def test_together_lets_series_see_each_other(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--horizon", "4", "--together"]
    found = forecast(wide(), capsys, *flags)
    changed = wide()
    changed["b"] = changed["b"].to_numpy()[::-1]
    other = forecast(changed, capsys, *flags)
    assert found.query("id == 'a'")["0.5"].tolist() != other.query("id == 'a'")["0.5"].tolist()
    alone, again = (forecast(frame, capsys, "--horizon", "4") for frame in (wide(), changed))
    assert alone.query("id == 'a'")["0.5"].tolist() == again.query("id == 'a'")["0.5"].tolist()


def test_forecast_can_be_piped(place: Path) -> None:
    code, out, err = finished(
        ["predict", "chronos2", "--data", "wide.csv", "--horizon", "2", "--out", "-", "--quiet"], place
    )
    assert (code, err) == (0, "")
    assert len(pd.read_csv(io.StringIO(out))) == 4
    assert not (place / "-").exists()


def test_slim_model_forecasts_in_a_fresh_process_without_its_base(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data", "wide.csv", "--model", "chronos2", "--horizon", "8", "--validation-windows", "8"]
    code, _, _ = called(["prune", *flags, "--rounds", "3", "--ratio", "0.3", "--tolerance", "99"], capsys)
    assert code == 0
    assert (place / "pruned" / "model" / "plan.json").exists()
    slim = tsprune.load("pruned/model")
    assert slim.parameter_count() < tsprune.load("chronos2").parameter_count()
    expected = tsprune.predict(slim, tsprune.read("wide.csv"), 8)
    shutil.rmtree(place / "chronos2")
    shutil.move(place / "pruned" / "model", place / "elsewhere")
    code, _, err = finished(["predict", "elsewhere", "--data", "wide.csv", "--horizon", "8", "--quiet"], place)
    assert (code, err) == (0, "")
    found = pd.read_csv("forecast.csv")
    assert found[QUANTILES].to_numpy() == pytest.approx(expected[QUANTILES].to_numpy(), rel=1e-6)


def test_python_gives_a_table(filled: Path) -> None:
    model = tiny.tiny_model("chronos2")
    found = tsprune.predict(model, tsprune.read(wide()), 6, levels=(0.25, 0.5))
    assert isinstance(found, pd.DataFrame)
    assert list(found.columns) == ["id", "timestamp", "0.25", "0.5"]
    assert len(found) == 12
    assert pd.api.types.is_datetime64_any_dtype(found["timestamp"])


def test_many_series_are_forecast_as_each_alone(filled: Path) -> None:
    # More rows than one batch of 256 takes.
    model = tiny.tiny_model("chronos2")
    panel = tsprune.read(wide(1).join(pd.DataFrame({f"s{k}": np.roll(wide(1)["a"], k) for k in range(299)})))
    found = tsprune.predict(model, panel, 3)
    assert len(found) == 900
    one = tsprune.predict(model, panel.select([270]), 3)
    rows = found[found["id"] == panel.ids[270]]
    assert rows["0.5"].to_numpy() == pytest.approx(one["0.5"].to_numpy(), rel=1e-5)


@pytest.mark.parametrize("change", [{"horizon": 0}, {"levels": ()}, {"levels": (0.5, 2.0)}, {"context": 65}])
def test_impossible_request_in_python_is_refused(change: dict[str, object], filled: Path) -> None:
    request = {"horizon": 4} | change
    with pytest.raises(TspruneError, match=f"--{next(iter(change))}"):
        tsprune.predict(tiny.tiny_model("chronos2"), tsprune.read(wide()), **request)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"horizon": 100_001}, {"horizon": "3"}, {"horizon": 2.5}, {"context": None}])
def test_number_that_is_none_or_too_large_is_refused(change: dict[str, object], filled: Path) -> None:
    with pytest.raises(TspruneError, match=f"--{next(iter(change))}"):
        tsprune.predict("mini", wide(), **({"horizon": 4} | change))  # type: ignore[arg-type]


def test_python_takes_names_paths_and_tables(filled: Path) -> None:
    expected = tsprune.predict(tsprune.load(filled / "chronos2"), tsprune.read(filled / "wide.csv"), 3)
    table = pd.read_csv(filled / "wide.csv")
    for model in (filled / "chronos2", str(filled / "chronos2")):
        for series in (filled / "wide.csv", str(filled / "wide.csv"), table):
            pd.testing.assert_frame_equal(tsprune.predict(model, series, np.int64(3)), expected)  # type: ignore[arg-type]
    one = tsprune.predict("mini", table["a"], horizon=3, levels=0.5)
    assert list(one.columns) == ["id", "step", "0.5"]


@pytest.mark.parametrize(("model", "series", "says"), [(3, wide(1), "model is a int"), ("mini", [1, 2], "are a list")])
def test_python_refuses_what_is_no_model_and_no_series(model: object, series: object, says: str) -> None:
    with pytest.raises(TspruneError, match=says):
        tsprune.predict(model, series, 3)  # type: ignore[arg-type]


def test_table_beyond_the_memory_is_refused(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.tiny_model("chronos2")

    def short(*arguments: object, **more: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("tsprune.predicting.forecast_batch", short)
        with pytest.raises(TspruneError, match="2 series, 4 steps each and 9 quantiles does not fit into memory"):
            tsprune.predict(model, wide(), 4)
    monkeypatch.setattr("os.sysconf", lambda name: 10)
    with pytest.raises(TspruneError, match="does not fit into memory"):
        tsprune.predict(model, wide(), 4)


def test_a_tuned_model_uses_the_context_it_was_tuned_for_unless_told_otherwise() -> None:
    model, panel = tiny.tiny_model("chronos2"), tsprune.read(wide())
    whole = tsprune.predict(model, panel, 8)
    model.config = {**model.config, "tsprune_task": {"context": 24}}
    tuned = tsprune.predict(model, panel, 8)
    assert not tuned.equals(whole)
    assert tuned.equals(tsprune.predict(model, panel, 8, context=24))
    assert whole.equals(tsprune.predict(model, panel, 8, context=64))
    # Shorter data cannot give it, and a context beyond the model's means nothing.
    short = tsprune.read(wide(length=20))
    assert tsprune.predict(model, short, 8).equals(tsprune.predict(model, short, 8, context=20))
