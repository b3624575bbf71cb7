"""The coordinator's folder and its commands, as far as no server has to run: what is made, and what is refused."""

from __future__ import annotations

import json
import os
import socket
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

import fedgraft
from common import paths
from common.config import dump_toml, load_config
from common.errors import ConfigError, FederationError
from common.privacy.keys import openssh
from server.control import nodes_seen
from server.coordinator_folder import JOIN_FILE, NODES, SERVER_TOML, Place, Registered, folder_of_run, open_place
from server.submission import begin_run, open_run, start_run
from tests.federations import small_config


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coordinator") / "server"
    assert fedgraft.main(["server", "init", "--name", "fed.example.org, 10.0.0.5", "--home", str(folder)]) == 0
    return folder


@pytest.fixture
def place(made: Path) -> Place:
    opened = open_place(made)
    opened.keep_nodes({"north": Registered(node_id=7, fingerprint="SHA256:x")})
    return opened


def fresh_public() -> str:
    return openssh(ec.generate_private_key(ec.SECP384R1()).public_key())


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = fedgraft.main(["server", *arguments])
    return status, capsys.readouterr().err


def test_the_join_file_holds_all_that_a_hospital_needs_and_no_secret(made: Path) -> None:
    join = json.loads((made / JOIN_FILE).read_text())
    assert join["address"] == "fed.example.org:9092"
    assert join["certificate"] == (made / "certificates" / "ca.crt").read_text()
    assert "PRIVATE" not in (made / JOIN_FILE).read_text()
    assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_it_is_made_once_and_renewed_on_request(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, words = said(capsys, "init", "--name", "other", "--home", str(made))
    assert status == 2
    assert "holds a coordinator already" in words
    before = (made / "certificates" / "server.crt").read_bytes()
    assert fedgraft.main(["server", "init", "--renew", "--home", str(made)]) == 0
    assert (made / "certificates" / "server.crt").read_bytes() != before


def test_control_is_on_the_loopback_and_nothing_is_sent_elsewhere(place: Place) -> None:
    environment = place.environment()
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert environment[paths.SERVER_FOLDER] == str(place.folder)
    assert 'address = "127.0.0.1:9093"' in (place.flower_home / "config.toml").read_text()


def test_a_run_names_the_nodes_that_it_may_reach(place: Place) -> None:
    folder = open_run(place, small_config(), "one", ["north"])
    assert json.loads((folder / NODES).read_text()) == {"north": 7}
    assert load_config(folder / "config.toml") == small_config()


@pytest.mark.parametrize(
    ("name", "nodes", "changes", "words"),
    [
        ("two", ["south"], {}, r"there are north\), got south"),
        ("../two", [], {}, "taken or no name"),
        ("two", [], {"evaluation": {"node_metrics": "exact"}}, "for simulations only"),
        ("two", [], {"evaluation": {"baselines": "pooled"}}, "baselines need all records"),
        ("two", [], {"federation": {"strategy": "krum"}}, "'krum' needs at least 3 nodes with 0 malicious, got 1"),
    ],
)
def test_a_run_that_cannot_be_is_refused(
    name: str, nodes: list[str], changes: dict[str, dict[str, str]], words: str, place: Place
) -> None:
    with pytest.raises(ConfigError, match=words):
        open_run(place, small_config(**changes), name, nodes)
    assert not (place.runs / "two").exists()


def test_a_run_that_could_not_be_submitted_leaves_no_folder(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody serves at the port for the coordinator's commands."""
    config = place.folder / "run.toml"
    config.write_bytes(dump_toml(small_config()).encode())
    for _ in range(2):  # the second time the name must not be taken
        status, told = said(capsys, "run", str(config), "--name", "unsent", "--home", str(place.folder))
        assert status != 0
        assert "cannot be reached" in told
        assert not (place.runs / "unsent").exists()


def test_a_run_without_the_servers_own_records_is_refused_at_once(place: Place) -> None:
    with pytest.raises(ConfigError, match=r"data\.source"):
        begin_run(place, small_config(data={"source": "/nowhere/records.npz"}), "blind", [])
    assert not (place.runs / "blind").exists()


def test_fingerprints_and_run_names_are_never_cut_short(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    name = "a-name-of-a-run-as-long-as-names-may-be-" * 3
    (place.runs / name).mkdir()
    assert fedgraft.main(["server", "status", "--home", str(place.folder)]) == 0
    table = capsys.readouterr().out.partition(" run ")[2]
    assert "…" not in table
    assert name in "".join(line.split()[0] for line in table.splitlines() if line.strip())
    (place.runs / name).rmdir()


def test_a_run_that_is_not_there_or_finished_is_not_started(place: Place) -> None:
    with pytest.raises(ConfigError, match=r"found no config\.toml"):
        start_run(place, place.runs / "none")
    folder = open_run(place, small_config(), "finished", [])
    (folder / "result.json").write_text("{}")
    with pytest.raises(ConfigError, match="is finished"):
        start_run(place, folder)


def test_the_server_app_finds_its_folder_by_flowers_id(place: Place) -> None:
    place.note_run(2**63 + 5, "one")
    assert folder_of_run(place.folder, 2**63 + 5) == place.runs / "one"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["status"], "found none; run `fedgraft server init` first"),
        (["nodes"], "found none"),
        (["run", "missing.toml"], "found none"),
        (["init"], "at least one name"),
        (["init", "--name", "http://fed"], "without scheme and port"),
        (["init", "--name", "fed", "--port", "70000"], "70000 is not in the range"),
        (["init", "--name", "fed", "--port", "9093"], "expected two ports, got 9093 twice"),
    ],
)
def test_commands_without_a_coordinator_say_what_to_do(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, told = said(capsys, *arguments, "--home", str(tmp_path / "none"))
    assert status == 2
    assert words in told
    assert not (tmp_path / "none").exists()


def test_damaged_files_are_named(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    before = {name: (place.folder / name).read_text() for name in (SERVER_TOML, NODES)}
    (place.folder / NODES).write_text("[1")
    assert "got a damaged file" in said(capsys, "remove-node", "north", "--home", str(place.folder))[1]
    (place.folder / SERVER_TOML).write_text('names = ["x"]\nport = 70000\n')
    assert "port: input should be less than" in said(capsys, "status", "--home", str(place.folder))[1]
    (place.folder / SERVER_TOML).write_text("names =")
    assert "expected TOML" in said(capsys, "status", "--home", str(place.folder))[1]
    for name, text in before.items():
        (place.folder / name).write_text(text)


def test_a_port_that_is_taken_is_said_with_where_it_is_chosen(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    before = (place.folder / SERVER_TOML).read_text()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        (place.folder / SERVER_TOML).write_text(f'names = ["x"]\nbind = "127.0.0.1"\nport = {port}\n')
        status, told = said(capsys, "start", "--home", str(place.folder))
    (place.folder / SERVER_TOML).write_text(before)
    assert status == 2
    assert f"expected to listen on 127.0.0.1, port {port}, cannot" in told
    assert f"set another in {place.folder / SERVER_TOML}, then `fedgraft server init --renew`" in told


def test_status_without_a_server_tells_of_the_runs(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert fedgraft.main(["server", "status", "--json", "--home", str(place.folder)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert not told["running"]


def test_a_server_that_does_not_run_is_said(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    status, told = said(capsys, "nodes", "--home", str(place.folder))
    assert status == 1
    assert "start it with `fedgraft server start`" in told


def test_no_proxy_hears_of_the_coordinators_commands(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(0)
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        before = dict(os.environ)
        with pytest.raises(FederationError, match="cannot be reached"):
            nodes_seen(place)
        with pytest.raises(BlockingIOError):
            proxy.accept()
    assert dict(os.environ) == before


def test_a_key_that_is_none_lets_nobody_in(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.pub").write_text("ssh-ed25519 nothing")
    key = ("--key", str(tmp_path / "x.pub"), "--home", str(place.folder))
    status, told = said(capsys, "add-node", "south", *key)
    assert status == 2
    assert "expected an OpenSSH public key" in told
    (tmp_path / "x.pub").write_text(fresh_public())
    assert "is registered already" in said(capsys, "add-node", "north", *key)[1]
    assert "leave --replace out" in said(capsys, "add-node", "south", "--replace", *key)[1]
    assert set(place.nodes()) == {"north"}
