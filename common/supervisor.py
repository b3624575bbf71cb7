"""Keeps a few programs running until it is told to stop: starts them, restarts what ends, and leaves nothing behind."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from common.errors import ConfigError
from common.locks import lock
from common.log_files import DRAIN_S, LogFile, copy_lines

PID_FILE = "pid"
LOGS = "logs"
LONGEST_WAIT_S = 15.0
HEALTHY_S = 60.0
GRACE_S = 10.0
POLL_S = 0.1
LOOKING_S = 1.0  # somebody who only looks lets go at once
PR_SET_PDEATHSIG = 1
SUPERVISOR = "FEDGRAFT_SUPERVISOR"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Program:
    """One program to keep running.

    Attributes:
        name: of its log file.
        command: program and arguments.
        environment: all of it.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(repr=False)


@dataclass
class _Running:
    program: Program
    log: LogFile
    reader: threading.Thread | None = None
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    wait_s: float = 0.5
    due: float = 0.0


def without_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with no proxy between programs of one machine."""
    named = [environment.get(key, "") for key in ("NO_PROXY", "no_proxy")]
    hosts = ",".join(dict.fromkeys(name for text in (*named, ",".join(LOOPBACK)) for name in text.split(",") if name))
    return {**environment, "NO_PROXY": hosts, "no_proxy": hosts}


def supervise(
    programs: Sequence[Program],
    folder: Path,
    said: Callable[[str], None],
    again: Callable[[], Sequence[Program]] | None = None,
) -> None:
    """Keep programs running until SIGTERM or SIGINT; their output goes to ``logs/`` in the folder, which is bounded.

    A program that ends is started again, after a wait that doubles up to 15 s; Flower refuses a SuperNode that comes
    back within about 50 s of a hard end, so that a few attempts may fail.

    Args:
        programs: started in this order, and ended in the opposite one.
        folder: of the node or the coordinator; one supervisor at a time.
        said: is told, in a line each, what happens.
        again: gives the same programs for the next start, asked when the first of them has ended: another command, if a
            port was taken meanwhile. Others whose command it changes are ended, and started with it.

    Raises:
        ConfigError: another supervisor is at work in the folder, or a program cannot be started at all.
    """
    (folder / LOGS).mkdir(mode=0o700, exist_ok=True)
    with _alone(folder), _until_told() as told:
        running = [_Running(program, LogFile(folder / LOGS / f"{program.name}.log")) for program in programs]
        try:
            while not told():
                for one in running:
                    ended = _keep(one, folder, said)
                    if ended and one is running[0] and again is not None:
                        _change(running, again())
                time.sleep(POLL_S)
        finally:
            for one in reversed(running):
                _end(one)
    said("stopped")


def supervisor_of(folder: Path) -> int | None:
    """The process id of the supervisor at work in a folder, None where there is none."""
    try:
        with (folder / PID_FILE).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read())
    except (FileNotFoundError, ValueError):
        pass
    return None


def stop_supervisor(folder: Path, timeout_s: float = 2 * GRACE_S) -> bool:
    """Tell the supervisor in a folder to stop, and wait for its end; False where there was none.

    Raises:
        ConfigError: it did not end in time.
    """
    process = supervisor_of(folder)
    if process is None:
        return False
    with suppress(ProcessLookupError):  # it ended just now
        os.kill(process, signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while supervisor_of(folder) is not None:
        if time.monotonic() > deadline:
            raise ConfigError(
                f"expected process {process} to stop within {timeout_s:g} s, it is still there; look at it"
            )
        time.sleep(POLL_S)
    return True


def end_with_parent(parent: int | None = None) -> None:
    """Have the kernel end this process when its parent ends, however it ends (Linux).

    Args:
        parent: its process id; by default the supervisor's, as it told this process.
    """
    expected = parent or int(os.environ.get(SUPERVISOR, os.getppid()))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != expected:  # it has ended already
            os._exit(1)


def to_the_end(program: Callable[[], object]) -> None:
    """Run a program that returns only when something failed, and end this process then, whatever threads are left.

    A SuperNode whose coordinator answered with an error would stay for ever: its loop has ended, and Python waits for
    the threads that serve its app.
    """
    try:
        program()
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _change(running: Sequence[_Running], programs: Sequence[Program]) -> None:
    """Have every program go on as it is given now."""
    for one, program in zip(running, programs, strict=True):
        if list(program.command) != list(one.program.command) and one.process is not None:
            _end(one)
            one.process = None
        one.program = program


def _keep(one: _Running, folder: Path, said: Callable[[str], None]) -> bool:
    """Start a program that is due; say whether one has just ended."""
    now = time.monotonic()
    if one.process is None:
        if now >= one.due:
            one.process, one.began = _start(one.program, folder), now
            assert one.process.stdout is not None
            one.reader = copy_lines(one.process.stdout, one.log)
        return False
    status = one.process.poll()
    if status is None:
        return False
    one.wait_s = 0.5 if now - one.began > HEALTHY_S else min(2 * one.wait_s, LONGEST_WAIT_S)
    one.process, one.due = None, now + one.wait_s
    said(
        f"{one.program.name} ended with status {status}, starts again in {one.wait_s:g} s; see "
        f"{folder / LOGS / one.program.name}.log"
    )
    return True


def _start(program: Program, folder: Path) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(program.command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**program.environment, SUPERVISOR: str(os.getpid())},
            cwd=folder,
            start_new_session=True,  # Ctrl-C is for the supervisor, which ends them in order
        )
    except OSError as error:
        raise ConfigError(f"could not start {program.command[0]}: {error.strerror}; reinstall fedgraft") from error


def _end(one: _Running) -> None:
    if one.process is not None:
        one.process.terminate()
        try:
            one.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()
    if one.reader is not None:
        one.reader.join(DRAIN_S)  # its last lines; a grandchild may keep the pipe open
    one.log.close()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / PID_FILE).open("a+") as file:
        if not lock(file.fileno(), LOOKING_S):
            raise ConfigError(f"expected to be alone in {folder}, it is started already; stop it first")
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


@contextmanager
def _until_told() -> Iterator[Callable[[], bool]]:
    """Whether a signal asked to stop; the handlers of before come back afterwards."""
    told: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        told.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(told)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
