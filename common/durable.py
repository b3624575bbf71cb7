"""Files that survive a crash: written beside their place, synced, then renamed into it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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


def sync_folder(folder: Path) -> None:
    """Make a rename or a new file in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
