"""Raw tables: from a file of unknown encoding, separator and header to a DataFrame."""

from __future__ import annotations

import codecs
import csv
import gzip
import re
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import IO, Any, cast

import pandas as pd

from tsprune.data.reading import ReadOptions
from tsprune.data.words import many
from tsprune.errors import TspruneError

ID_NAMES = (
    "unique_id",
    "item_id",
    "series_id",
    "ts_id",
    "id",
    "uid",
    "item",
    "series",
    "store",
    "sku",
    "sensor",
    "station",
)
_MISSING_WORDS = ["", "#N/A", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null", "<NA>", "-nan", "NAN"]
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")
_DATE = re.compile(r"\d{1,4}[-/. ]?[QWM]?\d{1,2}([-/. ]\d{1,4})?([T ,].*)?|Q\d.*|\d{1,2}[- ][A-Za-z]{3}.*")
_CLOCK = re.compile(r"\d{1,2}:\d{2}(:\d{2})?( ?[AaPp][Mm])?")
_COMMA_DECIMAL = re.compile(r"[+-]?(0,\d+|\d+,(\d{1,2}|\d{4,})|\d{4,},\d+|\d{1,3}(\.\d{3})+,\d+)([eE][+-]?\d+)?")
_POINT_DECIMAL = re.compile(r"[+-]?\d+\.\d*|[+-]?\d{1,3}(,\d{3})+\.\d*")
_SAMPLE_BYTES = 1 << 18
_SAMPLE_LINES = 60
_CP1252_WORDS = " (Western European), since the file is not valid as utf-8"


@dataclass
class Table:
    """A DataFrame with text column names, and what to say about how it came to be.

    Args:
        frame: the rows, in their order, index 0..N-1.
        name: the source, for messages.
        first_line: line number of the first row in the file; None for tables that have no lines.
        inferred: findings by topic.
        repairs: changes made, one line each.
    """

    frame: pd.DataFrame
    name: str
    first_line: int | None = None
    inferred: dict[str, str] = field(default_factory=dict)
    repairs: list[str] = field(default_factory=list)

    def place(self, row: int) -> str:
        """Where a row stands, in the words of its source."""
        return f"row {row}" if self.first_line is None else f"line {row + self.first_line}"


def is_text(column: pd.Series[Any]) -> bool:
    """Whether a column holds texts rather than numbers, booleans or datetimes."""
    kind = column.dtype
    return bool(
        pd.api.types.is_object_dtype(kind)
        or pd.api.types.is_string_dtype(kind)
        or isinstance(kind, pd.CategoricalDtype)
    )


def load(source: str | PathLike[str] | pd.DataFrame | pd.Series[Any], options: ReadOptions) -> Table:
    """Load a table without interpreting its columns.

    Raises:
        TspruneError: if there is no such file, or nothing in it that can be read.
    """
    if isinstance(source, pd.Series):
        source = source.to_frame(name=str(source.name if source.name is not None else "value"))
    if isinstance(source, pd.DataFrame):
        table = Table(_without_index(source), "the DataFrame")
    else:
        path = _path(source)
        try:
            kind = _kind(path)
            table = _parquet(path) if kind == "parquet" else _csv(path, kind == "gzip", options)
        except OSError as error:
            raise TspruneError(f"{path}: cannot be read ({error.strerror or error})") from error
    _check(table)
    return table


def _path(source: object) -> Path:
    if isinstance(source, str | PathLike):
        try:
            return Path(source)
        except TypeError:
            pass
    raise TspruneError(
        f"the source is of type {type(source).__name__}, expected a path to a CSV, CSV.gz or Parquet file, or a pandas "
        "DataFrame or Series; wrap dicts, lists and arrays in pandas.DataFrame(...)"
    )


def _kind(path: Path) -> str:
    if not path.exists():
        raise TspruneError(f"{path}: no such file")
    if path.is_dir():
        raise TspruneError(f"{path}: is a folder, expected a CSV, CSV.gz or Parquet file")
    with path.open("rb") as file:
        head = file.read(8)
    if not head:
        raise TspruneError(f"{path}: the file is empty, expected a header and rows")
    if head[:4] == b"PAR1" or path.suffix.lower() in (".parquet", ".pq"):
        return "parquet"
    if head[:2] == b"\x1f\x8b":
        return "gzip"
    if head[:2] == b"PK" or head[:4] == b"\xd0\xcf\x11\xe0":
        raise TspruneError(
            f"{path}: is a zip archive or spreadsheet, expected CSV, CSV.gz or Parquet; export it as CSV"
        )
    return "plain"


def _parquet(path: Path) -> Table:
    try:
        frame = pd.read_parquet(path)
    except ImportError as error:
        raise TspruneError(f"{path}: reading Parquet needs pyarrow; pip install pyarrow, or save as CSV") from error
    except Exception as error:
        raise TspruneError(f"{path}: is not a readable Parquet file ({str(error).splitlines()[0]})") from error
    return Table(_without_index(frame), str(path))


def _without_index(frame: pd.DataFrame) -> pd.DataFrame:
    plain = isinstance(frame.index, pd.RangeIndex) or (
        frame.index.nlevels == 1 and frame.index.name is None and pd.api.types.is_integer_dtype(frame.index.dtype)
    )
    if not plain:
        names = [str(name) if name is not None else f"index {level}" for level, name in enumerate(frame.index.names)]
        frame = frame.rename_axis(index=names).reset_index()
    else:
        frame = frame.reset_index(drop=True)
    if isinstance(frame.columns, pd.MultiIndex):
        raise TspruneError("the table has several header rows (MultiIndex columns), expected one name per column")
    return frame.set_axis([str(name).strip() for name in frame.columns], axis=1)


def _check(table: Table) -> None:
    frame = table.frame
    repeated = frame.columns[frame.columns.duplicated()]
    if len(repeated):
        raise TspruneError(f"{table.name}: the column name {repeated[0]!r} occurs twice, expected unique names")
    if not frame.shape[1] or frame.empty:
        raise TspruneError(f"{table.name}: there is a header but no rows, expected at least one row of data")
    # A blank last line or an exported empty sheet row says nothing about any step.
    empty = frame.isna().all(axis=1).to_numpy()
    if empty.all():
        raise TspruneError(f"{table.name}: every cell is empty, expected rows of data")
    tail = len(empty) - int(empty[::-1].argmin())
    if tail < len(frame):
        table.repairs.append(f"{many(len(frame) - tail, 'entirely empty row')} at the end dropped")
        table.frame = frame.iloc[:tail]


def _csv(path: Path, zipped: bool, options: ReadOptions) -> Table:
    encoding, broken, sample = _decode(path, zipped)
    table = Table(pd.DataFrame(), str(path))
    if broken:
        table.repairs.append(
            f"{many(broken, 'place')} not valid as {encoding}; the bytes there were replaced by U+FFFD"
        )
    if encoding not in ("utf-8", "utf-8-sig"):
        table.inferred["encoding"] = encoding + (_CP1252_WORDS if encoding == "cp1252" else "")
    lines = [line for line in sample.splitlines()[:_SAMPLE_LINES] if line.strip()]
    if not lines:
        raise TspruneError(f"{path}: the file holds nothing but blank lines, expected a header and rows")
    separator = _separator(lines)
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator, skipinitialspace=True)]
    if separator != ",":
        table.inferred["separator"] = repr(separator)
    header = _has_header(rows) if options.header == "auto" else options.header == "yes"
    if not header and options.header == "auto":
        table.inferred["header"] = "none: the first line holds data (--header yes if it does not)"
    decimal = _decimal(rows[1:] if header else rows) if options.decimal == "auto" else options.decimal
    if decimal == "," and options.decimal == "auto":
        table.inferred["decimal mark"] = "comma"
    table.first_line = 2 if header else 1
    names = _unique(rows[0], table) if header else [f"column {1 + place}" for place in range(len(rows[0]))]
    table.frame = _read_csv(path, zipped, encoding, separator, decimal, header, names, options)
    return table


