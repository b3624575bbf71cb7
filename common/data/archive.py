"""Images in an ``.npz`` file."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from common.data.labels import index_labels, text_column
from common.data.local import LocalData, check_images
from common.errors import ConfigError

Array: TypeAlias = npt.NDArray[Any]

COLUMNS = ("images", "labels", "site", "patient")
PARTS = ("train", "val", "test")
PART_ROLES = tuple(f"{part}_{column}" for part in PARTS for column in COLUMNS)
ROLES = (*COLUMNS, "split", "classes", *PART_ROLES)
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


def load_npz(path: Path, keys: Mapping[str, str]) -> LocalData:
    """Read images and labels from an ``.npz`` file; nothing is ever unpickled.

    Two layouts: one table (``images``, ``labels``, optionally ``site``, ``patient``, ``split``), or MedMNIST's, divided
    beforehand (``train_images``, ``train_labels``, likewise ``val_`` and ``test_``; or Keras's ``x_train``, ``y_train``
    and so on; validation records count as training records). Either may declare ``classes``, the names that integer
    labels index.

    Args:
        path: the file.
        keys: role -> the file's own name, for roles whose name differs.

    Returns:
        All records, in the file's order (train, val, test).

    Raises:
        ConfigError: not an ``.npz``, an array missing, of the wrong type, shape or length, or an unknown role.
    """
    _check_roles(keys)
    try:
        with path.open("rb") as stream, _open(stream) as file:
            return _read(_Archive(file, dict(keys)))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; make it readable for this user") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


@dataclass(frozen=True)
class _Archive:
    """The arrays of a file by their role."""

    file: np.lib.npyio.NpzFile
    keys: dict[str, str]

    def has(self, role: str) -> bool:
        return role in self.keys or self.name(role) in self.file.files

    def name(self, role: str) -> str:
        """What the file calls a role: as the user says, as we do, as Keras does."""
        usual = KERAS.get(role, role)
        return self.keys.get(role, usual if usual in self.file.files and role not in self.file.files else role)

    def read(self, role: str) -> Array:
        name = self.name(role)
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


def _read(archive: _Archive) -> LocalData:
    divided = _is_divided(archive)
    _refuse_overlooked(archive, divided)
    columns = _read_parts(archive) if divided else _read_table(archive)
    declared = _declared_classes(archive)
    images = columns["images"]
    check_images(images)
    labels, classes = index_labels(columns["labels"], declared)
    site, patient, split = (
        text_column(name, columns[name]) if name in columns else None for name in ("site", "patient", "split")
    )
    return LocalData(images, labels, classes, site, patient, split)


def _is_divided(archive: _Archive) -> bool:
    """Whether the file has MedMNIST's layout: as ``keys`` say, else as its arrays are named."""
    table, divided = "images" in archive.keys, any(f"{part}_images" in archive.keys for part in PARTS)
    if not table and not divided:
        table, divided = archive.has("images"), archive.has("train_images")
    if table and divided:
        raise ConfigError("expected either images or train_images, got both; name the one meant in [data.keys]")
    return divided


def _read_table(archive: _Archive) -> dict[str, Array]:
    wanted = ["images", "labels", *(name for name in ("site", "patient", "split") if archive.has(name))]
    columns = {name: archive.read(name) for name in wanted}
    return columns | {"images": _without_unit_channel(columns["images"])}


def _read_parts(archive: _Archive) -> dict[str, Array]:
    parts = [part for part in PARTS if part == "train" or archive.has(f"{part}_images")]
    known = [name for name in ("site", "patient") if any(archive.has(f"{part}_{name}") for part in parts)]
    names = ["images", "labels", *known]
    tables = [{name: archive.read(f"{part}_{name}") for name in names} for part in parts]
    for table in tables:
        table["images"] = _without_unit_channel(table["images"])
    columns = {name: _join(name, [table[name] for table in tables]) for name in names}
    if "test" in parts:
        sizes = [len(table["images"]) for table in tables]
        columns["split"] = np.repeat(["test" if part == "test" else "train" for part in parts], sizes)
    return columns


def _refuse_overlooked(archive: _Archive, divided: bool) -> None:
    """A patient column that is overlooked would cost a privacy promise, so none is ever ignored."""
    other = ("site", "patient", "split") if divided else PART_ROLES
    overlooked = [role for role in other if role in archive.keys or (divided and archive.has(role))]
    if overlooked:
        here, names = ("train_images", "train_, val_ or test_ names") if divided else ("images", "plain names")
        raise ConfigError(
            f"a file read by {here} must have all columns under {names}, got {overlooked[0]}; "
            "save one table with images, labels and split, or correct [data.keys]"
        )


def _join(name: str, arrays: list[Array]) -> Array:
    flat = [array[:, 0] if name != "images" and array.ndim == 2 and array.shape[1] == 1 else array for array in arrays]
    if len({(array.shape[1:], array.dtype.kind) for array in flat}) > 1:
        shapes = ", ".join(f"{array.dtype} {array.shape}" for array in arrays)
        raise ConfigError(f"{name} of train, val and test must agree in type and shape, got {shapes}; make them agree")
    return np.concatenate(flat)


def _without_unit_channel(images: Array) -> Array:
    """Grey images are (N, H, W) from here on."""
    return images[..., 0] if images.ndim == 4 and images.shape[3] == 1 else images


def _declared_classes(archive: _Archive) -> tuple[str, ...] | None:
    if not archive.has("classes"):
        return None
    names = tuple(str(name) for name in text_column("classes", archive.read("classes")).ravel())
    if len(set(names)) != len(names):
        raise ConfigError(f"classes must name each class once, got {', '.join(names)}; remove the repetition")
    return names


def _listed(names: list[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def _likely(name: str, names: list[str]) -> str:
    return next(iter(get_close_matches(name, names, n=1, cutoff=0.3)), next(iter(names), "x"))
