"""The entry format: fixed for ever, readable without the client, broken by any change."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import PrivacyError
from common.privacy.canonical import canonical_json, sha256_hex
from common.privacy.entries import GENESIS, LedgerEntry, make_entry, read_entries, verify_chain
from common.privacy.plan import PrivacyTerms
from common.privacy.statement import Balance, statement_of

PLAN = PrivacyTerms("record", "local", 1.0, 10, 2, 1.0, 4.0, 1e-5).for_node(100)


def chain(*bodies: tuple[str, dict[str, object]]) -> list[LedgerEntry]:
    entries: list[LedgerEntry] = []
    for position, (kind, body) in enumerate(bodies):
        entries.append(make_entry(position, entries[-1].hash if entries else GENESIS, kind, body))
    return entries


OPENED: tuple[str, dict[str, object]] = ("opened", {"dataset_id": "d", "delta": 1e-5, "epsilon_cap": 8.0})
ACCEPTED: tuple[str, dict[str, object]] = ("plan", {"run_id": "r", "digest": PLAN.digest, "plan": PLAN.to_dict()})


def reserved(round: int, **change: object) -> tuple[str, dict[str, object]]:
    return "reserve", {"run_id": "r", "digest": PLAN.digest, "round": round, "head": "h", "steps": 2, **change}


def committed(reservation: int) -> tuple[str, dict[str, object]]:
    return "commit", {"reservation": reservation, "reply_sha256": "00"}


def test_the_format_of_an_entry_is_fixed() -> None:
    """Ledgers outlive releases: if this fails, the schema version must rise and old files stay readable."""
    entry = make_entry(0, GENESIS, "cap", {"epsilon_cap": 8.0})
    assert entry.text == f'{{"epsilon_cap":8.0,"kind":"cap","position":0,"previous":"{GENESIS}"}}'
    assert entry.hash == hashlib.sha256(b"fedgraft ledger entry 1\n" + entry.text.encode()).hexdigest()


def test_the_digest_of_a_plan_is_fixed() -> None:
    assert PLAN.to_dict()["declared_size"] == 100
    assert PLAN.digest == sha256_hex("fedgraft privacy plan 1", canonical_json(PLAN.to_dict()))
    assert len(PLAN.digest) == 64


def test_a_whole_chain_verifies_and_adds_up() -> None:
    entries = chain(OPENED, ACCEPTED, reserved(1), committed(2), reserved(2))
    verify_chain(entries)
    said = statement_of(entries)
    assert (said.steps, said.committed, said.open_reservations) == (4, (("r", 1),), (("r", 2),))
    assert said.chain_head == entries[-1].hash


def test_an_empty_chain_verifies() -> None:
    verify_chain([])


@given(st.permutations(range(5)), st.integers(0, 5))
def test_entries_left_out_or_moved_are_seen(order: list[int], kept: int) -> None:
    entries = chain(OPENED, ACCEPTED, reserved(1), committed(2), reserved(2))
    chosen = [entries[position] for position in order[:kept]]
    if [entry.position for entry in chosen] == list(range(kept)):
        verify_chain(chosen)
    else:
        with pytest.raises(PrivacyError, match="hash chain"):
            verify_chain(chosen)


def test_an_entry_of_another_chain_is_seen() -> None:
    ours, theirs = chain(OPENED, ACCEPTED, reserved(1)), chain(OPENED, ACCEPTED, reserved(2), committed(2))
    with pytest.raises(PrivacyError):
        verify_chain([*ours, theirs[3]])


@pytest.mark.parametrize(
    "bodies",
    [
        [ACCEPTED],
        [OPENED, OPENED],
        [OPENED, ACCEPTED, ACCEPTED],
        [OPENED, reserved(1)],
        [OPENED, ACCEPTED, reserved(1), reserved(1)],
        [OPENED, ACCEPTED, reserved(1, steps=1)],
        [OPENED, ACCEPTED, reserved(1, steps=0)],
        [OPENED, ACCEPTED, committed(2)],
        [OPENED, ACCEPTED, reserved(1), committed(2), committed(2)],
        [OPENED, ("refund", {"reservation": 2})],
        [OPENED, ("plan", {**ACCEPTED[1], "digest": "00"})],
        [OPENED, ("plan", {**ACCEPTED[1], "plan": {}})],
        [OPENED, ("cap", {})],
    ],
)
def test_a_chain_whose_hashes_hold_but_that_makes_no_sense_is_refused(
    bodies: list[tuple[str, dict[str, object]]],
) -> None:
    entries = chain(*bodies)
    verify_chain(entries)
    with pytest.raises(PrivacyError, match="makes no sense"):
        statement_of(entries)


def test_a_balance_stops_before_the_broken_entry() -> None:
    entries = chain(OPENED, ACCEPTED, reserved(1))
    balance = Balance()
    with pytest.raises(PrivacyError):
        balance.extend([*entries[:2], replace(entries[2], text=entries[2].text + " ")])
    assert (balance.position, balance.head) == (2, entries[1].hash)


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="SQLite") as caught:
        read_entries(tmp_path / "missing.db")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "missing.db").exists()


@given(st.lists(st.text(max_size=5), max_size=4), st.lists(st.text(max_size=5), max_size=4))
def test_digests_of_parts_collide_only_when_equal(one: list[str], other: list[str]) -> None:
    assert (sha256_hex(*one) == sha256_hex(*other)) == (one == other)
