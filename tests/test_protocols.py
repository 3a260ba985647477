"""Protocols: they read, cut and score as published, say so in words, and do not look ahead."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from torch import Tensor

from rowsums import panel_of
from tiny import shared_path
from tsprune.data.batch import Batch
from tsprune.data.panel import Panel
from tsprune.data.panel_files import append_steps
from tsprune.data.reading import ReadOptions, read
from tsprune.errors import TspruneError
from tsprune.evaluation.baselines.seasonal_naive import SeasonalNaive
from tsprune.evaluation.comparing import compare, mean_ratio
from tsprune.evaluation.intervals import interval
from tsprune.evaluation.metrics import RowErrors, naive_error
from tsprune.evaluation.protocols import make, names
from tsprune.evaluation.protocols._protocol import Protocol
from tsprune.evaluation.timeblocks import Blocks


def benchmark(name: str) -> Path:
    """The folder with the published data, or a skip that says why."""
    folder = shared_path() / "data" / "benchmark"
    if not (folder / name).is_file():
        pytest.skip(f"no published data: {folder / name} is missing; set TSPRUNE_SHARED to the folder that holds data/")
    return folder


def wide_rows(path: Path, rows: dict[str, list[float]]) -> None:
    """A file as the M4 competition's: V1 the id, values from V2 on, padded on the right."""
    width = max(map(len, rows.values()))
    lines = [",".join(f'"V{place}"' for place in range(1, width + 2))]
    for name, values in rows.items():
        cells = [f'"{name}"', *(f'"{value:g}"' for value in values), *[""] * (width - len(values))]
        lines.append(",".join(cells))
    text = "\n".join(lines) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def test_the_folder_is_the_registry() -> None:
    assert names() == ["backtest", "fev", "gift_eval", "ltsf", "panel"]
    for name in names():
        assert make(name).name == name
    with pytest.raises(
        TspruneError, match="'lsf' is not among the protocols; known: backtest, fev, gift_eval, ltsf, panel"
    ):
        make("lsf")
    with pytest.raises(TspruneError, match="protocol ltsf has no setting 'folds'; it has: data, horizon, stride"):
        make("ltsf", folds=3)


class Point:
    """Seasonal naive as a point forecast: every quantile is the point."""

    def __init__(self, season: int) -> None:
        self.inner = SeasonalNaive(season)

    def forecast(self, batch: Batch, horizon: int, levels: Sequence[float]) -> Tensor:
        return self.inner.forecast(batch, horizon, [0.5]).expand(-1, len(levels), -1)


# MASE and WQL of gluonts, from scripts/evaluation/results of amazon-science/chronos-forecasting (seasonal-naive-*.csv,
# point forecasts); they round to what the M4 competition published, as do the sMAPE here.
@pytest.mark.parametrize(
    ("data", "file", "season", "mase", "wql", "smape"),
    [
        ("m4_hourly", "m4_hourly_train.csv.gz", 24, 1.1932105781, 0.0483091942, 13.912),
        ("m4_weekly", "m4_weekly_train.csv.gz", 1, 2.7772951098, 0.0633986476, 9.161),
        ("monash_hospital", "monash_hospital.csv", 12, 0.9205278266, 0.0726263373, None),
    ],
)
def test_seasonal_naive_has_its_published_errors(
    data: str, file: str, season: int, mase: float, wql: float, smape: float | None
) -> None:
    protocol = make("panel", data=data)
    panel = protocol.read(benchmark(file))
    assert panel.season() == season
    (split,) = protocol.splits(panel, 48)
    found = protocol.measure(Point(season), split, batch_size=500)
    assert len(found.rows) == len(panel.series)
    assert found.metrics["mase"] == pytest.approx(mase, abs=1e-6)
    assert found.metrics["wql"] == pytest.approx(wql, abs=1e-6)
    assert smape is None or found.rows.value("smape") == pytest.approx(smape, abs=5e-4)


