"""Killed processes, full disks, two holders: the file never says less than what was released."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from client.ledger import Ledger, Reservation, Spend
from tests.client.crashing_ledger import DELTA, PLAN, open_ledger
from tests.processes import PATIENCE_S

ROOT = Path(__file__).parents[2]


def run_child(*arguments: str) -> str:
    command = [sys.executable, "-m", "tests.client.crashing_ledger", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("mode", "kills"), [("durable", 25), ("simulated", 30), ("alone", 30)])
def test_a_process_killed_at_any_moment_leaves_a_ledger_that_accounts_for_all(
    tmp_path: Path, mode: str, kills: int
) -> None:
    said = run_child("kill", str(tmp_path / "ledger.db"), str(kills), mode)
    assert int(said.split()[1]) >= kills / 2  # the control: children did get work done before they died


def test_killed_between_reserve_and_commit_the_charge_stands_and_a_retry_is_free(tmp_path: Path) -> None:
    """Dropping the ledger without a commit is all that SIGKILL leaves of that process."""
    path = tmp_path / "ledger.db"
    abandoned = open_ledger(path, True)
    abandoned.reserve(Spend("run", 1, "h"), PLAN)
    with open_ledger(path, True) as ledger:
        assert ledger.statement().open_reservations == (("run", 1),)
        before = ledger.statement().epsilon
        retry = ledger.reserve(Spend("run", 1, "h"), PLAN)
        assert isinstance(retry, Reservation)
        assert retry.retried
        ledger.commit(retry, b"reply")
        assert ledger.statement().epsilon == before > 0
        ledger.verify()
    abandoned.close()


def test_an_empty_file_left_by_a_death_at_birth_is_opened_as_new(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.touch()
    with Ledger.open(path, "data", delta=DELTA, epsilon_cap=1.0) as ledger:
        assert ledger.statement().entries == 1
        ledger.verify()


def test_two_processes_share_a_file(tmp_path: Path) -> None:
    assert run_child("share", str(tmp_path / "ledger.db")).split() == ["released", "200"]


def test_a_full_disk_is_one_sentence_and_the_reservation_stays_spent(tmp_path: Path) -> None:
    sentence = run_child("fill", str(tmp_path / "ledger.db"))
    assert "free some disk space" in sentence
    assert sentence.count("\n") == 1
