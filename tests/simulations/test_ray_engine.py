"""The Ray engine, with a tiny app: rounds are followed, failures are told, and nothing is left running."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from common.errors import BudgetSpentError, FederationError, PrivacyError
from simulations.ray_engine import raise_failure, run_on_ray
from tests.simulations.tiny_app import NODES, configuration, write_app

PATIENCE_S = 120


def left_behind(run_folder: Path) -> list[str]:
    """Name the processes that inherited this run's folder, other than our own children that ended."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("FEDGRAFT_RUN_FOLDER") == str(run_folder):
                found.append(" ".join(process.cmdline()[:3]))
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def wait_until(condition, seconds: float = PATIENCE_S) -> bool:
    """Wait for something to become true; tell whether it did."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(condition())


@pytest.mark.slow
def test_rounds_are_followed_through_flwr_run_and_nothing_is_left(tmp_path):
    (tmp_path / "rounds.jsonl").write_text('{"round": 0}\n')
    seen: list[Mapping[str, Any]] = []
    run_on_ray(configuration("digits"), tmp_path, NODES, seen.append, app=write_app)
    assert [entry["round"] for entry in seen] == [1, 2]
    assert seen[0]["epsilon"] == 3.0
    assert sorted(reply["partition"] for reply in seen[0]["replies"]) == [0, 1]
    for reply in seen[0]["replies"]:
        assert reply["on_ray"]
        assert reply["folder"] == str(tmp_path)
        assert "/apps/fedgraft.tiny" in reply["client"]  # from the bundle, not from a checkout
    assert "/apps/fedgraft.tiny" in seen[0]["server"]
    assert not left_behind(tmp_path)


@pytest.mark.slow
def test_a_failure_in_the_server_app_is_told_in_its_words(tmp_path):
    with pytest.raises(FederationError, match="the server has had enough"):
        run_on_ray(configuration("crash"), tmp_path, NODES, app=write_app)
    assert not left_behind(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_when_the_command_is_killed_or_interrupted(tmp_path, blow):
    program = Path(__file__).with_name("tiny_app.py")
    with subprocess.Popen(
        [sys.executable, str(program), str(tmp_path), "sleep"], stderr=subprocess.PIPE, cwd=program.parents[2]
    ) as parent:
        assert wait_until((tmp_path / "rounds.jsonl").exists)
        assert any("raylet" in name for name in left_behind(tmp_path))
        parent.send_signal(blow)
        parent.communicate()
    assert wait_until(lambda: not left_behind(tmp_path), seconds=30), left_behind(tmp_path)


def test_what_the_server_app_left_is_raised_as_its_kind(tmp_path):
    for name, kind in (("BudgetSpentError", BudgetSpentError), ("PrivacyError", PrivacyError), ("os", FederationError)):
        (tmp_path / "failure.json").write_text(json.dumps({"kind": name, "message": "no more"}))
        with pytest.raises(FederationError, match="no more") as caught:
            raise_failure({"status": "finished:failed", "status-details": "-"}, tmp_path)
        assert type(caught.value) is kind


def test_a_run_that_never_began_is_told_by_the_log(tmp_path):
    (tmp_path / "flower.log").write_text("fine\n╭─ Error ──╮\n│ [code: 15] Invalid run configuration │\n╰──────────╯\n")
    with pytest.raises(FederationError, match=r"\[code: 15\] Invalid run configuration; see "):
        raise_failure(None, tmp_path)


def test_a_completed_run_raises_nothing(tmp_path):
    raise_failure({"status": "finished:completed", "status-details": ""}, tmp_path)
