"""Where records come from: built-in data, a file or a folder, by its suffix and its content."""

from __future__ import annotations

import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType

import numpy as np

from common.data import conll, media, parts, rows, squad
from common.data.archive import load_npz
from common.data.decoding import Unreadable
from common.data.folder import load_folder
from common.data.kinds import Kind, read_kind
from common.data.labels import require_every_class, require_printable_names
from common.data.local import LocalData
from common.data.manifest import read_manifest
from common.errors import ConfigError

BUILT_IN = ("digits",)
NO_KEYS: Mapping[str, str] = MappingProxyType({})

_FORMS = "an .npz file, a CSV, JSON, Parquet or CoNLL file, or a folder of images, sounds or such files"


def load_source(
    source: str,
    keys: Mapping[str, str] = NO_KEYS,
    root: Path = Path(),
    unreadable: list[Unreadable] | None = None,
) -> LocalData:
    """Read all records of a data source into memory; ``docs/data.md`` lists the forms that it may have.

    >>> digits = load_source("digits")
    >>> len(digits), digits.inputs[0].shape, digits.classes[-1]
    (1797, (8, 8), '9')

    Args:
        source: ``"digits"``, or the path of a file or a folder (``./digits`` for a folder of that name).
        keys: role -> the file's own name, for roles out of ``config_schema.KEY_ROLES`` whose name differs.
        root: what a relative path is relative to.
        unreadable: where a list is given, images and sounds that cannot be read are added to it and left out.

    Returns:
        The records in an order that depends on nothing but the source. The class list is the sorted set of all
        labels (or the one that the file or the keys declare) and is a public constant from here on.

    Raises:
        ConfigError: nothing there, unreadable, not as described, fewer than two classes, a class without example, or
            a name that is not printable.
    """
    data = read_source(source, keys, root, unreadable)
    require_every_class(data)
    return data


def read_source(
    source: str, keys: Mapping[str, str], root: Path, unreadable: list[Unreadable] | None = None
) -> LocalData:
    """Read all records as ``load_source`` does, though there be but one class, or none of an example."""
    data = _read_any(source, keys, root, unreadable)
    require_printable_names(data)
    return data


def _read_any(source: str, keys: Mapping[str, str], root: Path, unreadable: list[Unreadable] | None) -> LocalData:
    path = root / Path(source).expanduser()
    if source in BUILT_IN:
        _refuse_keys(keys, source)
        return load_digits()
    if path.is_dir() and not _holds_data_files(path):
        _refuse_keys(keys, source)
        return load_folder(path, unreadable)
    if path.is_dir():
        return _load_parts(path, keys, unreadable)
    if not path.is_file():
        raise ConfigError(_missing(source, path))
    if conll.is_conll(path) or path.suffix.lower() in rows.SUFFIXES:
        return _read(_read_file(path), keys, path.parent, unreadable)
    if path.suffix.lower() in media.SUFFIXES:
        raise ConfigError(f"data.source must be {_FORMS}, got a single record {path}; name the folder it lies in")
    if path.suffix.lower() not in (".npz", ".npy"):
        raise ConfigError(f"data.source must be {_FORMS}, by its suffix, got {path}; rename or convert it")
    return load_npz(path, keys)


def _load_parts(folder: Path, keys: Mapping[str, str], unreadable: list[Unreadable] | None) -> LocalData:
    """All data files of a folder; their names tell the split or the site where their columns do not."""
    found = parts.find_parts(folder)
    tables = [_read_file(part.path) for part in found]
    if len(found) > 1:
        tables = [
            table.including(keys.get(part.column, part.column), part.value)
            for part, table in zip(found, tables, strict=True)
        ]
    return _read(rows.join_rows(tables), keys, folder, unreadable)


def _read_file(path: Path) -> rows.Rows:
    if conll.is_conll(path):
        return conll.read_conll(path)
    return squad.read_squad(path) if squad.is_squad(path) else rows.read_rows(path)


def _read(table: rows.Rows, keys: Mapping[str, str], root: Path, unreadable: list[Unreadable] | None) -> LocalData:
    files = Kind("files", ("path",), ("label", "labels"), lambda fields: read_manifest(fields, root, unreadable))
    return read_kind(table, keys, files)


def _holds_data_files(folder: Path) -> bool:
    """Whether a folder holds files of many records, rather than folders of images or sounds."""
    if not parts.has_data_files(folder):
        return False
    if _holds_media(folder):
        raise ConfigError(
            f"{folder} holds images or sounds in folders and data files beside them; name the file as data.source "
            "if it lists or describes them, else move it away"
        )
    return True


def _holds_media(folder: Path) -> bool:
    below = (name for _, _, names in os.walk(folder) for name in names)
    return any(Path(name).suffix.lower() in media.SUFFIXES for name in below)


def _refuse_keys(keys: Mapping[str, str], source: str) -> None:
    if keys:
        raise ConfigError(
            f"data.keys names parts of a file, but data.source is {source!r}, which has none; remove data.keys"
        )


def _missing(source: str, path: Path) -> str:
    near = get_close_matches(source, BUILT_IN, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "; correct data.source or put the file there"
    return f"data.source must be 'digits', {_FORMS}, but there is nothing at {path}{hint}"


def load_digits() -> LocalData:
    """scikit-learn's 1,797 handwritten digits, (1797, 8, 8), their 0..16 scaled to 0..255."""
    from sklearn.datasets import load_digits as bundled  # here: takes a second, which other sources need not pay

    digits = bundled()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return LocalData(pixels, digits.target.astype(np.int64), tuple(str(digit) for digit in range(10)))
