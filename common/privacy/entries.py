"""Ledger entries: what was spent, as a chain of hashes that an auditor can check without the client's code.

An entry is a JSON object in canonical form with ``kind``, ``position`` (0, 1, 2 …) and ``previous`` (hash of the entry
before; zeros for the first) beside what its kind holds:

- ``opened``: ``dataset_id``, ``delta``, ``epsilon_cap``; the first entry and only that.
- ``plan``: ``run_id``, ``digest``, ``plan``; accepted together with the first charge to it.
- ``reserve``: ``run_id``, ``digest``, ``round``, ``head``, ``steps``; spent from here on, whatever happens next.
  ``node``, who answers, and ``session``, of the sum that the answer is for, where there are such.
- ``commit``: ``reservation`` (position of a ``reserve``), ``reply_sha256``; released at most from here on.
- ``cap``: ``epsilon_cap``, replacing the one before; one that raises it carries ``signed_off_by`` and perhaps
  ``reason`` (ledgers of earlier releases raised it without).

Entries of a deployed node carry ``at`` (UTC). The hash is SHA-256 over a tag (``fedgraft ledger
entry 1``, newline) and the text.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from common.errors import BrokenChainError, PrivacyError
from common.privacy.canonical import canonical_json

GENESIS = "0" * 64
SCHEMA_VERSION = 1
TRIGGERS = (
    "CREATE TRIGGER entries_no_update BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'append-only'); END",
    "CREATE TRIGGER entries_no_delete BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'append-only'); END",
    "CREATE TRIGGER entries_no_replace BEFORE INSERT ON entries WHEN NEW.position <>"
    " (SELECT COALESCE(MAX(position) + 1, 0) FROM entries) BEGIN SELECT RAISE(ABORT, 'append-only'); END",
)
"""Of a ledger's file: entries are added, and nothing else."""
_REPAIR = "keep the file as evidence and restore the ledger that matches the last exported chain head"
_TAG = b"fedgraft ledger entry 1\n"


@dataclass(frozen=True)
class LedgerEntry:
    """One entry as it is stored.

    Attributes:
        position: 0, 1, 2 … without a gap.
        text: the canonical JSON that is hashed.
        hash: SHA-256, in hex, as stored beside the text.
    """

    position: int
    text: str
    hash: str

    @cached_property
    def body(self) -> dict[str, Any]:
        """The parsed object."""
        try:
            value = json.loads(self.text)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error
        if not isinstance(value, dict):
            raise ValueError("not an object")
        return value

    @property
    def kind(self) -> str:
        """One of the kinds listed above."""
        return str(self.body.get("kind"))


def make_entry(position: int, previous: str, kind: str, body: Mapping[str, Any]) -> LedgerEntry:
    """Write the entry that follows ``previous``."""
    whole = {**body, "kind": kind, "position": position, "previous": previous}
    text = canonical_json(whole)
    entry = LedgerEntry(position, text, entry_hash(text))
    vars(entry)["body"] = whole  # need not be read from the text that was made of it
    return entry


def entry_hash(text: str) -> str:
    """SHA-256, in hex, of an entry's text."""
    return hashlib.sha256(_TAG + text.encode()).hexdigest()


def verify_chain(entries: Iterable[LedgerEntry], *, position: int = 0, previous: str = GENESIS) -> None:
    """Check that entries are unaltered, complete and in order.

    Args:
        entries: from ``position`` on.
        position: of the first of them.
        previous: hash of the entry before them.

    Raises:
        PrivacyError: one was changed, left out, put in or moved.
    """
    for entry in entries:
        if not _follows(entry, position, previous):
            raise broken_chain(f"entry {position} is not the one that was written")
        position, previous = position + 1, entry.hash


def broken_chain(what: str) -> BrokenChainError:
    """The one sentence for a ledger that cannot be trusted."""
    return BrokenChainError(
        f"the ledger's hash chain must be whole, but {what}, so what was spent is unknown; {_REPAIR}"
    )


def check_triggers(connection: sqlite3.Connection) -> None:
    """Make sure that a ledger's file has the triggers that it was made with.

    Raises:
        PrivacyError: it lacks one, or has others.
    """
    triggers = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    if {sql for (sql,) in triggers} != set(TRIGGERS):
        raise broken_chain("the triggers that keep it append-only were changed")


def read_entries(path: Path) -> list[LedgerEntry]:
    """Read a ledger file without changing it, for audits; the chain is not yet verified.

    Raises:
        PrivacyError: the file is missing, or no ledger that can be read.
    """
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            return fetch_entries(connection)
    except sqlite3.Error as error:
        raise PrivacyError(f"a ledger must be a readable SQLite file, got {path} ({error}); {_REPAIR}") from error


def fetch_entries(connection: sqlite3.Connection, position: int = 0) -> list[LedgerEntry]:
    """Read the entries from ``position`` on."""
    rows = connection.execute(
        "SELECT position, text, hash FROM entries WHERE position >= ? ORDER BY position", (position,)
    )
    return [LedgerEntry(*row) for row in rows]


def _follows(entry: LedgerEntry, position: int, previous: str) -> bool:
    if not isinstance(entry.text, str) or entry.hash != entry_hash(entry.text):
        return False
    try:
        body = entry.body
    except ValueError:
        return False
    return entry.position == position == body.get("position") and body.get("previous") == previous
