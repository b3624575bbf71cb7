"""The SQLite file of a privacy ledger: its tables, how it is opened, and SQLite's errors as sentences of ours."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.durable import sync_folder
from common.errors import BrokenChainError, ConfigError
from common.privacy.entries import SCHEMA_VERSION, TRIGGERS, broken_chain

LOCK_TIMEOUT_S = 30.0
PAGES = 8  # of a file that one process holds alone, kept in memory; it may hold a thousand

SCHEMA = (
    "CREATE TABLE entries (position INTEGER PRIMARY KEY, text TEXT NOT NULL, hash TEXT NOT NULL) STRICT",
    "CREATE TABLE replies (reservation INTEGER PRIMARY KEY, run_id TEXT NOT NULL, round INTEGER NOT NULL,"
    " reply BLOB NOT NULL) STRICT",
    *TRIGGERS,
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


def create_file(path: Path, durable: bool) -> bool:
    """Make an empty file that only its owner can read; False where there was one, which is closed to others too."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        if durable:
            sync_folder(path.parent)
    except FileExistsError:
        path.chmod(0o600)
        return False
    except OSError as error:
        raise ConfigError(
            f"the ledger {path} must be in a folder that can be written, got: {error.strerror}; choose another place"
        ) from error
    return True


def connect(path: Path, durable: bool, alone: bool) -> sqlite3.Connection:
    """Open the file: to survive a power cut, if ``durable``; held against every other process, if ``alone``."""
    connection = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, isolation_level=None)
    try:
        if alone:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute(f"PRAGMA cache_size = {PAGES}")
        # With FULL, TRUNCATE syncs the emptied journal; DELETE would leave its removal to the next power cut.
        connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}")
        # Without any syncing, PERSIST ends a transaction with one write to the journal's head, and is as safe.
        connection.execute(f"PRAGMA journal_mode = {'TRUNCATE' if durable or not alone else 'PERSIST'}")
    except BaseException:
        connection.close()
        raise
    return connection


def schema_version(connection: sqlite3.Connection) -> int:
    """The format of the file; 0 where nothing was written yet."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def make_schema_once(connection: sqlite3.Connection) -> None:
    """Make the tables of a new file, within a transaction.

    Raises:
        BrokenChainError: the file is something else.
    """
    version = schema_version(connection)
    if version == SCHEMA_VERSION:
        return
    if version != 0 or connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise broken_chain(f"the file is no ledger of format {SCHEMA_VERSION}")
    for statement in SCHEMA:
        connection.execute(statement)


@contextmanager
def sentences(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours, and say which ledger is broken.

    What can be helped is a ConfigError, a damaged file is a PrivacyError.
    """
    try:
        yield
    except BrokenChainError as error:
        named = str(error) if path.name in str(error) else f"{path.name}: {error}"
        raise BrokenChainError(named) from error
    except (sqlite3.Error, UnicodeError) as error:  # SQLite quotes a damaged schema in its message, undecoded
        reason = _HELP.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
        if reason is None:
            raise broken_chain(f"{path} cannot be read as a ledger ({error})") from error
        raise ConfigError(f"the ledger {path} must be writable, got: {error}; {reason}, then run again") from error


_HELP = {
    sqlite3.SQLITE_BUSY: "wait for the other process that uses it to end",
    sqlite3.SQLITE_LOCKED: "wait for the other process that uses it to end",
    sqlite3.SQLITE_FULL: "free some disk space",
    sqlite3.SQLITE_IOERR: "free some disk space or replace the disk",
    sqlite3.SQLITE_READONLY: "make it writable",
    sqlite3.SQLITE_PERM: "make it writable",
    sqlite3.SQLITE_CANTOPEN: "make it readable and writable",
}
