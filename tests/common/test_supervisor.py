"""The supervisor: restarts what ends, ends what it started, and is alone in its folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from common.errors import ConfigError
from common.ports import LoopbackPort
from common.supervisor import stop_supervisor, supervisor_of
from tests.processes import PATIENCE_S

SCRIPT = """
import os, sys
from pathlib import Path
from common.supervisor import Program, supervise
nap = "from common.supervisor import end_with_parent as e; e(); import time; print(1, flush=True); time.sleep(99)"
sleep = [sys.executable, "-c", nap]
once = [sys.executable, "-c", "print('once')"]
programs = [Program("sleeper", sleep, os.environ), Program("once", once, os.environ)]
supervise(programs, Path(sys.argv[1]), lambda line: print(line, flush=True))
"""


def until(condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.ZombieProcess:  # it has ended, and is not buried yet
        return ""


def started(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], stdout=subprocess.PIPE, text=True)
    until(lambda: supervisor_of(folder) == process.pid)
    until(lambda: (folder / "logs" / "sleeper.log").exists() and bool((folder / "logs" / "sleeper.log").read_text()))
    return process


def test_it_restarts_what_ends_and_leaves_nothing_behind(tmp_path: Path) -> None:
    process = started(tmp_path)
    until(lambda: (tmp_path / "logs" / "once.log").read_text().count("once") >= 2)
    children = psutil.Process(process.pid).children(recursive=True)
    assert stop_supervisor(tmp_path)
    said, _ = process.communicate(timeout=PATIENCE_S)
    assert "once ended with status 0, starts again in 1 s" in said
    assert said.endswith("stopped\n")
    assert not any(child.is_running() for child in children)
    assert supervisor_of(tmp_path) is None
    assert not stop_supervisor(tmp_path)


def test_its_children_end_though_it_be_killed(tmp_path: Path) -> None:
    process = started(tmp_path)
    (sleeper,) = [child for child in psutil.Process(process.pid).children() if "sleep(99)" in command_of(child)]
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=PATIENCE_S)
    until(lambda: not sleeper.is_running() or sleeper.status() == psutil.STATUS_ZOMBIE)
    assert supervisor_of(tmp_path) is None


def test_there_is_one_supervisor_in_a_folder(tmp_path: Path) -> None:
    from common.supervisor import supervise

    process = started(tmp_path)
    try:
        with pytest.raises(ConfigError, match="started already"):
            supervise([], tmp_path, print)
    finally:
        stop_supervisor(tmp_path)
        process.communicate(timeout=PATIENCE_S)


AGAIN = """
import os, sys
from pathlib import Path
from common.supervisor import Program, supervise
said, numbers = [], iter(range(1, 99))
def programs(number):
    wait = "from common.supervisor import end_with_parent as e; e(); import time; time.sleep(99)"
    first = [sys.executable, "-c", f"print('first', {number}, flush=True); {'' if number < 2 else wait}"]
    second = [sys.executable, "-c", f"print({number}, flush=True); {wait}"]
    return [Program("first", first, os.environ), Program("second", second, os.environ)]
supervise(programs(0), Path(sys.argv[1]), print, again=lambda: programs(next(numbers)))
"""


def test_what_belongs_together_goes_on_with_another_command(tmp_path: Path) -> None:
    """As when the port, by which the two talk, was taken in the meantime."""
    process = subprocess.Popen([sys.executable, "-c", AGAIN, str(tmp_path)], stdout=subprocess.DEVNULL)
    try:
        logs = [tmp_path / "logs" / f"{name}.log" for name in ("first", "second")]
        until(lambda: logs[0].exists() and "first 2" in logs[0].read_text())
        until(lambda: logs[1].exists() and logs[1].read_text().endswith("2\n"))
        assert len(psutil.Process(process.pid).children()) == 2
    finally:
        stop_supervisor(tmp_path)
        process.wait(30)


def test_a_port_that_was_taken_is_chosen_anew() -> None:
    port = LoopbackPort()
    before = port.usable()
    assert port.usable() == before
    with socket.create_server(("127.0.0.1", before)):
        assert port.usable() != before


def test_a_program_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    from common.supervisor import Program, supervise

    with pytest.raises(ConfigError, match="could not start"):
        supervise([Program("none", [str(tmp_path / "none")], {})], tmp_path, print)


@pytest.mark.parametrize("end", ["None", "1 / 0"])
def test_a_program_that_should_not_return_ends_its_process_whatever_threads_are_left(end: str) -> None:
    """Flower's SuperNode returns when the SuperLink answers with an error; its threads would keep it for ever."""
    left = "import threading; threading.Thread(target=threading.Event().wait).start()"
    script = f"from common.supervisor import to_the_end; {left}; to_the_end(lambda: {end})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 1
    assert ("ZeroDivisionError" in done.stderr) == (end == "1 / 0")


def test_a_program_that_ends_by_itself_keeps_its_status() -> None:
    script = "import sys; from common.supervisor import to_the_end; to_the_end(lambda: sys.exit(7))"
    assert subprocess.run([sys.executable, "-c", script], timeout=PATIENCE_S).returncode == 7
