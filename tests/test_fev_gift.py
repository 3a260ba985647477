"""Protocols fev and gift_eval, and our measures, against numbers of fev and gluonts (`eval_references.py`)."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import evalsets as sets
from test_protocols import Point
from tsprune.data.batch import Batch
from tsprune.data.panel import Panel
from tsprune.data.recordsets import arrays, load_records
from tsprune.errors import TspruneError
from tsprune.evaluation.baselines.seasonal_naive import SeasonalNaive
from tsprune.evaluation.entrywise import GLUONTS, fev_measures
from tsprune.evaluation.evaluate import measure
from tsprune.evaluation.forecasts import Forecasts, seasonal_errors
from tsprune.evaluation.metrics import Accumulator, naive_error
from tsprune.evaluation.protocols import _gift_rules as gift
from tsprune.evaluation.protocols import make
from tsprune.evaluation.protocols._fev_task import as_task
from tsprune.evaluation.protocols._protocol import Protocol
from tsprune.evaluation.resultrows import write_rows

REFERENCES = json.loads((Path(__file__).parent / "eval_references.json").read_text(encoding="utf-8"))


def close(found: float, wanted: float) -> bool:
    return found == pytest.approx(wanted, rel=1e-6, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("library", ["gluonts", "fev"])
def test_own_measures_are_those_of_the_libraries(library: str) -> None:
    case = sets.own_arrays()
    accumulator = Accumulator()
    naive = [naive_error(past, int(case["season"])) for past in case["past"]]
    assert naive[7] == 0 and np.isnan(case["truth"][3]).all()
    accumulator.add(case["truth"], case["quantiles"], case["original"], case["scale"], naive)
    rows = accumulator.rows()
    for name, wanted in REFERENCES["own"][library].items():
        assert close(rows.value(name), wanted), name


@pytest.mark.parametrize("frequency", sets.FREQUENCIES)
def test_seasons_are_those_of_gluonts(frequency: str) -> None:
    assert gift.season(frequency) == REFERENCES["seasons"][frequency]


def gift_folder(folder: Path, name: str) -> Path:
    sets.write_saved(folder / name, sets.as_table(sets.gift_records(**sets.GIFT_CASES[name])))
    return folder


@pytest.mark.parametrize("name", sets.GIFT_CASES)
def test_gift_eval_has_the_windows_and_measures_of_gluonts(name: str, tmp_path: Path) -> None:
    protocol = make("gift_eval", data=name)
    (split,) = protocol.splits(protocol.read(gift_folder(tmp_path, name)), 24)
    wanted = REFERENCES["gift"][name]
    found = protocol.forecasts(SeasonalNaive(12), split)
    assert (found.origin.tolist(), list(found.ids)) == (wanted["origins"], wanted["ids"])
    (row,) = protocol.result_rows([found], "naive")
    published = "m4_monthly/M/short" if name == "m4_monthly" else f"{name}/short"
    assert row["dataset"] == published and row["model"] == "naive"
    assert row["domain"] == ("Econ/Fin" if name == "m4_monthly" else "")
    assert row["num_variates"] == (2 if name == "pair/M" else 1)
    assert [key for key in row if key.startswith("eval_metrics/")] == [f"eval_metrics/{key}" for key in GLUONTS]
    for key in GLUONTS:
        assert close(row[f"eval_metrics/{key}"], wanted["values"][key]), key


def test_gift_eval_measures_as_other_protocols_do(tmp_path: Path) -> None:
    """MASE's denominators grow with the windows, and what is not observed plays no part."""
    protocol = make("gift_eval", data="monthly/M")
    (split,) = protocol.splits(protocol.read(gift_folder(tmp_path, "monthly/M")), 24)
    found = protocol.measure(SeasonalNaive(12), split)
    windows = protocol.windows(split)
    assert len(windows) == 7, "two windows of four series, one of them without a target"
    for row, (series, origin) in enumerate(zip(windows.series_index, windows.origin, strict=True)):
        naive = naive_error(split.panel.series[int(series)].values[: int(origin)], 12)
        error = protocol.naive_errors(windows)[row]
        assert error == pytest.approx(naive, rel=1e-12)
    assert not np.isnan(found.rows.scaled).any() and found.metrics["mase"] is not None
    per_row = protocol.forecasts(Point(12), split)
    kept = ~np.isnan(per_row.truth).all(axis=1)
    gaps = np.nanmean(np.abs(per_row.truth[kept] - per_row.at(0.5)[kept]), axis=1) / per_row.absolute[kept]
    assert found.metrics["mase"] == pytest.approx(gaps.mean(), rel=1e-6)
    validation = protocol.windows(split, "validation")
    assert validation.origin.tolist() == (split.validation_end - 12).tolist()
    said = protocol.describe([split])
    assert "season 12" in said and "2 windows of 12" in protocol.to_json([split])["cuts"][0]["name"]


