"""Make the numbers of `eval_references.json` with fev and gluonts.

    python -m tests.eval_references

Needs `pip install 'tsprune[test]' fev gluonts`, whose newest versions (fev 0.10.0, gluonts 0.17.0) do not go with the
versions in `constraints.txt`: hence the file. It also checks that what `datasets` and gluonts write is read as it was.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import fev
import numpy as np
import pandas as pd
from gluonts.dataset.split import split as cut
from gluonts.ev import metrics as ev
from gluonts.model import evaluate_forecasts
from gluonts.model.forecast import QuantileForecast
from gluonts.time_feature import get_seasonality

from tests import evalsets as sets
from tsprune.evaluation.baselines.seasonal_naive import SeasonalNaive
from tsprune.evaluation.protocols import make

OUTPUT = Path(__file__).with_suffix(".json")
_OFFICIAL = [
    ev.MSE(forecast_type="mean"),
    ev.MSE(forecast_type=0.5),
    ev.MAE(),
    ev.MASE(),
    ev.MAPE(),
    ev.SMAPE(),
    ev.MSIS(),
    ev.RMSE(),
    ev.NRMSE(),
    ev.ND(),
    ev.MeanWeightedSumQuantileLoss(quantile_levels=list(sets.LEVELS)),
]


def gift(name: str, folder: Path) -> dict[str, Any]:
    """The windows and measures of a data set as gluonts has them, with our forecasts."""
    case = sets.GIFT_CASES[name]
    records = sets.gift_records(**case)
    saved = datasets.Dataset.from_list([{k: sets._listed(v) for k, v in record.items()} for record in records])
    saved.save_to_disk(str(folder / name))
    protocol = make("gift_eval", data=name)
    panel = protocol.read(folder)
    (split,) = protocol.splits(panel, 24)
    found = protocol.forecasts(SeasonalNaive(12), split)
    entries = []
    for record in records:
        for dimension, target in enumerate(np.atleast_2d(record["target"])):
            label = f"{record['item_id']}_dim{dimension}" if "several" in case else record["item_id"]
            start = pd.Period(record["start"], protocol.frequency)
            entries.append({"item_id": label, "start": start, "target": target.astype(np.float32)})
    horizon, shortest = (
        {"m4_monthly": 18, "brief/15T": 48}.get(name, 12),
        min(len(entry["target"]) for entry in entries),
    )
    windows = 1 if "m4" in name else min(max(1, int(np.ceil(0.1 * shortest / horizon))), 20)
    _, template = cut(entries, offset=-horizon * windows)
    test = template.generate_instances(prediction_length=horizon, windows=windows, distance=horizon)
    lengths = [len(entry["target"]) for entry in test.input]
    assert found.origin.tolist() == lengths
    forecasts = [
        QuantileForecast(found.quantiles[row], entry["start"], [str(level) for level in sets.LEVELS], entry["item_id"])
        for row, entry in enumerate(test.label)
    ]
    assert found.ids == tuple(forecast.item_id for forecast in forecasts)
    arguments = {"test_data": test, "seasonality": get_seasonality(protocol.frequency)}
    values = evaluate_forecasts(forecasts, metrics=_OFFICIAL, axis=None, batch_size=7, **arguments)
    return {
        "origins": lengths,
        "ids": list(found.ids),
        "values": {key: float(value) for key, value in values.iloc[0].items()},
    }


def fev_case(name: str, folder: Path) -> dict[str, Any]:
    """The windows and the result row of a task as fev has them, with our predictions."""
    path = sets.write_fev(folder / "data" / "daily" / "data.parquet")
    definition = {"dataset_path": str(path), **sets.FEV_CASES[name]}
    protocol = make("fev", definition=definition)
    splits = protocol.splits(protocol.read(""), 1000)
    found = [protocol.forecasts(SeasonalNaive(7), split) for split in splits]
    task = fev.Task(**definition)
    windows = []
    for window in task.iter_windows(num_proc=1):
        past, _ = window.get_input_data()
        truth = window.get_ground_truth()
        entry = {
            "ids": list(past["id"]),
            "past": [len(part) for part in past["timestamp"]],
            "cut": [str(pd.Timestamp(part[0])) for part in truth["timestamp"]],
        }
        windows.append(entry)
    row = protocol.summary(found, "seasonal naive", path)
    own = fev.Task(**definition).to_dict()
    assert own | {"dataset_path": 0} == protocol.definition | {"dataset_path": 0}, (own, protocol.definition)
    row = {key: value for key, value in row.items() if key not in ("dataset_path", "inference_time_s")}
    long = folder / "long" / "x" / "data.parquet"
    long.parent.mkdir(parents=True, exist_ok=True)
    sets.long_frame().to_parquet(long, index=False)
    if "static_columns" in definition:
        again = protocol.read(long)
        wide = protocol.read(path)
        assert all(np.array_equal(a.values, b.values, True) for a, b in zip(again.series, wide.series, strict=True))
    return {"windows": windows, "row": row}


def own() -> dict[str, Any]:
    """The measures of `RowErrors` by both libraries; MASE and sMAPE row by row, then averaged."""
    arrays = sets.own_arrays()
    season = int(arrays["season"])
    pasts = np.ma.masked_invalid(arrays["past"])
    naive = np.abs(pasts[:, season:] - pasts[:, :-season]).mean(axis=1).filled(np.nan)
    data = {"label": np.ma.masked_invalid(arrays["original"]), "seasonal_error": naive[:, None]}
    data |= {str(level): arrays["units"][:, place] for place, level in enumerate(sets.LEVELS)}
    scored = {"label": np.ma.masked_invalid(arrays["truth"]), "0.5": arrays["quantiles"][:, 4]}

    def by_row(metric: Any) -> float:
        values = [metric(axis=None).update({k: v[row : row + 1] for k, v in data.items()}).get() for row in range(40)]
        return float(np.nanmean(np.ma.filled(np.ma.masked_invalid(values), np.nan)))

    gluonts = {
        "mse": float(ev.MSE(forecast_type="0.5")(axis=None).update(scored).get()),
        "mae": float(ev.MAE()(axis=None).update(scored).get()),
        "mase": by_row(ev.MASE()),
        "smape": 100 * by_row(ev.SMAPE()),
        "wql": float(_OFFICIAL[-1](axis=None).update(data).get()),
    }

    def ask(name: str, truth: str, quantiles: str, rows: slice) -> float:
        part = arrays[quantiles][rows]
        count = len(part)
        return fev.metrics.get_metric(name).compute(
            y_true=arrays[truth][rows][..., None],
            y_pred=part[:, 4, :, None],
            y_past=arrays["past"][rows].reshape(-1, 1),
            y_past_lengths=np.full(count, arrays["past"].shape[1]),
            q_pred=part.transpose(0, 2, 1)[:, :, None],
            seasonality=season,
            quantile_levels=list(sets.LEVELS),
        )

    every = slice(None)
    fevs = {
        "mse": ask("MSE", "truth", "quantiles", every),
        "mae": ask("MAE", "truth", "quantiles", every),
        "mase": float(np.nanmean([ask("MASE", "original", "units", slice(row, row + 1)) for row in range(40)])),
        "smape": 100 * float(np.nanmean([ask("SMAPE", "original", "units", slice(row, row + 1)) for row in range(40)])),
        "wql": ask("WQL", "original", "units", every),
    }
    return {"gluonts": gluonts, "fev": fevs}


def main() -> None:
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        made = {
            "made with": {name: version(name) for name in ("fev", "gluonts", "datasets", "pandas", "numpy")},
            "seasons": {name: get_seasonality(name) for name in sets.FREQUENCIES},
            "own": own(),
            "gift": {name: gift(name, folder) for name in sets.GIFT_CASES},
            "fev": {name: fev_case(name, folder) for name in sets.FEV_CASES},
        }
    OUTPUT.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
