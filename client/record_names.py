"""How an operator names records: by patient, by group, by file, by place in the source, or by content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.withdrawals import NAMED, Withdrawals
from common.data.local import LocalData
from common.errors import ConfigError

KINDS = (*NAMED, "row", "sha256")
FORMS = "a patient, a group or a file of the data, or patient:ID, group:ID, file:PATH, row:N or sha256:DIGEST"


@dataclass(frozen=True)
class Named:
    """What one ID stands for.

    Attributes:
        names: kind and name, which later records of that name share; none for a row or a digest.
        rows: of the records, shape (N,).
    """

    names: tuple[tuple[str, str], ...]
    rows: NDArray[np.int64]


def find_records(ids: Sequence[str], data: LocalData, source: Path, known: Withdrawals) -> list[Named]:
    """Find the records that each ID names.

    Args:
        ids: as the operator typed them.
        data: all records, those withdrawn before included.
        source: the file or folder of the data: a path of a file may be given as it is on this machine.
        known: what was withdrawn before; its names are found though their records are gone.

    Raises:
        ConfigError: an ID names nothing, or two kinds of things.
    """
    base = source if source.is_dir() else source.parent
    found = [_find(one, data, base, known) for one in ids]
    nothing = [one for one, named in zip(ids, found, strict=True) if not named]
    if nothing:
        raise ConfigError(
            f"expected every ID to name a record of the data, but {len(nothing)} of {len(ids)} name none, the first is "
            f"{nothing[0]!r}; give {FORMS}. If its records have left the data already, `fedgraft node purge-cache` "
            "deletes their features; nothing was forgotten now"
        )
    for one, named in zip(ids, found, strict=True):
        if len(named) > 1:
            kinds = [kind for each in named for kind, _ in each.names]
            raise ConfigError(
                f"expected an ID to name one thing, but {one!r} is a {' and a '.join(kinds)}; write "
                f"{kinds[0]}:{one}; nothing was forgotten now"
            )
    return [named[0] for named in found]


def _find(text: str, data: LocalData, base: Path, known: Withdrawals) -> list[Named]:
    kind, separator, name = text.partition(":")
    if separator and kind == "row":
        return _by_row(name, data)
    if separator and kind == "sha256":
        return _by_digest(name, data)
    if separator and kind in NAMED:
        return _by_name(kind, name, data, base, known)
    return [named for kind in NAMED for named in _by_name(kind, text, data, base, known)]


def _by_name(kind: str, text: str, data: LocalData, base: Path, known: Withdrawals) -> list[Named]:
    column = getattr(data, kind)
    for name in dict.fromkeys((text.strip(), _below(base, text)) if kind == "file" else (text.strip(),)):
        rows = np.flatnonzero(column == name) if column is not None else np.empty(0, dtype=np.int64)
        if len(rows) or known.names(kind, name):
            return [Named(((kind, name),), rows)]
    return []


def _below(base: Path, text: str) -> str:
    """The path below the source of a file that was named by its path on this machine."""
    absolute, root = Path(text).expanduser().resolve(), base.resolve()
    return absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else text.strip()


def _by_row(text: str, data: LocalData) -> list[Named]:
    fine = len(text) < 12 and text.isascii() and text.isdigit() and 1 <= int(text) <= len(data)
    return [Named((), np.array([int(text) - 1], dtype=np.int64))] if fine else []


def _by_digest(text: str, data: LocalData) -> list[Named]:
    try:
        wanted = np.frombuffer(bytes.fromhex(text), dtype=np.uint8)
    except ValueError:
        return []
    if len(wanted) != 32:
        return []
    rows = np.flatnonzero((data.record_digests() == wanted).all(axis=1))
    return [Named((), rows)] if len(rows) else []
