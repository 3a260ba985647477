"""The data of a fev task as a panel: one series per item and target column, in fev's order."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tsprune.data.frequency import infer_step
from tsprune.data.panel import FloatArray, Panel, Series
from tsprune.data.recordsets import Table, arrays, is_list, is_records, load_records, pa
from tsprune.data.words import listed, many
from tsprune.errors import TspruneError
from tsprune.evaluation.protocols._fev_task import ALL_COLUMNS, FevTask

if TYPE_CHECKING:
    import pandas as pd

_SAMPLED = 50


def read_panel(task: FevTask, source: str | PathLike[str] | pd.DataFrame, covariates: bool) -> Panel:
    """The series of a task.

    Args:
        task: names the columns.
        source: the data file or folder, a folder that holds it under `dataset_config` or `dataset_path`, or a long
            table.
        covariates: whether dynamic columns are read.

    Returns:
        Items sorted by id; with several targets, series are called item/target.

    Raises:
        TspruneError: if columns are missing or do not fit each other.
    """
    table, name = _table(task, source)
    if not is_list(table, task.timestamp_column):
        table = _gathered(table, task, name)
    ids = [str(value) for value in table.column(task.id_column).to_pylist()]
    if len(set(ids)) < len(ids):
        twice = next(value for value in ids if ids.count(value) > 1)
        raise TspruneError(f"{name}: the id {twice!r} stands for two series in column {task.id_column!r}")
    stamps = [_stamps(part, name) for part in arrays(table, task.timestamp_column)]
    repairs: list[str] = []
    lines = _lines(table, task, ids, name)
    past, known = (
        _covariates(table, names if covariates else [], stamps, name, repairs)
        for names in (task.past_dynamic_columns, task.known_dynamic_columns)
    )
    if not covariates and (unused := [*task.past_dynamic_columns, *task.known_dynamic_columns]):
        repairs.append(f"dynamic columns were ignored: {listed(unused)}; covariates=True would use them")
    if task.static_columns:
        repairs.append(f"static columns were ignored: {listed(task.static_columns)}")
    step = infer_step(*_sample(stamps), False, name)
    series = []
    for label, row, values in lines:
        own = stamps[row]
        if len(values) != len(own):
            raise TspruneError(f"{name}: series {label!r} has {len(values)} values and {len(own)} timestamps")
        series.append(_series(label, values, past[row], known[row], own, step))
    return Panel(tuple(series), step.alias, tuple(repairs), {}, name, task.seasonality)


def _table(task: FevTask, source: str | PathLike[str] | pd.DataFrame) -> tuple[Table, str]:
    if not isinstance(source, str | PathLike):
        return pa.Table.from_pandas(source, preserve_index=False), "the DataFrame"
    folder = Path(source)
    inner = [folder / part for part in (task.dataset_config, task.dataset_path) if part]
    place = next((path for path in inner if folder.is_dir() and is_records(path)), folder)
    table = load_records(place)
    for column in (task.id_column, task.timestamp_column):
        if column not in table.column_names:
            raise TspruneError(
                f"{place}: there is no column {column!r}; the columns are {', '.join(table.column_names)}"
            )
    return table, str(place)


def _gathered(table: Table, task: FevTask, name: str) -> Table:
    """A long table, one row per item and step, as one record per item."""
    order = [(task.id_column, "ascending"), (task.timestamp_column, "ascending")]
    table = table.sort_by(order)
    codes = np.array(table.column(task.id_column).to_pylist(), dtype=object)
    borders = np.concatenate([[0], np.flatnonzero(codes[1:] != codes[:-1]) + 1, [len(codes)]])
    fixed = {task.id_column, *task.static_columns}
    columns = {}
    for column in table.column_names:
        values = table.column(column).combine_chunks()
        values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
        if column in fixed:
            columns[column] = values.take(pa.array(borders[:-1]))
        else:
            columns[column] = pa.LargeListArray.from_arrays(pa.array(borders, pa.int64()), values)
    return pa.table(columns)


def _stamps(values: NDArray[Any], name: str) -> NDArray[np.int64]:
    if values.dtype.kind != "M":
        raise TspruneError(f"{name}: timestamps are {values.dtype}, expected dates and times")
    found = values.astype("M8[us]")
    if np.isnat(found).any():
        raise TspruneError(f"{name}: {int(np.isnat(found).sum())} timestamps are missing, expected one per step")
    return found.astype(np.int64)


def _lines(table: Table, task: FevTask, ids: list[str], name: str) -> list[tuple[str, int, NDArray[Any]]]:
    """Name, record and values of every series, in fev's order: sorted ids, then sorted target columns."""
    columns, several = task.targets, len(task.targets) > 1
    chosen = task.generate_univariate_targets_from
    if chosen is not None:
        dynamic = [column for column in table.column_names if is_list(table, column)]
        plain = [column for column in dynamic if column != task.timestamp_column]
        columns = plain if chosen == ALL_COLUMNS else list(chosen)
    lacking = [column for column in columns if column not in table.column_names]
    if lacking:
        raise TspruneError(f"{name}: there is no target column {lacking[0]!r}; found {', '.join(table.column_names)}")
    values = {column: _numeric(table, column, name) for column in columns}
    if chosen is not None:
        split = [(f"{ids[row]}_{column}", row, values[column][row]) for row in range(len(ids)) for column in columns]
        return sorted(split, key=lambda line: line[0])
    order = sorted(range(len(ids)), key=lambda row: ids[row])
    return [
        (f"{ids[row]}/{column}" if several else ids[row], row, values[column][row])
        for row in order
        for column in columns
    ]


