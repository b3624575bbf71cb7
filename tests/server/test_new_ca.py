"""Another CA: hospitals that took the join file are never locked out, and an interrupted switch is typed again."""

from __future__ import annotations

import datetime
import fcntl
import json
import ssl
from pathlib import Path

import pytest

import client.cli  # noqa: F401 (imported before time is counted)
import fedgraft
from client.node_folder import make_node, read_join
from common import durable
from common.errors import ConfigError
from common.ports import joined, split
from common.validity import authorities_in, fingerprint_of, validity_of
from server.certificates import make_certificates, read_certificate
from server.coordinator_folder import JOIN_FILE, Place, ServerConfig, make_place, renew
from server.new_ca import certificates_of, prepare_ca, switch_ca
from tests.server.test_certificates import greeting, serving

APP = "ab" * 32


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make_place(tmp_path / "server", ServerConfig(names=["127.0.0.1"], port=1), APP)


@pytest.fixture
def node(place: Place, tmp_path: Path) -> Path:
    values: dict[str, object] = {"source": "x", "size": 10, "classes": ["a", "b"], "epsilon": 1.0, "delta": 1e-5}
    make_node(tmp_path / "node", read_join(place.folder / JOIN_FILE), "north", values)
    return tmp_path / "node"


def join(node: Path, place: Place, *options: str) -> int:
    return fedgraft.main(["node", "join", str(place.folder / JOIN_FILE), "--home", str(node), *options])


def reached(place: Place, node: Path) -> bool:
    with serving(place.certificates) as port:
        try:
            return greeting(port, node / "ca.crt", "localhost") == b"hello"
        except ssl.SSLCertVerificationError:
            return False


def test_a_node_that_took_the_join_file_reaches_the_server_before_and_after(
    place: Place, node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_certificate(place.certificates.ca)
    print_ = prepare_ca(place, APP)
    assert prepare_ca(place, APP) == print_  # typed again
    assert join(node, place, "--yes") == 0
    told = capsys.readouterr().out
    assert "now   the coordinator's CA is valid until" in told
    assert told.count(fingerprint_of(before)) == 2
    assert told.count(print_) == 1
    assert reached(place, node)
    assert switch_ca(place, APP) == print_
    assert reached(place, node)
    assert len(authorities_in((node / "ca.crt").read_bytes(), "x")) == 2
    assert join(node, place, "--yes") == 0
    assert [fingerprint_of(one) for one in authorities_in((node / "ca.crt").read_bytes(), "x")] == [print_]
    assert reached(place, node)


def test_a_node_that_did_not_take_it_is_not_deceived(place: Place, node: Path) -> None:
    prepare_ca(place, APP)
    switch_ca(place, APP)
    assert not reached(place, node)


def test_nothing_is_trusted_without_a_yes(place: Place, node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (node / "ca.crt").read_bytes()
    assert join(node, place) == 0  # nothing new, nothing to ask
    prepare_ca(place, APP)
    monkeypatch.setattr("typer.confirm", lambda _: False)
    assert join(node, place) == fedgraft.INTERRUPTED
    assert (node / "ca.crt").read_bytes() == before


def test_a_join_file_without_a_ca_that_is_valid_is_refused(
    place: Place, node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=9999)
    (node / "old").mkdir()
    old = make_certificates(node / "old", ["x"], now=long_ago)
    path, before = place.folder / JOIN_FILE, (node / "ca.crt").read_bytes()
    for file, words in ((old.ca, "valid now in the join file"), (place.certificates.server, "one is of something")):
        path.write_text(json.dumps({**json.loads(path.read_text()), "certificate": file.read_text()}))
        assert join(node, place, "--yes") == 2
        assert words in capsys.readouterr().err
    path.write_text(json.dumps({**json.loads(path.read_text()), "certificate": "-----BEGIN CERTIFICATE-----"}))
    assert join(node, place, "--yes") == 2
    assert (node / "ca.crt").read_bytes() == before


def test_a_switch_needs_a_ca_and_a_server_that_is_stopped(place: Place) -> None:
    with pytest.raises(ConfigError, match="none is prepared"):
        switch_ca(place, APP)
    prepare_ca(place, APP)
    with (place.folder / "pid").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("1")
        file.flush()
        with pytest.raises(ConfigError, match="to be stopped"):
            switch_ca(place, APP)


@pytest.mark.parametrize("writes", range(5))
def test_a_switch_that_crashes_is_typed_again(
    writes: int, place: Place, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_ca(place, APP)
    assert join(node, place, "--yes") == 0
    left, real = writes, durable.write_bytes

    class CrashError(BaseException):
        pass

    def write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
        nonlocal left
        if left == 0:
            raise CrashError
        left -= 1
        real(path, data, mode=mode)

    with monkeypatch.context() as patched:
        patched.setattr(durable, "write_bytes", write)
        with pytest.raises(CrashError):
            switch_ca(place, APP)
    if writes < 4:
        switch_ca(place, APP)
    else:  # all but the join file, which still names both
        renew(place, APP)
    assert reached(place, node)
    assert len(authorities_in(json.loads((place.folder / JOIN_FILE).read_text())["certificate"].encode(), "x")) == 1
    assert not list(place.certificates.ca.parent.glob("ca-next*"))


def test_status_tells_how_long_certificates_last(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_ca(place, APP)
    assert [(one.name, one.validity.state) for one in certificates_of(place)] == [
        ("server", "ok"),
        ("CA", "ok"),
        ("next CA", "ok"),
    ]
    nearly = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=800)
    make_certificates(place.certificates.ca.parent, ["x"], now=nearly)
    place.certificates.ca.write_text("nothing")
    assert fedgraft.main(["server", "status", "--json", "--home", str(place.folder)]) == 0
    found = json.loads(capsys.readouterr().out)["certificates"]
    assert [one["state"] for one in found] == ["note", "fail", "ok"]
    assert fedgraft.main(["server", "status", "--home", str(place.folder)]) == 0
    assert "NOTE it is valid until" in (told := capsys.readouterr().out)
    assert "fedgraft server init --renew" in told


def test_a_clock_before_the_certificate_is_said(place: Place) -> None:
    certificate = read_certificate(place.certificates.server)
    early = certificate.not_valid_before_utc - datetime.timedelta(hours=1)
    assert "clock right" in validity_of(certificate, "it", "", early).words
    late = certificate.not_valid_after_utc + datetime.timedelta(hours=1)
    assert validity_of(certificate, "it", "ask", late).words.endswith("; ask")


def test_an_address_of_version_six_stands_in_brackets(tmp_path: Path) -> None:
    for name in ("::1", "[::1]"):
        place = make_place(tmp_path / name, ServerConfig(names=[name], port=9092), APP)
        address = json.loads((place.folder / JOIN_FILE).read_text())["address"]
        assert address == "[::1]:9092" == joined(*split(address))
        with serving(place.certificates) as port:
            assert greeting(port, place.certificates.ca, "::1") == b"hello"
    values: dict[str, object] = {"source": "x", "size": 10, "classes": ["a", "b"], "epsilon": 1.0, "delta": 1e-5}
    make_node(tmp_path / "node", read_join(place.folder / JOIN_FILE), "north", values)
    assert "[::1]:9092" in (tmp_path / "node" / "node.toml").read_text()
