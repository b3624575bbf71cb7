"""Ledgers as an auditor gets them: the node's own file, or an export of it."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.errors import BrokenChainError, ConfigError
from common.privacy.entries import LedgerEntry, broken_chain, check_triggers, read_entries, verify_chain
from common.privacy.export import LedgerExport, read_export, verify_signature
from common.privacy.keys import fingerprint

_SQLITE = b"SQLite format 3\0"


@dataclass(frozen=True)
class LedgerFile:
    """One file that was given.

    Attributes:
        path: of the file.
        kind: ``"ledger"``, the node's own file; or ``"export"``.
        entries: all of them, their chain whole.
        exported_at: when the export was made, by its own word; None of a ledger.
        signer: fingerprint of the key that signed it; None where unsigned.
        known_key: the given key that this is, or that leads to it; None where none was given.
        key_changes: how many rotations of the node's key the export names.
    """

    path: Path
    kind: Literal["ledger", "export"]
    entries: tuple[LedgerEntry, ...]
    exported_at: str | None = None
    signer: str | None = None
    known_key: Path | None = None
    key_changes: int = 0


def read_ledger_file(path: Path, public_keys: Sequence[Path] = ()) -> LedgerFile:
    """Read a ledger or an export without changing it, and verify its chain and signature.

    Args:
        path: of the file.
        public_keys: one of which an export must be signed by; empty asks for nothing.

    Raises:
        PrivacyError: the chain is broken, the file damaged, or the signature missing or wrong.
        ConfigError: the file is neither, or a key is not usable.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_SQLITE))
    except OSError as error:
        raise ConfigError(f"a ledger must be a readable file, got {path} ({error.strerror}); name another") from error
    try:
        if start == _SQLITE:
            return _read_ledger(path, public_keys)
        if start.startswith(b"{"):
            return _read_export(path, public_keys)
    except BrokenChainError as error:
        raise BrokenChainError(str(error) if path.name in str(error) else f"{path.name}: {error}") from error
    raise ConfigError(
        f"expected a ledger (SQLite) or an export of one, but {path} is neither; give ledgers/<node>.sqlite of a run "
        "folder, or what fedgraft audit export wrote"
    )


def _read_ledger(path: Path, public_keys: Sequence[Path]) -> LedgerFile:
    if public_keys:
        raise ConfigError(
            f"--key checks the signature of exports, but {path} is a ledger itself, which has none; leave --key out, "
            "or have the node export it with its key"
        )
    with _settled(path) as settled:
        entries = tuple(read_entries(settled))
        verify_chain(entries)
        if not entries:
            raise broken_chain("it does not begin with the entry that opens a ledger")
        _check_file(settled, entries)
    return LedgerFile(path, "ledger", entries)


def _read_export(path: Path, public_keys: Sequence[Path]) -> LedgerFile:
    export: LedgerExport = read_export(path)
    known = verify_signature(export, public_keys) if public_keys else None
    signer = None if export.public_key is None else fingerprint(export.public_key)
    return LedgerFile(path, "export", export.entries, export.at, signer, known, len(export.rotations))


@contextmanager
def _settled(path: Path) -> Iterator[Path]:
    """The file; or, where its node was stopped in the middle of a write, a copy in which SQLite takes that back."""
    journal = path.with_name(path.name + "-journal")
    if not (journal.exists() and journal.stat().st_size):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        shutil.copyfile(path, copy)
        shutil.copyfile(journal, copy.with_name(journal.name))
        with closing(sqlite3.connect(copy)) as connection:
            connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        yield copy


def _check_file(path: Path, entries: Sequence[LedgerEntry]) -> None:
    """Check SQLite's structure, the triggers, and the replies: a cut-off chain has too many of them, or too few."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise broken_chain("the file is damaged")
            _check_replies(connection, entries)
            check_triggers(connection)
    except (sqlite3.Error, UnicodeError) as error:  # SQLite quotes a damaged schema in its message, undecoded
        raise broken_chain(f"the file is damaged ({error})") from error


def _check_replies(connection: sqlite3.Connection, entries: Sequence[LedgerEntry]) -> None:
    """Kept replies are those that were committed, and the newest commit's of each run is always among them."""
    runs = {entry.position: str(entry.body.get("run_id")) for entry in entries if entry.kind == "reserve"}
    committed, newest = {}, {}
    for body in (entry.body for entry in entries if entry.kind == "commit"):
        if isinstance(reservation := body.get("reservation"), int):
            committed[reservation] = body.get("reply_sha256")
            newest[runs.get(reservation)] = reservation
    kept = set()
    for reservation, reply in connection.execute("SELECT reservation, reply FROM replies"):
        if not isinstance(reply, bytes) or committed.get(reservation) != hashlib.sha256(reply).hexdigest():
            raise broken_chain(f"the reply kept for entry {reservation} is not one that was committed")
        kept.add(reservation)
    if missing := sorted(set(newest.values()) - kept):
        raise broken_chain(f"the reply to entry {missing[0]}, committed last in its run, is not kept")
