"""What the engine shares between nodes changes nothing: not a bit of a head, not an entry of a ledger."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as MessageProto

import client.app
from client.open_ledgers import OpenLedgers
from client.simulated_node import untouched_ledger
from common.config import RunConfig
from server.app import run
from simulations.engine import InProcessGrid, task_identity
from simulations.result import build_result
from tests.federations import digest_of, small_config

RUNS: dict[str, dict[str, dict[str, Any]]] = {
    "cohorts and steps": {"federation": {"nodes": 6, "cohort": 3, "rounds": 4}, "training": {"local_steps": 2}},
    "an MLP": {"model": {"head": "mlp", "hidden": 8}, "federation": {"strategy": "fedavgm"}},
    "a proximal term": {"federation": {"strategy": "fedprox", "proximal_mu": 0.1}},
}


class Serialised(InProcessGrid):
    """Every message and every reply by itself, as a network would carry it."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver copies."""
        ids: list[str] = []
        for message in messages:
            ids += super().push_messages([copied(message)])
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Hand out copies."""
        return [copied(reply) for reply in super().pull_messages(message_ids)]


def copied(message: Message) -> Message:
    return message_from_proto(MessageProto.FromString(message_to_proto(message).SerializeToString()))


def played(kind: type[InProcessGrid], config: RunConfig, folder: Path, ledgers: OpenLedgers) -> Path:
    """A run under one id, so that ledgers can be compared entry by entry."""
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"run_id": "the-same"}))
    with task_identity(), ledgers:
        nodes = config.federation.nodes
        run(config, kind(client.app.app, config, range(nodes), folder, ledgers), folder, nodes)
    return folder


def entries(folder: Path) -> Iterator[tuple[Any, ...]]:
    for path in sorted((folder / "ledgers").glob("*.sqlite")):
        with closing(sqlite3.connect(path)) as connection:
            yield path.name, connection.execute("SELECT * FROM entries").fetchall()
            yield path.name, connection.execute("SELECT * FROM replies").fetchall()


@pytest.mark.parametrize("name", RUNS)
def test_shared_contents_and_open_ledgers_give_the_same_head_and_ledgers(name: str, tmp_path: Path) -> None:
    config = small_config(**RUNS[name])
    shared = played(InProcessGrid, config, tmp_path / "shared", OpenLedgers(100))
    alone = played(Serialised, config, tmp_path / "serialised", OpenLedgers(0))
    assert digest_of(shared) == digest_of(alone)
    assert list(entries(shared)) == list(entries(alone))


def test_ledgers_stay_open_between_rounds(tmp_path: Path) -> None:
    config, ledgers = small_config(), OpenLedgers(100)
    grid = InProcessGrid(client.app.app, config, range(4), tmp_path, ledgers)
    with task_identity():
        run(config, grid, tmp_path, 4)
    assert len(ledgers) == 4
    ledgers.close()


def test_a_node_that_no_round_asked_has_no_ledger_and_spent_nothing(tmp_path: Path) -> None:
    from common.durable import read_lines
    from server.checkpoints import RunStore
    from server.run_folder import run_identity
    from simulations import preflight

    config = small_config(federation={"nodes": 6, "cohort": 1, "rounds": 2})
    folder = played(InProcessGrid, config, tmp_path / "run", OpenLedgers(100))
    ready, final = preflight.check(config), RunStore(folder, run_identity(folder)).latest()
    assert final is not None
    result = build_result(config, ready, final, read_lines(folder / "rounds.jsonl"), {}, None, folder, "inprocess")
    spent = result["privacy"]["epsilon_per_node"]
    asked = set(final.participation)
    assert 1 <= len(asked) <= 2
    assert {name for name in spent if untouched_ledger(folder, name, config) is None} == asked
    assert {name for name, epsilon in spent.items() if epsilon > 0} == asked
