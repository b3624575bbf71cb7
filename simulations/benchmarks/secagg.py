"""What secure aggregation costs a node and the server a round, against sending the vector as it is."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from client.secagg_node import SumNode
from common.privacy.keys import openssh, sign
from common.secagg.messages import Stage
from common.secagg.roster import Roster, read_roster
from common.secagg.session import Session, SumRun, SumTerms
from common.secagg.signatures import verified
from server.secagg_round import masked_sum

NODES = (5, 20, 100)
LENGTHS = (10_250, 1_000_000)  # a linear head over 1,024 features and ten classes; upper stages
ROUNDS = 3
MEASURED = 2  # nodes a round whose time is taken, as if they were alone in their processes


@dataclass
class Measured:
    """A round's costs, a node.

    Attributes:
        node_s: processor seconds of each measured node.
        server_s: processor seconds of the server.
        up: bytes from a node, mean.
        down: bytes to a node, mean.
    """

    node_s: dict[str, float] = field(default_factory=dict)
    server_s: float = 0.0
    up: float = 0.0
    down: float = 0.0


def main() -> None:
    """Print the table: processor time, so that a busy machine changes it little."""
    table = Table(
        "nodes",
        "numbers",
        "bytes sent: plain",
        "masked",
        "received, more",
        "ms a node: plain",
        "masked",
        "ms at the server: plain",
        "masked",
        title="secure aggregation, processor time a round in process, one node of ten dropping out",
    )
    for length in LENGTHS:
        for count in NODES:
            plain, masked = plain_round(count, length), _median(count, length)
            table.add_row(
                str(count),
                f"{length:,}",
                f"{plain.up:,.0f}",
                f"{masked.up:,.0f}",
                f"{masked.down:,.0f}",
                *(f"{seconds * 1000:.1f}" for seconds in _seconds(plain, masked)),
            )
    Console(width=140).print(table)


def plain_round(count: int, length: int) -> Measured:
    """Send float32 as it is, and add it up."""
    vectors = [np.random.default_rng(number).normal(size=length).astype(np.float32) for number in range(count)]
    measured = Measured()
    began = time.process_time()
    sent = [vector.tobytes() for vector in vectors]
    measured.node_s = {"each": (time.process_time() - began) / count}
    began = time.process_time()
    total = np.zeros(length, np.float32)
    for data in sent:
        total += np.frombuffer(data, np.float32)
    measured.server_s = time.process_time() - began
    measured.up = len(sent[0])
    return measured


def masked_round(count: int, length: int, folder: Path) -> Measured:
    """One round, every measured node with a process's cold memory; one node of ten sends no masked vector."""
    keys = {f"node-{number:03}": ec.generate_private_key(ec.SECP384R1()) for number in range(count)}
    peers = Roster({name: openssh(key.public_key()) for name, key in keys.items()})
    terms = SumTerms(nodes=count, dropouts=max(count // 10, 1), colluders=1, modulus_bits=32, length=length)
    run = SumRun(run_id="benchmark", plan_digest="00" * 32, terms=terms)
    (folder / "peers").write_text(peers.to_text())
    vector = np.arange(length, dtype=np.int64) % 1000
    measured, waiting = Measured(), 0.0

    def ask(stage: Stage, requests: Mapping[str, bytes]) -> dict[str, bytes]:
        nonlocal waiting
        entered, replies = time.process_time(), {}
        for place, (name, request) in enumerate(requests.items()):
            measure = place < MEASURED
            if measure:
                verified.cache_clear()
            began = time.process_time()
            known = read_roster(folder / "peers") if measure else peers
            node = SumNode(name, partial(sign, keys[name]), known, folder / name, durable=measure)
            replies[name] = node.answer(stage, request, run, lambda: vector)
            if measure:
                measured.node_s[name] = measured.node_s.get(name, 0.0) + time.process_time() - began
            measured.up += len(replies[name]) / count
            measured.down += len(request) / count
        if stage is Stage.VECTOR:
            for name in list(replies)[-(count // 10) :] if count >= 10 else ():
                del replies[name]
        verified.cache_clear()
        waiting += time.process_time() - entered
        return replies

    began = time.process_time()
    found = masked_sum(Session.of(run, 1, peers), peers, ask)
    measured.server_s = time.process_time() - began - waiting
    _check(found.values, vector * len(found.survivors))
    return measured


def _check(found: NDArray[np.int64], expected: NDArray[np.int64]) -> None:
    assert np.array_equal(found, expected)


def _median(count: int, length: int) -> Measured:
    rounds = []
    for _ in range(1 if count > 50 else ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(masked_round(count, length, Path(folder)))
    return Measured(
        {"each": statistics.median(seconds for one in rounds for seconds in one.node_s.values())},
        _over(rounds, lambda one: one.server_s),
        _over(rounds, lambda one: one.up),
        _over(rounds, lambda one: one.down),
    )


def _over(rounds: list[Measured], what: Callable[[Measured], float]) -> float:
    return statistics.median(map(what, rounds))


def _seconds(plain: Measured, masked: Measured) -> tuple[float, float, float, float]:
    return plain.node_s["each"], masked.node_s["each"], plain.server_s, masked.server_s