def _numeric(table: Table, column: str, name: str) -> list[NDArray[Any]]:
    found = arrays(table, column)
    if found and found[0].dtype.kind not in "fiub":
        raise TspruneError(f"{name}: target column {column!r} holds {found[0].dtype}, expected numbers")
    return found


def _covariates(
    table: Table, names: list[str], stamps: list[NDArray[np.int64]], name: str, repairs: list[str]
) -> list[dict[str, FloatArray]]:
    found: list[dict[str, FloatArray]] = [{} for _ in stamps]
    for column in names:
        try:
            lines = arrays(table, column)
        except TspruneError as error:
            if "text" not in str(error):
                raise TspruneError(f"{name}: {error}") from None
            repairs.append(f"column {column!r} holds text and was ignored")
            continue
        for row, line in enumerate(lines):
            if len(line) != len(stamps[row]):
                raise TspruneError(
                    f"{name}: column {column!r} has {len(line)} and the timestamps {len(stamps[row])} steps"
                )
            found[row][column] = _single(line)
    return found


def _sample(stamps: list[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    some = stamps[:_SAMPLED]
    return np.concatenate(some), np.repeat(np.arange(len(some)), [len(part) for part in some])


def _series(
    label: str,
    values: NDArray[Any],
    past: dict[str, FloatArray],
    known: dict[str, FloatArray],
    stamps: NDArray[np.int64],
    step: Any,
) -> Series:
    import pandas as pd

    start = pd.Timestamp(np.datetime64(int(stamps[0]), "us")) if len(stamps) else None
    regular = not len(stamps) or np.array_equal(step.stamps(int(stamps[0]), 0, len(stamps)), stamps)
    return Series(label, _single(values), past, known, start, None if regular else stamps.astype("M8[us]"))


def _single(values: NDArray[Any]) -> FloatArray:
    plain = np.asarray(values, np.float32)
    return np.where(np.isinf(plain), np.float32(np.nan), plain)


def cut_points(panel: Panel, cutoff: int | str) -> NDArray[np.int64]:
    """Steps of every series that belong to the past `[S]`; a date counts as past itself."""
    if isinstance(cutoff, int):
        return np.clip(np.where(cutoff >= 0, cutoff, panel.lengths + cutoff), 0, panel.lengths)
    limit = np.datetime64(cutoff, "us")
    counts = [
        int(np.searchsorted(panel.timestamps(index).to_numpy("M8[us]"), limit, side="right"))
        for index in range(len(panel.series))
    ]
    return np.array(counts, np.int64)


def left_out(panel: Panel, usable: NDArray[np.bool_], task: FevTask) -> str:
    """What to say about series that a window has no room in."""
    out = [panel.ids[index] for index in np.flatnonzero(~usable)]
    return (
        f"{many(len(out), 'series', 'series')} with fewer than {task.min_context_length} steps before the cut or "
        f"{task.horizon} after it left out, as fev does: {listed(out)}"
    )