def _decode(path: Path, zipped: bool) -> tuple[str, int, str]:
    """Encoding, number of undecodable places, and the beginning of the text."""
    try:
        with _bytes(path, zipped) as file:
            head = file.read(4)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise TspruneError(f"{path}: the gzip file is damaged or cut short ({error})") from error
    encoding = "utf-8"
    if head.startswith(codecs.BOM_UTF8):
        encoding = "utf-8-sig"
    elif head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    try:
        broken, beyond, sample = _try_encoding(path, zipped, encoding)
        # A few broken places among many good ones are damage; more broken than good is another encoding.
        if encoding == "utf-8" and broken > beyond:
            encoding = "cp1252"
            broken, _, sample = _try_encoding(path, zipped, encoding)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise TspruneError(f"{path}: the gzip file is damaged or cut short ({error})") from error
    if "\0" in sample:
        raise TspruneError(f"{path}: is not a text file, expected CSV, CSV.gz or Parquet")
    return encoding, broken, sample


def _try_encoding(path: Path, zipped: bool, encoding: str) -> tuple[int, int, str]:
    """Number of undecodable places and of characters beyond ASCII, and the beginning of the text."""
    broken, beyond, sample = 0, 0, ""
    decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
    # Some files carry U+FFFD as a character of their own; that is no undecodable place.
    known = "\ufffd".encode() if encoding.startswith("utf-8") else b""
    for number, chunk in enumerate(_chunks(path, zipped)):
        text = decoder.decode(chunk)
        if number == 0:
            sample = text
        if not text.isascii():
            lost = text.count("\ufffd") - (chunk.count(known) if known else 0)
            broken += lost
            beyond += len(text) - len(text.encode("ascii", "ignore")) - lost
    return max(0, broken + len(decoder.decode(b"", final=True))), beyond, sample


