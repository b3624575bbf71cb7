"""The process beside a simulation: what it works out and draws, and what happens where it is missing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch  # noqa: F401  (which is not to be forked)

from common.privacy.accountant import epsilon_by_round, noise_multiplier_for
from common.privacy.plan import PrivacyTerms
from simulations import aside
from simulations.report import write_report
from tests.processes import wait_until
from tests.simulations import report_folders

ROUNDS, STEPS = 3, 2
CONFIG = f"""
federation = {{nodes = 2, rounds = {ROUNDS}, seed = 0}}
data = {{source = "d.npz"}}
training = {{local_steps = {STEPS}}}
model = {{backbone = "embedded/glyph"}}
privacy = {{epsilon = 8.0, delta = 1e-3, sampling_rate = 0.5, clipping_norm = "auto", unit = "record", trust = "local"}}
"""
READ = 'load_config(Path("c.toml"), [])'
BESIDE = """
import json, os, signal, sys, psutil
from pathlib import Path
from common.config import load_config
from simulations import aside

with aside.aside(CONFIG) as report:
    (child,) = psutil.Process().children()
    print(child.pid, flush=True)
    DO
"""
ASK = """
    from common.privacy.accountant import epsilon_by_round, noise_multiplier_for
    from common.privacy.plan import PrivacyTerms
    sigma = noise_multiplier_for(8.0, 1e-3, 0.5, 6)
    terms = PrivacyTerms("record", "local", 0.5, 3, 2, 1.0, sigma, 1e-3)
    print(json.dumps([sigma, *epsilon_by_round(terms)]), "dp_accounting" in sys.modules)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", images=images, labels=np.arange(60) % 3)
    (tmp_path / "c.toml").write_text(CONFIG)
    return tmp_path


def beside(folder: Path, do: str, config: str = READ) -> list[str]:
    """What a process prints that does this beside the other one; the other one has ended then."""
    code = BESIDE.replace("    DO", do).replace("CONFIG", config)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pid, *lines = done.stdout.splitlines()
    assert wait_until(lambda: not psutil.pid_exists(int(pid)))
    return lines


def worked_out_here() -> list[float]:
    sigma = noise_multiplier_for(8.0, 1e-3, 0.5, ROUNDS * STEPS)
    return [sigma, *epsilon_by_round(PrivacyTerms("record", "local", 0.5, ROUNDS, STEPS, 1.0, sigma, 1e-3))]


def test_it_answers_what_the_accountant_would_say_here(folder: Path) -> None:
    (line,) = beside(folder, ASK)
    answers, _, imported = line.rpartition(" ")
    assert json.loads(answers) == worked_out_here()
    assert imported == "False"


def test_where_it_was_killed_this_process_works_by_itself(folder: Path) -> None:
    killed = "    child.kill()\n"
    (line,) = beside(folder, f"{killed}{ASK}")
    answers, _, imported = line.rpartition(" ")
    assert json.loads(answers) == worked_out_here()
    assert imported == "True"


def test_reports_are_those_that_are_written_here(tmp_path: Path) -> None:
    run = report_folders.ten_nodes(tmp_path / "run")
    written = write_report(run).read_bytes()
    (run / "report.html").unlink()
    copied = shutil.copytree(run, tmp_path / "copied" / "run")
    beside(tmp_path, "    report(Path('run')); child.kill(); report(Path('copied/run'))", config="None")
    assert (run / "report.html").read_bytes() == written
    assert (copied / "report.html").read_bytes() == written


def test_a_report_that_cannot_be_written_is_refused_here(folder: Path) -> None:
    (line,) = beside(
        folder, "    try: report(Path('nowhere'))\n    except Exception as error: print(repr(error))", "None"
    )
    assert line.startswith("ConfigError(")


def test_it_ends_with_the_process_that_forked_it(folder: Path) -> None:
    code = BESIDE.replace("DO", "signal.pause()").replace("CONFIG", "None")
    with subprocess.Popen([sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(parent.pid, signal.SIGKILL)
    assert wait_until(lambda: not psutil.pid_exists(pid))


def test_nothing_is_forked_beside_torch_or_on_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not aside.worth_it()
    with aside.aside(None) as report:
        assert report is write_report
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert not aside.worth_it()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert aside.worth_it() == (sys.platform == "linux")
