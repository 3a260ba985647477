"""Forecasts of the steps after the end of the data, as a table."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from tsprune.data.panel import Panel
from tsprune.data.reading import read
from tsprune.data.windows import forecast_batch
from tsprune.errors import TspruneError
from tsprune.evaluation.metrics import DECILES

if TYPE_CHECKING:
    import pandas as pd

    from tsprune.data.reading import ReadOptions
    from tsprune.models._forecaster import Forecaster

ROWS = 256
LONGEST = 100_000
Floats = NDArray[np.float32]


def predict(
    model: Forecaster | str | PathLike[str],
    panel: Panel | pd.DataFrame | pd.Series[Any] | str | PathLike[str],
    horizon: int,
    *,
    context: int = 0,
    levels: Sequence[float] | float | None = None,
    together: bool = False,
) -> pd.DataFrame:
    """Forecast what follows the end of every series.

    Args:
        model: a loaded model, or what `tsprune.load` takes: `mini`, a directory such as `run/model`, or a hub id.
        panel: the series, or what `tsprune.read` takes: a table, or the path of a file. Known covariates must reach
            `horizon` steps beyond the end.
        horizon: steps to forecast H, at most 100,000.
        context: steps of history to use; 0 means what the model was tuned for, or else all that it can use.
        levels: quantile levels, one column each; one number is one level. None means the deciles that the model spans,
            for a model of single values that value.
        together: forecast all series jointly, as one group.

    Returns:
        A row per series and step: `id`, `timestamp` (or `step` without timestamps), a column per level.

    Raises:
        TspruneError: a model or data that cannot be read, a horizon, context or level that the model, the data or the
            memory cannot meet, or covariates and groups that the family would ignore.
    """
    from tsprune.preparing import refuse_unsupported

    horizon, context = _whole(horizon, "--horizon"), _whole(context, "--context")
    if horizon < 1:
        raise TspruneError(f"--horizon {horizon} must be a positive number of steps")
    if horizon > LONGEST:
        raise TspruneError(f"--horizon {horizon} is more than the {LONGEST:,} steps that are forecast at most")
    model, panel = as_model(model), as_panel(panel)
    if levels is None:
        levels = usual_levels(model)
    levels = (float(levels),) if isinstance(levels, int | float) else levels
    _check_levels(model, levels)
    refuse_unsupported(panel, model, together)
    length = _context(model, panel, context)
    said = f"a forecast of {len(panel.series):,} series, {horizon:,} steps each and {len(levels)} quantiles"
    _check_memory(len(panel.series) * horizon * (len(levels) + 2), said)
    try:
        return _forecast(model, panel, horizon, length, levels, together)
    except MemoryError:
        raise _too_large(said) from None


def as_model(source: object) -> Forecaster:
    """A loaded model as it is; a name, directory, hub id or a model of an original package is loaded."""
    from tsprune.models import load
    from tsprune.models._forecaster import Forecaster
    from tsprune.models._memory import has_network

    if isinstance(source, Forecaster):
        return source
    if isinstance(source, str | PathLike):
        return load(os.fspath(source))
    if has_network(source):
        return load(source)
    raise TspruneError(
        f"model is a {type(source).__name__}, expected a loaded model, a name, directory or hub id to load, or a model "
        "object of an original package"
    )


def as_panel(source: object, options: ReadOptions | None = None) -> Panel:
    """A panel as it is; a table or the path of a file is read, as `options` say."""
    import pandas as pd

    if isinstance(source, Panel):
        return source
    if isinstance(source, str | PathLike | pd.DataFrame | pd.Series):
        return read(source, options)
    raise TspruneError(
        f"the series are a {type(source).__name__}, expected a panel, a pandas table, or the path of a file"
    )


def _whole(value: SupportsIndex, flag: str) -> int:
    """A whole number of Python or numpy."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise TspruneError(f"{flag} is {value!r}, expected a whole number")


