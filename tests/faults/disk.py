"""A small disk in place of a folder, which can be filled; needs root, for mounting."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILLER = "filler"


def may_mount() -> bool:
    """Whether this process may put a disk in place of a folder."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


@contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[None]:
    """Put what a folder holds on a disk of its own, for a while."""
    with tempfile.TemporaryDirectory() as scratch:
        kept = Path(scratch) / "kept"
        shutil.copytree(folder, kept)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=700", "tmpfs", str(folder)], check=True)
        try:
            shutil.copytree(kept, folder, dirs_exist_ok=True)
            yield
            shutil.copytree(folder, Path(scratch) / "after")
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        shutil.copytree(Path(scratch) / "after", folder, dirs_exist_ok=True)


def fill(folder: Path) -> Path:
    """Fill the disk of a folder to its last byte, with a file that is returned."""
    path = folder / FILLER
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return path
