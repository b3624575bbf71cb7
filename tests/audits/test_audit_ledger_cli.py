"""`fedgraft audit ledger`: what it says, what it compares, and every other file is refused."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

import fedgraft
from client.ledger import Ledger, Reservation, Spend
from common.config import load_config
from common.errors import FederationError, PrivacyError
from common.privacy.entries import TRIGGERS, LedgerEntry, entry_hash, read_entries
from simulations.audits.ledger_audit import audit_ledgers
from simulations.audits.ledger_files import read_ledger_file
from tests.audits.ledgers import (
    DIGITS,
    FULL,
    accepted,
    audited,
    charged,
    crafted,
    ledgers_of_two,
    one,
    opened,
    spend,
)
from tests.common.test_privacy_export import public


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ledgers_of_two(tmp_path_factory.mktemp("ledgers"))


def run(*arguments: object) -> int:
    return fedgraft.main(["audit", *map(str, arguments)])


def test_the_tables_say_what_was_spent_released_and_left_out(folder, capsys):
    assert run("ledger", folder / "north.sqlite", folder / "south.json") == 0
    said = " ".join(capsys.readouterr().out.split())
    for text in ("north 3.000 3.000 3.000 3.250", "30 of 30", "10 of 20", "σ = 2, q = 0.1", "never released: 2"):
        assert text in said
    for text in ("the sums", "unsigned", "not anchored", "Not covered", "backbone", "seeded"):
        assert text in said


def test_names_in_a_ledger_do_not_reach_the_terminal_raw(tmp_path, capsys):
    spend(tmp_path / "d.sqlite", FULL, 1, dataset_id="\x1b[31mred", run="[bold]\x1b[2J")
    assert run("ledger", tmp_path / "d.sqlite") == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "?[31mred" in said


def test_json_holds_every_charge(folder, capsys):
    assert run("ledger", folder / "north.json", "--key", public(folder / "node"), "--json") == 0
    (ledger,) = json.loads(capsys.readouterr().out)["ledgers"]
    assert ledger["epsilon"] == pytest.approx(2.9998, abs=1e-3)
    assert ledger["epsilon_by"]["exact"] == pytest.approx(ledger["epsilon"], rel=1e-6)
    assert ledger["files"][0]["signature_checked_by"] == str(public(folder / "node"))
    assert [charge["round"] for charge in ledger["plans"][0]["charges"]] == list(range(1, 31))


def test_an_export_is_made_and_audited(folder, tmp_path, capsys):
    assert run("export", folder / "north.sqlite", "--out", tmp_path / "out.json", "--key", folder / "node") == 0
    assert read_entries(folder / "north.sqlite")[-1].hash in capsys.readouterr().out
    assert run("ledger", tmp_path / "out.json", "--key", public(folder / "node")) == 0
    assert run("export", tmp_path / "out.json", "--out", tmp_path / "again.json") == 2
    assert "an export of one already" in capsys.readouterr().err


def test_the_configuration_of_the_run_fits(folder, capsys):
    assert run("ledger", folder / "north.sqlite", "--config", DIGITS) == 0
    assert "The configuration fits run run." in capsys.readouterr().out


def changed(tmp_path: Path, *changes: tuple[str, str]) -> Path:
    """Write the digits' configuration, changed."""
    text = DIGITS.read_text(encoding="utf-8")
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")
    return tmp_path / "config.toml"


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("epsilon = 3.0", "epsilon = 1.0", "privacy.epsilon = 3 (configuration: 1)"),
        ("epsilon = 3.0", "epsilon = 4.0", "privacy.epsilon = 3 (configuration: 4)"),
        ("delta = 1e-5", "delta = 1e-6", "privacy.delta = 1e-05 (configuration: 1e-06)"),
        ('clipping_norm = "auto"', "clipping_norm = 1.0", "privacy.clipping_norm = 1.6 (configuration: 1)"),
        ("sampling_rate = 1.0", "sampling_rate = 0.5", "privacy.sampling_rate = 1 (configuration: 0.5)"),
        ("rounds = 30", "rounds = 20", "federation.rounds = 30 (configuration: 20)"),
        ('unit = "record"', 'unit = "patient"', "privacy.unit = record (configuration: patient)"),
        ('trust = "local"', 'trust = "secagg"', "privacy.trust = local (configuration: secagg)"),
    ],
)
def test_another_configuration_is_refused_key_by_key(folder, tmp_path, capsys, before, after, said):
    assert run("ledger", folder / "north.sqlite", "--config", changed(tmp_path, (before, after)), "--json") == 3
    out, err = capsys.readouterr()
    assert said in err
    assert err.count("\n") == 1
    assert json.loads(out)["error"]["kind"] == "PrivacyError"


