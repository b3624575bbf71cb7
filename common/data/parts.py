"""A folder of data files: one for each part of a split, or one for each site."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.data import conll, rows
from common.data.fields import SPLIT_NAMES
from common.errors import ConfigError

_PART = re.compile(rf"({'|'.join(SPLIT_NAMES)})([-_.]?v?\d[\w.]*)?", re.IGNORECASE)
_KINDS = {
    suffix: kind
    for kind, suffixes in (
        ("CSV", rows.DELIMITED),
        ("JSON", rows.JSON_LINES),
        ("Parquet", rows.PARQUET),
        ("CoNLL", (*conll.SUFFIXES, ".txt")),
    )
    for suffix in suffixes
}


@dataclass(frozen=True)
class Part:
    """A data file of a folder.

    Attributes:
        path: the file.
        column: what its name says: ``split`` or ``site``.
        value: which.
    """

    path: Path
    column: str
    value: str


def has_data_files(folder: Path) -> bool:
    """Whether some file directly in a folder is of a kind that holds many records."""
    return any(map(_is_data_file, _files(folder)))


def find_parts(folder: Path) -> list[Part]:
    """The data files of a folder, sorted by name.

    Files called ``train``, ``val`` (``dev``, ``devel``, ``validation``) and ``test`` are the parts of a split;
    otherwise each file is a site, called as the file. Where files of several kinds lie there, the kind with a file
    called ``train`` is meant.

    Raises:
        ConfigError: a link; several kinds, none of which is meant; parts of a split beside others; two of one name.
    """
    files = _one_kind(folder, list(filter(_is_data_file, _files(folder))))
    links = [path for path in files if path.is_symlink()]
    if links:
        raise ConfigError(f"a folder of data files must not hold links, got {links[0]}; put the files themselves there")
    matches = {path: _PART.fullmatch(path.stem) for path in files}
    splits = {path: SPLIT_NAMES[found[1].lower()] for path, found in matches.items() if found}
    others = [path.name for path in files if path not in splits]
    if splits and others:
        raise ConfigError(
            f"{folder} must hold either the parts of a split (train, val, test) or one file for each site, got "
            f"{', '.join(others[:3])} beside {next(iter(splits)).name}; move the others away"
        )
    if len({path.stem for path in files}) != len(files):
        raise ConfigError(f"{folder} must hold files of different names, got two of one name; rename one of them")
    return [Part(path, "split", splits[path]) if splits else Part(path, "site", path.stem) for path in files]


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise ConfigError(f"{folder} cannot be listed: {error.strerror}; make it readable for this user") from error


def _kind(path: Path) -> str:
    return "CoNLL" if conll.is_conll(path) else _KINDS[path.suffix.lower()]


def _is_data_file(path: Path) -> bool:
    suffix = path.suffix.lower()
    return suffix in _KINDS and (suffix != ".txt" or conll.is_conll(path))


def _one_kind(folder: Path, files: Sequence[Path]) -> list[Path]:
    kinds = {_kind(path) for path in files}
    meant = {_kind(path) for path in files if _PART.fullmatch(path.stem)}
    chosen = kinds if len(kinds) == 1 else meant
    if len(chosen) != 1:
        raise ConfigError(
            f"{folder} must hold data files of one kind, got {', '.join(sorted(kinds))}; name one file as data.source, "
            "or move the others away"
        )
    return [path for path in files if _kind(path) in chosen]
