"""Rows of docs/privacy-pitfalls.md that no other test of the rounds guards."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

import client.app
import server.app
from client.ledger import Spend, StoredReply
from client.simulated_node import open_simulated_ledger
from common import wire
from common.config import RunConfig
from common.durable import read_lines
from common.heads import arrays_digest
from common.privacy.accountant import epsilon_by_round
from common.privacy.entries import read_entries
from common.privacy.plan import PrivacyPlan
from common.privacy.statement import Statement, statement_of
from common.tasks import Scores
from server.aggregation import build_strategy
from server.checkpoints import RunStore
from server.coordinator import privacy_terms, propose
from server.link import Link
from server.rounds import run_rounds
from server.run_folder import run_identity
from simulations.engine import InProcessGrid, run_in_process, task_identity
from tests.federations import small_config


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    level = logging.getLogger("flwr").level
    logging.getLogger("flwr").setLevel(logging.CRITICAL + 1)
    yield
    logging.getLogger("flwr").setLevel(level)


def spent_in(folder: Path, name: str) -> Statement:
    return statement_of(read_entries(folder / "ledgers" / f"{name}.sqlite"))


def test_a_cohort_lowers_neither_the_noise_nor_what_a_round_costs(tmp_path: Path) -> None:
    some, everybody = small_config(federation={"cohort": 1}), small_config()
    assert privacy_terms(some, 64) == privacy_terms(everybody, 64)
    run_in_process(some, tmp_path, range(4))
    final = RunStore(tmp_path, run_identity(tmp_path)).latest()
    assert final is not None
    assert sum(final.participation.values()) == 3
    table = epsilon_by_round(privacy_terms(some, 64))
    for name, rounds in final.participation.items():
        assert spent_in(tmp_path, name).epsilon == table[rounds]
    assert (
        max(line["epsilon"] for line in read_lines(tmp_path / "rounds.jsonl"))
        == table[max(final.participation.values())]
    )


def test_the_last_head_is_kept_whatever_the_scores_say(tmp_path: Path) -> None:
    config = small_config()
    proposal = propose(config, run_identity(tmp_path))
    seen: list[dict[str, torch.Tensor]] = []

    def worse_every_time(head: dict[str, torch.Tensor]) -> Scores:
        seen.append(head)
        scores = proposal.evaluate(head)
        return Scores(**{**vars(scores), "accuracy": 1 - len(seen) / 10})

    with task_identity():
        link = Link(InProcessGrid(client.app.app, config, range(4), tmp_path))
        store = RunStore(tmp_path, run_identity(tmp_path))
        final = run_rounds(proposal.plan, link, build_strategy("fedavg"), store, proposal.start, worse_every_time)
    assert final.round == len(seen) == config.federation.rounds
    assert arrays_digest(final.head) == arrays_digest(seen[-1])


def unplugged_in_round(last: int) -> ClientApp:
    """The real app, on a machine that is switched off when that round is asked for."""
    app = ClientApp()
    app.query(wire.HELLO_ACTION)(client.app.hello)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if message.content.config_records[wire.CONFIG][wire.ROUND] == last:
            raise KeyboardInterrupt
        return client.app.train(message, context)

    return app


def released(folder: Path, config: RunConfig, name: str, round_: int, sent: dict[str, torch.Tensor]) -> torch.Tensor:
    """The weights that a node released in a round, from its own ledger."""
    bodies = [entry.body for entry in read_entries(folder / "ledgers" / f"{name}.sqlite")]
    plan = next(PrivacyPlan.from_dict(body["plan"]) for body in bodies if body["kind"] == "plan")
    with open_simulated_ledger(folder, name, config) as ledger:
        reply = ledger.reserve(Spend(run_identity(folder), round_, arrays_digest(sent), name), plan)
    assert isinstance(reply, StoredReply)
    return safetensors.torch.load(reply.reply)["weight"]


def test_a_node_that_joins_after_a_resume_is_charged_and_noised_like_any_other(tmp_path: Path) -> None:
    nearly_empty = {"sampling_rate": 1e-6}  # no record is drawn: all that moves a head is noise
    config = small_config(federation={"nodes": 4, "rounds": 2}, privacy=nearly_empty)
    with task_identity(), pytest.raises(KeyboardInterrupt):
        server.app.run(config, InProcessGrid(unplugged_in_round(2), config, range(3), tmp_path), tmp_path, nodes=3)
    before = RunStore(tmp_path, run_identity(tmp_path)).latest()
    assert before is not None
    assert before.round == 1
    assert not (tmp_path / "ledgers" / "node-003.sqlite").exists()

    run_in_process(config, tmp_path, range(4))
    table = epsilon_by_round(privacy_terms(config, 64))
    late, early = spent_in(tmp_path, "node-003"), spent_in(tmp_path, "node-000")
    assert (late.steps, late.epsilon) == (1, table[1])
    assert (early.steps, early.epsilon) == (2, table[2])
    for name in ("node-000", "node-003"):
        assert not torch.equal(released(tmp_path, config, name, 2, before.head), before.head["weight"])