BARE = replace(FULL, noise_multiplier=1.2)


@pytest.mark.parametrize(("rounds", "wrong"), [(30, False), (31, True), (60, True)])
def test_a_run_that_fits_is_charged_no_more_than_its_rounds(rounds, wrong):
    found = audit_ledgers(
        [crafted(opened(FULL), accepted(FULL), *charged(FULL, range(rounds)))], config=load_config(DIGITS)
    )
    assert bool(found.problems) == wrong
    assert ("at most the 30 rounds" in " ".join(found.problems)) == wrong
    assert ("at most the configuration's ε = 3" in " ".join(found.problems)) == wrong


def test_a_run_charged_twice_its_rounds_is_a_status(tmp_path, capsys):
    path = spend(tmp_path / "d.sqlite", FULL, 60, epsilon_cap=100.0)
    assert run("ledger", path) == 0
    assert run("ledger", path, "--config", DIGITS) == 3
    assert "was charged 60" in capsys.readouterr().err


def test_what_the_configuration_does_not_cover_is_said_beside_what_fits(tmp_path, capsys):
    path = spend(tmp_path / "d.sqlite", FULL, 30, epsilon_cap=1000.0)
    assert run("ledger", path, "--config", DIGITS) == 0
    assert "But" not in capsys.readouterr().out
    spend(path, BARE, 20, run="second", epsilon_cap=1000.0)
    assert run("ledger", path, "--config", DIGITS) == 0
    said = capsys.readouterr().out
    total = one(path).recomputed
    for text in (
        "fits run run.",
        "does not fit what was charged to run 'second' (ε = ",
        f"spent ε = {total:.4g} in all",
    ):
        assert text in said
    assert "the configuration promises 3." in said


def test_two_runs_of_one_configuration_spend_more_than_it_promises():
    runs = [(name, accepted(FULL, name), charged(FULL, range(30), name)) for name in ("a", "b")]
    bodies = [body for _, plan, charges in runs for body in (plan, *charges)]
    (finding,) = audit_ledgers([crafted(opened(FULL), *bodies)], config=load_config(DIGITS)).ledgers
    assert (finding.runs, finding.problems) == (("a", "b"), ())
    assert "in all, the configuration promises 3." in finding.notes[-1]


# --- bad files


def edited(folder: Path, tmp_path: Path, statement: str, triggers: Sequence[str] = ()) -> Path:
    """A copy of a ledger that somebody changed, and gave triggers to."""
    path = tmp_path / "edited.sqlite"
    shutil.copyfile(folder / "north.sqlite", path)
    with closing(sqlite3.connect(path)) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.executescript(";".join([statement, *triggers]))
        connection.commit()
    return path


REPLIES = "DROP TABLE replies; CREATE TABLE replies AS SELECT 60 AS reservation, {} AS reply"


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE entries SET text = replace(text, '\"epsilon_cap\":8.0', '\"epsilon_cap\":9.0')", "entry 0"),
        ("UPDATE entries SET hash = 'x' WHERE position = 61", "entry 61"),
        ("DELETE FROM entries WHERE position = 30", "entry 30"),
        ("DELETE FROM entries WHERE position = 0", "entry 0"),
        ("DELETE FROM entries WHERE position > 50", "the reply kept for entry 60"),
        ("DELETE FROM entries", "does not begin"),
        ("UPDATE replies SET reply = x'00'", "the reply kept for entry 60"),
        (REPLIES.format("'text'"), "the reply kept for entry 60"),
        (REPLIES.format("NULL"), "the reply kept for entry 60"),
        (REPLIES.format("12"), "the reply kept for entry 60"),
        ("DELETE FROM entries WHERE position > 50; DELETE FROM replies", "the reply to entry 48"),
        ("DELETE FROM replies", "the reply to entry 60"),
        ("DROP TABLE entries", "no such table"),
        ("DROP TABLE replies", "no such table"),
        ("", "triggers"),
        (f"{TRIGGERS[0]}; {TRIGGERS[1]}", "triggers"),
        ("; ".join([*TRIGGERS, "CREATE TRIGGER more AFTER INSERT ON replies BEGIN SELECT 1; END"]), "triggers"),
    ],
)
def test_a_tampered_ledger_is_one_sentence_and_a_status(folder, tmp_path, capsys, statement, said):
    assert run("ledger", edited(folder, tmp_path, statement)) == 3
    err = capsys.readouterr().err
    assert said in err
    assert "edited.sqlite" in err
    assert err.count("\n") == 1


