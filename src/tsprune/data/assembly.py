"""From a table with roles to a Panel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tsprune.data.columns import Roles
from tsprune.data.extremes import Extent, measure, note_extremes
from tsprune.data.grids import Grid, Rows, to_grid
from tsprune.data.numbers import Floats, Narrowing, suspect_sentinels, to_numbers
from tsprune.data.panel import FloatArray, Panel, Series
from tsprune.data.reading import ReadOptions, natural_key
from tsprune.data.stamps import looks_like_dates, parse_stamps
from tsprune.data.steps import Ints, parse_frequency
from tsprune.data.tables import Table
from tsprune.data.words import listed, many
from tsprune.errors import TspruneError


def assemble(table: Table, roles: Roles, options: ReadOptions) -> Panel:
    """Build the panel.

    Raises:
        TspruneError: if cells are no numbers, stamps are no grid, or no series is left.
    """
    suspects: dict[float, str] = {}
    rows: Rows | None = None
    if roles.layout == "transposed":
        series, frequency = _transposed(table, roles, options, suspects)
    else:
        rows, words = _rows(table, roles, options, suspects)
        grid = to_grid(rows, options.frequency, options.grid == "rows", table.repairs)
        if words:
            table.inferred["timestamps"] = words
        frequency = grid.step.alias if roles.timestamp and not rows.numbered else _alias(options.frequency)
        dated = roles.timestamp is not None and not rows.numbered
        series = _cut(grid, rows.ids, roles, dated, table.repairs)
    if frequency and not options.frequency:
        table.inferred["frequency"] = f"{frequency}, the usual step between rows"
    elif not frequency:
        table.inferred["frequency"] = "unknown, so no season; give --frequency if there is one"
    series, extent = _kept(series, options, table)
    _note_missing(series, extent, table.repairs)

    def exact(wanted: list[Series]) -> list[Floats]:
        return _exact(table, roles, options, rows, wanted)

    table.repairs += note_extremes(series, extent, frequency, suspects, exact)
    return Panel(tuple(series), frequency, tuple(table.repairs), dict(table.inferred), table.name)


def _alias(frequency: str | None) -> str:
    return parse_frequency(frequency).alias if frequency else ""


def _rows(table: Table, roles: Roles, options: ReadOptions, suspects: dict[float, str]) -> tuple[Rows, str]:
    """The rows of a long or wide table, and how the stamps were read; `suspects` gets suspected sentinels."""
    frame = table.frame
    names = [*roles.targets, *roles.past, *roles.known]
    values = np.empty((len(frame), len(names)), np.float32)
    narrowing = Narrowing(options.sentinels, table.place)
    for place, name in enumerate(names):
        narrowing.store(to_numbers(frame[name], options, table.place, table.repairs), values[:, place], name)
    ids, codes = _identities(table, roles)
    table.repairs += narrowing.notes(lambda found: [ids[code] for code in np.unique(codes[found])] if roles.id else [])
    suspects.update(suspect_sentinels(values, names))
    table.repairs += suspects.values()
    if roles.timestamp is None:
        stamps, numbered, words = _count_within(codes, len(ids)), True, ""
    else:
        parsed = parse_stamps(frame[roles.timestamp], options.timestamp_format, table.place)
        stamps, numbered, words = parsed.values, parsed.numbered, parsed.words
    return Rows(ids, codes, stamps, values, numbered, table.name), words


def _identities(table: Table, roles: Roles) -> tuple[list[str], Ints]:
    """Series names in natural order, and the index of every row."""
    if roles.id is None:
        return [""], np.zeros(len(table.frame), np.int64)
    column = table.frame[roles.id]
    empty = np.flatnonzero(column.isna().to_numpy())
    if len(empty):
        raise TspruneError(
            f"column {roles.id!r}: {len(empty)} series names are empty (first in "
            f"{table.place(int(empty[0]))}), expected "
            "one in every row"
        )
    codes, uniques = pd.factorize(column)
    names = [str(name).strip() for name in uniques]
    if len(set(names)) < len(names):
        raise TspruneError(
            f"column {roles.id!r}: some series names differ only in blanks or type, expected distinct names"
        )
    order = sorted(range(len(names)), key=lambda index: natural_key(names[index]))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return [names[index] for index in order], rank[codes]


def _exact(table: Table, roles: Roles, options: ReadOptions, rows: Rows | None, wanted: list[Series]) -> list[Floats]:
    """Targets of some series as they stand in the table, float64; `rows` is None for a transposed table."""
    frame, names = table.frame, {one.id for one in wanted}

    def raw(name: str) -> Floats:
        return to_numbers(frame[name], options, table.place, [])

    if roles.layout == "wide":
        return [raw(one.id) for one in wanted]
    if rows is None:
        ids, codes = _row_names(table, roles)
        chosen = [int(np.flatnonzero(codes == ids.index(one.id))[0]) for one in wanted]
        return list(np.array([raw(name)[chosen] for name in roles.targets]).T)
    owner = {
        _name(name, target, roles): (target, code) for code, name in enumerate(rows.ids) for target in roles.targets
    }
    # Rows of the wanted series only, in one pass.
    some = sorted({owner[name][1] for name in names})
    part = np.flatnonzero(np.isin(rows.codes, some))
    part = part[np.argsort(rows.codes[part], kind="stable")]
    own = dict(zip(some, np.split(part, np.searchsorted(rows.codes[part], some[1:])), strict=True))
    columns = {target: raw(target) for target in {owner[name][0] for name in names}}
    return [columns[owner[one.id][0]][own[owner[one.id][1]]] for one in wanted]


def _row_names(table: Table, roles: Roles) -> tuple[list[str], Ints]:
    """Series of a transposed table, and the index of every row into them."""
    count = len(table.frame)
    if roles.id is None:
        return [f"row {row}" for row in range(count)], np.arange(count)
    ids, codes = _identities(table, Roles("long", roles.id, None, (), (), ()))
    if len(ids) < count:
        raise TspruneError(f"column {roles.id!r}: names repeat, expected one row per series in a transposed table")
    return ids, codes


def _count_within(codes: Ints, count: int) -> Ints:
    """Number of each row within its series `[R]`."""
    order = np.argsort(codes, kind="stable")
    firsts = np.searchsorted(codes[order], np.arange(count))
    numbers = np.empty(len(codes), np.int64)
    numbers[order] = np.arange(len(codes)) - firsts[codes[order]]
    return numbers


def _cut(grid: Grid, ids: Sequence[str], roles: Roles, dated: bool, repairs: list[str]) -> list[Series]:
    """One series per id and target column, as views of one array."""
    columns = np.ascontiguousarray(grid.values.T)
    names = [*roles.targets, *roles.past, *roles.known]
    series, ahead = [], 0
    for code, name in enumerate(ids):
        low, high = int(grid.borders[code]), int(grid.borders[code + 1])
        part = {column: columns[place, low:high] for place, column in enumerate(names)}
        end = _end_of_targets([part[target] for target in roles.targets]) if roles.known else high - low
        ahead = max(ahead, high - low - end)
        past = {column: part[column][:end] for column in roles.past}
        known = {column: part[column] for column in roles.known}
        start = pd.Timestamp(np.datetime64(int(grid.starts[code]), "us")) if dated else None
        stamps = grid.stamps[low:high].astype("M8[us]") if dated and grid.stamps is not None else None
        for target in roles.targets:
            series.append(Series(_name(name, target, roles), part[target][:end], past, known, start, stamps))
    if ahead:
        repairs.append(
            f"the last rows (up to {ahead} per series) have no value in any target and count as the future "
            "that the known "
            "covariates reach into; series end before them"
        )
    return series


def _name(identity: str, target: str, roles: Roles) -> str:
    if roles.layout == "wide":
        return target
    return identity if len(roles.targets) == 1 else f"{identity}/{target}"


def _end_of_targets(targets: Sequence[FloatArray]) -> int:
    observed = np.zeros(len(targets[0]), bool)
    for target in targets:
        observed |= ~np.isnan(target)
    return len(observed) - int(np.argmax(observed[::-1])) if observed.any() else len(observed)


def _transposed(
    table: Table, roles: Roles, options: ReadOptions, suspects: dict[float, str]
) -> tuple[list[Series], str]:
    """Series from a table with one row each; column names that are dates become the stamps."""
    if roles.past or roles.known:
        raise TspruneError(f"{table.name}: a transposed table has no place for covariates; use a long or wide one")
    frame = table.frame
    values = np.empty((len(roles.targets), len(frame)), np.float32)
    narrowing = Narrowing(options.sentinels, table.place)
    for place, name in enumerate(roles.targets):
        narrowing.store(to_numbers(frame[name], options, table.place, table.repairs), values[place], name)
    table.repairs += narrowing.notes(lambda found: [])
    suspects.update(suspect_sentinels(values.reshape(-1, 1), ["the table"]))
    table.repairs += suspects.values()
    ids, codes = _row_names(table, roles)
    values = values[:, np.argsort(codes)]
    headers = pd.Series(list(roles.targets), name="the header", dtype="str")
    if looks_like_dates(headers):
        stamps = parse_stamps(headers, options.timestamp_format, lambda place: f"column {roles.targets[place]!r}")
        rows = Rows([""], np.zeros(len(headers), np.int64), stamps.values, values, stamps.numbered, table.name)
        grid = to_grid(rows, options.frequency, options.grid == "rows", table.repairs)
        table.inferred["timestamps"] = "the column names" + (f"; {stamps.words}" if stamps.words else "")
        return _cut(grid, [""], Roles("wide", None, "", tuple(ids), (), ()), True, table.repairs), grid.step.alias
    table.inferred["timestamps"] = "none: steps are numbered"
    by_series = np.ascontiguousarray(values.T)
    series = [Series(name, _without_padding(row)) for name, row in zip(ids, by_series, strict=True)]
    return series, _alias(options.frequency)


def _without_padding(row: FloatArray) -> FloatArray:
    observed = ~np.isnan(row)
    return row[: len(row) - int(np.argmax(observed[::-1]))] if observed.any() else row


def _kept(series: list[Series], options: ReadOptions, table: Table) -> tuple[list[Series], Extent]:
    """Leave out series without a value or shorter than asked for; report these and constant ones."""
    extent = measure([one.values for one in series])
    empty = [series[index] for index in np.flatnonzero(np.isnan(extent.low))]
    short = [one for one in series if len(one) < options.min_length]
    out = {one.id for one in (*empty, *short)}
    chosen = np.array([one.id not in out for one in series], bool)
    kept = [series[index] for index in np.flatnonzero(chosen)]
    extent = extent.take(chosen)
    if empty:
        table.repairs.append(f"{len(empty):,} series without any value dropped: {_ids(empty)}")
    if short:
        table.repairs.append(f"{len(short):,} series of fewer than {options.min_length} steps dropped: {_ids(short)}")
    if not kept:
        reason = (
            "no series holds a value"
            if len(empty) == len(series)
            else (f"the longest series has {max(map(len, series))} steps, --min-length asks for {options.min_length}")
        )
        raise TspruneError(f"{table.name}: no series is left: {reason}")
    constant = [kept[index] for index in np.flatnonzero(extent.low == extent.high)]
    if constant:
        table.repairs.append(
            f"{many(len(constant), 'series never changes', 'series never change')}; kept: {_ids(constant)}"
        )
    return kept, extent


def _ids(series: Sequence[Series]) -> str:
    return listed([one.id for one in series])


def _note_missing(series: Sequence[Series], extent: Extent, repairs: list[str]) -> None:
    holed = [series[index].id for index in np.flatnonzero(extent.missing).tolist()]
    if holed:
        total = sum(len(one) for one in series)
        repairs.append(
            f"{int(extent.missing.sum()):,} of {total:,} values are missing and stay missing, in {len(holed):,} "
            "series: "
            f"{listed(holed)}"
        )
