"""A line that is slow and loses packets below TCP: two network namespaces, joined by a cable; needs root.

``tc netem`` would add delay, too; many kernels are made without it. Here ``tc tbf`` bounds the rate, with a queue, and
``iptables`` drops packets where they arrive. Nothing in this machine's own namespace is changed: the line begins and
ends in socket files.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.processes import wait_until

MBIT_PER_S = 100
LOST = 0.01
QUEUE = ("burst", "64kb", "latency", "200ms")
LISTENING = "0A"  # in /proc/net/tcp
HERE, THERE, PORT = "10.203.0.1", "10.203.0.2", 9092


def why_not() -> str:
    """What keeps such a line from being laid on this machine; empty where nothing does."""
    if os.geteuid() != 0:
        return "it needs root"
    if lacking := [name for name in ("ip", "tc", "iptables") if shutil.which(name) is None]:
        return f"it needs {', '.join(lacking)}"
    try:
        with _cable("fgtry"):
            return ""
    except subprocess.CalledProcessError as error:
        return f"`{' '.join(error.cmd)}` fails: {error.stderr.strip()}"


@contextmanager
def slow_line(target: int, folder: Path) -> Iterator[Path]:
    """Lay a line to a port of the loopback; gives the socket file where it begins.

    Args:
        target: the port where it ends.
        folder: for its socket files, new.
    """
    folder.mkdir()
    begin, end, name = folder / "begin", folder / "end", f"fg{os.getpid() % 100_000}"
    with _cable(name), ExitStack() as stack:
        for space, here, there in (
            ("", str(end), f"127.0.0.1:{target}"),
            (f"{name}b", f"{THERE}:{PORT}", str(end)),
            (f"{name}a", str(begin), f"{THERE}:{PORT}"),
        ):
            inside = ["ip", "netns", "exec", space] if space else []
            process = subprocess.Popen([*inside, sys.executable, "-m", "client.relay", here, there])
            stack.callback(process.wait)
            stack.callback(process.terminate)
            if space.endswith("b"):
                assert wait_until(lambda pid=process.pid: _listens(pid))  # type: ignore[misc]
        assert wait_until(lambda: begin.exists() and end.exists())
        yield begin


@contextmanager
def _cable(name: str) -> Iterator[None]:
    """Two namespaces, ``name`` with ``a`` and ``b``, and what joins them."""
    with ExitStack() as stack:
        for side in "ab":
            _do("ip", "netns", "add", f"{name}{side}")
            stack.callback(_do, "ip", "netns", "del", f"{name}{side}")
        _do("ip", "link", "add", "line", "netns", f"{name}a", "type", "veth", "peer", "line", "netns", f"{name}b")
        for side, address in (("a", HERE), ("b", THERE)):
            space = ("-n", f"{name}{side}")
            _do("ip", *space, "address", "add", f"{address}/30", "dev", "line")
            _do("ip", *space, "link", "set", "line", "up", "gso_max_segs", "1")
            _do("tc", *space, "qdisc", "add", "dev", "line", "root", "tbf", "rate", f"{MBIT_PER_S}mbit", *QUEUE)
            drop = ("-m", "statistic", "--mode", "random", "--probability", str(LOST), "-j", "DROP")
            _do("ip", "netns", "exec", f"{name}{side}", "iptables", "-A", "INPUT", "-p", "tcp", *drop)
        yield


def _listens(pid: int) -> bool:
    """Whether somebody listens in the network namespace of a process, which has no other programs."""
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    return any(line.split()[3] == LISTENING and f":{PORT:04X}" in line for line in lines)


def _do(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
