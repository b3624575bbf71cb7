"""Nodes played by forked processes: the same heads and ledgers, and a clear end when one of them is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from client.simulated_node import open_simulated_ledger
from common.errors import FederationError
from simulations.engine import run_in_process
from simulations.workers import WORTH_A_WORKER, Worker, workers_for
from tests.federations import digest_of, small_config


@pytest.mark.parametrize("workers", [1, 3])
def test_whoever_plays_the_nodes_heads_and_ledgers_are_the_same(workers: int, tmp_path: Path) -> None:
    config, before = small_config(federation={"cohort": 3}), psutil.Process().children()
    for name, count in (("alone", 0), ("together", workers)):
        (tmp_path / name).mkdir()
        run_in_process(config, tmp_path / name, range(4), workers=count)
    assert digest_of(tmp_path / "alone") == digest_of(tmp_path / "together")
    for node in range(4):
        statements = []
        for name in ("alone", "together"):
            with open_simulated_ledger(tmp_path / name, f"node-00{node}", config) as ledger:
                ledger.verify()
                said = ledger.statement()
            rounds = [round_ for _, round_ in said.committed]
            statements.append((said.epsilon, said.steps, said.entries, rounds, said.open_reservations))
        assert statements[0] == statements[1]
    left = [sorted(path.name for path in (tmp_path / name / "ledgers").iterdir()) for name in ("alone", "together")]
    assert left[0] == left[1]
    assert psutil.Process().children() == before


def test_without_a_seed_two_processes_share_no_noise(tmp_path: Path) -> None:
    """Equal records, equal sampling: only noise tells the two replies of one round apart."""
    pipes = [Worker(_noise, _nothing, ()), Worker(_noise, _nothing, ())]
    for worker in pipes:
        worker.begin([b""])
    one, other = (worker.finish() for worker in pipes)
    for worker in pipes:
        worker.close()
    assert one != other
    assert one != _noise([b""])


def test_a_worker_that_is_killed_is_said_to_have_ended() -> None:
    worker = Worker(_kill, _nothing, ())
    worker.begin([b""])
    with pytest.raises(FederationError, match=r"ended early \(exit status -9\).*--resume"):
        worker.finish()
    worker.close()


def test_a_worker_hears_no_interrupt_and_ends_with_its_pipe() -> None:
    before = psutil.Process().children()
    worker = Worker(_interrupt, _nothing, ())
    worker.begin([b"one"])
    assert worker.finish() == [b"one"]
    worker.close()
    assert psutil.Process().children() == before


def test_only_long_work_is_worth_a_worker() -> None:
    assert workers_for(10, WORTH_A_WORKER - 1) == 0
    assert workers_for(3, WORTH_A_WORKER) == 0
    assert workers_for(1000, WORTH_A_WORKER) == len(os.sched_getaffinity(0)) - 1


def _noise(_: Sequence[bytes]) -> list[bytes]:
    from common.privacy.noise import SystemRandomness

    return [SystemRandomness().normal((4,)).tobytes()]


def _kill(_: Sequence[bytes]) -> list[bytes]:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def _interrupt(messages: Sequence[bytes]) -> list[bytes]:
    os.kill(os.getpid(), signal.SIGINT)
    return list(messages)


def _nothing() -> None:
    """Nothing has to be closed."""
