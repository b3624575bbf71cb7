"""Keeps a command and all that it starts together: they end when the process that asked for them ends, however it ends.

``flwr run`` starts a SuperLink, a SuperExec and Ray, each detached from its parent. Run under the keeper they stay its
descendants (it is their "subreaper"), and the keeper ends all of them as soon as its standard input closes: on purpose,
or because the process at the other end of that pipe was interrupted or killed. Linux only; elsewhere, processes that
detached themselves may stay.

Usage: ``python -m simulations.keeper FOLDER LOG COMMAND…``; the command writes to LOG, its exit status appears in the
file FOLDER/ended, and FOLDER is removed at the end.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil

PR_SET_CHILD_SUBREAPER = 36
ENDED = "ended"
POLL_S = 0.1
GRACE_S = 3.0


def keep(folder: Path, log: Path, command: list[str]) -> None:
    """Run ``command``, note its end, and stay until standard input closes; then end every descendant.

    Args:
        folder: of the command; gets the file ``ended`` with its exit status, and is removed at the end.
        log: receives what the command writes.
        command: program and arguments.

    Guarantees:
        On Linux no descendant is alive afterwards.
    """
    _adopt_orphans()
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            if _asked_to_stop(POLL_S):
                return
        (folder / ENDED).write_text(str(process.returncode))
        while not _asked_to_stop(None):
            pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_descendants()
        shutil.rmtree(folder, ignore_errors=True)


def end_descendants() -> None:
    """Ask every descendant to end, and kill those that are still there after `GRACE_S`."""
    asked: set[psutil.Process] = set()
    while alive := psutil.Process().children(recursive=True):
        new = [process for process in alive if process not in asked]
        for process in new or alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate() if new else process.kill()
        asked.update(new)
        psutil.wait_procs(alive, timeout=GRACE_S)
        _bury()


def _adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _asked_to_stop(timeout_s: float | None) -> bool:
    """Wait for standard input to close."""
    readable, _, _ = select.select([sys.stdin], [], [], timeout_s)
    return bool(readable) and not os.read(sys.stdin.fileno(), 1)


def _bury() -> None:
    """Collect the exit status of children that ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    keep(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