def same(one: Panel, two: Panel) -> bool:
    return one.ids == two.ids and all(
        np.array_equal(a.values, b.values, equal_nan=True) and a.start == b.start
        for a, b in zip(one.series, two.series, strict=True)
    )


def test_gift_eval_reads_every_layout(tmp_path: Path) -> None:
    protocol = make("gift_eval", data="pair/M")
    records = sets.gift_records(several=True)
    wanted = protocol.read(sets.write_saved(tmp_path / "a" / "pair" / "M", sets.as_table(records)))
    assert wanted.ids[:3] == ("item0_dim0", "item0_dim1", "item1_dim0")
    assert (wanted.frequency, wanted.season(), str(wanted.timestamps(0)[1])) == ("MS", 12, "2010-02-01 00:00:00")
    assert any("past_feat_dynamic_real" in line for line in wanted.repairs)
    assert same(protocol.read(tmp_path / "a"), wanted)
    pq.write_table(sets.as_table(records), tmp_path / "x.parquet")
    assert same(protocol.read(tmp_path / "x.parquet"), wanted)
    with gzip.open(tmp_path / "x.json.gz", "wt") as file:
        for record in records:
            lines = [["NaN" if np.isnan(value) else value for value in variate] for variate in record["target"]]
            file.write(json.dumps({"item_id": record["item_id"], "start": "2010-01-01", "target": lines}) + "\n")
    assert same(protocol.read(tmp_path / "x.json.gz"), wanted)
    flat = {
        "item_id": [record["item_id"] for record in records],
        "start": ["2010-01"] * 4,
        "target": [record["target"].ravel().tolist() for record in records],
        "target._np_shape": [list(record["target"].shape) for record in records],
    }
    table = pa.table(flat).replace_schema_metadata({"freq": "M"})
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    assert same(protocol.read(tmp_path / "x.arrow"), wanted)
    with_past = make("gift_eval", data="pair/M", covariates=True).read(tmp_path / "a")
    assert with_past.past_names == ("past 0",) and len(with_past.series[0].past["past 0"]) == 150


@pytest.mark.parametrize(
    ("data", "term", "horizon", "shortest", "windows"),
    [
        ("electricity/15T", "short", 48, 140256, 20),
        ("electricity/H", "long", 720, 35064, 5),
        ("solar/W", "short", 8, 52, 1),
        ("m4_yearly", "short", 6, 19, 1),
        ("m4_hourly", "short", 48, 748, 1),
        ("bizitobs_application", "medium", 600, 8834, 2),
        ("us_births/M", "short", 12, 240, 2),
        ("jena_weather/10T", "medium", 480, 52704, 11),
    ],
)
def test_gift_eval_derives_horizon_and_windows(data: str, term: str, horizon: int, shortest: int, windows: int) -> None:
    """A tenth of the shortest series rounded up to whole windows, at least 1 and at most 20; 1 for M4."""
    protocol = make("gift_eval", data=data, term=term)
    assert protocol.horizon == horizon
    assert gift.window_count(data, shortest, horizon) == windows
    assert gift.result_name("saugeenday/D") == "saugeen"
    assert gift.result_name("LOOP_SEATTLE/5T") == "loop_seattle"


