"""The comparison with other frameworks: its measuring, its table and its page, without a network or any peer."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import psutil
import pytest

from common.config import RunConfig
from common.errors import ConfigError
from common.privacy.accountant import Event, epsilon_pld
from simulations.benchmarks import peers
from simulations.benchmarks.peers import environments, ours, table
from simulations.benchmarks.peers.environments import Peer, Ready
from simulations.benchmarks.peers.measured import Measured, measure
from simulations.benchmarks.peers.table import Row
from simulations.benchmarks.peers.work import Work, lay_out, read

NOTHING = Measured(1.0, 1.0, 1, 0, "")
GRANDCHILD = """
import time
block, end = bytearray(b"x") * 80_000_000, time.process_time() + 0.6
while time.process_time() < end:
    pass
time.sleep(1.5)
"""
CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True); print('done')"


def test_a_commands_whole_tree_is_measured():
    found = measure([sys.executable, "-c", CHILD, GRANDCHILD])
    assert found.status == 0
    assert found.tail.strip() == "done"
    assert found.wall_s >= 2.1
    assert 0.4 < found.processor_s < found.wall_s
    assert 80e6 < found.peak_bytes < 400e6


def test_at_the_limit_the_tree_and_what_left_it_is_stopped():
    leaver = (
        "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], "
        "start_new_session=True); print(p.pid, flush=True); time.sleep(600)"
    )
    found = measure([sys.executable, "-c", leaver], limit_s=10)
    assert found.status is None
    assert not psutil.pid_exists(int(found.tail)) or psutil.Process(int(found.tail)).status() == "zombie"


def row(program: str, wall_s: float) -> Row:
    return Row("w", program, wall_s, 2 * wall_s, int(wall_s * 1e9), wall_s / 1000, 0.9, 8.0, "image")


def test_ratios_are_theirs_to_ours_on_the_same_work():
    other = Row("v", "peer", 50.0, 1.0, 1, None, 0.5, 8.0, "image")
    lines = table.all_cells([row(table.OURS, 2), row("peer", 9), other])
    by_title = [dict(zip(table.TITLES, line, strict=True)) for line in lines]
    assert [line["wall ÷ ours"] for line in by_title] == ["1.0", "4.5", ""]
    assert by_title[1] == {
        "work": "w",
        "program": "peer",
        "wall, s": "9.0",
        "wall ÷ ours": "4.5",
        "processor, s": "18.0",
        "memory, GB": "9.00",
        "÷ ours": "4.5",
        "a round, ms": "9.0",
        "accuracy": "0.900",
        "ε": "8.00, image",
    }


def test_a_program_that_was_stopped_shows_what_it_is_slower_than():
    stopped = Row("w", "peer", problem="stopped after 100 s", at_least_s=100)
    assert table.cells(stopped, row(table.OURS, 8))[2:4] == ("stopped after 100 s", "> 12.5")
    assert table.cells(stopped, None)[3] == ""


def test_of_several_runs_the_median_is_shown_with_the_range():
    found = table.median([row(table.OURS, wall) for wall in (9, 7, 8)])
    assert table.cells(found, found)[2:5] == ("8.0 (7.0 to 9.0)", "1.0", "16.0")
    assert table.median([row(table.OURS, wall) for wall in (9, 7)]).wall_s == 9
    assert table.cells(table.median([row(table.OURS, 7)]), None)[2] == "7.0"


def test_a_run_that_failed_is_not_hidden_by_others_that_did_not():
    failed = Row("w", table.OURS, problem="ended with status 1")
    assert table.median([row(table.OURS, 9), failed, row(table.OURS, 8)]) == failed


@pytest.mark.parametrize(("wall_s", "runs"), [(12.0, 3), (61.0, 1)])
def test_a_quick_fedgraft_runs_anew_after_each_program(wall_s, runs, monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(peers, "lay_out", lambda work, folder: folder / "work.json")

    def run(name: str, wall_s: float) -> Row:
        told.append(name)
        return row(name, wall_s)

    monkeypatch.setattr(ours, "run", lambda *_: run(table.OURS, wall_s))
    monkeypatch.setattr(peers, "run_peer", lambda work, program, *_: run(program.title, 100))
    programs = peers.choice("2x20x1@32:flower,pfl-features", [])[1]
    made = {program.peer: environments.EnvironmentNotMadeError("no") for program in programs.values()}
    rows = peers.compare(read("2x20x1@32"), programs, made, 100.0, lambda _: None)
    assert [each.program for each in rows] == [table.OURS, "Flower + Opacus", "pfl, precomputed features"]
    assert told[:2] == [table.OURS, "Flower + Opacus"]
    assert told.count(table.OURS) == runs


def test_a_setting_may_choose_its_programs(tmp_path):
    work, programs = peers.choice("10x20x5@64:pfl-features,flower", ["flare"])
    assert (work.nodes, list(programs)) == (10, ["pfl-features", "flower"])
    assert list(peers.choice("10x20x5@64", ["flare"])[1]) == ["flare"]
    with pytest.raises(ConfigError, match=r"expected programs out of .*got flowers"):
        peers.choice("10x20x5@64:flowers", ["flare"])


def test_a_program_that_was_stopped_is_a_bar_that_says_over(tmp_path):
    stopped = Row("w", "peer", problem="stopped after 100 s", at_least_s=100)
    table.plot([row(table.OURS, 8), stopped, Row("w", "broken", problem="ended with status 1")], tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    assert "over 100.0 s, over 12.5 times" in drawn
    assert "broken" not in drawn


def test_a_page_without_a_folder_is_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDGRAFT_PAGE", str(tmp_path / "absent" / "page.md"))
    with pytest.raises(ConfigError, match=r"needs a folder that is there"):
        peers.main()


def test_the_page_keeps_what_stands_around_its_markers(tmp_path):
    page = tmp_path / "performance.md"
    table.write_page(page, "first")
    page.write_text(page.read_text(encoding="utf-8") + "\nby hand\n", encoding="utf-8")
    table.write_page(page, "second")
    text = page.read_text(encoding="utf-8")
    assert "second" in text
    assert "first" not in text
    assert text.endswith("\nby hand\n")
    bare = tmp_path / "bare.md"
    bare.write_text("# Mine\n", encoding="utf-8")
    table.write_page(bare, "figures")
    assert bare.read_text(encoding="utf-8").startswith("# Mine\n")
    assert f"{table.BEGIN}\nfigures\n{table.END}" in bare.read_text(encoding="utf-8")


def test_a_peer_that_cannot_be_installed_is_a_row_that_says_so(tmp_path, monkeypatch):
    peer = Peer("gone", ("no-such-package==1",), "no-such-package")

    def without_pip(place: Path, with_pip: bool) -> None:
        (place / "lib/python3/site-packages").mkdir(parents=True)

    def refused(command: list[str], **options: object) -> None:
        stderr = "Collecting no-such-package\nERROR: No matching distribution found for no-such-package==1\n"
        raise subprocess.CalledProcessError(1, command, stderr=stderr)

    monkeypatch.setattr(venv, "create", without_pip)
    monkeypatch.setattr(subprocess, "run", refused)
    made = peers.make_all({peer}, tmp_path / "envs")
    program = peers.Program("Gone", peer, "gone.py", "gone")
    work = read("2x20x1@32")
    found = peers.run_peer(work, program, made[peer], tmp_path / "w.json", tmp_path, 1.0)
    assert found.problem == "could not be installed: ERROR: No matching distribution found for no-such-package==1"
    assert not (tmp_path / "envs" / "no-such-package" / environments.STAMP).exists()
    page = tmp_path / "page.md"
    peers.publish([row(table.OURS, 2), found], made, peers.now(), page)
    assert "| Gone | could not be installed: ERROR: No matching" in page.read_text(encoding="utf-8")
    assert "no-such-package not installed" in page.read_text(encoding="utf-8")
    assert "<svg" in page.with_suffix(".svg").read_text(encoding="utf-8")


def test_an_environment_is_used_again_only_while_its_stamp_fits(tmp_path, monkeypatch):
    installed: list[str] = []

    def create(place: Path, with_pip: bool) -> None:
        (place / "lib/python3/site-packages").mkdir(parents=True)
        (place / "bin").mkdir()
        (place / "bin" / "python").touch()

    monkeypatch.setattr(venv, "create", create)
    monkeypatch.setattr(environments, "_install", lambda python, peer, *rest: installed.append(peer.requirements[0]))
    monkeypatch.setattr(environments, "_versions", lambda python: {})
    for requirement in ("p==1", "p==1", "p==2"):
        ready = environments.make(Peer("p", (requirement,), "p"), tmp_path / "p")
    assert installed == ["p==1", "p==2"]
    links = tmp_path / "p" / environments.LINKS
    assert (links / "torch" / "__init__.py").exists()
    assert (tmp_path / "p/lib/python3/site-packages/shared.pth").read_text(encoding="utf-8").strip() == str(links)
    assert isinstance(ready, Ready)


def test_a_program_that_fails_or_is_stopped_gives_a_row(tmp_path):
    work = read("2x20x1@32")
    failed = Measured(1, 1, 1, 3, "Traceback\nValueError: no\n")
    assert peers.row_of(work, "p", failed, tmp_path / "r", 9).problem == "ended with status 3: ValueError: no"
    assert "status 0: no word" in peers.row_of(work, "p", NOTHING, tmp_path / "r", 9).problem
    stopped = peers.row_of(work, "p", Measured(9, 9, 9, None, ""), tmp_path / "r", 9)
    assert (stopped.problem, stopped.at_least_s) == ("stopped after 9 s", 9)
    (tmp_path / "r").write_text(json.dumps({"round_s": 0.5, "accuracy": 1, "epsilon": 8, "unit": "node"}))
    assert peers.row_of(work, "p", NOTHING, tmp_path / "r", 9).epsilon == 8


def test_the_work_is_the_same_for_all_and_for_fedgraft(tmp_path):
    work = read("3x80x2@32")
    file = lay_out(work, tmp_path)
    numbers = json.loads(file.read_text(encoding="utf-8"))
    event = Event(numbers["noise_multiplier"], numbers["sampling_rate"], work.rounds * numbers["local_steps"])
    assert numbers["local_steps"] == 2
    assert 0.95 * work.epsilon < epsilon_pld([event], work.delta) <= work.epsilon
    with np.load(numbers["images"]) as images:
        assert images["images"].shape == (3 * 80 + work.test, 32, 32, 3)
        assert [int((images["site"][:240] == name).sum()) for name in np.unique(images["site"])] == [80, 80, 80]
        assert (images["split"] == "test").sum() == work.test
    config = RunConfig.model_validate(ours.configuration(work, tmp_path / f"{work.name}.npz", tmp_path / "r"))
    assert config.privacy.sampling_rate == numbers["sampling_rate"]
    assert config.training.local_steps == numbers["local_steps"]


@pytest.mark.parametrize("name", ["10x200@64", "axbxc@64", "0x20x5@64", "10x200x5@16", "10x200x5"])
def test_a_work_that_is_none_is_refused(name):
    with pytest.raises(ConfigError, match=r"10x200x5@64|at least one node"):
        read(name)


def test_small_nodes_take_every_image_in_each_step():
    assert (Work(2, 20, 1, 32).local_steps, Work(2, 20, 1, 32).sampling_rate) == (1, 1.0)


def test_the_peers_programs_are_there_and_know_nothing_of_fedgraft():
    for program in peers.PROGRAMS.values():
        assert (peers.PROGRAMS_FOLDER / program.script).is_file()
    for path in peers.PROGRAMS_FOLDER.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not {name.split(".")[0] for name in names} & {"common", "client", "server", "simulations", "fedgraft"}
