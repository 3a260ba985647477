"""What comes into the products of a graph on calibration windows: ranges, and the mean shift that int8 brings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsprune.exports._integers import Grid, codes_of
from tsprune.exports._products import Floats, Graph

FEWEST_TOKENS = 64
"""Fewer tokens say too little of the range of what comes in; experts that are hardly used have that few."""
ROWS = 8
"""Rows that are watched at a time: everything that comes into any product is held meanwhile."""


@dataclass(frozen=True)
class Observed:
    """What calibration found.

    Attributes:
        grids: by name of what comes in; none where too few tokens came.
        shifts: by name of the product, float32 mean output less int8 mean output `[outputs]`.
        work: by name of the product, multiplications on the windows.
    """

    grids: dict[str, Grid]
    shifts: dict[str, Floats]
    work: dict[str, int]


def observe(graph: Graph, contexts: Sequence[Floats], others: Sequence[Floats] = ()) -> Observed:
    """Watch what comes into each product.

    Ranges are from the smallest to the largest value: clipping rare ones cost more than finer steps gave on every model
    and set that was tried, see benchmarks/int8.py.

    Args:
        graph: its products are watched.
        contexts: calibration windows `[B, L]`.
        others: contexts of other lengths and with gaps `[B, L]`, which count for the ranges only.
    """
    from tsprune.exports.onnx import outputs

    names = graph.inputs
    run = outputs(graph.watched().SerializeToString(), names)
    low, high = dict.fromkeys(names, np.inf), dict.fromkeys(names, -np.inf)
    tokens = dict.fromkeys(names, 0)
    for number, rows in enumerate((contexts, others)):
        for values in _watched(run, rows):
            for name, found in zip(names, values, strict=True):
                if found.size:
                    low[name], high[name] = min(low[name], float(found.min())), max(high[name], float(found.max()))
                    tokens[name] += len(found) if number == 0 else 0
    grids = {
        name: Grid.of(low[name], high[name])
        for name in names
        if tokens[name] >= FEWEST_TOKENS and np.isfinite([low[name], high[name]]).all()
    }
    plain = {name: np.zeros(1) for name in grids}
    rough = dict(plain)
    for values in _watched(run, contexts):
        for name, found in zip(names, values, strict=True):
            if name in grids:
                plain[name] = plain[name] + found.sum(0, dtype=np.float64)
                rough[name] = rough[name] + grids[name].rounded(found).sum(0, dtype=np.float64)
    return Observed(grids, *_per_product(graph, tokens, plain, rough))


def _per_product(
    graph: Graph, tokens: dict[str, int], plain: dict[str, NDArray[Any]], rough: dict[str, NDArray[Any]]
) -> tuple[dict[str, Floats], dict[str, int]]:
    """Shifts and multiplications; nodes of one product are taken together."""
    shifts, work = {}, {}
    for product in graph.products:
        count = sum(tokens[name] for name in product.inputs)
        work[product.name] = count * product.weight.size
        if all(name in plain for name in product.inputs):
            codes, scale = codes_of(product.weight)
            before, after = (sum(side[name] for name in product.inputs) / count for side in (plain, rough))
            shifts[product.name] = (before @ product.weight - after @ (codes * scale)).astype(np.float32)
    return shifts, work


def _watched(run: Any, contexts: Sequence[Floats]) -> Iterator[list[Floats]]:
    """What comes into each product as `[tokens, inputs]`, a few rows at a time."""
    for context in contexts:
        for first in range(0, len(context), ROWS):
            found = run(context[first : first + ROWS])
            yield [values.reshape(-1, values.shape[-1]) if values.ndim else values[None, None] for values in found]