def fev_protocol(name: str, folder: Path) -> tuple[Protocol, Panel]:
    path = sets.write_fev(folder / "data" / "daily" / "data.parquet")
    protocol = make("fev", definition={"dataset_path": str(path), **sets.FEV_CASES[name]})
    return protocol, protocol.read("")


@pytest.mark.parametrize("name", sets.FEV_CASES)
def test_fev_has_the_windows_and_rows_of_fev(name: str, tmp_path: Path) -> None:
    protocol, panel = fev_protocol(name, tmp_path)
    splits = protocol.splits(panel, 1000)
    wanted = REFERENCES["fev"][name]
    targets = protocol.fields.targets
    for split, window in zip(splits, wanted["windows"], strict=True):
        ids = [f"{item}/{target}" for item in window["ids"] for target in targets]
        assert list(split.panel.ids) == (ids if len(targets) > 1 else window["ids"])
        first = [str(split.panel.horizon_timestamps(row, end, 1)[0]) for row, end in enumerate(split.validation_end)]
        assert first[:: len(targets)] == window["cut"]
        longest = protocol.fields.max_context_length or 1000
        assert split.context == longest
        assert np.minimum(split.validation_end, longest)[:: len(targets)].tolist() == window["past"]
    found = [protocol.forecasts(SeasonalNaive(7), split) for split in splits]
    (row,) = protocol.result_rows(found, "seasonal naive")
    assert list(row.keys() - wanted["row"].keys()) in (
        ["dataset_path", "inference_time_s"],
        ["inference_time_s", "dataset_path"],
    )
    assert [key for key in row if key in wanted["row"]] == list(wanted["row"])
    for key, value in wanted["row"].items():
        if key not in ("dataset_fingerprint", "fev_version"):
            assert close(row[key], value) if isinstance(value, float) else row[key] == value, key


def test_fev_summary_is_the_packages_own(tmp_path: Path) -> None:
    protocol, panel = fev_protocol("rolling", tmp_path)
    found = [protocol.forecasts(SeasonalNaive(7), split) for split in protocol.splits(panel, 30)]
    made = protocol.predictions(found)
    assert [sorted(window) for window in made] == [["first"]] * 3
    assert sorted(made[0]["first"][0]) == ["0.1", "0.5", "0.9", "predictions"]
    assert made[1]["first"][2]["predictions"] == found[1].at(0.5)[2].tolist()
    pair, both = fev_protocol("two targets", tmp_path)
    rows = [pair.forecasts(SeasonalNaive(7), split) for split in pair.splits(both, 30)]
    first = pair.predictions(rows)[0]
    assert {name: len(entries) for name, entries in first.items()} == {"first": 5, "second": 5}
    assert rows[0].ids[3] == "T10/second" and first["second"][1]["0.9"] == rows[0].at(0.9)[3].tolist()
    try:
        import fev  # noqa: F401
    except ImportError:
        with pytest.raises(TspruneError, match=r"rows computed by fev need the package; pip install 'tsprune\[eval\]'"):
            protocol.summary(found, "naive", tmp_path)
        return
    (own,) = protocol.result_rows(found, "naive")
    theirs = protocol.summary(found, "naive", tmp_path / "data" / "daily" / "data.parquet")
    assert theirs["fev_version"] and list(theirs) == list(own)
    assert all(close(theirs[key], value) for key, value in own.items() if isinstance(value, float))


def test_fev_measures_like_a_back_test(tmp_path: Path) -> None:
    protocol, panel = fev_protocol("dated steps", tmp_path)
    splits = protocol.splits(panel, 30)
    assert all("context is 20 steps instead of 30" in split.notes[-1] for split in splits)
    for split in splits:
        rows = protocol.measure(SeasonalNaive(7), split).rows
        assert len(rows) == len(split.panel.series)
        for row, (series, end) in enumerate(zip(split.panel.series, split.validation_end, strict=True)):
            past = series.values[max(0, end - 20) : end]
            truth = series.values[end : end + 4].astype(np.float64)
            forecast = protocol.forecasts(SeasonalNaive(7), split).at(0.5)[row]
            naive = naive_error(past, 7)
            wanted = np.nanmean(np.abs(truth - forecast)) / naive if naive > 0 else np.nan
            assert close(rows.scaled[row], wanted)
    said = protocol.describe(splits)
    assert "first cut at 2021-04-01T00:00:00" in said and "at most 20 steps count" in said
    json.dumps(protocol.to_json(splits), allow_nan=False)