def test_ltsf_has_the_published_windows() -> None:
    protocol = make("ltsf", data="ETTh1", horizon=336)
    panel = protocol.read(benchmark("ETTh1.csv.gz"))
    (split,) = protocol.splits(panel, 96)
    assert len(protocol.windows(split)) == 7 * (2880 - 336 + 1)
    assert len(protocol.windows(split, "validation")) == 7 * (2880 - 336 + 1)
    assert panel.season() == 24
    assert protocol.scale_ends(split).tolist() == [8640] * 7
    blocks = Blocks.of(protocol.windows(split))
    assert (blocks.count, blocks.overlap, blocks.length) == (2545, 336, 509)


def test_ltsf_keeps_the_rows_of_weather_and_finds_plain_files(tmp_path: Path) -> None:
    stamps = pd.date_range("2020-01-01", periods=400, freq="10min").delete([7, 8])
    stamps = stamps.insert(20, stamps[20])
    pd.DataFrame({"date": stamps, "x": np.arange(399.0), "y": np.arange(399.0) % 5}).to_csv(tmp_path / "weather.csv")
    protocol = make("ltsf", data="weather", horizon=12, stride=5)
    panel = protocol.read(tmp_path)
    assert panel.lengths[-1] == 399
    (split,) = protocol.splits(panel, 24)
    windows = protocol.windows(split)
    assert np.diff(windows.origin[windows.series_index == 0]).tolist() == [5] * (len(windows) // len(panel.series) - 1)
    said = protocol.describe([split])
    assert "One window in 5 counts (stride 5); the published protocol takes all." in said
    assert "The published horizons are 96, 192, 336, 720." in said
    assert protocol.to_json()["stride"] == 5


def test_panel_joins_the_two_files_of_m4(tmp_path: Path) -> None:
    values = {f"H{n}": [float(n + step % 24) for step in range(150 + n)] for n in range(1, 12)}
    wide_rows(tmp_path / "Hourly-train.csv", values)
    wide_rows(tmp_path / "m4_hourly_test.csv.gz", {name: [1.0] * 48 for name in reversed(values)})
    protocol = make("panel", data="m4_hourly")
    panel = protocol.read(tmp_path)
    assert panel.ids == tuple(values)
    assert (panel.frequency, panel.season()) == ("h", 24)
    for series in panel.series:
        assert series.values.tolist() == values[series.id] + [1.0] * 48
    (split,) = protocol.splits(panel, 500)
    assert split.validation_end.tolist() == [len(row) for row in values.values()]
    assert protocol.windows(split).origin.tolist() == split.validation_end.tolist()


def test_panel_scales_by_all_that_lies_before_the_part() -> None:
    protocol = make("panel", data="mine", horizon=6)
    panel = panel_of(60, 90, 75, dated=False)
    (split,) = protocol.splits(panel, 12)
    test, validation = (protocol.measure(SeasonalNaive(4), split, part) for part in ("test", "validation"))
    for end, found in ((6, test), (12, validation)):
        wanted = []
        for series in panel.series:
            past, truth = series.values[: len(series) - end], series.values[len(series) - end :][:6]
            forecast = np.tile(past[-4:], 2)[:6].astype(np.float64)
            wanted.append(np.abs(truth - forecast).mean() / naive_error(past, 4))
        np.testing.assert_allclose(found.rows.scaled, wanted, rtol=1e-5)


def test_own_data_go_through_the_panel_protocol(tmp_path: Path) -> None:
    rows = {f"a{n}": [float((step * n) % 7) for step in range(40)] for n in range(1, 13)}
    wide_rows(tmp_path / "mine.csv", rows)
    protocol = make("panel", data="mine", horizon=5, options=ReadOptions(season=7))
    (split,) = protocol.splits(protocol.read(tmp_path / "mine.csv"), 14)
    found = protocol.measure(SeasonalNaive(7), split)
    assert found.metrics["mae"] == 0 and found.rows.value("smape") == 0
    assert protocol.to_json([split])["options"] == {"season": 7}


def test_geometric_mean_against_seasonal_naive_is_over_series() -> None:
    protocol = make("panel", data="mine", horizon=6)
    (split,) = protocol.splits(panel_of(60, 60, 60), 24)
    ours, naive = (protocol.measure(SeasonalNaive(season), split).rows for season in (1, 4))
    found = mean_ratio(ours, naive, Blocks.of(protocol.windows(split)), "mase")
    assert found["ratio"] == pytest.approx(float(np.exp(np.log(ours.scaled / naive.scaled).mean())))
    assert (found["units"], protocol.headline) == (3, ("mase", "smape", "wql"))


def test_backtest_rolls_over_dates_with_growing_train_parts() -> None:
    protocol = make("backtest", horizon=6, folds=4, step=10, validation=12, data="noise")
    panel = panel_of(200, 180, starts=[0, 20])
    splits = protocol.splits(panel, 24)
    assert [split.validation_end.tolist() for split in splits] == [[o, o - 20] for o in (164, 174, 184, 194)]
    assert [split.train_end[0] for split in splits] == [152, 162, 172, 182]
    assert [split.test_end[0] for split in splits] == [170, 180, 190, 200]
    assert all(len(protocol.windows(split)) == 2 for split in splits)
    assert all(len(protocol.windows(split, "validation")) == 2 * 7 for split in splits)
    blocks = Blocks.of([protocol.windows(split) for split in splits])
    assert (blocks.kind, blocks.count, blocks.overlap) == ("origins", 4, 1)
    joined = {
        name: RowErrors.joined([protocol.measure(model, split).rows for split in splits])
        for name, model in (("last value", SeasonalNaive(1)), ("season", SeasonalNaive(4)))
    }
    assert len(compare(joined, "season", blocks)["ranking"]) == 2
    assert "4 folds, their origins 10 steps apart" in protocol.describe(splits)
    assert "Fold 4: train ends before" in protocol.describe(splits)


def test_backtest_starts_where_it_is_told_to_and_fits_the_data() -> None:
    panel = panel_of(200)
    early = make("backtest", horizon=6, folds=3, start="2020-01-05T06:00")
    assert [split.validation_end[0] for split in early.splits(panel, 24)] == [102, 108, 114]
    with pytest.raises(
        TspruneError, match="100 folds of horizon 6 from 2020-01-05 on reach beyond.*17 folds would fit"
    ):
        make("backtest", horizon=6, folds=100, start="2020-01-05").splits(panel, 24)
    with pytest.raises(TspruneError, match="the first of 33 folds has 2 steps before its origin"):
        make("backtest", horizon=6, folds=33).splits(panel, 24)
    with pytest.raises(TspruneError, match="has no timestamps, which a back-test by date needs"):
        make("backtest", horizon=6).splits(panel_of(200, dated=False), 24)


def prepared(name: str) -> tuple[Protocol, Panel]:
    if name == "ltsf":
        return make("ltsf", data="exchange_rate", horizon=6), panel_of(200, 200)
    if name == "panel":
        return make("panel", data="mine", horizon=6), panel_of(60, 90)
    if name == "gift_eval":
        return make("gift_eval", data="mine/H", horizon=6), panel_of(200, 190)
    if name == "fev":
        task = {"dataset_path": "mine.parquet", "horizon": 6, "num_windows": 2, "seasonality": 4}
        return make("fev", definition=task), panel_of(200, 190)
    return make("backtest", horizon=6, folds=2), panel_of(200, 200)


@pytest.mark.parametrize("name", names())
def test_corrupted_test_steps_change_nothing_before_the_test(name: str) -> None:
    protocol, panel = prepared(name)
    first = protocol.splits(panel, 12)[0]
    spoilt = []
    for series, end in zip(panel.series, first.validation_end.tolist(), strict=True):
        values = series.values.copy()
        values[end:] = 1e6
        spoilt.append(replace(series, values=values))
    other = protocol.splits(replace(panel, series=tuple(spoilt)), 12)[0]
    np.testing.assert_array_equal(other.scaler.mean, first.scaler.mean)
    model = SeasonalNaive(4)
    assert protocol.measure(model, other, "validation").metrics == protocol.measure(model, first, "validation").metrics
    before, after = (protocol.measure(model, split).metrics for split in (first, other))
    assert before != after


@pytest.mark.parametrize("name", names())
def test_batch_size_changes_neither_errors_nor_intervals(name: str) -> None:
    protocol, panel = prepared(name)
    holes = [replace(one, values=np.where(np.arange(len(one)) % 11 == 3, np.nan, one.values)) for one in panel.series]
    split = protocol.splits(replace(panel, series=tuple(holes)), 12)[-1]
    blocks = Blocks.of(protocol.windows(split))
    alone, all_at_once = (protocol.measure(SeasonalNaive(4), split, batch_size=size).rows for size in (1, 1000))
    for measure in ("mse", "mase", "wql", "smape"):
        first, second = (interval(rows, blocks, measure, replicates=50) for rows in (alone, all_at_once))
        assert first == second


@pytest.mark.parametrize("name", names())
def test_descriptions_are_one_paragraph_and_plain_json(name: str) -> None:
    protocol, panel = prepared(name)
    splits = protocol.splits(panel, 12)
    said = protocol.describe(splits)
    assert said.startswith(f"Protocol {name}: ") and "\n" not in said and "Headline: " in said
    found = json.loads(json.dumps(protocol.to_json(splits), allow_nan=False))
    assert found["protocol"] == name and found["horizon"] == 6 and len(found["cuts"]) == len(splits)
    assert found["cuts"][0]["windows"] == len(protocol.windows(splits[0]))
    assert "rain ends before" in said and "rain ends before" not in protocol.describe()


def test_mistakes_in_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(TspruneError, match="does not know the data set 'traffic'; known: ETTh1, ETTh2"):
        make("ltsf", data="traffic")
    with pytest.raises(TspruneError, match="known: m4_yearly.*for data of your own, give a horizon"):
        make("panel", data="mine")
    with pytest.raises(TspruneError, match="m4_hourly is published with horizon 48"):
        make("panel", data="m4_hourly", horizon=24)
    with pytest.raises(TspruneError, match="stride 0, expected at least 1"):
        make("ltsf", stride=0)
    with pytest.raises(TspruneError, match="validation part of 3 steps holds no window of horizon 6"):
        make("backtest", horizon=6, validation=3)
    with pytest.raises(TspruneError, match="folds -1"):
        make("backtest", folds=-1)
    with pytest.raises(TspruneError, match=r"holds no file of ETTh1: expected ETTh1.csv or ETTh1.csv.gz"):
        make("ltsf").read(tmp_path)
    with pytest.raises(TspruneError, match="the folder that holds its file, found a DataFrame"):
        make("ltsf").read(pd.DataFrame({"a": [1.0]}))
    rows = {f"H{n}": [float(step) for step in range(200)] for n in range(1, 12)}
    wide_rows(tmp_path / "m4_hourly_train.csv", rows)
    wide_rows(tmp_path / "m4_hourly_test.csv", {name: [1.0] * 47 for name in rows})
    with pytest.raises(TspruneError, match="series 'H1' has 47 steps, expected the 48"):
        make("panel").read(tmp_path)


def test_steps_are_only_appended_where_they_follow() -> None:
    train, test = panel_of(20, 30), panel_of(5, 6, starts=[20, 30])
    joined = append_steps(train, test)
    assert joined.lengths.tolist() == [25, 36]
    np.testing.assert_array_equal(joined.series[1].values[30:], test.series[1].values)
    with pytest.raises(TspruneError, match="'s1' starts at 2020-01-02 07:00:00, expected 2020-01-02 06:00:00"):
        append_steps(train, panel_of(5, 6, starts=[20, 31]))
    with pytest.raises(TspruneError, match="s1: in only one of"):
        append_steps(train, test.select([0]))
    with pytest.raises(TspruneError, match="only one of the files has timestamps"):
        append_steps(train, panel_of(5, 6, dated=False))
    table = pd.DataFrame({"a": range(30), "b": range(30)})
    covariates = read(table, ReadOptions(layout="wide", value_columns=("a",), past_covariates=("b",)))
    with pytest.raises(TspruneError, match="covariates cannot be continued"):
        append_steps(covariates, covariates)
