"""Small data sets in the layouts of GIFT-Eval and fev, and the cases that library references were made for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
FREQUENCIES = ["10S", "4S", "7T", "15T", "60min", "H", "6h", "24h", "D", "2D", "B", "W-WED", "M", "QS", "A-DEC", "YE"]


def line(seed: int, length: int, season: int = 12, holes: float = 0.1) -> np.ndarray:
    """A noisy season, in eighths so that single precision has it exactly `[length]`."""
    rng = np.random.default_rng(seed)
    values = 40 + 10 * np.sin(np.arange(length) * 2 * np.pi / season) + rng.normal(size=length) * 3
    values[rng.random(length) < holes] = np.nan
    return np.round(values * 8) / 8


def gift_records(several: bool = False, brief: bool = False) -> list[dict[str, Any]]:
    """Items with missing values: one that never changes before the test, one with a whole window missing.

    Brief ones are quarters of an hour, of which less than a day, exactly a day and nothing at all was seen before.
    """
    records = []
    for item, length in enumerate((100, 144, 150, 120) if brief else (150, 180, 151, 160)):
        target = line(item, length)
        if item == 1 and not brief:
            target[:130] = 7.0
        if item == 2:
            target[-12:] = np.nan
        if item == 0 and brief:
            target[55:60] = 0
        if item == 3 and brief:
            target[:72] = np.nan
        record: dict[str, Any] = {"item_id": f"item{item}", "start": pd.Timestamp("2010-01-01")}
        record["freq"] = "15T" if brief else "M"
        record["target"] = np.stack([target, line(10 + item, length) / 2]) if several else target
        record["past_feat_dynamic_real"] = np.stack([line(20 + item, length)])
        records.append(record)
    return records


def as_table(records: list[dict[str, Any]]) -> pa.Table:
    plain = [{key: _listed(value) for key, value in record.items()} for record in records]
    return pa.table({name: [record[name] for record in plain] for name in plain[0]})


def _listed(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def write_saved(folder: Path, table: pa.Table, files: int = 2) -> Path:
    """The layout of `datasets.Dataset.save_to_disk`."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05}-of-{files:05}.arrow" for number in range(files)]
    borders = np.linspace(0, table.num_rows, files + 1).astype(int)
    for name, low, high in zip(names, borders[:-1], borders[1:], strict=True):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.slice(low, high - low))
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text('{"features": {}}')
    return folder


def fev_records() -> list[dict[str, Any]]:
    """Items of several lengths, not in the order of their ids; one never changes at first, one is too short."""
    records = []
    for item, length in zip((2, 10, 1, 3, 4), (90, 60, 120, 75, 16), strict=True):
        first = line(30 + item, length, 7)
        if item == 3:
            first[:50] = 3.0
        stamps = pd.date_range("2021-03-01", periods=length).to_numpy("M8[ms]")
        records.append(
            {
                "id": f"T{item}",
                "timestamp": stamps,
                "first": first,
                "second": line(40 + item, length, 7) + 100,
                "price": line(50 + item, length, holes=0),
                "size": float(item),
            }
        )
    return records


def write_fev(path: Path, records: list[dict[str, Any]] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = as_table(fev_records() if records is None else records)
    if table.schema.field("timestamp").type != pa.list_(pa.timestamp("ms")):
        place = table.column_names.index("timestamp")
        table = table.set_column(place, "timestamp", table.column(place).cast(pa.list_(pa.timestamp("ms"))))
    pq.write_table(table, path)
    return path


def long_frame() -> pd.DataFrame:
    """The same data, one row per item and step, shuffled."""
    frames = [pd.DataFrame(record) for record in fev_records()]
    return pd.concat(frames).sample(frac=1, random_state=0).reset_index(drop=True)


GIFT_CASES: dict[str, dict[str, Any]] = {
    "monthly/M": {},
    "pair/M": {"several": True},
    "m4_monthly": {},
    "brief/15T": {"brief": True},
}

_ALL = ["MAE", "MAEB", "WAPE", "WAPEB", "MSE", "RMSE", "RMSSE", "RMSLE", "MAPE", "SMAPE", "MQL", "SQL", "WQL"]
FEV_CASES: dict[str, dict[str, Any]] = {
    "rolling": {
        "target": "first", "horizon": 7, "num_windows": 3, "window_step_size": 5, "seasonality": 7,
        "quantile_levels": [0.1, 0.5, 0.9], "extra_metrics": _ALL,
    },
    "dated": {
        "target": "second", "horizon": 5, "num_windows": 3, "initial_cutoff": "2021-04-10", "window_step_size": "6D",
        "seasonality": 7, "min_context_length": 20, "quantile_levels": [0.9, 0.25], "eval_metric": "WQL",
        "extra_metrics": ["MASE", "SQL"],
    },
    "dated steps": {
        "target": "first", "horizon": 4, "num_windows": 2, "initial_cutoff": "2021-04-01T00:00", "window_step_size": 3,
        "max_context_length": 20, "seasonality": 7, "eval_metric": {"name": "MASE", "epsilon": 0.5},
        "extra_metrics": ["RMSSE"],
    },
    "from the start": {
        "target": "first", "horizon": 6, "initial_cutoff": 40, "num_windows": 2, "min_context_length": 10,
        "eval_metric": "SMAPE",
    },
    "two targets": {
        "target": ["second", "first"], "horizon": 7, "num_windows": 2, "seasonality": 7, "max_context_length": 40,
        "quantile_levels": list(LEVELS), "eval_metric": "SQL", "extra_metrics": _ALL[:-2] + ["WQL", "MASE"],
        "past_dynamic_columns": ["price"], "static_columns": ["size"],
    },
    "made univariate": {
        "target": "target", "generate_univariate_targets_from": ["first", "second"], "horizon": 7, "seasonality": 7,
    },
}  # fmt: skip


def own_arrays() -> dict[str, np.ndarray]:
    """Rows of targets, z-scored and in their units, forecasts and pasts, for the measures by themselves.

    One row has no target, one a past that never changes, one a past shorter than a season.
    """
    rng = np.random.default_rng(5)
    rows, steps, season = 40, 9, 6
    scale, mean = np.exp2(rng.integers(-3, 6, rows)), rng.integers(-20, 20, rows).astype(float)
    truth = np.round(rng.normal(size=(rows, steps)) * 64) / 64
    truth[rng.random(truth.shape) < 0.2] = np.nan
    truth[3] = np.nan
    quantiles = np.round(np.sort(rng.normal(size=(rows, len(LEVELS), steps)), axis=1) * 64) / 64
    past = np.round(rng.normal(size=(rows, 50)) * 64) / 64
    past[rng.random(past.shape) < 0.1] = np.nan
    past[7] = 2.0
    return {
        "truth": truth, "quantiles": quantiles, "scale": scale, "mean": mean, "season": np.array(season),
        "original": truth * scale[:, None] + mean[:, None],
        "units": quantiles * scale[:, None, None] + mean[:, None, None],
        "past": past * scale[:, None] + mean[:, None],
    }  # fmt: skip