def test_fev_reads_every_layout_and_covariates(tmp_path: Path) -> None:
    protocol, wanted = fev_protocol("two targets", tmp_path)
    assert wanted.ids[:4] == ("T1/first", "T1/second", "T10/first", "T10/second")
    assert (wanted.frequency, wanted.season(), str(wanted.series[0].start)) == ("D", 7, "2021-03-01 00:00:00")
    assert [line.split(":")[0] for line in wanted.repairs] == [
        "dynamic columns were ignored",
        "static columns were ignored",
    ]
    table = sets.as_table(sets.fev_records())
    assert same(protocol.read(sets.write_saved(tmp_path / "saved", table)), wanted)
    assert same(protocol.read(sets.long_frame()), wanted)
    assert same(protocol.read(str(tmp_path / "data" / "daily" / "*.parquet")), wanted)
    task = {"tasks": [{"dataset_path": "hub/sets", "dataset_config": "daily", "target": ["first", "second"]}]}
    (tmp_path / "tasks.yaml").write_text(json.dumps(task))
    named = make("fev", data=str(tmp_path / "tasks.yaml"))
    assert (named.task, named.horizon) == ("daily", 1)
    assert same(named.read(tmp_path / "data"), wanted)
    settings: dict[str, Any] = {"dataset_path": "x", "target": "first", "horizon": 5}
    known = make("fev", definition={**settings, "known_dynamic_columns": ["price"]}, covariates=True)
    panel = known.read(tmp_path / "data" / "daily")
    assert panel.known_names == ("price",)
    (split,) = known.splits(panel, 14)
    batch = known.windows(split).batch([0])
    assert batch.is_target is not None and batch.is_target.tolist() == [True, False]
    assert known.forecasts(SeasonalNaive(7), split).quantiles.shape == (len(split.panel.series), 1, 5)


def test_a_task_is_found_by_name_or_number(tmp_path: Path) -> None:
    tasks = [{"dataset_path": "hub", "dataset_config": name, "horizon": steps} for name, steps in (("a", 3), ("b", 4))]
    path = tmp_path / "benchmark.yaml"
    path.write_text(json.dumps({"tasks": tasks}))
    assert [make("fev", data=str(path), task=task).horizon for task in ("a", "1", "b")] == [3, 4, 4]
    with pytest.raises(TspruneError, match="task 'c' names no single task; give a number from 0 to 1 or a name: a, b"):
        make("fev", data=str(path), task="c")
    old = as_task({"dataset_path": "x", "num_rolling_windows": 2, "target_column": "y", "cutoff": -9, "horizon": 4})
    assert (old.num_windows, old.target, old.initial_cutoff, old.window_step_size) == (2, "y", -9, 4)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"horizn": 3}, "there is no field 'horizn'; the fields are dataset_path, dataset_config, horizon"),
        ({"horizon": 0}, "horizon is 0, expected a whole number of at least 1"),
        ({"quantile_levels": [0.5, 1.0]}, "quantile_levels has 1.0, expected levels between 0 and 1"),
        ({"eval_metric": "CRPS"}, "the measure 'CRPS' is not one of fev's: MAE, MAEB"),
        ({"eval_metric": "WQL"}, "the metric WQL needs quantile_levels"),
        ({"extra_metrics": ["mase"]}, "the metric MASE is named twice"),
        ({"horizon": 5, "num_windows": 2, "initial_cutoff": -9}, "initial_cutoff -9 leaves no room.*give -10 or less"),
        ({"window_step_size": "7D"}, "window_step_size '7D' is a time but initial_cutoff None is no date"),
        ({"initial_cutoff": "soon"}, "initial_cutoff is 'soon', expected a date or a number"),
        ({"extra_metrics": "MAE"}, "extra_metrics is 'MAE', expected a list"),
    ],
)
def test_mistakes_in_tasks_are_named(entries: dict[str, Any], said: str) -> None:
    with pytest.raises(TspruneError, match=said):
        make("fev", definition={"dataset_path": "x", **entries})


