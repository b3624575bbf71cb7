"""Ledgers kept open: lent, bounded, closed, and never believed after a failure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from client.ledger import Ledger
from client.open_ledgers import MOST_OPEN, OpenLedgers, room_for_files
from client.simulated_node import open_simulated_ledger
from simulations.engine import run_in_process
from tests.federations import small_config


def opener(folder: Path, name: str, opened: list[str]) -> Callable[[], Ledger]:
    def open_ledger() -> Ledger:
        opened.append(name)
        return open_simulated_ledger(folder, name, small_config())

    return open_ledger


def open_files(folder: Path) -> list[Path]:
    targets = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [target for target in targets if target.is_relative_to(folder)]


def test_a_ledger_is_opened_once_and_closed_at_the_end(tmp_path: Path) -> None:
    opened: list[str] = []
    with OpenLedgers(2) as ledgers:
        for _ in range(3):
            with ledgers.borrow("one", opener(tmp_path, "one", opened)) as ledger:
                assert ledger.statement().entries == 1
        assert opened == ["one"]
        assert len(open_files(tmp_path)) == 1
    assert not open_files(tmp_path)


def test_no_more_stay_open_than_there_is_room_for(tmp_path: Path) -> None:
    opened: list[str] = []
    with OpenLedgers(2) as ledgers:
        for _ in range(2):
            for name in ("one", "two", "three", "four"):
                with ledgers.borrow(name, opener(tmp_path, name, opened)):
                    pass
        assert len(ledgers) == 2
        assert opened == ["one", "two", "three", "four", "three", "four"]
        assert len(open_files(tmp_path)) == 2


def test_one_that_failed_is_read_anew(tmp_path: Path) -> None:
    opened: list[str] = []
    with OpenLedgers(2) as ledgers:
        with pytest.raises(RuntimeError), ledgers.borrow("one", opener(tmp_path, "one", opened)):
            raise RuntimeError
        assert len(ledgers) == 0
        assert not open_files(tmp_path)
        with ledgers.borrow("one", opener(tmp_path, "one", opened)):
            pass
    assert opened == ["one", "one"]


def test_a_run_leaves_no_ledger_open(tmp_path: Path) -> None:
    run_in_process(small_config(), tmp_path, range(4))
    assert len(list((tmp_path / "ledgers").glob("*.sqlite"))) == 4
    assert not open_files(tmp_path)


def test_the_room_leaves_files_for_others() -> None:
    assert 0 < room_for_files() <= MOST_OPEN