def _too_large(said: str) -> TspruneError:
    return TspruneError(f"{said} does not fit into memory; give a shorter --horizon, fewer --levels or fewer series")


def _check_memory(cells: int, said: str) -> None:
    """Refuse a table that the machine cannot hold, where it tells its memory: once as parts and once joined."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return
    if 2 * 8 * cells > memory > 0:
        raise _too_large(said)


def _forecast(
    model: Forecaster, panel: Panel, horizon: int, length: int, levels: Sequence[float], together: bool
) -> pd.DataFrame:
    """The forecast of checked arguments, in batches of series."""
    import pandas as pd
    import torch

    from tsprune.blocks.prepacked import prepacked

    grouping = "all" if together else "none"
    parts = (
        [np.arange(len(panel.series))]
        if together
        else np.array_split(np.arange(len(panel.series)), -(-len(panel.series) // ROWS))
    )
    tables = []
    with prepacked(model, len(panel.series)):
        for part in parts:
            batch = forecast_batch(panel, length, horizon, grouping=grouping, series=None if together else part)  # type: ignore[arg-type]
            quantiles = model.forecast(batch.to(model.device), horizon, levels).cpu()
            if batch.is_target is not None:
                quantiles = quantiles[batch.is_target]
            if bool(torch.isnan(quantiles).any()):
                row = int(torch.isnan(quantiles).flatten(1).any(1).nonzero()[0])
                raise TspruneError(
                    f"the forecast of series {panel.series[int(part[row])].id!r} is not a number; check its values"
                )
            for row, index in enumerate(part.tolist()):
                tables.append(_table(panel, index, horizon, quantiles[row].numpy(), levels))
    return pd.concat(tables, ignore_index=True)


def usual_levels(model: Forecaster) -> tuple[float, ...]:
    """The deciles that the model spans; its own levels where it spans none."""
    low, high = min(model.levels), max(model.levels)
    return tuple(level for level in DECILES if low <= level <= high) or model.levels


def _check_levels(model: Forecaster, levels: Sequence[float]) -> None:
    """Refuse levels that the model does not span: it has nothing to say about them."""
    if not levels:
        raise TspruneError("--levels is empty; name at least one quantile level, such as 0.5")
    if len(set(levels)) < len(levels):
        raise TspruneError(f"--levels {', '.join(f'{level:g}' for level in levels)} names a level twice")
    low, high = min(model.levels), max(model.levels)
    if outside := [level for level in levels if not low <= level <= high]:
        raise TspruneError(
            f"--levels {outside[0]:g} is outside the levels that this model forecasts, {low:g} to {high:g}"
        )


def _context(model: Forecaster, panel: Panel, context: int) -> int:
    """Steps of history to use; a wish that cannot be met is refused."""
    longest = int(panel.lengths.max())
    if context < 0:
        raise TspruneError(f"--context {context} must not be negative")
    if context > model.context_length:
        raise TspruneError(
            f"--context {context} is more than the {model.context_length} steps that the model can use; give "
            f"--context {model.context_length} or less"
        )
    if context > longest:
        raise TspruneError(
            f"--context {context} is more than the {longest} steps of the longest series; leave it out to use all"
        )
    return context or usual_context(model, panel)


def usual_context(model: Forecaster, panel: Panel) -> int:
    """Steps of history used unless told otherwise: what the model was tuned for, else all that it can use."""
    tuned_for = int(model.task.get("context") or model.context_length)
    return max(1, min(tuned_for, model.context_length, int(panel.lengths.max())))


def _table(panel: Panel, index: int, horizon: int, quantiles: Floats, levels: Sequence[float]) -> pd.DataFrame:
    import pandas as pd

    series = panel.series[index]
    stamps = panel.horizon_timestamps(index, len(series), horizon)
    columns: dict[str, object] = {"id": series.id, "timestamp" if series.start is not None else "step": stamps}
    columns |= {f"{level:g}": quantiles[place] for place, level in enumerate(levels)}
    return pd.DataFrame(columns)