def test_mistakes_in_data_are_named(tmp_path: Path) -> None:
    path = sets.write_fev(tmp_path / "data.parquet")
    with pytest.raises(TspruneError, match="there is no target column 'y'; found id, timestamp, first"):
        make("fev", definition={"dataset_path": "x", "target": "y"}).read(path)
    with pytest.raises(TspruneError, match="there is no column 'name'; the columns are id"):
        make("fev", definition={"dataset_path": "x", "id_column": "name"}).read(path)
    late = make("fev", definition={"dataset_path": "x", "target": "first", "horizon": 119})
    with pytest.raises(TspruneError, match="no series has 30 steps before the cut at -119"):
        protocol = make("fev", definition={**late.definition, "min_context_length": 30})
        protocol.splits(protocol.read(path), 10)
    with pytest.raises(TspruneError, match="forecasts of 0 windows, expected the 1 of the task"):
        late.result_rows([], "x")
    with pytest.raises(TspruneError, match="the step of 'mine' is not known.*or give a frequency"):
        make("gift_eval", data="mine")
    with pytest.raises(TspruneError, match="no prediction length for the frequency 'Q'.*give a horizon"):
        make("gift_eval", data="mine/Q")
    assert make("gift_eval", data="mine/Q", horizon=4).horizon == 4
    with pytest.raises(TspruneError, match="ett1/H has a horizon of 48 in term short"):
        make("gift_eval", data="ett1/H", horizon=24)
    with pytest.raises(TspruneError, match="the term is 'brief', expected one of short, medium, long"):
        make("gift_eval", data="ett1/H", term="brief")
    with pytest.raises(TspruneError, match="the data have frequency 'M', the protocol 'H'"):
        make("gift_eval", data="mine/H").read(sets.write_saved(tmp_path / "m", sets.as_table(sets.gift_records())))
    with pytest.raises(TspruneError, match="'item0' has 150 steps, expected more than the 180 of 1 window"):
        protocol = make("gift_eval", data="monthly/M", term="long")
        protocol.splits(protocol.read(tmp_path / "m"), 10)
    with pytest.raises(TspruneError, match="no such file or folder, expected a folder written by datasets"):
        load_records(tmp_path / "nothing")
    with pytest.raises(TspruneError, match="holds no records"):
        (tmp_path / "empty").mkdir()
        load_records(tmp_path / "empty")
    (tmp_path / "bad.jsonl").write_text('{"target": [1]}\n{"target": \n')
    with pytest.raises(TspruneError, match="bad.jsonl, line 2: is not JSON"):
        load_records(tmp_path / "bad.jsonl")
    with pytest.raises(TspruneError, match="column 'id' holds string, expected one array per series"):
        arrays(load_records(path), "id")


def test_windows_over_all_series_have_the_same_rows(tmp_path: Path) -> None:
    records = [record for record in sets.gift_records(several=True) if record["item_id"] == "item0"]
    sets.write_saved(tmp_path / "pair" / "M", sets.as_table(records), files=1)
    protocol = make("gift_eval", data="pair/M")
    panel = protocol.read(tmp_path)
    alone, together = (
        protocol.forecasts(SeasonalNaive(12), protocol.splits(panel, 24, grouping=grouping)[0])
        for grouping in ("none", "all")
    )
    order = np.lexsort((together.origin, together.series))
    assert together.series.tolist() == [0, 1, 0, 1] and alone.series.tolist() == [0, 0, 1, 1]
    for name in ("origin", "truth", "quantiles", "absolute", "squared"):
        np.testing.assert_array_equal(getattr(together, name)[order], getattr(alone, name))
    (one,), (two,) = (protocol.result_rows([found], "x") for found in (alone, together))
    assert all(close(two[key], value) for key, value in one.items() if isinstance(value, float))


