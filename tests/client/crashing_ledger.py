"""Run by ``test_ledger_crash``, as ``python -m tests.client.crashing_ledger``: children that charge, and die."""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from client.ledger import Ledger, Reservation, Spend
from common.errors import ConfigError
from common.privacy.accountant import epsilon_by_round
from common.privacy.plan import PrivacyTerms

DELTA = 1e-5
PLAN = PrivacyTerms("record", "local", 1.0, 1000, 1, 1.0, 20.0, DELTA).for_node(100)


def open_ledger(path: Path, durable: bool, alone: bool = False) -> Ledger:
    return Ledger.open(path, "data", delta=DELTA, epsilon_cap=1000.0, durable=durable, alone=alone)


def work(path: Path, run: str, durable: bool, alone: bool, pipe: int, most: int) -> None:
    """Charge and release round after round; what is released is told to the pipe, as a network would."""
    with open_ledger(path, durable, alone) as ledger:
        for round in range(1, most + 1):
            reservation = ledger.reserve(Spend(run, round, "h"), PLAN)
            assert isinstance(reservation, Reservation)
            os.write(pipe, f"reserved {run} {round}\n".encode())
            ledger.commit(reservation, b"x" * 30_000)
            os.write(pipe, f"released {run} {round}\n".encode())


def fork(path: Path, run: str, durable: bool, most: int, alone: bool = False) -> tuple[int, int]:
    """Start a child at work; its process id, and the pipe to read what it did."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        work(path, run, durable, alone, write_end, most)
        os._exit(0)
    os.close(write_end)
    return child, read_end


def read_all(pipe: int) -> set[tuple[str, str, int]]:
    """What a child told, until its end; a line cut short by its death is left out."""
    with os.fdopen(pipe) as stream:
        return parsed(stream)


def parsed(lines: Iterable[str]) -> set[tuple[str, str, int]]:
    """What the complete lines tell."""
    return {(what, run, int(round)) for what, run, round in (line.split() for line in lines if line.endswith("\n"))}


def kill_at_any_moment(path: Path, kills: int, durable: bool, alone: bool) -> None:
    """Kill workers at random moments; after each, the ledger knows at least what was told.

    A worker is let go on until it has told up to six things, and then some part of a round more: so that all of them
    together get work done, however slow the disk. Every fourth may die while it opens the file.
    """
    epsilon_by_round(PLAN.terms)
    round_s = undisturbed_round_s(path.with_name("undisturbed.db"), durable)
    told: set[tuple[str, str, int]] = set()
    moments = random.Random(1)
    for number in range(kills):
        child, pipe = fork(path, f"run-{number}", durable, 900, alone)
        with os.fdopen(pipe) as stream:
            lines = [stream.readline() for _ in range(moments.randrange(1, 7) if number % 4 else 0)]
            time.sleep(moments.uniform(0.0, 2 * round_s))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            told |= parsed([*lines, *stream])
        check(path, durable, told)
    print(f"released {sum(what == 'released' for what, _, _ in told)}")


def undisturbed_round_s(path: Path, durable: bool) -> float:
    """How long a round takes here and now; disks differ."""
    start = time.perf_counter()
    child, pipe = fork(path, "run", durable, 10)
    read_all(pipe)
    os.waitpid(child, 0)
    return (time.perf_counter() - start) / 10


def check(path: Path, durable: bool, told: set[tuple[str, str, int]]) -> None:
    """The file alone accounts for everything that was told, and its chain holds."""
    with open_ledger(path, durable) as ledger:
        ledger.verify()
        said = ledger.statement()
    assert {(run, round) for what, run, round in told if what == "released"} <= set(said.committed)
    charged = set(said.committed) | set(said.open_reservations)
    assert {(run, round) for _, run, round in told} <= charged
    assert said.steps == len(said.committed) + len(said.open_reservations)


def share(path: Path) -> None:
    """Two processes charge the same file at once."""
    epsilon_by_round(PLAN.terms)
    children = [fork(path, run, False, 100) for run in ("one", "two")]
    told = {entry for _, pipe in children for entry in read_all(pipe)}
    assert [os.waitpid(child, 0)[1] for child, _ in children] == [0, 0]
    check(path, False, told)
    print(f"released {sum(what == 'released' for what, _, _ in told)}")


def fill_the_disk(path: Path) -> None:
    """Commit a reply that does not fit: a file-size limit stands for a full disk."""
    with open_ledger(path, True) as ledger:
        reservation = ledger.reserve(Spend("run", 1, "h"), PLAN)
        assert isinstance(reservation, Reservation)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 50_000, resource.RLIM_INFINITY))
        try:
            ledger.commit(reservation, bytes(1_000_000))
        except ConfigError as error:
            print(error)
        assert ledger.statement().open_reservations == (("run", 1),)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        ledger.verify()
        ledger.commit(reservation, bytes(1_000_000))
        assert ledger.statement().committed == (("run", 1),)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["kill", path, kills, mode]:
            kill_at_any_moment(Path(path), int(kills), mode == "durable", mode == "alone")
        case ["share", path]:
            share(Path(path))
        case ["fill", path]:
            fill_the_disk(Path(path))