def test_a_cut_off_ledger_whose_triggers_were_put_back_is_seen(folder, tmp_path, capsys):
    assert run("ledger", edited(folder, tmp_path, "", TRIGGERS)) == 0
    cut = "DELETE FROM entries WHERE position > 50; DELETE FROM replies"
    assert run("ledger", edited(folder, tmp_path, cut, TRIGGERS)) == 3
    assert "the reply to entry 48, committed last in its run, is not kept" in capsys.readouterr().err


def test_honest_ledgers_keep_what_is_looked_for(tmp_path):
    """Rounds of two runs, one of them committed after a later one."""
    path = spend(tmp_path / "d.sqlite", FULL, 2, run="first")
    plan = FULL.for_node(100)
    with Ledger.open(path, "d", delta=FULL.delta, epsilon_cap=8.0, durable=False) as ledger:
        late = ledger.reserve(Spend("second", 1, "head"), plan)
        for round in (2, 3):
            committed = ledger.reserve(Spend("second", round, "head"), plan)
            for reservation in (committed, late) if round == 2 else (committed,):
                assert isinstance(reservation, Reservation)
                ledger.commit(reservation, b"reply")
                read_ledger_file(path)


def test_a_chain_that_makes_no_sense_is_refused():
    with pytest.raises(PrivacyError, match=r"crafted: .*entry 1 makes no sense"):
        audit_ledgers([crafted(opened(FULL), *charged(FULL, [1]))])
    with pytest.raises(PrivacyError, match="entry 1 makes no sense"):
        audit_ledgers([crafted(opened(FULL), ("cap", {"epsilon_cap": "much"}))])


HUGE, DEEP = 10**400, "[" * 100_000
LIMITS: dict[str, object] = {"dataset_id": "d", "delta": 1e-5, "epsilon_cap": 8.0}
PLAN = accepted(FULL)[1]
CHARGE = charged(FULL, [1])[0][1]
TERMS = FULL.for_node(1).to_dict()
FORGED: dict[str, list[tuple[str, dict[str, object]]]] = {
    "no entry that opens": [("cap", {"epsilon_cap": 1.0})],
    "name is a list": [("opened", {**LIMITS, "dataset_id": ["d"]})],
    "delta above 1": [("opened", {**LIMITS, "delta": 2.0})],
    "delta is huge": [("opened", {**LIMITS, "delta": HUGE})],
    "delta is a list": [("opened", {**LIMITS, "delta": [1]})],
    "cap is huge": [("opened", {**LIMITS, "epsilon_cap": HUGE})],
    "later cap is huge": [("opened", LIMITS), ("cap", {"epsilon_cap": HUGE})],
    "who signed is no text": [("opened", LIMITS), ("cap", {"epsilon_cap": 9.0, "signed_off_by": 5})],
    "a cap changes delta": [("opened", LIMITS), ("cap", {"epsilon_cap": 1.0, "delta": 1e-3})],
    "unknown kind": [("opened", LIMITS), ("other", {})],
    "run is a list": [("opened", LIMITS), ("plan", {**PLAN, "run_id": [1]})],
    "plan is a list": [("opened", LIMITS), ("plan", {**PLAN, "plan": [1]})],
    "size is huge": [("opened", LIMITS), ("plan", {**PLAN, "plan": {**TERMS, "declared_size": HUGE}})],
    "round is a list": [("opened", LIMITS), ("plan", PLAN), ("reserve", {**CHARGE, "round": [1]})],
    "round is true": [("opened", LIMITS), ("plan", PLAN), ("reserve", {**CHARGE, "round": True})],
    "steps are huge": [("opened", LIMITS), ("plan", PLAN), ("reserve", {**CHARGE, "steps": HUGE})],
    "head is a list": [("opened", LIMITS), ("plan", PLAN), ("reserve", {**CHARGE, "head": [1]})],
    "reservation is a list": [("opened", LIMITS), ("commit", {"reservation": [1], "reply_sha256": "x"})],
    "reservation is huge": [("opened", LIMITS), ("commit", {"reservation": HUGE, "reply_sha256": "x"})],
    "reply is a list": [
        ("opened", LIMITS),
        ("plan", PLAN),
        ("reserve", CHARGE),
        ("commit", {"reservation": 2, "reply_sha256": [1]}),
    ],
}


