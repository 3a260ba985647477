"""Tables with one record per series: folders of Hugging Face `datasets`, Parquet, Arrow and JSON lines.

Read with pyarrow alone; neither `datasets` nor gluonts is needed. Formats: `Dataset.save_to_disk` of datasets 4
(`state.json` names the Arrow streams), gluonts 0.17 (`dataset/arrow`, `dataset/jsonl.py`: the frequency may be in the
metadata of the schema, arrays of two dimensions may lie flat beside their shape, "NaN" may be a word).
"""

from __future__ import annotations

import glob
import gzip
import importlib
import json
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from tsprune.errors import TspruneError

# Compiled, so that its types are not to be seen.
pa: Any = importlib.import_module("pyarrow")
pc: Any = importlib.import_module("pyarrow.compute")

Table = Any
"""A `pyarrow.Table`."""

_ENDINGS = (".parquet", ".arrow", ".feather", ".jsonl", ".json", ".jsonl.gz", ".json.gz")
_SHAPE = "._np_shape"
_KINDS = "a folder written by datasets.save_to_disk, Parquet, Arrow or JSON-lines files"


def load_records(source: str | PathLike[str]) -> Table:
    """The records of a folder, a file, or all files of a pattern such as `sets/*.parquet`.

    Raises:
        TspruneError: if nothing is there or it is none of the formats.
    """
    parts = [_read(path) for path in _files(Path(source))]
    names = set(parts[0].column_names)
    for part in parts[1:]:
        if set(part.column_names) != names:
            raise TspruneError(f"{source}: the files differ in columns: {sorted(names ^ set(part.column_names))}")
    try:
        table = pa.concat_tables([part.select(parts[0].column_names) for part in parts], promote_options="permissive")
    except pa.ArrowInvalid as error:
        raise TspruneError(f"{source}: the files differ in column types ({error})") from None
    if not table.num_rows:
        raise TspruneError(f"{source}: there are columns but no records, expected one per series")
    return table


def is_records(source: str | PathLike[str]) -> bool:
    """Whether `load_records` would find files there."""
    path = Path(source)
    if path.is_dir():
        return (path / "state.json").is_file() or any(_fits(found) for found in path.iterdir())
    return path.is_file() or bool(glob.glob(str(path)))


def schema_frequency(table: Table) -> str:
    """The frequency in the metadata of the schema, where gluonts puts it; "" if there is none."""
    return str((table.schema.metadata or {}).get(b"freq", b"").decode())


def is_list(table: Table, name: str) -> bool:
    """Whether a column holds one array per record."""
    kind = table.schema.field(name).type
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def arrays(table: Table, name: str) -> list[NDArray[Any]]:
    """One array per record, `[T]` or `[variates, T]`; missing numbers are NaN.

    Raises:
        TspruneError: if the column is not there, or holds no arrays of numbers or stamps.
    """
    if name not in table.column_names:
        raise TspruneError(f"there is no column {name!r}; the columns are {', '.join(table.column_names)}")
    shapes = table.column(name + _SHAPE).to_pylist() if name + _SHAPE in table.column_names else None
    found = [part for chunk in table.column(name).chunks for part in _arrays(chunk, name)]
    if shapes is not None:
        found = [part.reshape(shape) for part, shape in zip(found, shapes, strict=True)]
    return found


def _arrays(chunk: Any, name: str) -> list[NDArray[Any]]:
    kind = chunk.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise TspruneError(f"column {name!r} holds {kind}, expected one array per series")
    lengths = pc.fill_null(pc.list_value_length(chunk), 0).to_numpy(zero_copy_only=False)
    flat = pc.list_flatten(chunk)
    inner = flat.type
    if pa.types.is_list(inner) or pa.types.is_large_list(inner) or pa.types.is_fixed_size_list(inner):
        rows = _arrays(flat, name)
        bounds = np.cumsum(lengths)
        groups = [rows[end - length : end] for end, length in zip(bounds.tolist(), lengths.tolist(), strict=True)]
        if uneven := next((group for group in groups if len({len(row) for row in group}) > 1), None):
            raise TspruneError(
                f"column {name!r}: variates have {len(uneven[0])} and other numbers of steps in a record"
            )
        return [np.stack(group) for group in groups]
    if pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_binary(inner):
        raise TspruneError(f"column {name!r} holds arrays of text, expected numbers")
    values = flat.to_numpy(zero_copy_only=False)
    if values.dtype == object:
        values = np.array([np.nan if value is None else value for value in values.tolist()], np.float64)
    return [np.asarray(part) for part in np.split(values, np.cumsum(lengths)[:-1])]


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        if names := sorted(glob.glob(str(path))):
            return [Path(name) for name in names]
        raise TspruneError(f"{path}: no such file or folder, expected {_KINDS}")
    if (path / "state.json").is_file():
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if state.get("_indices_data_files"):
            raise TspruneError(f"{path}: the rows were picked by an index; call flatten_indices() before save_to_disk")
        return [path / entry["filename"] for entry in state["_data_files"]]
    if (path / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(found.name for found in path.iterdir() if found.is_dir()))
        raise TspruneError(f"{path}: holds several splits; give the folder of one of them: {splits}")
    if found := sorted(entry for entry in path.iterdir() if _fits(entry)):
        return found
    raise TspruneError(f"{path}: holds no records, expected {_KINDS}")


def _fits(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(_ENDINGS) and path.name not in ("dataset_info.json",)


def _read(path: Path) -> Table:
    try:
        with path.open("rb") as file:
            head = file.read(6)
        if head.startswith(b"PAR1"):
            return importlib.import_module("pyarrow.parquet").read_table(path)
        if head == b"ARROW1":
            with pa.memory_map(str(path)) as mapped:
                return pa.ipc.open_file(mapped).read_all()
        if head.lstrip()[:1] == b"{" or head[:2] == b"\x1f\x8b":
            return _json_lines(path, head[:2] == b"\x1f\x8b")
        with pa.memory_map(str(path)) as mapped:
            return pa.ipc.open_stream(mapped).read_all()
    except OSError as error:
        raise TspruneError(f"{path}: cannot be read ({error.strerror or error})") from error
    except pa.ArrowException as error:
        raise TspruneError(f"{path}: is not readable ({error}), expected {_KINDS}") from None


def _json_lines(path: Path, zipped: bool) -> Table:
    records: list[dict[str, Any]] = []
    with cast("IO[bytes]", gzip.open(path, "rb") if zipped else path.open("rb")) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise TspruneError(
                    f"{path}, line {number}: is not JSON ({error}); expected one record a line"
                ) from None
            if not isinstance(record, Mapping):
                raise TspruneError(f"{path}, line {number}: holds no record, expected an object with a target")
            records.append({key: _numbers(value) for key, value in record.items()})
    names = list(dict.fromkeys(name for record in records for name in record))
    try:
        return pa.table({name: [record.get(name) for record in records] for name in names})
    except pa.ArrowException as error:
        raise TspruneError(f"{path}: a field changes its type from record to record ({error})") from None


def _numbers(value: Any) -> Any:
    """Lists with the words that stand for NaN and infinity as numbers."""
    if not isinstance(value, list):
        return value
    if value and isinstance(value[0], list):
        return [_numbers(part) for part in value]
    if not any(isinstance(part, str) for part in value) or not any(isinstance(part, int | float) for part in value):
        plain = all(isinstance(part, str) and re.fullmatch(r"-?(nan|infinity)", part, re.I) for part in value)
        if not (value and plain):
            return value
    try:
        return [None if part is None else float(part) for part in value]
    except (TypeError, ValueError):
        return value
