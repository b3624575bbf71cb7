"""A ledger that one process holds alone: it keeps the newest round in memory, and says the same as any other."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from client.ledger import Ledger, Reservation, Spend, Statement, StoredReply
from common.errors import PrivacyError
from common.privacy.plan import PrivacyTerms

PLAN = PrivacyTerms("record", "local", 1.0, 20, 1, 1.0, 20.0, 1e-5).for_node(100)
ROUNDS = 12


def opened(path: Path, *, alone: bool) -> Ledger:
    return Ledger.open(path, "data", delta=1e-5, epsilon_cap=100.0, durable=False, alone=alone)


def release(ledger: Ledger, round_: int, head: str = "h") -> None:
    reservation = ledger.reserve(Spend("run", round_, head), PLAN)
    assert isinstance(reservation, Reservation)
    ledger.commit(reservation, f"reply {round_}".encode())


def played(path: Path, *, alone: bool) -> Statement:
    with opened(path, alone=alone) as ledger:
        for round_ in range(1, ROUNDS + 1):
            release(ledger, round_)
        ledger.reserve(Spend("run", ROUNDS + 1, "h"), PLAN)
        ledger.verify()
        return ledger.statement()


def rows(path: Path) -> list[tuple[object, ...]]:
    with sqlite3.connect(path) as connection:
        return [
            *connection.execute("SELECT * FROM entries ORDER BY position"),
            *connection.execute("SELECT * FROM replies ORDER BY reservation"),
        ]


def test_file_and_statement_are_those_of_any_other_ledger(tmp_path: Path) -> None:
    alone, shared = played(tmp_path / "alone", alone=True), played(tmp_path / "shared", alone=False)
    assert alone == shared
    assert len(alone.committed) == ROUNDS
    assert alone.open_reservations == (("run", ROUNDS + 1),)
    assert rows(tmp_path / "alone") == rows(tmp_path / "shared")


def test_what_it_remembers_does_not_grow_with_the_rounds(tmp_path: Path) -> None:
    with opened(tmp_path / "ledger", alone=True) as ledger:
        for round_ in range(1, ROUNDS + 1):
            release(ledger, round_)
            balance = ledger._balance
            assert len(balance.charges) == len(balance.reservations) == len(balance.committed) == 1


def test_a_forgotten_round_is_refused_the_newest_repeated_and_another_head_charged(tmp_path: Path) -> None:
    with opened(tmp_path / "ledger", alone=True) as ledger:
        for round_ in (1, 2, 3):
            release(ledger, round_)
        with pytest.raises(PrivacyError, match="released twice"):
            ledger.reserve(Spend("run", 1, "h"), PLAN)
        assert ledger.reserve(Spend("run", 3, "h"), PLAN) == StoredReply(b"reply 3")
        before = ledger.statement().steps
        release(ledger, 2, "another head")
        assert ledger.statement().steps == before + 1


def test_a_balance_that_forgot_is_whole_again_where_the_file_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with opened(path, alone=True) as ledger:
        for round_ in (1, 2, 3):
            release(ledger, round_)
    with opened(path, alone=False) as ledger:
        release(ledger, 4)
        with pytest.raises(PrivacyError, match="released twice"):
            ledger.reserve(Spend("run", 2, "h"), PLAN)
    with opened(path, alone=True) as ledger:
        assert [round_ for _, round_ in ledger.statement().committed] == [1, 2, 3, 4]
        ledger.verify()
