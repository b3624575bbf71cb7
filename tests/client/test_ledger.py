"""The ledger: paid before release, once; never less than what was released."""

from __future__ import annotations

import json
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from opacus.accountants import PRVAccountant

from client.ledger import Ledger, Reservation, StoredReply
from common.errors import ConfigError, PrivacyError
from common.privacy.accountant import Event, epsilon_by_round, epsilon_pld, epsilon_rdp, noise_multiplier_for
from common.privacy.canonical import canonical_json
from common.privacy.entries import LedgerEntry, make_entry, read_entries, verify_chain
from common.privacy.plan import PrivacyTerms
from common.privacy.statement import statement_of
from tests.client.ledgers import DELTA, PLAN, SIGMA, open_ledger, play, spend


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
