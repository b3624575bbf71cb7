"""A ledger whose file was changed behind it is refused, or says the same."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from client.ledger import Ledger, Statement
from common.errors import FederationError, PrivacyError
from common.privacy.entries import entry_hash, read_entries, verify_chain
from tests.client.ledgers import PLAN, open_ledger, play, spend


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with open_ledger(path) as opened:
        yield opened


def rewrite(path: Path, *statements: str) -> None:
    """What an attacker with the file does: drop the triggers, then change things."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement)


def played_copy(path: Path) -> Path:
    """A ledger of four rounds, at a place that this process has not opened before."""
    with open_ledger(path) as ledger:
        play(ledger, 4)
    return Path(shutil.copy(path, path.with_name("copy.db")))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET text = replace(text, '\"steps\":1', '\"steps\":0') WHERE position = 4",
        "UPDATE entries SET hash = '00' WHERE position = 4",
        "DELETE FROM entries WHERE position = 4",
        "DELETE FROM entries WHERE position = 0",
        "DELETE FROM entries",
        "UPDATE entries SET position = position + 1 WHERE position = (SELECT MAX(position) FROM entries)",
        "UPDATE entries SET text = 'x' WHERE position = 4",
        "UPDATE entries SET text = '[]' WHERE position = 4",
        "DROP TABLE entries",
        "PRAGMA user_version = 7",
    ],
)
def test_a_changed_chain_is_refused_at_open_in_one_sentence(path: Path, statement: str) -> None:
    copy = played_copy(path)
    rewrite(copy, statement)
    if statement == "DELETE FROM entries":  # an emptied table looks new; only an anchored head can tell
        with open_ledger(copy) as ledger, open_ledger(path) as original:
            assert not ledger.contains(original.statement().chain_head)
        return
    with pytest.raises(PrivacyError, match="hash chain") as caught:
        open_ledger(copy)
    assert "\n" not in str(caught.value)


def test_an_entry_forged_with_its_own_hash_breaks_the_next(path: Path) -> None:
    copy = played_copy(path)
    entry = read_entries(copy)[4]
    forged = entry.text.replace('"round":2', '"round":9')
    rewrite(copy, f"UPDATE entries SET text = '{forged}', hash = '{entry_hash(forged)}' WHERE position = 4")
    with pytest.raises(PrivacyError, match="hash chain"):
        open_ledger(copy)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    position=st.integers(0, 9), place=st.integers(0, 10_000), letter=st.characters(min_codepoint=32, max_codepoint=126)
)
def test_no_letter_of_any_entry_can_be_changed(path: Path, position: int, place: int, letter: str) -> None:
    with open_ledger(path) as ledger:
        play(ledger, 4) if ledger.statement().steps == 0 else None
    entries = read_entries(path)
    entry = entries[position]
    place %= len(entry.text)
    changed = entry.text[:place] + letter + entry.text[place + 1 :]
    entries[position] = replace(entry, text=changed)
    if changed == entry.text:
        verify_chain(entries)
    else:
        with pytest.raises(PrivacyError):
            verify_chain(entries)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(place=st.integers(0, 10**6), flip=st.integers(1, 255), number=st.integers(0, 10**12))
@example(place=4028, flip=128, number=0)  # in the schema's text, which SQLite then quotes undecoded
def test_a_damaged_file_is_refused_or_says_the_same(path: Path, place: int, flip: int, number: int) -> None:
    with open_ledger(path) as ledger:
        play(ledger, 4) if ledger.statement().steps == 0 else None
        said = ledger.statement()
    damaged = path.with_name(f"{place}-{flip}-{number}.db")
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= flip
    damaged.write_bytes(data)
    outcome = statement_or_sentence(damaged)
    assert outcome == said or (isinstance(outcome, str) and "\n" not in outcome)
    damaged.unlink()


def statement_or_sentence(path: Path) -> Statement | str:
    try:
        with open_ledger(path) as ledger:
            return ledger.statement()
    except FederationError as error:
        return str(error)


def test_a_text_file_in_its_place_is_refused(path: Path) -> None:
    path.write_text("not a database, but long enough to be looked at as one " * 100)
    with pytest.raises(PrivacyError, match="hash chain"):
        open_ledger(path)


def test_another_database_in_its_place_is_refused_and_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE patients (name TEXT)")
    with pytest.raises(PrivacyError, match="no ledger"):
        open_ledger(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("patients",)]


def test_a_restored_backup_is_noticed_by_the_process_that_saw_more(path: Path) -> None:
    with open_ledger(path) as ledger:
        play(ledger, 2)
    backup = path.read_bytes()
    with open_ledger(path) as ledger:
        ledger.reserve(spend(3), PLAN)
        anchor = ledger.statement().chain_head
        assert ledger.contains(anchor)
    path.write_bytes(backup)
    for _ in range(2):
        with pytest.raises(PrivacyError, match="older copy"):
            open_ledger(path)
    with open_ledger(Path(shutil.copy(path, path.with_name("seen-first.db")))) as ledger:
        assert not ledger.contains(anchor)


def test_a_ledger_deleted_on_purpose_starts_anew(path: Path) -> None:
    with open_ledger(path) as ledger:
        play(ledger, 2)
    path.unlink()
    with open_ledger(path) as ledger:
        assert ledger.statement().steps == 0


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET text = '' WHERE position = 0",
        "DELETE FROM entries WHERE position = 0",
        "INSERT OR REPLACE INTO entries VALUES (0, '', '')",
        "INSERT INTO entries VALUES (99, '', '')",
    ],
)
def test_the_file_itself_refuses_to_be_rewritten(path: Path, ledger: Ledger, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection, pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)


def test_verify_finds_dropped_triggers_and_a_changed_reply(path: Path) -> None:
    copy = played_copy(path)
    rewrite(copy)
    with open_ledger(copy) as ledger, pytest.raises(PrivacyError, match="triggers"):
        ledger.verify()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE replies SET reply = x'00'")
    with open_ledger(path) as ledger:
        with pytest.raises(PrivacyError, match="reply kept"):
            ledger.verify()
        with pytest.raises(PrivacyError, match="reply kept"):
            ledger.reserve(spend(4), PLAN)
