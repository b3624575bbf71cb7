"""The ledger: paid before release, once; never rewritten; never less than what was released."""

from __future__ import annotations

import json
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant

from client.ledger import Ledger, Reservation, Spend, Statement, StoredReply
from common.errors import ConfigError, FederationError, PrivacyError
from common.privacy.accountant import Event, epsilon_by_round, epsilon_pld, epsilon_rdp, noise_multiplier_for
from common.privacy.canonical import canonical_json
from common.privacy.entries import LedgerEntry, entry_hash, make_entry, read_entries, verify_chain
from common.privacy.plan import PrivacyPlan, PrivacyTerms
from common.privacy.statement import statement_of

DELTA = 1e-5
SIGMA = noise_multiplier_for(3.0, DELTA, 1.0, 10)
PLAN = PrivacyTerms("record", "local", 1.0, 10, 1, 1.0, SIGMA, DELTA).for_node(100)


def open_ledger(path: Path, *, cap: float = 3.0, durable: bool = False, dataset: str = "x-rays") -> Ledger:
    return Ledger.open(path, dataset, delta=DELTA, epsilon_cap=cap, durable=durable)


def spend(round: int, head: str = "h", run: str = "run") -> Spend:
    return Spend(run, round, head)


def play(ledger: Ledger, rounds: int, plan: PrivacyPlan = PLAN, run: str = "run") -> None:
    for round in range(1, rounds + 1):
        reservation = ledger.reserve(spend(round, run=run), plan)
        assert isinstance(reservation, Reservation)
        ledger.commit(reservation, b"reply %d" % round)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with open_ledger(path) as opened:
        yield opened


def test_a_round_is_charged_by_the_plans_table(ledger: Ledger) -> None:
    assert ledger.statement().epsilon == 0.0
    play(ledger, 4)
    said = ledger.statement()
    assert said.epsilon == epsilon_by_round(PLAN.terms)[4] == epsilon_pld([Event(SIGMA, 1.0, 4)], DELTA)
    assert (said.accountant, said.unit, said.delta, said.epsilon_cap, said.steps) == ("PLD", "record", DELTA, 3.0, 4)
    assert said.committed == (("run", 1), ("run", 2), ("run", 3), ("run", 4))
    assert said.open_reservations == ()
    ledger.verify()


def test_thirty_rounds_are_not_reported_as_one(path: Path) -> None:
    """Opened anew each round, as a client that is a new process each round does."""
    sigma = noise_multiplier_for(8.3, DELTA, 0.2, 150)
    plan = PrivacyTerms("record", "local", 0.2, 30, 5, 1.0, sigma, DELTA).for_node(100)
    for round in range(1, 31):
        with open_ledger(path, cap=8.3) as ledger:
            reservation = ledger.reserve(spend(round), plan)
            assert isinstance(reservation, Reservation)
            ledger.commit(reservation, b"")
    with open_ledger(path, cap=8.3) as ledger:
        assert ledger.statement().steps == 150
        assert ledger.statement().epsilon == pytest.approx(8.3, rel=0.01)
        assert ledger.statement().epsilon == epsilon_pld([Event(sigma, 0.2, 150)], DELTA)
        with pytest.raises(PrivacyError, match="budget"):
            ledger.reserve(spend(31), plan)


@pytest.mark.parametrize(("sigma", "rate", "steps"), [(2.0, 0.2, 1), (1.0, 0.05, 10)])
def test_the_ledger_agrees_with_opacus_prv_and_is_never_above_rdp(
    path: Path, sigma: float, rate: float, steps: int
) -> None:
    plan = PrivacyTerms("record", "local", rate, 30, steps, 1.0, sigma, DELTA).for_node(100)
    opacus = PRVAccountant()
    with open_ledger(path, cap=20.0) as ledger:
        for round in range(1, 31):
            ledger.reserve(spend(round), plan)
            opacus.history = [(sigma, rate, round * steps)]
            said = ledger.statement().epsilon
            assert said <= epsilon_rdp([Event(sigma, rate, round * steps)], DELTA)
            if round % 10 == 0:
                assert said == pytest.approx(opacus.get_epsilon(DELTA), rel=0.01)


def test_the_cap_refuses_the_round_that_would_pass_it_and_charges_nothing(ledger: Ledger) -> None:
    play(ledger, 10)
    before = ledger.statement()
    with pytest.raises(PrivacyError, match="would make it"):
        ledger.reserve(spend(11), PLAN)
    assert ledger.statement() == before


