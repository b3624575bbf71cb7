"""Run a command and measure its whole process tree: wall seconds, processor seconds, peak memory."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

EVERY_S = 0.25
MEMORY_EVERY_S = 0.5  # telling apart what is shared takes ten milliseconds for a large process
MARK = "FEDGRAFT_MEASURED"  # in the environment of the command and of all that it starts, daemons too
TAIL = 2000  # characters


@dataclass(frozen=True)
class Measured:
    """What a command took.

    Attributes:
        wall_s: from its start to its end.
        processor_s: of all its processes; what a process did after it was last looked at is missed.
        peak_bytes: most memory of all its processes at one time, shared pages counted once where Linux tells.
        status: exit status; None when it was stopped at the limit.
        tail: the end of what it printed.
    """

    wall_s: float
    processor_s: float
    peak_bytes: int
    status: int | None
    tail: str


class _Tree:
    """All processes that bear a mark, and what they have used so far; a look at them costs as little as it can."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._known: dict[int, psutil.Process | None] = {}  # by process id; None is somebody else's
        self._seconds: dict[tuple[int, float], float] = {}
        self._next = 0.0
        self.peak_bytes = 0

    @property
    def processor_s(self) -> float:
        return sum(self._seconds.values())

    def look(self) -> list[psutil.Process]:
        """Note what every process has used; those that are running."""
        found, resident = [], 0
        for process in self._ours():
            with suppress(psutil.Error), process.oneshot():
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
                    times = process.cpu_times()
                    self._seconds[process.pid, process.create_time()] = times.user + times.system
                    resident += process.memory_info().rss
        now = time.monotonic()
        if resident > self.peak_bytes and now >= self._next:  # what is resident bounds what is counted, and is cheap
            self._next = now + MEMORY_EVERY_S
            self.peak_bytes = max(self.peak_bytes, sum(map(_memory, found)))
        return found

    def _ours(self) -> list[psutil.Process]:
        running = set(psutil.pids())
        self._known = {pid: process for pid, process in self._known.items() if pid in running}
        for pid in running - self._known.keys():
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                if self._bears_mark(process):
                    self._known[pid] = process
                elif time.time() - process.create_time() > 5:
                    self._known[pid] = None
        return [process for process in self._known.values() if process is not None]

    def _bears_mark(self, process: psutil.Process) -> bool:
        """Whether it has the mark, which it bears from its first moment; those of the system do not tell."""
        try:
            return bool(process.environ().get(MARK) == self._mark)
        except psutil.Error:
            return False


def measure(
    command: Sequence[str | Path], environment: Mapping[str, str] | None = None, limit_s: float = 3600
) -> Measured:
    """Run a command to its end, or stop it and all that it started at the limit.

    What it leaves running, as daemons do, is stopped too; by process id.
    """
    mark = uuid.uuid4().hex
    tree = _Tree(mark)
    with tempfile.TemporaryFile() as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in command],
            env={**(os.environ if environment is None else environment), MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        status: int | None = None
        try:
            while status is None and time.perf_counter() - began < limit_s:
                tree.look()
                with suppress(subprocess.TimeoutExpired):
                    status = process.wait(EVERY_S)
            wall = time.perf_counter() - began
        finally:
            _stop(tree)
            process.wait()
        output.seek(max(0, output.seek(0, os.SEEK_END) - TAIL))
        tail = output.read().decode(errors="replace")
    return Measured(wall, tree.processor_s, tree.peak_bytes, status, tail)


def _memory(process: psutil.Process) -> int:
    """Proportional share of a process, where the system tells; else its resident memory."""
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    with suppress(psutil.Error):
        return int(process.memory_info().rss)
    return 0


def _stop(tree: _Tree) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        for process in tree.look():
            with suppress(psutil.Error):
                process.send_signal(sign)
        deadline = time.monotonic() + 5
        while tree.look() and time.monotonic() < deadline:
            time.sleep(0.1)
