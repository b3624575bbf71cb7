"""New records without labels, for a trained model to look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.data import conll, pictures, sounds
from common.data.decoding import Unreadable, decode_files
from common.data.fields import Fields
from common.data.records import Inputs, Modality, Pair
from common.data.rows import SUFFIXES, Rows, join_rows, read_rows, read_text
from common.data.tables import parse_codes, table_rows
from common.data.texts import words_of
from common.errors import ConfigError

_SHOWN = 20


def read_inputs(
    files: Sequence[Path],
    modality: Modality,
    columns: Sequence[str] = (),
    keys: Mapping[str, str] | None = None,
) -> tuple[Inputs, tuple[str, ...]]:
    """Read records as a model was trained on them.

    Args:
        files: at least one. Images (DICOM included) and WAV sounds are a record each. Texts: a ``.txt`` file has one a
            line, words parted by spaces where the model reads words; CSV, JSON and Parquet files have a row each, with
            the columns ``text``, ``tokens``, or ``question`` and ``context``. Tables are CSV, JSON or Parquet files.
        modality: what the model reads.
        columns: of a table, in the model's order (none: the file's own); the file may hold others.
        keys: the run's ``data.keys``: the file's own names, and codes of a table's words.

    Returns:
        N records and a name for each: its file, or its place in it.

    Raises:
        ConfigError: files that cannot be read, each with its reason, or that hold something else.
    """
    if not files:
        raise ConfigError("expected at least one file to look at, got none; name it")
    if modality == "image":
        images, names = _decode(files, pictures.decode_image, "images")
        return pictures.stack_images(images), names
    if modality == "audio":
        clips, names = _decode(files, sounds.decode_sound, "sounds")
        return tuple(clips), names
    rows = join_rows([_rows(path, modality) for path in files])
    return _from_rows(Fields(rows, dict(keys or {})), modality, tuple(columns)), tuple(rows.places)


def _decode(
    files: Sequence[Path], decode: Callable[[Path], Any | str], named: str
) -> tuple[list[Any], tuple[str, ...]]:
    wrong: list[Unreadable] = []
    decoded, _ = decode_files(files, decode, named, wrong)
    if wrong:
        listed = "; ".join(f"{item.path} ({item.reason})" for item in wrong[:_SHOWN])
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise ConfigError(
            f"{len(wrong)} of {len(files)} {named} cannot be read: {listed}{more}; repair or leave them out"
        )
    return decoded, tuple(str(path) for path in files)


def _rows(path: Path, modality: Modality) -> Rows:
    if path.suffix.lower() in SUFFIXES:
        return read_rows(path)
    if modality == "words" and conll.is_conll(path):
        return conll.read_conll(path)
    if modality not in ("text", "words") or path.suffix.lower() not in ("", ".txt"):
        expected = {"pair": "CSV or JSON lines with question and context", "table": "CSV"}.get(
            modality, ".txt, CSV or JSON"
        )
        raise ConfigError(f"expected a file of {expected}, got {path}; convert it")
    lines = [(number, line.strip()) for number, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]
    if not lines:
        raise ConfigError(f"{path} must hold one text a line, got an empty file; check that this is the right one")
    column: dict[str, list[Any]] = {"text": [line for _, line in lines], "tokens": [line.split() for _, line in lines]}
    return Rows(column, [f"{path}, line {number}" for number, _ in lines])


def _from_rows(fields: Fields, modality: Modality, columns: tuple[str, ...]) -> Inputs:
    if modality == "text":
        return fields.strings("text")
    if modality == "words":
        return words_of(fields)
    if modality == "pair":
        return tuple(map(Pair, fields.strings("question"), fields.strings("context")))
    missing = [name for name in columns if name not in fields.rows.columns]
    if missing:
        raise ConfigError(
            f"the model reads the columns {', '.join(columns)}, but there is no {', '.join(missing)}; add them, empty "
            "where unknown"
        )
    return table_rows(fields, columns or tuple(fields.rows.columns), parse_codes(fields.keys.get("codes", "")))
