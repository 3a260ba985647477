"""Forecast every numeric column of a CSV file with an exported model, by onnxruntime and numpy alone.

python serve_onnx.py exported/model.onnx series.csv
"""

import csv
import sys

import numpy as np
import onnxruntime


def number(text: str) -> float:
    """A cell as a number; anything else is a missing value, which the graph knows what to do with."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def main(graph: str, table: str) -> None:
    """Print the quantiles of every step, one line for each series and step."""
    with open(table, newline="", encoding="utf-8") as file:
        names, *rows = csv.reader(file)
    cells = np.array([[number(cell) for cell in row] for row in rows if row], dtype=np.float32).T
    numeric = ~np.isnan(cells).all(axis=1)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (quantiles,) = session.run(["quantiles"], {"context": cells[numeric]})
    levels = session.get_modelmeta().custom_metadata_map["levels"]
    print(f"series,step,{levels}")
    for name, series in zip(np.array(names)[numeric], quantiles, strict=True):
        for step, values in enumerate(series.T, start=1):
            print(name, step, *(f"{value:.6g}" for value in values), sep=",")


if __name__ == "__main__":
    main(*sys.argv[1:])
