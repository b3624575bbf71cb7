"""A report drawn by two processes: the same parts in the same order, whatever becomes of the other process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from simulations.report import write_report
from tests.simulations import report_folders

CODE = """
import os
from simulations.report.halves import in_halves
from simulations.report.markup import Markup

HERE = os.getpid()
def part(number):
    def draw():
        DO
        return Markup(f"<p>{number} ε\\n\\r\\udc80</p>")
    return draw
found = in_halves([part(number) for number in range(COUNT)])
assert found == [Markup(f"<p>{number} ε\\n\\r\\udc80</p>") for number in range(COUNT)]
assert all(isinstance(each, Markup) for each in found)
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("nobody left")
"""


@pytest.mark.parametrize("count", [0, 1, 2, 5])
@pytest.mark.parametrize(
    "what",
    [
        "pass",
        "if os.getpid() != HERE and number == 3: os.kill(os.getpid(), 9)",
        "if os.getpid() != HERE: raise RuntimeError",
    ],
)
def test_all_parts_come_in_their_order(what, count):
    code = CODE.replace("DO", what).replace("COUNT", str(count))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "nobody left\n"), done.stderr


def test_a_part_that_cannot_be_drawn_is_seen_here():
    code = "from simulations.report import halves\ndef no(): raise OSError('no')\n"
    code += "halves.in_halves([no, lambda: 'x' * 10**6])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("OSError: no")


def test_the_report_is_the_same_to_the_letter(tmp_path):
    run = report_folders.ten_nodes(tmp_path / "run")
    written = write_report(run).read_bytes()
    code = "import pathlib, sys; from simulations.report import write_report; "
    code += "write_report(pathlib.Path(sys.argv[1]), True)"
    subprocess.run([sys.executable, "-c", code, run], check=True)
    assert (run / "report.html").read_bytes() == written
