"""Secure sums at a real node, as far as nobody has to serve: what its operator chose, what the doctor says, secrets."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

import fedgraft
from client.keys import PUBLIC_KEY, make_key
from client.node_config import NODE_TOML, load_node_config
from client.peers import keep_peers
from client.secagg_record import SECAGG_RECORDS, SumRecord, count_secrets, forget_secrets
from client.sums_check import OLD_S, look_at_sums
from common.errors import ConfigError, PrivacyError
from common.secagg.messages import Stage
from common.secagg.roster import parse_roster
from server.secagg_round import begin, take_agreements, take_keys, take_shares, take_vectors
from tests.node_files import NODE
from tests.sums import Sums, names_of, run_of

ME = "node-000"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A node that joins sums with two others."""
    for name in ("north", "south", "east"):
        (tmp_path / name).mkdir()
        make_key(tmp_path / name, name)
    folder = tmp_path / "north"
    (folder / NODE_TOML).write_text(NODE + 'trusts = ["secagg"]\n')
    approve(folder, "north", "south", "east")
    return folder


def approve(folder: Path, *names: str) -> None:
    text = "".join((folder.parent / name / PUBLIC_KEY).read_text() for name in names)
    keep_peers(folder, parse_roster(text))


def state(folder: Path) -> tuple[str, str]:
    return look_at_sums(folder, load_node_config(folder))


def test_local_trust_alone_is_the_default_and_needs_no_peers(tmp_path: Path) -> None:
    (tmp_path / NODE_TOML).write_text(NODE)
    config = load_node_config(tmp_path)
    assert (config.privacy.trusts, config.privacy.min_nodes, config.privacy.min_colluders) == (("local",), 3, 1)
    assert state(tmp_path)[0] == "ok"


@pytest.mark.parametrize("line", ['trusts = ["global"]', "trusts = []", 'trusts = "secagg"', "min_nodes = 2"])
def test_what_no_policy_may_say_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / NODE_TOML).write_text(f"{NODE}{line}\n")
    with pytest.raises(ConfigError, match=line.partition(" ")[0]):
        load_node_config(tmp_path)


def test_the_doctor_says_with_whom_a_node_sums(home: Path) -> None:
    assert state(home)[0] == "ok"
    assert "with east, north, south; over at least 3 nodes" in state(home)[1]


def test_the_doctor_says_what_is_missing(home: Path) -> None:
    (home / NODE_TOML).write_text(NODE + 'trusts = ["secagg"]\nmin_colluders = 0\n')
    assert state(home)[0] == "note"
    assert "nothing is claimed against the other hospitals" in state(home)[1]
    (home / SECAGG_RECORDS).mkdir(mode=0o755)
    assert (state(home)[0], "others can look into" in state(home)[1]) == ("fail", True)
    approve(home, "north", "south")
    assert (state(home)[0], "2 peers approved, 3 wanted" in state(home)[1]) == ("fail", True)
    approve(home, "south", "east")
    with pytest.raises(ConfigError, match="this node's own key"):
        state(home)
    (home / "peers.pub").unlink()
    with pytest.raises(PrivacyError, match="none are approved"):
        state(home)


@pytest.fixture
def sums(tmp_path: Path) -> Sums:
    return Sums(tmp_path, run_of(5, dropouts=1, colluders=1), names_of(5))


def play(sums: Sums, last: Stage, round_: int = 1) -> None:
    step, send = begin(sums.session(round_), sums.peers), sums.ask()
    takes = {Stage.KEYS: take_keys, Stage.SHARES: take_shares, Stage.VECTOR: take_vectors}
    takes[Stage.AGREEMENT] = take_agreements
    for stage in Stage:
        replies = send(stage, step.requests)
        if stage is last:
            return
        step = takes[stage](step, replies)


def secrets_in(folder: Path) -> bool:
    kept = SumRecord(folder, "run").read()
    return kept is not None and kept.holds_secrets


@pytest.mark.parametrize("last", list(Stage)[:-1])
def test_secrets_of_a_session_that_is_not_over_are_removed_and_it_is_answered_no_further(
    sums: Sums, last: Stage
) -> None:
    play(sums, last)
    folder = sums.folder / ME
    (folder / f".{next(folder.glob('*.json')).stem}.json.crashed").write_text("secrets")
    assert secrets_in(folder)
    assert forget_secrets(folder) == 1
    assert not secrets_in(folder)
    assert not list(folder.glob(".*"))
    assert not list(folder.glob("*.vector"))
    for stage in list(Stage)[: list(Stage).index(last) + 1]:
        if stage is not Stage.VECTOR:  # what was said is said again, in the same words
            assert sums.answer(stage, ME, sums.asked[stage, ME]) == sums.seen[stage, ME]
    with pytest.raises(PrivacyError):
        sums.answer(Stage.VECTOR, ME, sums.asked.get((Stage.VECTOR, ME), b""))
    other = Sums(sums.folder.parent / "elsewhere", sums.run, sums.names)
    following = list(Stage)[list(Stage).index(last) + 1]
    other_step = {**sums.asked}
    play(other, following)
    with pytest.raises(PrivacyError):
        sums.answer(following, ME, other.asked[following, ME])
    assert sums.asked == other_step
    assert forget_secrets(folder) == 0
    assert sums.computed.get(ME, 0) == (1 if last in (Stage.VECTOR, Stage.AGREEMENT) else 0)


def test_the_round_of_a_vector_that_left_is_not_begun_again_and_the_next_one_is(sums: Sums) -> None:
    play(sums, Stage.VECTOR)
    for name in sums.names:
        assert forget_secrets(sums.folder / name) == 1
    with pytest.raises(PrivacyError, match="summed once or never"):
        sums.ask()(Stage.KEYS, begin(sums.session(1, attempt=2), sums.peers).requests)
    play(sums, Stage.REVEAL, round_=2)
    assert forget_secrets(sums.folder / ME) == 0


def test_old_secrets_are_counted_and_the_command_removes_them(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sums = Sums(tmp_path / "sums", run_of(3), names_of(3))
    play(sums, Stage.SHARES)
    (tmp_path / "sums" / ME).rename(home / SECAGG_RECORDS)
    (record,) = (home / SECAGG_RECORDS).glob("*.json")
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    assert count_secrets(home / SECAGG_RECORDS, OLD_S) == 0
    long_ago = record.stat().st_mtime - 2 * OLD_S
    os.utime(record, (long_ago, long_ago))
    assert "secrets of 1 unfinished rounds" in state(home)[1]
    assert fedgraft.main(["node", "purge-cache", "--home", str(home)]) == 0
    assert "removed the secrets of 1 secure sums" in capsys.readouterr().out
    assert state(home)[0] == "ok"
