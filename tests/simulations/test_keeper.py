"""The keeper: what a command started ends with whoever asked for it, however stubborn or detached it is."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.processes import PATIENCE_S

# A process that ignores requests to end; and one that starts it in another session, says its number, and ends itself.
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
DETACHED = (
    "import subprocess, sys; "
    f"command = [sys.executable, '-c', '{STUBBORN}']; "
    "process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE); "
    "process.stdout.readline(); print(process.pid, flush=True)"
)
# A parent that starts the keeper, holds its standard input, and waits to be killed.
PARENT = (
    "import subprocess, sys, time; "
    "keeper = subprocess.Popen([sys.executable, '-m', 'simulations.keeper', *sys.argv[1:]], stdin=subprocess.PIPE); "
    "time.sleep(600)"
)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "scratch"
    path.mkdir()
    return path


def wait_for(condition, seconds: float = PATIENCE_S):
    deadline = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return value


def detached_process(log: Path) -> psutil.Process:
    """Wait until the command has said the number of its detached process."""
    return psutil.Process(int(wait_for(lambda: log.exists() and log.read_text().strip())))


def keeper(folder: Path, log: Path, *command: str) -> subprocess.Popen:
    arguments = [sys.executable, "-m", "simulations.keeper", str(folder), str(log), *command]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE)


def test_closing_the_pipe_ends_a_detached_and_stubborn_process(folder, tmp_path):
    with keeper(folder, tmp_path / "log", sys.executable, "-c", DETACHED) as process:
        detached = detached_process(tmp_path / "log")
        assert wait_for((folder / "ended").exists)
        assert (folder / "ended").read_text() == "0"
        assert detached.is_running()
        process.communicate(timeout=PATIENCE_S)
    assert not detached.is_running()
    assert not folder.exists()


def test_a_command_that_still_runs_is_ended(folder, tmp_path):
    with keeper(folder, tmp_path / "log", "sleep", "600") as process:
        command = wait_for(lambda: psutil.Process(process.pid).children())[0]
        process.communicate(timeout=PATIENCE_S)
    assert not command.is_running()


def test_ending_the_keeper_ends_what_it_keeps(folder, tmp_path):
    with keeper(folder, tmp_path / "log", sys.executable, "-c", DETACHED) as process:
        detached = detached_process(tmp_path / "log")
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=PATIENCE_S)
    assert not detached.is_running()


def test_killing_the_parent_ends_what_was_kept(folder, tmp_path):
    command = [str(folder), str(tmp_path / "log"), sys.executable, "-c", DETACHED]
    with subprocess.Popen([sys.executable, "-c", PARENT, *command]) as parent:
        detached = detached_process(tmp_path / "log")
        parent.kill()
    assert wait_for(lambda: not detached.is_running())
    assert wait_for(lambda: not folder.exists())
