"""The other hospitals' keys: read, compared and approved by the operator, and used as approved or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

import fedgraft
from client.approvals import read_approvals
from client.keys import KEY, PUBLIC_KEY, make_key, rotate_key
from client.node_config import NODE_TOML
from client.peers import PEERS, approved_peers
from common.errors import PrivacyError
from common.privacy.keys import fingerprint
from common.secagg.roster import Roster, read_roster
from tests.node_files import NODE


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in ("north", "south", "east"):
        (tmp_path / name).mkdir()
        make_key(tmp_path / name, name)
    (tmp_path / "north" / NODE_TOML).write_text(NODE)
    return tmp_path / "north"


def peers_file(home: Path, *names: str) -> Path:
    path = home.parent / "exchanged.pub"
    path.write_text("".join((home.parent / name / PUBLIC_KEY).read_text() for name in names))
    return path


def typed(capsys: pytest.CaptureFixture[str], home: Path, *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    status = fedgraft.main(["node", "approve", *arguments, "--home", str(home)])
    told = capsys.readouterr()
    return status, told.out + told.err


def test_peers_are_shown_approved_and_withdrawn(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PrivacyError, match="none are approved"):
        approved_peers(home)
    path = peers_file(home, "south", "north")
    status, told = typed(capsys, home, "peers", str(path), "--yes")
    assert status == 0
    for name in ("north", "south"):
        assert fingerprint((home.parent / name / PUBLIC_KEY).read_text()) in told
    roster = approved_peers(home)
    assert roster == read_roster(path)
    assert f"peer      {roster.digest}  north, south" in typed(capsys, home, "list")[1]
    assert "withdrawn from peers" in typed(capsys, home, "withdraw", roster.digest[:8])[1]
    with pytest.raises(PrivacyError, match="they are others"):
        approved_peers(home)


def test_what_a_new_file_changes_is_said_and_it_takes_the_place_of_the_old(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(capsys, home, "peers", str(peers_file(home, "north", "south")), "--yes")[0] == 0
    rotate_key(home.parent / "south", "south")
    status, told = typed(capsys, home, "peers", str(peers_file(home, "north", "south", "east")), "--yes")
    assert status == 0
    assert "new: east\nanother key: south\n" in told
    assert "gone: south" in typed(capsys, home, "peers", str(peers_file(home, "north", "east")), "--yes")[1]
    assert list(read_approvals(home).peers) == [approved_peers(home).digest]


def test_a_file_without_this_nodes_own_key_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = peers_file(home, "south", "north").read_text()
    rotate_key(home, "north")
    for text in (old, peers_file(home, "south", "east").read_text()):
        (home.parent / "exchanged.pub").write_text(text)
        status, told = typed(capsys, home, "peers", str(home.parent / "exchanged.pub"), "--yes")
        assert status != 0
        assert "this node's own key for north" in told
    assert not (home / PEERS).exists()
    assert (home / KEY).exists()


def test_a_file_that_was_changed_after_it_was_approved_is_not_used(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(capsys, home, "peers", str(peers_file(home, "north", "south")), "--yes")[0] == 0
    keys = read_roster(home / PEERS).keys
    (home / PEERS).write_text(Roster({"north": keys["north"], "south": read_key(home.parent / "east")}).to_text())
    with pytest.raises(PrivacyError, match="they are others"):
        approved_peers(home)


def read_key(folder: Path) -> str:
    return " ".join((folder / PUBLIC_KEY).read_text().split()[:2])
