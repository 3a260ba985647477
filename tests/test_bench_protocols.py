"""Grids under the other protocols: many short series, and benchmarks with result rows of their own."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import evalsets
import tiny
import tsprune
from running import SMALL, wide
from tsprune.bench import benching
from tsprune.bench.spec import of
from tsprune.evaluation.baselines.seasonal_naive import SeasonalNaive


@pytest.fixture(scope="module", autouse=True)
def plain_pages() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tsprune.bench.pages.page.write_page", lambda path, *rest: path.write_text("page"))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tsprune.save(tiny.tiny_model("chronos2"), folder)
    return folder


def run(model: Path, out: Path, **content: Any) -> list[dict[str, Any]]:
    settings = {key: value for key, value in SMALL.items() if key != "horizon"} | {"seeds": [0], "latency": False}
    spec = of({"models": [{"name": "tiny", "path": str(model)}], "context": 32} | settings | content)
    benching.bench(spec, out)
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_many_short_series(model: Path, tmp_path: Path) -> None:
    wide(rows=5, length=90).to_csv(tmp_path / "short.csv", index=False)
    data = [{"name": "short", "file": str(tmp_path / "short.csv"), "read": {"season": 7}}]
    rows = run(model, tmp_path / "out", protocol="panel", data=data, horizons=[6])
    assert all(row["windows"]["test"] == 5 and row["test"]["smape"] > 0 for row in rows)
    panel = tsprune.read(tmp_path / "short.csv", tsprune.ReadOptions(season=7))
    (naive,) = (row for row in rows if row["candidate"] == "seasonal_naive")
    by_hand = []
    for series in panel.series:
        past, future = series.values[:-6].astype(float), series.values[-6:].astype(float)
        scale = abs(past[7:] - past[:-7]).mean()
        by_hand.append(abs(future - past[-7:][:6]).mean() / scale)
    assert naive["test"]["mase"] == pytest.approx(sum(by_hand) / 5, rel=1e-5)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["measures"] == ["mase", "smape", "wql"]


def test_rows_of_gift_eval(model: Path, tmp_path: Path) -> None:
    evalsets.write_saved(tmp_path / "own" / "M", evalsets.as_table(evalsets.gift_records()))
    data = [{"name": "own/M", "protocol": {"horizon": 12}}]
    rows = run(model, tmp_path / "out", protocol="gift_eval", data=data, horizons=[0], folder=str(tmp_path))
    written = table(tmp_path / "out" / "gift_eval.csv")
    assert {row["model"] for row in written} == {
        " ".join(filter(None, (row["model"], row["candidate"], "" if row["seed"] is None else "seed 0")))
        for row in rows
        if row["candidate"] != "specialist"
    }
    protocol = of_protocol("gift_eval", data="own/M", horizon=12)
    panel = protocol.read(tmp_path)
    (split,) = protocol.splits(panel, 32)
    naive = SeasonalNaive(panel.season())
    (expected,) = protocol.result_rows([protocol.forecasts(naive, split)], "seasonal_naive")
    (found,) = (row for row in written if row["model"] == "seasonal_naive")
    for name, value in expected.items():
        if name.startswith("eval_metrics/"):
            assert float(found[name]) == pytest.approx(value, rel=1e-6)


def test_rows_of_fev(model: Path, tmp_path: Path) -> None:
    evalsets.write_fev(tmp_path / "data.parquet")
    task = {"dataset_path": str(tmp_path / "data.parquet"), "horizon": 6, "num_windows": 2, "seasonality": 12}
    task |= {
        "eval_metric": "MASE",
        "extra_metrics": ["WQL"],
        "quantile_levels": [0.1, 0.5, 0.9],
        "task_name": "own",
        "target": "first",
    }
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump({"tasks": [task]}))
    data = [{"name": "own", "protocol": {"data": str(tmp_path / "tasks.yaml"), "task": "own"}}]
    rows = run(model, tmp_path / "out", protocol="fev", data=data, horizons=[0])
    written = table(tmp_path / "out" / "fev.csv")
    assert len(written) == len(rows) - 1  # all but the specialist
    assert all(float(row["test_error"]) > 0 and row["task_name"] == "own" for row in written)
    assert {row["horizon"] for row in rows} == {6}


def of_protocol(name: str, **settings: Any) -> Any:
    from tsprune.evaluation import protocols

    return protocols.make(name, **settings)