def written(path: Path, entries: Sequence[LedgerEntry]) -> Path:
    """A database with these entries and no replies."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE entries (position INTEGER PRIMARY KEY, text, hash)")
        connection.execute("CREATE TABLE replies (reservation, run_id, round, reply)")
        rows = [(one.position, one.text, one.hash) for one in entries]
        connection.executemany("INSERT INTO entries VALUES (?, ?, ?)", rows)
        connection.executescript(";".join(TRIGGERS))
        connection.commit()
    return path


@pytest.mark.parametrize("name", list(FORGED))
def test_forged_chains_are_one_sentence_and_a_status(tmp_path, capsys, name):
    path = written(tmp_path / "forged.sqlite", crafted(*FORGED[name]).entries)
    assert run("ledger", path) == 3
    err = capsys.readouterr().err
    assert "forged.sqlite" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("text", [DEEP, '{"position":0,"previous":' + DEEP, "[]", "1" * 5000, b"x", None, 3])
def test_entries_that_are_no_objects_are_one_sentence_and_a_status(tmp_path, capsys, text):
    hash = entry_hash(text) if isinstance(text, str) else ""
    assert run("ledger", written(tmp_path / "forged.sqlite", [LedgerEntry(0, text, hash)])) == 3
    assert capsys.readouterr().err.count("\n") == 1


def test_a_ledger_without_a_charge_says_that_nothing_was_spent(tmp_path, capsys):
    assert run("ledger", spend(tmp_path / "d.sqlite", FULL, 0)) == 0
    assert "No round was charged: nothing was spent." in capsys.readouterr().out


def test_every_cut_of_a_file_is_seen(folder, tmp_path):
    for name in ("north.sqlite", "north.json"):
        whole = (folder / name).read_bytes()
        for size in range(0, len(whole), len(whole) // 25):
            (tmp_path / "cut").write_bytes(whole[:size])
            with pytest.raises(FederationError):
                read_ledger_file(tmp_path / "cut")


@pytest.mark.parametrize("content", [b"", b"hello", b"{}", b"\x00\x01"])
def test_what_is_no_ledger_is_unusable_input(tmp_path, capsys, content):
    (tmp_path / "file").write_bytes(content)
    assert run("ledger", tmp_path / "file") == 2
    assert "error: expected a" in capsys.readouterr().err


def test_a_missing_file_a_wrong_head_and_a_key_for_a_ledger(folder, tmp_path, capsys):
    assert run("ledger", tmp_path / "missing") == 2
    assert "readable file" in capsys.readouterr().err
    assert run("ledger", folder / "north.sqlite", "--head", "abc") == 2
    assert "64 hexadecimal digits" in capsys.readouterr().err
    assert run("ledger", folder / "north.sqlite", "--key", public(folder / "node")) == 2
    assert "is a ledger itself" in capsys.readouterr().err


def test_that_any_key_may_sign_any_data_set_is_said(folder, capsys):
    assert run("ledger", folder / "north.json", "--key", public(folder / "node")) == 0
    assert "may sign any data set" in capsys.readouterr().out
    assert run("ledger", folder / "north.json") == 0
    assert "may sign any data set" not in capsys.readouterr().out


def test_wrong_signatures_are_refused(folder, capsys):
    assert run("ledger", folder / "north.json", "--key", public(folder / "other")) == 3
    assert "signed it; ask the hospital" in capsys.readouterr().err
    assert run("ledger", folder / "south.json", "--key", public(folder / "node")) == 3
    assert "nobody signed it" in capsys.readouterr().err


def test_a_signature_by_a_key_that_nobody_vouched_for_is_said_so(folder, capsys):
    assert run("ledger", folder / "north.json") == 0
    assert "a key that nobody vouched for: give --key" in capsys.readouterr().out


def test_a_ledger_is_read_without_being_changed(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    audited(folder / "north.sqlite", folder / "south.sqlite")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_node_stopped_in_the_middle_of_a_write_is_read_as_before_it(folder, tmp_path):
    path, live = tmp_path / "north.sqlite", tmp_path / "live.sqlite"
    shutil.copyfile(folder / "north.sqlite", live)
    with closing(sqlite3.connect(live, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = 1")  # so that the half-made change reaches the file
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE replies SET reply = zeroblob(100000)")
        shutil.copyfile(live, path)
        shutil.copyfile(f"{live}-journal", f"{path}-journal")
        connection.execute("ROLLBACK")
    before = {item.name: item.read_bytes() for item in tmp_path.iterdir()}
    assert before["north.sqlite"] != (folder / "north.sqlite").read_bytes()
    assert read_ledger_file(path).entries == tuple(read_entries(folder / "north.sqlite"))
    assert {item.name: item.read_bytes() for item in tmp_path.iterdir()} == before
