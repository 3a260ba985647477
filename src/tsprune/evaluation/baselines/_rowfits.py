"""Models of the library statsforecast, one per row; as a program, rows for another process. Imports no torch."""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float64]
Reasons = Mapping[str, int]
"""Why rows could not be forecast, and how many of them for each reason."""


@dataclass(frozen=True)
class Request:
    """What is asked of every row.

    Args:
        model: class in `statsforecast.models`.
        season: season in steps.
        horizon: steps to forecast.
        levels: quantile levels, each strictly between 0 and 1.
    """

    model: str
    season: int
    horizon: int
    levels: tuple[float, ...]


def forecast_rows(request: Request, rows: _Floats) -> tuple[_Floats, Reasons]:
    """Forecast rows, each by a model of its own.

    The library seeds numpy's global generator where it simulates; the generator is left as it was found.

    Args:
        request: what to forecast.
        rows: `[n, L]`, NaN only before a row's first value.

    Returns:
        Quantiles `[n, Q, H]`, NaN in rows that could not be forecast, and the reasons why.
    """
    from statsforecast import models

    made = getattr(models, request.model)(season_length=request.season)
    found = np.full((len(rows), len(request.levels), request.horizon), np.nan)
    reasons: Counter[str] = Counter()
    before = np.random.get_state()
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            for place, row in enumerate(rows):
                # The library raises bare exceptions; why is handed on, and said.
                try:
                    found[place] = _quantiles(made, row[~np.isnan(row)], request)
                except Exception as error:
                    reasons[str(error) or type(error).__name__] += 1
    finally:
        np.random.set_state(before)
    return found, dict(reasons)


def _quantiles(model: Any, values: _Floats, request: Request) -> _Floats:
    """Point forecast at level 0.5, ends of central intervals elsewhere, `[Q, H]`.

    Some intervals are simulated and can miss the point forecast; then their end is moved to it.
    """
    widths = [round(200 * abs(level - 0.5), 9) for level in request.levels]
    found = model.forecast(y=values, h=request.horizon, level=sorted({width for width in widths if width}) or None)
    point, paths = found["mean"], []
    for level, width in zip(request.levels, widths, strict=True):
        if not width:
            paths.append(point)
        else:
            side, moved = ("lo", np.minimum) if level < 0.5 else ("hi", np.maximum)
            paths.append(moved(found[f"{side}-{width}"], point))
    made = np.asarray(paths, np.float64)
    if not np.isfinite(made).all():
        raise ArithmeticError("the forecast or an interval is not finite")
    return made


def send(stream: IO[bytes], header: Mapping[str, Any], values: _Floats) -> None:
    """Write a line of JSON, with the array's shape, and the float64 array."""
    stream.write(json.dumps({"shape": values.shape, "header": dict(header)}).encode() + b"\n")
    stream.write(np.ascontiguousarray(values, np.float64).tobytes())
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], _Floats] | None:
    """The next header and its array; None where the stream ends before they are whole."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    told = json.loads(line)
    size = 8 * math.prod(told["shape"])
    content = stream.read(size)
    if len(content) < size:
        return None
    return told["header"], np.frombuffer(content, np.float64).reshape(told["shape"])


def ask(stream: IO[bytes], request: Request, rows: _Floats) -> None:
    """Write a request as `main` reads it."""
    send(stream, asdict(request), rows)


def main() -> None:
    """Answer requests on standard input until it closes."""
    import signal

    # The process that asks is the one to be interrupted; it closes the stream.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while (given := receive(source)) is not None:
        header, rows = given
        levels: Sequence[float] = header.pop("levels")
        found, reasons = forecast_rows(Request(**header, levels=tuple(levels)), rows)
        send(sink, reasons, found)


if __name__ == "__main__":
    main()
