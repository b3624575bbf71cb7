"""Files that survive a crash: replaced whole, or grown by whole lines."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from common.errors import ConfigError


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644, synced: bool = True) -> None:
    """Replace ``path`` by ``data`` so that a reader, after any crash, sees the old content or the new one.

    Args:
        path: the file; its folder must exist.
        data: the whole new content.
        mode: permission bits of the file.
        synced: survive a power cut; False, for simulations, survives a killed process.

    Raises:
        ConfigError: the disk is full or the folder cannot be written; the old content is untouched.
    """
    with replacing(path, mode=mode, synced=synced) as file:
        file.write(data)


@contextmanager
def replacing(path: Path, *, mode: int = 0o644, synced: bool = True) -> Iterator[BinaryIO]:
    """Yield a file that takes the place of ``path`` when the block ends; an exception leaves the old content.

    Arguments and errors are those of ``write_bytes``.
    """
    temporary = None
    try:
        with told(path):
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fchmod(file.fileno(), mode)
                if synced:
                    os.fsync(file.fileno())
            Path(temporary).replace(path)
            temporary = None
            if synced:
                sync_folder(path.parent)
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Say of a block that writes a file what went wrong and what to do.

    Raises:
        ConfigError: the block raised an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"could not write {path}: {error.strerror}; free some space or choose a writable folder, then run "
            "again, or resume what had begun"
        ) from error


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    """Replace ``path`` by ``value`` as indented JSON; NaN and infinity are refused."""
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
    write_bytes(path, (text + "\n").encode(), mode=mode)


def append_line(path: Path, value: Mapping[str, Any], *, synced: bool = True) -> None:
    """Add an object as a line of JSON; what a crash or a full disk cut short before it spoils no other line.

    Args:
        path: the file, made where there is none.
        value: JSON values; NaN and infinity are refused.
        synced: survive a power cut; False, for simulations, survives a killed process.

    Raises:
        ConfigError: the disk is full or the folder cannot be written.
    """
    line = json.dumps(value, allow_nan=False) + "\n"
    with told(path), path.open("a+b") as file:
        size = file.tell()
        if size:
            file.seek(-1, os.SEEK_END)
        torn = size > 0 and file.read(1) != b"\n"
        file.write(("\n" * torn + line).encode())
        file.flush()
        if synced:
            os.fsync(file.fileno())
            if not size:
                sync_folder(path.parent)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that ``append_line`` grew, without those cut short; none where there is no file."""
    lines = []
    for text in path.read_bytes().splitlines() if path.exists() else []:
        with suppress(ValueError):
            lines.append(json.loads(text))
    return lines


def sync_folder(folder: Path) -> None:
    """Make a rename or a new file in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
