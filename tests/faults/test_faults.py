"""The short form of the matrix of faults, and its tools: a copy with steps, a relay that cuts."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults import record
from tests.faults.federation import Federation
from tests.faults.killed import short
from tests.faults.line import slow_line, why_not
from tests.faults.matrix import FULL
from tests.faults.outcome import Row
from tests.faults.record import Played
from tests.faults.relay import Relay
from tests.faults.steps import copy_sources

NODES = ("n1", "n2")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_apps_cost_what_they_paid_and_the_model_is_the_documented_cohorts(tmp_path: Path) -> None:
    with Federation(tmp_path) as federation:
        federation.join(NODES)
        assert federation.online(NODES)
        short(federation)


def test_the_copy_fits_the_sources(tmp_path: Path) -> None:
    assert "reached(" in (copy_sources(tmp_path / "copy") / "client" / "training.py").read_text()


def test_the_page_shows_what_was_played_and_keeps_other_rows() -> None:
    page, known = record.PAGE.read_text(encoding="utf-8"), record.read()
    assert record.updated(page, record.table(known)) == page
    assert set(known) <= {fault.name for fault in FULL}
    changed = record.table({**known, "lost": Played("2001-02-03", 9, [Row("a | b", "c", "d")])})
    assert "| a / b | c | d | none | 2001-02-03, 9 nodes |" in changed
    assert all(row.fault in changed for name, one in known.items() if name != "lost" for row in one.rows)


def test_a_relay_passes_cuts_and_forgets() -> None:
    with echo() as port, Relay(port) as relay:
        first = socket.create_connection(("127.0.0.1", relay.port), timeout=30)
        assert answer(first, b"one") == b"one"
        relay.mode = "cut"
        first.settimeout(0.5)
        with pytest.raises(TimeoutError):
            answer(first, b"two")
        relay.mode = "pass"
        first.settimeout(30)
        assert first.recv(10) == b"two"
        relay.forget()
        first.settimeout(0.5)
        with pytest.raises(TimeoutError):
            answer(first, b"three")
        with socket.create_connection(("127.0.0.1", relay.port), timeout=30) as second:
            assert answer(second, b"four") == b"four"
        first.close()


@pytest.mark.skipif(bool(why_not()), reason="needs root, iproute2 and iptables")
def test_a_slow_line_carries_what_is_sent_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with echo() as port, slow_line(port, tmp_path / "line") as begin, Relay(port) as relay:
        relay.detour = begin
        with socket.create_connection(("127.0.0.1", relay.port), timeout=60) as connection:
            assert answer(connection, b"one") == b"one"
        relay.detour = tmp_path / "nowhere"
        with socket.create_connection(("127.0.0.1", relay.port), timeout=60) as connection:
            assert connection.recv(10) == b""
    assert not [line for line in spaces() if line.startswith("fg")]


def spaces() -> list[str]:
    """Network namespaces of this machine that have a name."""
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.splitlines()


def answer(connection: socket.socket, words: bytes) -> bytes:
    """Send something, and wait for the answer."""
    connection.sendall(words)
    return connection.recv(10)


@contextmanager
def echo() -> Iterator[int]:
    """A server that sends back what it gets; its port."""

    def serve(connection: socket.socket) -> None:
        with connection:
            while piece := connection.recv(1024):
                connection.sendall(piece)

    def listen() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=listen, daemon=True).start()
        yield int(server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)
