"""A node refuses a ledger that lacks what it has seen: none, an older copy, another one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from client import doctor, ledger
from client.anchor import ANCHORS, Anchor, read_anchor
from client.node_config import load_node_config
from client.own_node import open_own_node, spent_so_far
from client.training import train_round
from common.errors import ConfigError, FederationError, PrivacyError
from tests.client.ledgers import open_ledger, play
from tests.client.test_own_node import node_folder  # noqa: F401
from tests.federations import small_task


@pytest.fixture
def played(node_folder: Path) -> Path:  # noqa: F811
    """A node after two rounds, with a copy of its ledger after the first; this process has forgotten both."""
    train_round(small_task(1), open_own_node(node_folder))
    shutil.copytree(node_folder / "ledgers", node_folder / "backup")
    train_round(small_task(2), open_own_node(node_folder))
    ledger._verified.clear()
    return node_folder


def lost(folder: Path) -> None:
    shutil.rmtree(folder / "ledgers")


def emptied(folder: Path) -> None:
    lost(folder)
    (folder / "ledgers").mkdir()
    (folder / "ledgers" / "st-mary-digits.sqlite").touch()


def older(folder: Path) -> None:
    lost(folder)
    shutil.copytree(folder / "backup", folder / "ledgers")


def another(folder: Path) -> None:
    """As long as the one before it, and longer."""
    lost(folder)
    (folder / "ledgers").mkdir()
    with open_ledger(folder / "ledgers" / "st-mary-digits.sqlite", cap=8.0, dataset="st-mary-digits") as opened:
        play(opened, 5)
    ledger._verified.clear()


@pytest.mark.parametrize("replaced", [lost, emptied, older, another])
def test_a_ledger_that_lacks_what_was_seen_is_refused(played: Path, replaced: Callable[[Path], None]) -> None:
    replaced(played)
    config = load_node_config(played)
    with pytest.raises(PrivacyError, match="that this node has seen"):
        train_round(small_task(3), open_own_node(played))
    with pytest.raises(FederationError, match="that this node has seen"):
        spent_so_far(played, config)
    found = next(finding for finding in doctor.examine(played) if finding.subject == "ledger")
    assert (found.state, "release nothing more" in found.words) == ("fail", True)
    assert (played / "ledgers").exists() == (replaced is not lost)


def test_the_newest_ledger_put_back_goes_on(played: Path) -> None:
    (played / "ledgers").rename(played / "elsewhere")
    (played / "elsewhere").rename(played / "ledgers")
    cost = spent_so_far(played, load_node_config(played)).epsilon
    train_round(small_task(3), open_own_node(played))
    assert spent_so_far(played, load_node_config(played)).epsilon > cost


def test_a_crash_before_the_anchor_is_written_leaves_an_older_one_which_holds(played: Path) -> None:
    path = played / ANCHORS / "st-mary-digits.json"
    newest, first = read_anchor(path), path.read_bytes()
    train_round(small_task(3), open_own_node(played))
    assert read_anchor(path) != newest
    path.write_bytes(first)
    ledger._verified.clear()
    train_round(small_task(3), open_own_node(played))  # answered with what was stored
    assert read_anchor(path) == newest  # nothing was added: nothing to write


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"entries": "many", "head": ""}'])
def test_an_anchor_that_cannot_be_read_is_one_sentence(played: Path, content: str) -> None:
    (played / ANCHORS / "st-mary-digits.json").write_text(content)
    with pytest.raises(ConfigError, match="how far this node has seen its ledger"):
        open_own_node(played).open_ledger()


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert read_anchor(tmp_path / "new" / "a.json") is None
    Anchor(3, "ab").write(tmp_path / "new" / "a.json")
    assert read_anchor(tmp_path / "new" / "a.json") == Anchor(3, "ab")
