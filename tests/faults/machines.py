"""Faults of machines: full disks, and clocks that jump."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from contextlib import closing

from common import paths
from server.database import BUSY_MS
from tests.faults.disk import fill, may_mount, small_disk
from tests.faults.federation import Federation
from tests.faults.killed import LOST_S, PATIENT_S
from tests.faults.outcome import Row, Rows, sentence, settled
from tests.faults.replay import failures

JUMP_S = 600
STALLS_S = (15, 60)


def full_disk_of_node(federation: Federation) -> Rows:
    """The disk with a node's ledger is full for some rounds."""
    if not may_mount():
        return [Row("full disk at a node", "not tried: mounting a small disk needs root", "—", "—")]
    ledgers = federation.homes["n2"] / "ledgers"
    ledgers.mkdir(mode=0o700, exist_ok=True)
    federation.hold("n2", 2)
    federation.hold("n1", 4)
    with small_disk(ledgers, 4):
        run = federation.play("full-node", rounds=6, timeout_s=PATIENT_S)
        federation.reached("n2")
        filler = fill(ledgers)
        federation.go_on("n2")
        federation.reached("n1")
        told = federation.type_here("node", "check", home=federation.homes["n2"], status=1)
        filler.unlink()
        federation.go_on("n1")
        run.finished()
        excess = settled(federation, run.folder, rounds=6, excess={"n2": 1})
    missed = failures(run.folder)
    assert set(missed) == {"n2 data"}
    assert 2 <= len(missed) <= 3  # the round of n1 was asked of n2, too
    said = (federation.homes["n2"] / "logs" / "apps.log").read_text()
    assert "n2 refuses: its records or its configuration cannot be used" in said
    failed = next(line for line in told.splitlines() if "FAIL" in line)
    sees = f"the coordinator: `data`; the hospital's log: see `fedgraft node check`, which says `{sentence(failed)}`"
    return [Row("full disk at a node", sees, "the cohorts without that node", excess)]


def full_disk_of_server(federation: Federation) -> Rows:
    """The disk with the coordinator's runs is full in a run, which is resumed when there is room again."""
    if not may_mount():
        return [Row("full disk at the coordinator", "not tried: mounting a small disk needs root", "—", "—")]
    federation.hold("n1", 2)
    with small_disk(federation.server / "runs", 64):
        run = federation.play("full-server", rounds=4, timeout_s=PATIENT_S)
        federation.reached("n1")
        filler = fill(federation.server / "runs")
        federation.go_on("n1")
        status, said = run.ended()
        assert status != 0
        filler.unlink()
        run = federation.resume("full-server")
        run.finished()
        excess = settled(federation, run.folder, rounds=4)
    return [Row("full disk at the coordinator, then resumed", sentence(said), "the undisturbed model", excess)]


def stalled(federation: Federation) -> Rows:
    """The coordinator's database cannot be written to for a while, as on a disk that is overwhelmed."""
    rows = []
    for seconds in STALLS_S:
        name = f"stalled-{seconds}"
        federation.hold("n1", 2)
        run = federation.play(name, rounds=4, timeout_s=PATIENT_S)
        federation.reached("n1")
        with closing(sqlite3.connect(federation.server / "state.db", timeout=PATIENT_S)) as database:
            database.execute("BEGIN IMMEDIATE")
            federation.go_on("n1")
            time.sleep(seconds)
            database.rollback()
        status, said = run.ended()
        assert federation.online(list(federation.homes))
        if status != 0:
            run = federation.resume(name)
            run.finished()
        excess = settled(federation, run.folder, rounds=4, excess=dict.fromkeys(federation.homes, 2))
        missed = failures(run.folder)
        if seconds * 1000 < BUSY_MS:
            assert (status, missed) == (0, []), said
        rows.append(
            Row(
                f"the coordinator's database locked for {seconds} s" + (", then resumed" if status != 0 else ""),
                sentence(said) if status != 0 else "a round that takes longer",
                "the documented cohorts" if missed else "the undisturbed model",
                excess,
            )
        )
    return rows


def clock_of_node(federation: Federation) -> Rows:
    """A node's clock jumps ten minutes ahead in a round, then back; and in another run ten minutes behind."""
    name, rows = "n2", []
    for jump_s, where in ((JUMP_S, "ahead"), (-JUMP_S, "behind")):
        federation.hold(name, 2)
        run = federation.play(f"clock-{where}", rounds=4, timeout_s=LOST_S)
        federation.reached(name)
        federation.set_clock(federation.homes[name], jump_s)
        federation.go_on(name)
        run.finished()
        said = _clock_checked(federation, name)
        federation.set_clock(federation.homes[name], 0)
        assert federation.online([name])
        excess = settled(federation, run.folder, rounds=4, excess={name: 2})
        assert failures(run.folder)[0] == f"{name} no reply"
        sees = f"the coordinator: `no reply`, then `absent`; the hospital: `{said}`; back when the clock is right"
        rows.append(
            Row(f"a node's clock jumps {JUMP_S // 60} minutes {where}", sees, "the cohorts without that node", excess)
        )
    return rows


def clock_of_server(federation: Federation) -> Rows:
    """The coordinator's clock jumps ten minutes ahead in a round, then back; the run is resumed if it ended."""
    federation.hold("n1", 2)
    run = federation.play("clock-server", rounds=4, timeout_s=LOST_S)
    federation.reached("n1")
    federation.set_clock(federation.server, JUMP_S)
    federation.go_on("n1")
    status, said = run.ended()
    federation.set_clock(federation.server, 0)
    assert federation.online(list(federation.homes))
    if status != 0:
        run = federation.resume("clock-server")
        run.finished()
    excess = settled(federation, run.folder, rounds=4, excess=dict.fromkeys(federation.homes, 2))
    missed = failures(run.folder)
    return [
        Row(
            f"the coordinator's clock jumps {JUMP_S // 60} minutes ahead, then back"
            + (", resumed" if status != 0 else ""),
            sentence(said) if status != 0 else "`no reply`, until it is right",
            "the documented cohorts" if missed else "the undisturbed model",
            excess,
        )
    ]


def _clock_checked(federation: Federation, name: str) -> str:
    """What the node's own check says of its clock, by that clock."""
    home, sources = federation.homes[name], federation.folder / "sources"
    command = [sys.executable, "-m", "fedgraft", "node", "check", "--home", str(home)]
    around = {**federation.environment(), paths.NODE_FOLDER: str(home)}
    done = subprocess.run(command, capture_output=True, text=True, env=around, cwd=sources, timeout=PATIENT_S)
    return sentence(next(line for line in done.stdout.splitlines() if "FAIL" in line and "clock" in line))
