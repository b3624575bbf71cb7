"""Records that are files of their own: images and sounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.data import pictures, sounds
from common.data.decoding import Unreadable, decode_files
from common.data.records import Indices, Inputs, Modality
from common.errors import ConfigError

SUFFIXES = (*pictures.SUFFIXES, *sounds.SUFFIXES)


def read_media(paths: Sequence[Path], unreadable: list[Unreadable] | None) -> tuple[Inputs, Modality, Indices]:
    """Read images, or sounds.

    Args:
        paths: N files, all images or all sounds by their suffix.
        unreadable: where a list is given, files that cannot be read are added to it and left out.

    Returns:
        The records, their modality, and the indices of the files that were read.

    Raises:
        ConfigError: both kinds, neither, no file that can be read, or (without a list) one that cannot.
    """
    modality = _modality(paths)
    if modality == "image":
        images, kept = decode_files(paths, pictures.decode_image, "images", unreadable)
        _refuse_nothing(kept)
        return pictures.stack_images(images), modality, kept
    clips, kept = decode_files(paths, sounds.decode_sound, "sounds", unreadable)
    _refuse_nothing(kept)
    return tuple(clips), modality, kept


def is_media(path: Path) -> bool:
    """Whether a file is an image or a sound, by its name (a DICOM file without suffix: by its first bytes)."""
    return path.suffix.lower() in SUFFIXES or pictures.is_dicom(path)


def _modality(paths: Sequence[Path]) -> Modality:
    suffixes = {path.suffix.lower() for path in paths}
    others = sorted(
        {path.suffix.lower() for path in paths if path.suffix.lower() not in SUFFIXES and not is_media(path)}
    )
    if others:
        raise ConfigError(
            f"files must be PNG, JPEG, BMP, TIFF or DICOM images or WAV sounds by their suffix, got {others[0]!r}; "
            "convert them"
        )
    if suffixes & set(sounds.SUFFIXES) and suffixes - set(sounds.SUFFIXES):
        raise ConfigError("files must be either images or sounds, got both; keep them in two data sets")
    return "audio" if suffixes & set(sounds.SUFFIXES) else "image"


def _refuse_nothing(kept: Indices) -> None:
    if not len(kept):
        raise ConfigError("expected files that can be read, got none; repair or replace them")