def test_what_an_entry_says_in_memory_is_what_its_text_says(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[LedgerEntry] = []

    def spied(*arguments: Any) -> LedgerEntry:
        made.append(make_entry(*arguments))
        return made[-1]

    monkeypatch.setattr("client.ledger.make_entry", spied)
    with open_ledger(path) as ledger:
        play(ledger, 2)
    with open_ledger(path, cap=9.5) as ledger:
        ledger.raise_cap("Dr. North", "the board agreed")
    assert {entry.kind for entry in made} == {"opened", "plan", "reserve", "commit", "cap"}
    for entry, stored in zip(made, read_entries(path), strict=True):
        assert (entry, entry.body) == (stored, stored.body)
        assert canonical_json(entry.body) == canonical_json(stored.body)  # 1 is 1.0 to Python, not here


def test_an_empty_batch_costs_what_any_round_costs(ledger: Ledger) -> None:
    """The ledger never hears how large a batch was: nothing in a reservation depends on the data."""
    reservation = ledger.reserve(spend(1), PLAN)
    assert isinstance(reservation, Reservation)
    ledger.commit(reservation, b"")
    assert ledger.statement().steps == 1


def test_a_retry_of_a_reserved_round_uses_its_reservation(path: Path) -> None:
    with open_ledger(path) as ledger:
        first = ledger.reserve(spend(1), PLAN)
    with open_ledger(path) as ledger:
        again = ledger.reserve(spend(1), PLAN)
        assert isinstance(first, Reservation)
        assert isinstance(again, Reservation)
        assert (first.retried, again.retried) == (False, True)
        assert first.position == again.position
        assert ledger.statement().steps == 1
        assert ledger.statement().open_reservations == (("run", 1),)


def test_a_repeat_of_a_committed_round_gets_the_stored_bytes(path: Path) -> None:
    with open_ledger(path) as ledger:
        play(ledger, 2)
        before = ledger.statement()
    with open_ledger(path) as ledger:
        assert ledger.reserve(spend(2), PLAN) == StoredReply(b"reply 2")
        assert ledger.statement() == before


def test_an_older_reply_is_dropped_and_its_round_never_released_again(ledger: Ledger) -> None:
    play(ledger, 2)
    with pytest.raises(PrivacyError, match="no longer kept"):
        ledger.reserve(spend(1), PLAN)


def test_an_older_round_committed_late_leaves_the_newer_reply(ledger: Ledger) -> None:
    late = ledger.reserve(spend(1), PLAN)
    assert isinstance(late, Reservation)
    newer = ledger.reserve(spend(2), PLAN)
    assert isinstance(newer, Reservation)
    ledger.commit(newer, b"reply 2")
    ledger.commit(late, b"reply 1")
    assert ledger.reserve(spend(2), PLAN) == StoredReply(b"reply 2")
    assert ledger.reserve(spend(1), PLAN) == StoredReply(b"reply 1")


def test_the_file_does_not_grow_by_its_replies(path: Path) -> None:
    with open_ledger(path) as ledger:
        for round in range(1, 11):
            reservation = ledger.reserve(spend(round), PLAN)
            assert isinstance(reservation, Reservation)
            ledger.commit(reservation, bytes(200_000))
    assert path.stat().st_size < 600_000


def test_another_head_for_the_same_round_is_another_charge(ledger: Ledger) -> None:
    play(ledger, 9)
    other = ledger.reserve(spend(9, head="other"), PLAN)
    assert isinstance(other, Reservation)
    assert ledger.statement().epsilon == epsilon_by_round(PLAN.terms)[10]
    ledger.commit(other, b"other reply")
    assert ledger.reserve(spend(9), PLAN) == StoredReply(b"reply 9")
    assert ledger.reserve(spend(9, head="other"), PLAN) == StoredReply(b"other reply")
    with pytest.raises(PrivacyError, match="budget"):
        ledger.reserve(spend(9, head="a third"), PLAN)


def test_charges_beyond_the_plans_rounds_go_on_counting(path: Path) -> None:
    with open_ledger(path, cap=100.0) as ledger:
        play(ledger, 13)
        assert ledger.statement().epsilon == epsilon_pld([Event(SIGMA, 1.0, 13)], DELTA) > 3.0


def test_a_reservation_never_retried_stays_spent(ledger: Ledger) -> None:
    play(ledger, 1)
    ledger.reserve(spend(2), PLAN)
    assert ledger.statement().open_reservations == (("run", 2),)
    assert ledger.statement().epsilon == epsilon_by_round(PLAN.terms)[2]
    ledger.verify()


def test_a_second_commit_of_one_reservation_releases_nothing_else(ledger: Ledger) -> None:
    """Two processes retried the same round: only one of their updates may leave."""
    reservation = ledger.reserve(spend(1), PLAN)
    again = ledger.reserve(spend(1), PLAN)
    assert isinstance(reservation, Reservation)
    assert isinstance(again, Reservation)
    ledger.commit(reservation, b"mine")
    ledger.commit(reservation, b"mine")
    with pytest.raises(PrivacyError, match="send nothing"):
        ledger.commit(again, b"yours")
    assert ledger.reserve(spend(1), PLAN) == StoredReply(b"mine")


def test_a_reservation_of_another_ledger_cannot_be_committed(ledger: Ledger, tmp_path: Path) -> None:
    with open_ledger(tmp_path / "other.db") as other:
        reservation = other.reserve(spend(5), PLAN)
    assert isinstance(reservation, Reservation)
    with pytest.raises(PrivacyError, match="reserve first"):
        ledger.commit(reservation, b"")


def test_several_plans_compose_by_rdp_with_pld_shown_for_information(path: Path) -> None:
    with open_ledger(path, cap=8.0) as ledger:
        play(ledger, 5)
        second = replace(PLAN.terms, noise_multiplier=2 * SIGMA).for_node(100)
        play(ledger, 3, second)
        said = ledger.statement()
    events = [Event(SIGMA, 1.0, 5), Event(2 * SIGMA, 1.0, 3)]
    assert said.accountant == "RDP (adaptive)"
    assert said.epsilon == epsilon_rdp(events, DELTA)
    assert said.epsilon_pld_non_adaptive == epsilon_pld(events, DELTA) < said.epsilon


def test_the_same_plan_in_another_run_is_another_instance(path: Path) -> None:
    with open_ledger(path, cap=8.0) as ledger:
        play(ledger, 2)
        play(ledger, 2, run="later")
        assert ledger.statement().accountant == "RDP (adaptive)"
        assert ledger.statement().epsilon == epsilon_rdp([Event(SIGMA, 1.0, 4)], DELTA)


def test_a_refused_second_plan_leaves_the_first_as_it_was(ledger: Ledger) -> None:
    play(ledger, 10)
    before = ledger.statement()
    with pytest.raises(PrivacyError, match="RDP"):
        ledger.reserve(spend(1, run="later"), PLAN)
    assert ledger.statement() == before


def test_delta_is_fixed_for_the_data_set(path: Path, ledger: Ledger) -> None:
    with pytest.raises(PrivacyError, match="delta"):
        ledger.reserve(spend(1), replace(PLAN.terms, delta=1e-6).for_node(100))
    with pytest.raises(PrivacyError, match="delta"):
        Ledger.open(path, "x-rays", delta=1e-6, epsilon_cap=3.0, durable=False)
    assert ledger.statement().entries == 1


def test_a_ledger_belongs_to_one_data_set(path: Path, ledger: Ledger) -> None:
    with pytest.raises(PrivacyError, match="x-rays"):
        open_ledger(path, dataset="scans")


def test_a_lower_cap_is_an_entry_and_takes_effect_and_a_higher_one_is_signed_off_first(path: Path) -> None:
    with open_ledger(path) as ledger:
        play(ledger, 5)
    with open_ledger(path, cap=1.0) as ledger:
        assert ledger.statement().epsilon_cap == 1.0
        with pytest.raises(PrivacyError, match="budget"):
            ledger.reserve(spend(6), PLAN)
    with open_ledger(path, cap=3.0) as ledger:
        for charge in (lambda: ledger.reserve(spend(6), PLAN), lambda: ledger.check_plan(PLAN, "run", whole=False)):
            with pytest.raises(PrivacyError, match=r"raise-cap 3\.0"):
                charge()
        assert ledger.reserve(spend(5), PLAN) == StoredReply(b"reply 5")  # paid before
        assert ledger.statement().epsilon_cap == 1.0
        ledger.raise_cap("Dr. North", "the board agreed")
        assert isinstance(ledger.reserve(spend(6), PLAN), Reservation)
    with open_ledger(path, cap=3.0) as ledger:
        ledger.raise_cap("nobody")  # nothing to sign off
        ledger.verify()
    lowered, raised = [json.loads(entry.text) for entry in read_entries(path) if entry.kind == "cap"]
    assert lowered["epsilon_cap"] == 1.0
    assert (raised["epsilon_cap"], raised["signed_off_by"], raised["reason"]) == (3.0, "Dr. North", "the board agreed")


def test_a_cap_that_is_signed_off_elsewhere_holds_in_a_ledger_that_is_open(path: Path) -> None:
    with open_ledger(path, cap=1.0):
        pass
    with open_ledger(path, cap=3.0) as waiting, open_ledger(path, cap=3.0) as other:
        other.raise_cap("Dr. North")
        assert isinstance(waiting.reserve(spend(1), PLAN), Reservation)


@pytest.mark.parametrize(
    ("by", "reason"), [("", ""), ("  ", ""), ("x\ny", ""), ("x", "y\0"), ("x" * 501, ""), ("\udc80", "")]
)
def test_a_sign_off_names_somebody_in_plain_words(path: Path, by: str, reason: str) -> None:
    with open_ledger(path, cap=1.0):
        pass
    with open_ledger(path, cap=3.0) as ledger:
        with pytest.raises(ConfigError, match="a sign-off needs a name"):
            ledger.raise_cap(by, reason)
        assert ledger.statement().entries == 1


@pytest.mark.parametrize(("cap", "delta"), [(0.0, DELTA), (-1.0, DELTA), (float("inf"), DELTA), (1.0, 0.0), (1.0, 1.0)])
def test_limits_that_limit_nothing_are_refused(path: Path, cap: float, delta: float) -> None:
    with pytest.raises(ConfigError, match="cap"):
        Ledger.open(path, "x-rays", delta=delta, epsilon_cap=cap)
    assert not path.exists()


@pytest.mark.parametrize("durable", [True, False])
def test_the_file_is_for_its_owner_only(path: Path, durable: bool) -> None:
    with open_ledger(path, durable=durable) as ledger:
        play(ledger, 1)
        assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
    path.chmod(0o644)
    with open_ledger(path, durable=durable):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_deployed_ledger_dates_its_entries_and_a_simulated_one_is_reproducible(tmp_path: Path) -> None:
    heads = set()
    for name in ("one", "two"):
        with open_ledger(tmp_path / name) as ledger:
            play(ledger, 2)
            heads.add(ledger.statement().chain_head)
    assert len(heads) == 1
    with open_ledger(tmp_path / "deployed", durable=True):
        assert all("at" in entry.body for entry in read_entries(tmp_path / "deployed"))


def test_a_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder"):
        open_ledger(tmp_path / "missing" / "ledger.db")


def test_a_locked_file_is_one_sentence_and_charges_nothing(path: Path, ledger: Ledger) -> None:
    ledger._connection.execute("PRAGMA busy_timeout = 1")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ConfigError, match="other process"):
            ledger.reserve(spend(1), PLAN)
    assert ledger.statement().steps == 0
    assert isinstance(ledger.reserve(spend(1), PLAN), Reservation)


def test_an_auditor_reads_the_same_from_the_file_alone(path: Path) -> None:
    with open_ledger(path) as ledger:
        play(ledger, 3)
        ledger.reserve(spend(4), PLAN)
        said = ledger.statement()
    entries = read_entries(path)
    verify_chain(entries)
    assert statement_of(entries) == said


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


def test_what_another_holder_of_the_file_charges_is_seen(path: Path, ledger: Ledger) -> None:
    with open_ledger(path) as other:
        play(other, 10)
    with pytest.raises(PrivacyError, match="budget"):
        ledger.reserve(spend(11), PLAN)
    assert ledger.statement().steps == 10


def test_entries_hold_nothing_but_what_was_agreed_and_spent(path: Path) -> None:
    with open_ledger(path, durable=True) as ledger:
        play(ledger, 1)
    keys = {
        entry.kind: set(json.loads(entry.text)) - {"kind", "position", "previous", "at"} for entry in read_entries(path)
    }
    assert keys == {
        "opened": {"dataset_id", "delta", "epsilon_cap"},
        "plan": {"run_id", "digest", "plan"},
        "reserve": {"run_id", "digest", "round", "head", "steps"},
        "commit": {"reservation", "reply_sha256"},
    }
