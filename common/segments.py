"""Segments of the feature cache: files that hold the digests of some records, and their features.

A segment is written whole and renamed into place, mode 0600; it never changes. Whole folders of segments are dropped,
those first that were used longest ago, where the cache would grow beyond its bound.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from common import durable
from common.errors import ConfigError


def as_keys(digests: NDArray[np.uint8]) -> NDArray[np.void]:
    """Digests, shape (N, 32), as N keys."""
    return np.ascontiguousarray(digests).view("V32").ravel()


def bytes_of(folder: Path) -> int:
    """Size of all segments below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors") if path.is_file())


def make_room(cache: Path, place: Path, wanted: int, most: int) -> None:
    """Drop folders of segments until ``wanted`` bytes more fit, those first that were used longest ago.

    Args:
        cache: folder of the folders of segments.
        place: the one that is being filled; it stays.
        wanted: bytes that will be written.
        most: bytes that the cache may hold.

    Raises:
        ConfigError: they do not fit even then.
    """
    others = [folder for folder in cache.glob("*") if folder.is_dir() and folder != place]
    sizes = {folder: bytes_of(folder) for folder in sorted(others, key=lambda folder: folder.stat().st_mtime)}
    needed = bytes_of(place) + wanted + sum(sizes.values()) - most
    for folder, size in sizes.items():
        if needed <= 0:
            return
        shutil.rmtree(folder, ignore_errors=True)
        needed -= size
    if needed > 0:
        raise ConfigError(
            f"the features need {(bytes_of(place) + wanted) / 2**30:.1f} GiB, and the feature cache may hold "
            f"{most / 2**30:.1f}; raise FEDGRAFT_CACHE_GIB, or choose a later model.cut, whose features are smaller"
        )


def mark_used(place: Path) -> None:
    """Remember that a folder of segments is in use."""
    if place.is_dir():
        os.utime(place)


def write_segment(place: Path, keys: NDArray[np.void], values: NDArray[np.float32]) -> None:
    """Keep the features (N, D) of the records with these keys."""
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    place.mkdir(mode=0o700, exist_ok=True)
    digests = keys.view(np.uint8).reshape(len(keys), 32)
    name = hashlib.sha256(digests.tobytes()).hexdigest()[:32]
    blob = safetensors.numpy.save({"features": values, "records": digests})
    durable.write_bytes(place / f"{name}.safetensors", blob, mode=0o600)


def drop_records(cache: Path, unwanted: Callable[[NDArray[np.uint8]], NDArray[np.bool_]]) -> int:
    """Take some records' features out of all segments; the others' stay.

    Args:
        cache: folder of the folders of segments.
        unwanted: of digests (N, 32), which ones go, shape (N,).

    Returns:
        How many were taken out.
    """
    dropped = 0
    for path in sorted(cache.glob("*/*.safetensors")):
        try:
            digests, values = _map_segment(path)
        except FileNotFoundError:
            continue  # another process made room just now
        gone = unwanted(digests)
        if not gone.any():
            continue
        if not gone.all():
            write_segment(path.parent, as_keys(digests[~gone]), values[~gone])
        path.unlink(missing_ok=True)
        durable.sync_folder(path.parent)
        dropped += int(gone.sum())
    return dropped


class Segments:
    """All segments of one address, and where each record is."""

    def __init__(self, place: Path) -> None:
        self._values: list[NDArray[np.float32]] = []
        keys: list[NDArray[np.void]] = []
        for path in sorted(place.glob("*.safetensors")):
            try:
                digests, values = _map_segment(path)
            except FileNotFoundError:
                continue  # another process made room just now
            keys.append(as_keys(digests))
            self._values.append(values)
        self._sizes = [len(part) for part in keys]
        self._sorted, self._origin = _sort_keys(keys)

    def contains(self, wanted: NDArray[np.void]) -> NDArray[np.bool_]:
        """Which of these records are here, shape (N,)."""
        if not len(self._sorted):
            return np.zeros(len(wanted), dtype=bool)
        place = np.minimum(np.searchsorted(self._sorted, _sortable(wanted)), len(self._sorted) - 1)
        found: NDArray[np.bool_] = self._sorted[place] == _sortable(wanted)
        return found

    def rows(self, wanted: NDArray[np.void]) -> NDArray[np.float32]:
        """Features of these records, all of which are here, shape (N, D); memory-mapped where they lie in order."""
        place = self._origin[np.searchsorted(self._sorted, _sortable(wanted))]
        starts = np.cumsum([0, *self._sizes])
        segment = np.searchsorted(starts, place, side="right") - 1
        local = place - starts[segment]
        if (segment == segment[0]).all():
            values = self._values[int(segment[0])]
            in_order = len(local) == len(values) and bool((local == np.arange(len(local))).all())
            return values if in_order else values[local]
        return np.stack([self._values[s][row] for s, row in zip(segment, local, strict=True)])


def _sortable(keys: NDArray[np.void]) -> NDArray[np.bytes_]:
    # "S32" would drop trailing zero bytes when comparing, so that two records could meet: hex digits cannot
    return np.array([key.tobytes().hex() for key in keys], dtype="S64")


def _sort_keys(keys: list[NDArray[np.void]]) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
    if not keys:
        return np.empty(0, dtype="S64"), np.empty(0, dtype=np.int64)
    everything = _sortable(np.concatenate(keys))
    order = np.argsort(everything, kind="stable")
    return everything[order], order


def _map_segment(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            digests: NDArray[np.uint8] = file.get_tensor("records")
        with path.open("rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
            entry = json.loads(raw.read(length))["features"]
        start = 8 + length + entry["data_offsets"][0]
        values = np.memmap(path, dtype=np.float32, mode="r", offset=start, shape=tuple(entry["shape"]))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise ConfigError(f"the feature cache file {path} is damaged ({error}); delete it and run again") from error
    return digests, values
