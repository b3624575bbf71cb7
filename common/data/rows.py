"""Rows of data files: CSV, JSON lines, Parquet."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import ConfigError

DELIMITED, JSON_LINES, PARQUET = (".csv", ".tsv"), (".jsonl", ".ndjson", ".json"), (".parquet", ".pq")
SUFFIXES = (*DELIMITED, *JSON_LINES, *PARQUET)
MOST_CHARACTERS = 2**26  # of one cell of a CSV file; the module's own limit is less than a long report
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Rows:
    """Named columns of one file, or of several one after the other.

    Attributes:
        columns: name -> N values, text in a CSV file; None (or "") where a row has none.
        places: where each row stands, for messages on this machine.
        absent: of each column that one of several files lacks, where that file's first row stands.
    """

    columns: Mapping[str, list[Any]]
    places: Sequence[str]
    absent: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.places)

    def including(self, name: str, value: str) -> Rows:
        """The same rows with a column that is ``value`` throughout, unless they have one of that name."""
        return Rows({name: [value] * len(self), **self.columns}, self.places)


def read_rows(path: Path) -> Rows:
    """Read one file by its suffix.

    Raises:
        ConfigError: unreadable, not UTF-8, rows of different lengths, lines that are not JSON objects, no row.
    """
    suffix = path.suffix.lower()
    if suffix in PARQUET:
        rows = _read_parquet(path)
    elif suffix in JSON_LINES:
        rows = rows_of_objects(read_json_lines(path))
    else:
        rows = _read_delimited(path)
    if not len(rows):
        raise ConfigError(f"{path} must hold at least one row, got none; check that this is the right file")
    return rows


def join_rows(parts: Sequence[Rows]) -> Rows:
    """Rows of several files in order; a column that one of them lacks is empty there."""
    if len(parts) == 1:
        return parts[0]
    names = dict.fromkeys(name for part in parts for name in part.columns)
    columns = {name: [value for part in parts for value in _column(part, name)] for name in names}
    absent = {name: part.places[0] for part in reversed(parts) for name in names if name not in part.columns}
    return Rows(columns, [place for part in parts for place in part.places], absent)


def is_missing(value: Any) -> bool:
    """Whether a row has no value in a column."""
    return value is None or (isinstance(value, str) and not value.strip())


def read_text(path: Path) -> str:
    """The content of a UTF-8 file, with or without a byte-order mark.

    Raises:
        ConfigError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; make it readable for this user") from error
    except UnicodeDecodeError as error:
        came = "UTF-16" if path.read_bytes().startswith(_UTF_16) else "WINDOWS-1252"
        raise ConfigError(
            f"{path} must be text in UTF-8, got other bytes at position {error.start}; convert it, for example with "
            f"iconv -f {came} -t UTF-8"
        ) from error


def read_json_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """One JSON object a line (a ``.json`` file may also be one list of them), each with its place.

    Raises:
        ConfigError: some line is not a JSON object; the message names the first and counts them.
    """
    text = read_text(path)
    if path.suffix.lower() == ".json":
        return [(f"{path}, item {number}", item) for number, item in enumerate(_read_list(path, text), 1)]
    found, wrong = [], []
    for number, line in enumerate(text.split("\n"), 1):
        item = parse_json(line) if line.strip() else None
        if isinstance(item, dict):
            found.append((f"{path}, line {number}", item))
        elif line.strip():
            wrong.append(number)
    if wrong:
        raise ConfigError(
            f"{path} must hold one JSON object on each line, got {len(wrong)} other lines, the first is line "
            f"{wrong[0]}; write them as {{...}}"
        )
    return found


def parse_json(text: str) -> Any:
    """The value of a JSON text, or None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def rows_of_objects(objects: Sequence[tuple[str, dict[str, Any]]]) -> Rows:
    """Rows with a column for each field that some object has."""
    names = dict.fromkeys(name for _, item in objects for name in item)
    return Rows({name: [item.get(name) for _, item in objects] for name in names}, [place for place, _ in objects])


def _column(part: Rows, name: str) -> list[Any]:
    return part.columns.get(name) or [None] * len(part)


def _read_list(path: Path, text: str) -> list[dict[str, Any]]:
    items = parse_json(text)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ConfigError(
            f"{path} must be SQuAD's JSON or a list of JSON objects, got something else; "
            "correct it, or write one object a line into a .jsonl file"
        )
    return items


def _read_delimited(path: Path) -> Rows:
    """A CSV file: commas, or semicolons or tabs where the header has these and no comma."""
    text = read_text(path)
    header = text.split("\n", 1)[0]
    delimiter = next((mark for mark in (",", ";", "\t") if mark in header), ",")
    csv.field_size_limit(MOST_CHARACTERS)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        table = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise ConfigError(f"{path}, line {reader.line_num}: not CSV ({error}); save it again as CSV") from error
    if not table:
        raise ConfigError(f"{path} must begin with a line of column names, got an empty file; check the file")
    names = _check_header(path, [name.strip() for name in table[0][1]])
    ragged = [line for line, row in table if len(row) != len(names)]
    if ragged:
        raise ConfigError(
            f"{path} must have {len(names)} values on each line, as its first one has, got {len(ragged)} lines with "
            f"other numbers, the first is line {ragged[0]}; put values that hold {delimiter!r} into double quotes"
        )
    columns = {name: [row[index] for _, row in table[1:]] for index, name in enumerate(names)}
    return Rows(columns, [f"{path}, line {line}" for line, _ in table[1:]])


def _check_header(path: Path, names: list[str]) -> list[str]:
    if "" in names or len(set(names)) != len(names) or all(map(_is_number, names)):
        raise ConfigError(
            f"{path} must begin with a line of column names, each once, got {', '.join(names)[:80]!r}; correct it"
        )
    return names


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_parquet(path: Path) -> Rows:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ConfigError(
            f"{path} is a Parquet file, which needs the package pyarrow; install fedgraft[parquet], or save it as CSV"
        ) from error
    try:
        columns = parquet.read_table(path).to_pydict()
    except (ArrowException, OSError, ValueError) as error:
        raise ConfigError(f"{path} must be a Parquet file, got a damaged or other one; save it again") from error
    length = len(next(iter(columns.values()), []))
    return Rows(columns, [f"{path}, row {number}" for number in range(1, length + 1)])
