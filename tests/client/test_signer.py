"""The node's key signs two messages for an app, in this node's name, and nothing else; a socket leads to it."""

from __future__ import annotations

import asyncio
import json
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from client import signer
from client.isolation import confined, with_isolation
from client.keys import KEY, make_key
from client.node_config import NODE_TOML, load_node_config
from client.node_folder import environment, programs
from client.secagg_record import SECAGG_RECORDS
from client.signer import REFUSED, SOCKET, answers, ask_signer, sign_for_app
from common.errors import ConfigError, PrivacyError
from common.privacy.keys import fits, load_private
from common.secagg.session import Session
from common.secagg.signatures import check_keys, check_survivors, sign_keys, sign_survivors
from common.secagg.signed import MOST_SIGNED_BYTES, SaidKeys, SaidSurvivors
from tests.confining import can_confine
from tests.node_files import NODE
from tests.processes import PATIENCE_S, wait_until
from tests.sums import names_of, roster_of, run_of

DIGEST = "ab" * 32
SAID = SaidKeys(session=DIGEST, name="north", channel_key=DIGEST, mask_key=DIGEST, commitment=DIGEST)
SEEN = SaidSurvivors(session=DIGEST, name="north", sharers=DIGEST, survivors=("east", "north"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / ("a long name of a folder " * 5)  # longer than a socket's path may be
    home.mkdir(mode=0o700)
    make_key(home, "north")
    (home / NODE_TOML).write_text(NODE + 'trusts = ["local", "secagg"]\n')
    return home


@pytest.fixture
def serving(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(folder)
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(signer.serve(folder))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield folder
    loop.call_soon_threadsafe(server.close)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.mark.parametrize("said", [SAID, SEEN])
def test_the_two_messages_are_signed(serving: Path, said: SaidKeys | SaidSurvivors) -> None:
    made = ask_signer(serving, said.to_bytes())
    assert fits(load_private(serving / KEY).public_key(), made, said.to_bytes())
    assert stat.S_IMODE((serving / SOCKET).stat().st_mode) == 0o600


def as_json(**changes: object) -> bytes:
    tree = {**json.loads(SEEN.to_bytes().partition(b"\n")[2]), **changes}
    return SEEN.tag.encode() + b"\n" + json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()


OTHERS = {
    "the time that Flower signs": datetime.now(UTC).isoformat().encode(),
    "an export's beginning": b"fedgraft ledger export 1\n{}",
    "nothing": b"",
    "a tag alone": SAID.tag.encode(),
    "another tag": SAID.to_bytes().replace(b"keys 1", b"keys 2", 1),
    "another's survivors": as_json(name="east"),
    "more than is said": as_json(at="2026-11-22"),
    "no digest": as_json(session="ab"),
    "names out of order": as_json(survivors=["north", "east"]),
    "a name twice": as_json(survivors=["east", "east"]),
    "keys under the other tag": SEEN.tag.encode() + SAID.to_bytes()[len(SAID.tag) :],
    "another way to write it": SEEN.to_bytes().replace(b",", b", "),
    "something behind it": SEEN.to_bytes() + b"\n",
    "something before it": b"\n" + SEEN.to_bytes(),
    "too much": as_json(survivors=sorted(f"{number:063}" for number in range(400))),
}


@pytest.mark.parametrize("data", OTHERS.values(), ids=OTHERS)
def test_nothing_else_is_signed(folder: Path, data: bytes) -> None:
    assert sign_for_app(folder, as_json())  # the control: that one is signed
    with pytest.raises(PrivacyError, match="sign nothing"):
        sign_for_app(folder, data)


def test_who_asks_for_anything_else_is_told_so_and_the_next_is_served(serving: Path) -> None:
    for data in (OTHERS["the time that Flower signs"], b"x" * (2 * MOST_SIGNED_BYTES)):
        with pytest.raises(PrivacyError, match="nothing but this node's part"):
            ask_signer(serving, data)
    assert answers(serving)
    (serving / KEY).unlink()
    with pytest.raises(PrivacyError):
        ask_signer(serving, SAID.to_bytes())


def test_a_signer_that_is_not_there_is_said(folder: Path) -> None:
    assert not answers(folder)
    with pytest.raises(ConfigError, match="does not answer"):
        ask_signer(folder, SAID.to_bytes(), patience_s=0.0)


def test_what_the_protocol_has_signed_is_signable(folder: Path) -> None:
    """The roster's key is a made-up one, so that only the forms are compared."""
    names = names_of(3)
    session = Session.of(run_of(3), 1, roster_of(names))
    asked: list[bytes] = []

    def sign(data: bytes) -> bytes:
        asked.append(data)
        return bytes(8)

    parts = {part: bytes(32) for part in ("channel_key", "mask_key", "commitment")}
    keys = sign_keys(sign, session, names[1], **parts)
    survivors = sign_survivors(sign, session, names[1], DIGEST, names)
    (folder / NODE_TOML).write_text(NODE.replace("north", names[1]))
    for data in asked:
        assert sign_for_app(folder, data) != REFUSED
    with pytest.raises(PrivacyError):
        check_keys(session, roster_of(names), keys)
    with pytest.raises(PrivacyError):
        check_survivors(session, roster_of(names), survivors, DIGEST, names)


def test_only_a_node_that_joins_sums_runs_a_signer(folder: Path) -> None:
    def named() -> list[str]:
        return [program.name for program in programs(folder, load_node_config(folder), 1)]

    assert named() == ["supernode", "signer", "apps"]
    (folder / NODE_TOML).write_text(NODE.replace(', "secagg"', ""))
    assert named() == ["supernode", "apps"]


ASK = """
import sys
from pathlib import Path
from client.signer import ask_signer
folder = Path(sys.argv[1])
made = ask_signer(folder, bytes.fromhex(sys.argv[2]))
(folder / sys.argv[3] / "kept").write_bytes(made)
try:
    key = (folder / "keys" / "node.key").read_bytes()
except FileNotFoundError:
    key = b""
print(made.hex(), key)
"""


@pytest.mark.skipif(not can_confine(), reason="bubblewrap is not installed, or may make no namespaces")
def test_a_confined_app_has_it_signed_keeps_its_record_and_reads_no_key(tmp_path: Path) -> None:
    folder = tmp_path / "node"
    folder.mkdir(mode=0o700)
    make_key(folder, "north")
    (folder / NODE_TOML).write_text(NODE + 'trusts = ["local", "secagg"]\n')
    process = subprocess.Popen([sys.executable, "-m", "client.signer", str(folder)], env=environment(folder))
    try:
        assert wait_until(lambda: answers(folder))
        config = with_isolation(load_node_config(folder), "process")
        script = [sys.executable, "-c", ASK, str(folder), SAID.to_bytes().hex(), SECAGG_RECORDS]
        done = subprocess.run(
            confined(script, folder, config), capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
    finally:
        process.terminate()
        process.wait(60)
    assert done.returncode == 0, done.stderr
    made, key = done.stdout.split()
    assert fits(load_private(folder / KEY).public_key(), bytes.fromhex(made), SAID.to_bytes())
    assert key == "b''"
