"""Segments of the feature cache: files that hold the digests of some records, and their features.

A segment is written whole and renamed into place, mode 0600; it never changes. Whole folders of segments are dropped,
those first that were used longest ago, where the cache would grow beyond its bound.

A sealed segment holds the same, encrypted, in parts that fit into memory: digests and features are sealed each by
itself, bound to the file's place, so that neither can be changed or exchanged. It cannot be memory-mapped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from common import durable
from common.errors import ConfigError
from common.paths import CACHE, CACHE_GIB
from common.sealing import Seal, SealBrokenError

PLAIN, SEALED = ".safetensors", ".sealed"
SEALED_PART_BYTES = 64 * 2**20  # of features in one sealed segment: what is decrypted beside the result
_COPIED_BYTES, _AT_ONCE = 2**20, 2**16
_GATHERED_BYTES = 32 * 2**20  # of features that lie apart: more than that are put together on the disk, not in memory
_HEX = np.array([f"{byte:02x}" for byte in range(256)], dtype="S2")

Put = Callable[[NDArray[np.int64], NDArray[np.float32]], None]


def as_keys(digests: NDArray[np.uint8]) -> NDArray[np.void]:
    """Digests, shape (N, 32), as N keys."""
    return np.ascontiguousarray(digests).view("V32").ravel()


def bytes_of(folder: Path) -> int:
    """Size of all segments below a folder."""
    return sum(path.stat().st_size for path in _files(folder, "**/*", (PLAIN, SEALED)) if path.is_file())


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
            f"{most / 2**30:.1f}; raise {CACHE_GIB}, or choose a later model.cut, whose features are smaller"
        )


def mark_used(place: Path) -> None:
    """Remember that a folder of segments is in use."""
    if place.is_dir():
        os.utime(place)


def write_segment(place: Path, keys: NDArray[np.void], values: NDArray[np.float32], seal: Seal | None = None) -> None:
    """Keep the features (N, D) of the records with these keys, sealed where a seal is given."""
    if seal is not None:
        _make_place(place)
        _write_sealed(place, _digests(keys), values, seal)
        return
    with writing_segment(place, keys, values.shape[1]) as put:
        put(np.arange(len(values)), values)


@contextmanager
def writing_segment(place: Path, keys: NDArray[np.void], width: int) -> Iterator[Put]:
    """Keep features of the records with these keys as they come, in any order; nothing of them stays in memory.

    Until the block ends they are in a file without a name, so that nothing is left where the process is killed.

    Yields:
        A function that takes indices of some keys, shape (M,), and their features, (M, ``width``); it must have been
        given all of them when the block ends.

    Raises:
        ConfigError: the disk is full or the folder cannot be written.
    """
    _make_place(place)
    digests = _digests(keys)
    path = place / f"{hashlib.sha256(digests.tobytes()).hexdigest()[:32]}{PLAIN}"
    with durable.told(path), tempfile.TemporaryFile(dir=place) as spool:

        def put(rows: NDArray[np.int64], values: NDArray[np.float32]) -> None:
            breaks = np.flatnonzero(np.diff(rows) != 1) + 1
            for run, part in zip(np.split(rows, breaks), np.split(values, breaks), strict=True):
                spool.seek(int(run[0]) * width * values.itemsize)
                spool.write(np.ascontiguousarray(part).data)

        yield put
        spool.seek(0)
        _make_place(place)  # another process may have dropped it meanwhile
        with durable.replacing(path, mode=0o600) as file:
            file.write(_header(len(keys), width))
            shutil.copyfileobj(spool, file, _COPIED_BYTES)
            file.write(digests.data)


def _make_place(place: Path) -> None:
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"expected a folder for the feature cache, {place} cannot be made: {error.strerror}; name a "
            f"folder that you can write to in {CACHE}"
        ) from error


def _digests(keys: NDArray[np.void]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(keys).view(np.uint8).reshape(len(keys), 32)


def _header(count: int, width: int) -> bytes:
    """What a safetensors file of float32 features and of digests begins with."""
    end = count * width * 4
    parts = {
        "features": {"dtype": "F32", "shape": [count, width], "data_offsets": [0, end]},
        "records": {"dtype": "U8", "shape": [count, 32], "data_offsets": [end, end + 32 * count]},
    }
    text = json.dumps(parts).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_sealed(place: Path, digests: NDArray[np.uint8], values: NDArray[np.float32], seal: Seal) -> None:
    step = max(1, SEALED_PART_BYTES // max(1, values[:1].nbytes))
    for start in range(0, len(values), step):
        name = f"{os.urandom(16).hex()}{SEALED}"  # a hash of the records would tell who they are
        parts: dict[str, NDArray[Any]] = {
            "records": digests[start : start + step],
            "features": values[start : start + step],
        }
        closed = {part: seal.close(held.tobytes(), _label(place / name, part)) for part, held in parts.items()}
        blob = safetensors.numpy.save({part: np.frombuffer(held, dtype=np.uint8) for part, held in closed.items()})
        durable.write_bytes(place / name, blob, mode=0o600)


def drop_records(
    cache: Path, unwanted: Callable[[NDArray[np.uint8]], NDArray[np.bool_]], seal: Seal | None = None
) -> int:
    """Take some records' features out of all segments; the others' stay.

    Sealed segments that do not open are deleted: nobody can say whose features they are.

    Args:
        cache: folder of the folders of segments.
        unwanted: of digests (N, 32), which ones go, shape (N,).
        seal: opens sealed segments.

    Returns:
        How many were taken out.
    """
    dropped = 0
    for path in _files(cache, "*/*", (PLAIN, SEALED)):
        try:
            segment = _Segment(path, seal)
        except FileNotFoundError:
            continue  # another process made room just now
        except ConfigError:
            if path.suffix != SEALED:
                raise
            path.unlink(missing_ok=True)
            continue
        gone = unwanted(segment.digests)
        if not gone.any():
            continue
        if not gone.all():
            kept = segment.values()[~gone]
            write_segment(path.parent, as_keys(segment.digests[~gone]), kept, seal if path.suffix == SEALED else None)
        path.unlink(missing_ok=True)
        durable.sync_folder(path.parent)
        dropped += int(gone.sum())
    return dropped


def delete_segments(cache: Path, suffixes: Sequence[str] = (PLAIN, SEALED)) -> int:
    """Delete all segments of these kinds; returns how many bytes were freed."""
    freed = 0
    for path in _files(cache, "*/*", suffixes):
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            continue  # another process was quicker
        freed += size
    return freed


def check_segments(cache: Path, seal: Seal | None) -> None:
    """Make sure that what is sealed in a cache opens.

    Raises:
        ConfigError: something does not.
    """
    for path in _files(cache, "*/*", (SEALED,)):
        _Segment(path, seal)


class Segments:
    """All segments of one address, and where each record is."""

    def __init__(self, place: Path, seal: Seal | None = None) -> None:
        self._segments: list[_Segment] = []
        for path in _files(place, "*", (PLAIN,) if seal is None else (SEALED,)):
            try:
                self._segments.append(_Segment(path, seal))
            except FileNotFoundError:
                continue  # another process made room just now
        keys = [as_keys(segment.digests) for segment in self._segments]
        self._sizes = [len(part) for part in keys]
        self._sorted, self._origin = _sort_keys(keys)

    def contains(self, wanted: NDArray[np.void]) -> NDArray[np.bool_]:
        """Which of these records are here, shape (N,)."""
        if not len(self._sorted):
            return np.zeros(len(wanted), dtype=bool)
        return np.concatenate([self._places(part)[1] for part in _portions(wanted)])

    def rows(self, wanted: NDArray[np.void]) -> NDArray[np.float32]:
        """Features of these records, all of which are here, shape (N, D).

        They are memory-mapped where they lie in order, and where they are many and not sealed.

        Raises:
            ConfigError: they are sealed and do not open, or do not fit into memory.
        """
        place = self._origin[np.concatenate([self._places(part)[0] for part in _portions(wanted)])]
        starts = np.cumsum([0, *self._sizes])
        number = np.searchsorted(starts, place, side="right") - 1
        local = place - starts[number]
        first = self._segments[int(number[0])].values()
        one_segment = bool((number == number[0]).all())
        if one_segment and len(local) == len(first) and bool((local == np.arange(len(local))).all()):
            return first
        if any(segment.sealed for segment in self._segments):
            _check_memory(len(wanted) * first[:1].nbytes)
        elif len(wanted) * first[:1].nbytes > _GATHERED_BYTES:
            return self._gathered(number, local, first.shape[1])
        found = np.empty((len(wanted), first.shape[1]), dtype=np.float32)
        for one in np.unique(number):
            here = np.flatnonzero(number == one)
            values = first if one == number[0] else self._segments[int(one)].values()
            found[_run(here)] = values[_run(local[here])]
        return found

    def _gathered(self, number: NDArray[np.int64], local: NDArray[np.int64], width: int) -> NDArray[np.float32]:
        """Rows out of segments that are not sealed, put together in a file without a name and mapped."""
        place = self._segments[0].path.parent
        with durable.told(place), tempfile.TemporaryFile(dir=place) as file:
            for start in range(0, len(local), _AT_ONCE):
                here, rows = number[start : start + _AT_ONCE], local[start : start + _AT_ONCE]
                part = np.empty((len(rows), width), dtype=np.float32)
                for one in np.unique(here):
                    chosen = here == one
                    part[chosen] = np.asarray(self._segments[int(one)].values())[rows[chosen]]
                file.write(part.data)
            file.flush()
            return np.memmap(file, dtype=np.float32, mode="r", shape=(len(local), width))

    def _places(self, wanted: NDArray[np.void]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Where these records are among the sorted ones, and whether they are there at all, each of shape (N,)."""
        digits = _sortable(wanted)
        place = np.minimum(np.searchsorted(self._sorted, digits), len(self._sorted) - 1)
        return place, self._sorted[place] == digits


