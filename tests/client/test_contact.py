"""The node notes when the coordinator last answered, and says so."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import client.contact
from client.contact import CONTACT, enduring, last_contact, noting


def test_an_answer_is_noted_and_a_failure_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert last_contact(tmp_path) is None
    answers = iter(["one", "two", "three"])

    def receive() -> str:
        try:
            return next(answers)
        except StopIteration:
            raise ConnectionError from None

    ask = noting(receive, tmp_path)
    assert ask() == "one"
    noted = last_contact(tmp_path)
    assert noted is not None
    assert datetime.now(UTC) - noted < timedelta(minutes=1)
    assert stat.S_IMODE((tmp_path / CONTACT).stat().st_mode) == 0o600
    (tmp_path / CONTACT).unlink()
    assert ask() == "two"  # too soon to be noted again
    assert last_contact(tmp_path) is None
    monkeypatch.setattr(client.contact, "NOTE_EVERY_S", 0.0)
    assert ask() == "three"
    assert last_contact(tmp_path) is not None
    (tmp_path / CONTACT).unlink()
    with pytest.raises(ConnectionError):
        ask()
    assert last_contact(tmp_path) is None
    assert noting(lambda: "four", tmp_path / "none")() == "four"  # nothing can be noted, and nothing stops for it


def test_a_heartbeat_that_fails_unexpectedly_is_one_that_was_missed() -> None:
    def beat() -> bool:
        raise RuntimeError("the database is locked")

    assert enduring(beat)() is False
    assert enduring(lambda: True)() is True
