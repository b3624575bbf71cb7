"""A folder of images or sounds, whose levels name split, site and class."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from common.data.decoding import Unreadable
from common.data.fields import SPLIT_NAMES
from common.data.labels import index_labels
from common.data.local import Column, LocalData
from common.data.media import is_media, read_media
from common.errors import ConfigError

_LAYOUTS = "class/name.png or site/class/name.png, optionally below train/, val/ and test/"
_OTHERS = (".flac", ".gif", ".heic", ".jp2", ".m4a", ".mp3", ".nii", ".npy", ".ogg", ".opus", ".svg", ".webp")
_FORMATS = "PNG, JPEG, BMP, TIFF or DICOM images or WAV sounds"


def load_folder(folder: Path, unreadable: list[Unreadable] | None = None) -> LocalData:
    """Read ``class/name.png`` or ``site/class/name.png``, optionally below ``train/``, ``val/`` and ``test/``.

    The depth tells which: it must be the same for all files. A split's folder has any of the names in ``SPLIT_NAMES``,
    in capitals or not. Hidden files and files that are neither images nor sounds are left out.
    Links are refused, inside the folder too, where one would make two records of one image.

    Args:
        folder: holds PNG, JPEG, BMP, TIFF and DICOM files, or WAV files.
        unreadable: where a list is given, files that cannot be read are added to it and left out.

    Returns:
        All of them, in the order of their relative paths; validation records count as training records.

    Raises:
        ConfigError: no image, images at several depths, a link, a class folder without images, an unreadable image.
    """
    files, empty = _scan(folder)
    levels = np.array([file.relative_to(folder).parts[:-1] for file in files], dtype=np.str_)
    split, site, names = _columns(levels)
    labels, classes = index_labels(names)
    _refuse_empty_classes([path for path in empty if _depth(path, folder) == levels.shape[1]], classes)
    inputs, modality, kept = read_media(files, unreadable)
    site, split = (None if column is None else column[kept] for column in (site, split))
    names = np.array([file.relative_to(folder).as_posix() for file in files], dtype=np.str_)[kept]
    return LocalData(inputs, labels[kept], classes, site=site, split=split, modality=modality, file=names)


def _scan(folder: Path) -> tuple[list[Path], list[Path]]:
    """All image files, sorted, and the folders without content."""
    files, empty = [], []
    for path, folders, names in os.walk(folder, onerror=_refuse_unlistable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = [Path(path, name) for name in names if not name.startswith(".")]
        _refuse_links([*here, *(Path(path, name) for name in folders)])
        files += here
        if not here and not folders:
            empty.append(Path(path))
    _refuse_other_images(files)
    images = sorted(file for file in files if is_media(file))
    _refuse_depths(folder, images)
    return images, empty


def _depth(path: Path, folder: Path) -> int:
    return len(path.relative_to(folder).parts)


def _refuse_unlistable(error: OSError) -> None:
    raise ConfigError(f"{error.filename} cannot be listed: {error.strerror}; make it readable for this user") from error


def _refuse_links(paths: list[Path]) -> None:
    for path in paths:
        if path.is_symlink():
            raise ConfigError(f"an image folder must not hold links, got {path}; put the files themselves there")


def _refuse_other_images(files: list[Path]) -> None:
    others = sorted(file for file in files if file.suffix.lower() in _OTHERS)
    if others:
        raise ConfigError(
            f"files must be {_FORMATS}, got {len(others)} others, the first is {others[0]}; "
            "convert them or move them away"
        )


def _refuse_depths(folder: Path, images: list[Path]) -> None:
    if not images:
        raise ConfigError(f"{folder} must hold {_FORMATS} as {_LAYOUTS}, got none; put them there")
    depths = sorted({_depth(image, folder) for image in images})
    if len(depths) > 1 or depths[0] not in (2, 3, 4):
        raise ConfigError(
            f"images in {folder} must all lie as {_LAYOUTS}, got images at depth {', '.join(map(str, depths))}; "
            "move them to one depth"
        )


def _columns(levels: Column) -> tuple[Column | None, Column | None, Column]:
    """Split, site and class of each image, from its folders, shape (N, depth)."""
    depth = levels.shape[1]
    tops = {str(name).lower() for name in np.unique(levels[:, 0])}
    if depth == 1 or not tops & SPLIT_NAMES.keys():
        if depth == 3:
            raise ConfigError(f"images three folders deep must lie below train/, val/ or test/, got {_some(tops)}/")
        return None, levels[:, 0] if depth == 2 else None, levels[:, -1]
    if not tops <= SPLIT_NAMES.keys():
        raise ConfigError(f"beside train/, val/ and test/ no other folder is expected, got {_some(tops)}; rename it")
    split = np.array([SPLIT_NAMES[name.lower()] for name in levels[:, 0]])
    return split if (split == "test").any() else None, levels[:, 1] if depth == 3 else None, levels[:, -1]


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names - SPLIT_NAMES.keys())[:3])


def _refuse_empty_classes(empty: list[Path], classes: tuple[str, ...]) -> None:
    missing = [path for path in empty if path.name not in classes]
    if missing:
        raise ConfigError(
            f"class with no example in the whole federation: {missing[0].name} ({missing[0]} is empty); "
            "add images or remove the folder"
        )
