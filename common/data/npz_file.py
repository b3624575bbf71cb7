"""The arrays of an ``.npz`` file by their role; nothing is ever unpickled."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from common.errors import ConfigError

Array: TypeAlias = npt.NDArray[Any]

COLUMNS = ("images", "labels", "site", "patient")
PARTS = ("train", "val", "test")
PART_ROLES = tuple(f"{part}_{column}" for part in PARTS for column in COLUMNS)
ROLES = (*COLUMNS, "split", "classes", "label", "group", "audio", "offsets", "rate", *PART_ROLES)
KERAS = {
    f"{part}_{column}": f"{letter}_{part}" for part in PARTS for column, letter in (("images", "x"), ("labels", "y"))
}

_UNREADABLE = (
    MemoryError,
    OSError,
    ValueError,
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


@contextmanager
def open_archive(path: Path, keys: Mapping[str, str]) -> Iterator[Archive]:
    """Open a file; mistakes found within name it.

    Args:
        path: the file.
        keys: role -> the file's own name, for roles whose name differs; ``label`` means ``labels``.

    Raises:
        ConfigError: not an ``.npz`` file, or an unknown role.
    """
    _check_roles(keys)
    named = {"labels" if role == "label" else role: name for role, name in keys.items()}
    try:
        with path.open("rb") as stream, _open(stream) as file:
            yield Archive(file, named)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; make it readable for this user") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


@dataclass(frozen=True)
class Archive:
    """An open file and what its arrays are called."""

    file: np.lib.npyio.NpzFile
    keys: dict[str, str]

    def has(self, role: str) -> bool:
        """Whether it holds an array of this role, or the keys say so."""
        return role in self.keys or self.name(role) in self.file.files

    def name(self, role: str) -> str:
        """What the file calls a role: as the user says, as we do, as Keras does."""
        usual = KERAS.get(role, role)
        return self.keys.get(role, usual if usual in self.file.files and role not in self.file.files else role)

    def read(self, role: str) -> Array:
        """The array of a role; ConfigError where there is none."""
        return self.read_named(self.name(role), role)

    def read_named(self, name: str, role: str) -> Array:
        """The array called ``name``, which plays a role; ConfigError where there is none."""
        if name not in self.file.files:
            raise ConfigError(
                f"expected an array {name!r} as {role}, but the file holds {_listed(self.file.files)}; say which is "
                f'meant in the table [data.keys], for example {role} = "{_likely(name, self.file.files)}"'
            )
        return _load_array(self.file, name)


def _check_roles(keys: Mapping[str, str]) -> None:
    for role in keys:
        if role not in ROLES:
            near = get_close_matches(role, ROLES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "use one of these"
            raise ConfigError(f"data.keys must name the roles {', '.join(ROLES)}, got {role!r}; {hint}")


def _open(stream: BinaryIO) -> np.lib.npyio.NpzFile:
    try:
        file = np.load(stream, allow_pickle=False)
    except _UNREADABLE as error:
        raise ConfigError(
            "expected an .npz file, got something else or a damaged one; save it with np.savez"
        ) from error
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ConfigError("expected an .npz file with images and labels, got a single array; save both with np.savez")
    return file


def _load_array(file: np.lib.npyio.NpzFile, name: str) -> Array:
    try:
        array = file[name]
    except _UNREADABLE as error:
        raise ConfigError(
            f"array {name!r} is damaged, does not fit into memory, or holds Python objects, which are never unpickled; "
            "save it again as plain numbers or strings"
        ) from error
    if not isinstance(array, np.ndarray):
        raise ConfigError(f"{name!r} must be an array, got something else; save the file with np.savez")
    return array


def _listed(names: list[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def _likely(name: str, names: list[str]) -> str:
    return next(iter(get_close_matches(name, names, n=1, cutoff=0.3)), next(iter(names), "x"))