def _bytes(path: Path, zipped: bool) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path, "rb")) if zipped else path.open("rb")


def _chunks(path: Path, zipped: bool) -> Iterator[bytes]:
    with _bytes(path, zipped) as file:
        while chunk := file.read(_SAMPLE_BYTES):
            yield chunk


def _separator(lines: list[str]) -> str:
    best, most = ",", 1
    for separator in (",", ";", "\t", "|"):
        widths = [len(row) for row in csv.reader(lines, delimiter=separator, skipinitialspace=True)]
        agreeing = sum(width == widths[0] for width in widths) / len(widths)
        if widths[0] > most and agreeing >= 0.9:
            best, most = separator, widths[0]
    return best


def _has_header(rows: list[list[str]]) -> bool:
    head, body = rows[0], rows[1:]
    if not body or any(_kind_of(cell) == "word" for cell in head[1:]):
        return True
    first, below = _kind_of(head[0]), [_kind_of(cell) for cell in body[0]]
    if any(_kind_of(cell) == "date" and other == "number" for cell, other in zip(head, below, strict=False)):
        return True
    if first in ("word", "") and (len(head) == 1 or head[0].lower() in ("", *ID_NAMES) or below[0] != "word"):
        return True
    if first == "date":
        return False
    # Numbers only: names when they are distinct whole numbers unlike the values below them.
    numbers = head[1:] if first == "word" else head
    if not all(cell.isdigit() for cell in numbers) or len(set(numbers)) < len(numbers) or len(numbers) < 2:
        return False
    ordinals = [int(cell) for cell in numbers]
    if ordinals == list(range(ordinals[0], ordinals[0] + len(ordinals))):
        return True
    return _far_from_values(ordinals, [row[len(head) - len(numbers) :] for row in body])


def _kind_of(cell: str) -> str:
    if not cell:
        return ""
    if _NUMBER.fullmatch(cell):
        return "number"
    return "date" if _DATE.fullmatch(cell) or _CLOCK.fullmatch(cell) else "word"


def _far_from_values(names: list[int], body: list[list[str]]) -> bool:
    far = 0
    for place, name in enumerate(names):
        cells = [row[place] for row in body if place < len(row) and _NUMBER.fullmatch(row[place])]
        values = [float(cell.replace(",", ".")) for cell in cells]
        if values:
            spread = max(values) - min(values) + 1.0
            far += not min(values) - 3 * spread <= name <= max(values) + 3 * spread
    return far > len(names) / 2


def _decimal(rows: list[list[str]]) -> str:
    cells = [cell for row in rows for cell in row]
    commas = sum(bool(_COMMA_DECIMAL.fullmatch(cell)) for cell in cells)
    points = sum(bool(_POINT_DECIMAL.fullmatch(cell)) for cell in cells)
    return "," if commas and not points else "."


def _unique(names: list[str], table: Table) -> list[str]:
    seen: dict[str, int] = {}
    result = []
    for place, name in enumerate(names):
        name = name or f"Unnamed: {place}"
        if name in seen:
            seen[name] += 1
            table.repairs.append(f"the column name {name!r} occurs twice; the later one is called {name}.{seen[name]}")
            name = f"{name}.{seen[name]}"
        seen.setdefault(name, 0)
        result.append(name)
    return result


def _read_csv(
    path: Path,
    zipped: bool,
    encoding: str,
    separator: str,
    decimal: str,
    header: bool,
    names: list[str],
    options: ReadOptions,
) -> pd.DataFrame:
    # Names such as "007" and "NA" (Namibia) are neither numbers nor missing.
    verbatim = {name for name in names if name == options.id_column or name.lower() in ID_NAMES}
    missing = {name: ([""] if name in verbatim else _MISSING_WORDS) for name in names}
    try:
        with warnings.catch_warnings():
            # Pandas only warns when rows are longer than the header, and cuts them.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(
                path,
                sep=separator,
                decimal=decimal,
                header=0 if header else None,
                names=names,
                index_col=False,
                encoding=encoding,
                encoding_errors="replace",
                compression="gzip" if zipped else None,
                skipinitialspace=True,
                keep_default_na=False,
                na_values=missing,
                dtype=dict.fromkeys(verbatim, "str"),
                low_memory=False,
                on_bad_lines="error",
            )
    except pd.errors.EmptyDataError:
        raise TspruneError(f"{path}: there is a header but no rows, expected at least one row of data") from None
    except (pd.errors.ParserError, pd.errors.ParserWarning, UnicodeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1].removeprefix("Error tokenizing data. C error: ")
        if isinstance(error, pd.errors.ParserWarning):
            reason = "rows have more cells than the header"
        raise TspruneError(
            f"{path}: is not a regular table of {len(names)} columns separated by {separator!r} ({reason})"
        ) from error
