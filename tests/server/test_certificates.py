"""Certificates: made once, renewed under the same CA, and accepted by TLS for the names they are for."""

from __future__ import annotations

import datetime
import socket
import ssl
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.x509 import DNSName, SubjectAlternativeName

from common.errors import ConfigError
from server.certificates import Certificates, make_certificates, read_certificate

NAMES = ["coordinator.example.org", "10.0.0.5"]


@contextmanager
def serving(files: Certificates) -> Iterator[int]:
    """A TLS server on the loopback, for one connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.server, files.server_key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            try:
                with context.wrap_socket(listener.accept()[0], server_side=True) as connection:
                    connection.sendall(b"hello")
            except OSError:
                pass  # the other end refused us

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def greeting(port: int, ca: Path, name: str) -> bytes:
    context = ssl.create_default_context(cafile=ca)
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname=name) as tls,
    ):
        return tls.recv(5)


@pytest.mark.parametrize("name", [*NAMES, "127.0.0.1", "localhost"])
def test_tls_accepts_the_names(name: str, tmp_path: Path) -> None:
    files = make_certificates(tmp_path, NAMES)
    with serving(files) as port:
        assert greeting(port, files.ca, name) == b"hello"


def test_tls_refuses_another_name_and_another_ca(tmp_path: Path) -> None:
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
    files, other = (make_certificates(tmp_path / folder, NAMES) for folder in ("one", "other"))
    with serving(files) as port, pytest.raises(ssl.SSLCertVerificationError):
        greeting(port, files.ca, "elsewhere.example.org")
    with serving(files) as port, pytest.raises(ssl.SSLCertVerificationError):
        greeting(port, other.ca, "localhost")


def test_tls_refuses_an_expired_one(tmp_path: Path) -> None:
    long_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=900)
    files = make_certificates(tmp_path, NAMES, now=long_ago)
    with serving(files) as port, pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        greeting(port, files.ca, "localhost")


def test_a_renewal_keeps_the_ca(tmp_path: Path) -> None:
    files = make_certificates(tmp_path, NAMES)
    ca, before = files.ca.read_bytes(), files.server.read_bytes()
    make_certificates(tmp_path, ["new.example.org"])
    assert files.ca.read_bytes() == ca
    assert files.server.read_bytes() != before
    named = read_certificate(files.server).extensions.get_extension_for_class(SubjectAlternativeName).value
    assert named.get_values_for_type(DNSName)[0] == "new.example.org"


def test_private_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    files = make_certificates(tmp_path, NAMES)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (files.ca_key, files.server_key)} == {0o600}


@pytest.mark.parametrize(("names", "words"), [([], "at least one name"), (["https://x"], "without scheme and port")])
def test_names_that_are_none_are_refused(names: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        make_certificates(tmp_path, names)
    assert not list(tmp_path.iterdir())


def test_a_key_that_is_not_the_cas_is_refused(tmp_path: Path) -> None:
    files = make_certificates(tmp_path, NAMES)
    files.ca_key.write_bytes(files.server_key.read_bytes())
    with pytest.raises(ConfigError, match="it is another; restore both"):
        make_certificates(tmp_path, NAMES)
    files.ca_key.write_text("nothing")
    with pytest.raises(ConfigError, match="cannot read it"):
        make_certificates(tmp_path, NAMES)
    files.ca.write_text("nothing")
    with pytest.raises(ConfigError, match="expected a certificate in PEM"):
        make_certificates(tmp_path, NAMES)