class _Segment:
    """One file: the digests of its records now, and their features when they are wanted."""

    def __init__(self, path: Path, seal: Seal | None) -> None:
        self.path, self.sealed, self._seal = path, path.suffix == SEALED, seal
        if self.sealed:
            self.digests = np.frombuffer(self._opened("records"), dtype=np.uint8).reshape(-1, 32)
        else:
            self.digests, self._mapped = _map_segment(path)

    def values(self) -> NDArray[np.float32]:
        """Features (N, D): memory-mapped, or decrypted anew."""
        if not self.sealed:
            return self._mapped
        return np.frombuffer(self._opened("features"), dtype=np.float32).reshape(len(self.digests), -1)

    def _opened(self, part: str) -> bytes:
        try:
            if self._seal is None:
                raise SealBrokenError
            with safetensors.safe_open(self.path, framework="numpy") as file:
                return self._seal.open(file.get_tensor(part).data, _label(self.path, part))
        except FileNotFoundError:
            raise
        except (OSError, ValueError, SealBrokenError, safetensors.SafetensorError) as error:
            raise ConfigError(
                f"the sealed features in {self.path} do not open: they were changed, or sealed with another key; bring "
                "that key back, or run `fedgraft node purge-cache` to have them made anew"
            ) from error


def _run(indices: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """A slice where the indices follow one another, which copies several times as fast."""
    start, end = int(indices[0]), int(indices[-1]) + 1
    in_order = end - start == len(indices) and bool((np.diff(indices) == 1).all())
    return slice(start, end) if in_order else indices


def _label(path: Path, part: str) -> str:
    return f"{path.parent.name}/{path.name}/{part}"


def _files(folder: Path, pattern: str, suffixes: Sequence[str]) -> list[Path]:
    return sorted(path for suffix in suffixes for path in folder.glob(pattern + suffix))


def _check_memory(wanted: int) -> None:
    available = psutil.virtual_memory().available
    if wanted > available:
        raise ConfigError(
            f"encrypted features are decrypted into memory, and need {wanted / 2**30:.1f} GiB of which "
            f"{available / 2**30:.1f} are free; choose a later model.cut, add memory, or leave data.cache_key out"
        )


def _portions(keys: NDArray[np.void]) -> Iterator[NDArray[np.void]]:
    """Some at a time: comparing them takes several times their memory."""
    return (keys[start : start + _AT_ONCE] for start in range(0, max(1, len(keys)), _AT_ONCE))


def _sortable(keys: NDArray[np.void]) -> NDArray[np.bytes_]:
    # "S32" would drop trailing zero bytes when comparing, so that two records could meet: hex digits cannot
    digits = _HEX[np.ascontiguousarray(keys).view(np.uint8).reshape(len(keys), keys.itemsize)]
    return digits.view(f"S{2 * keys.itemsize}").reshape(len(keys))


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