class Nothing(SeasonalNaive):
    """Forecasts no number where the last step is missing."""

    def forecast(self, batch: Batch, horizon: int, levels: Sequence[float]) -> Tensor:
        lost = torch.isnan(batch.context[:, -1])[:, None, None]
        return super().forecast(batch, horizon, levels).masked_fill(lost, float("nan"))


def test_a_forecast_that_is_no_number_is_refused_unless_nothing_was_seen(tmp_path: Path) -> None:
    records = sets.gift_records()[:1]
    records[0]["target"][-36:-24] = np.nan
    protocol = make("gift_eval", data="monthly/M")
    panel = protocol.read(sets.write_saved(tmp_path / "m", sets.as_table(records), files=1))
    found = protocol.forecasts(Nothing(12), protocol.splits(panel, 12)[0])
    mean = float(np.nanmean(panel.series[0].values[:114].astype(np.float64)))
    assert found.blind == 1 and found.quantiles[0] == pytest.approx(np.full((9, 12), mean))
    with pytest.raises(TspruneError, match="the forecast of series 'item0' is not finite; result rows need a number"):
        protocol.forecasts(Nothing(12), protocol.splits(panel, 13)[0])


def test_denominators_must_fit_the_windows(tmp_path: Path) -> None:
    protocol = make("gift_eval", data="monthly/M")
    (split,) = protocol.splits(protocol.read(gift_folder(tmp_path, "monthly/M")), 24)
    with pytest.raises(TspruneError, match=r"naive_errors has shape \[2\], expected one per target row \[7\]"):
        measure(SeasonalNaive(12), protocol.windows(split), split, naive_errors=[1.0, 2.0])


def test_rows_go_into_the_files_of_the_leaderboards(tmp_path: Path) -> None:
    path = tmp_path / "results" / "all_results.csv"
    rows = [{"dataset": "a/H/short", "model": "m", "levels": [0.1, 0.5], "time": None}]
    write_rows(path, rows)
    write_rows(path, [rows[0] | {"model": "n"}])
    with path.open() as file:
        found = list(csv.DictReader(file))
    assert [row["model"] for row in found] == ["m", "n"]
    assert (found[0]["levels"], found[0]["time"]) == ("[0.1, 0.5]", "")
    with pytest.raises(TspruneError, match=r"has other columns than the new rows \(levels, time\)"):
        write_rows(path, [{"dataset": "a", "model": "m"}])
    with pytest.raises(TspruneError, match="rows have other columns: x"):
        write_rows(path, [rows[0], rows[0] | {"x": 1}])
    assert pd.read_csv(path).shape == (2, 4)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**32 - 1), st.sampled_from([0, 1]))
def test_seasonal_errors_by_brute_force(length: int, season: int, seed: int, short: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=length)
    values[rng.random(length) < 0.3] = np.nan
    ends = rng.integers(0, length + 1, 5)
    history = int(rng.integers(1, 50))
    found = seasonal_errors(values, ends, season, short=short, history=history, power=2)
    for end, one in zip(ends.tolist(), found, strict=True):
        past = values[max(0, end - history) : end]
        step = short if short and season > len(past) else season
        gaps = [(past[t] - past[t - step]) ** 2 for t in range(step, len(past))]
        gaps = [gap for gap in gaps if not np.isnan(gap)]
        assert close(one, sum(gaps) / len(gaps) if gaps else float("nan"))


def test_nothing_observed_is_not_a_number() -> None:
    empty = Forecasts(
        ("a",), np.zeros(1, int), np.ones(1, int), np.full((1, 3), np.nan), (0.5,), np.zeros((1, 1, 3)),
        np.ones(1), np.ones(1),
    )  # fmt: skip
    assert np.isnan(list(fev_measures(empty, ["MASE", "MAE", "WAPE", "RMSE"], []).values())).all()
    with pytest.raises(TspruneError, match="no forecast at level 0.1, only at 0.5"):
        empty.at(0.1)
