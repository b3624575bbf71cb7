"""Two nodes with the same records on one ledger: each answer is paid for, and one sum holds one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest
from torch import Tensor

from client.ledger import Ledger, Reservation
from client.node import Node
from client.summing import answer_stage
from client.training import train_round
from common.errors import BrokenChainError, PrivacyError
from common.heads import arrays_digest
from common.messages import SumTask
from common.privacy.accountant import epsilon_by_round
from common.privacy.entries import make_entry, read_entries
from common.privacy.statement import Balance
from common.privacy.sums import sum_run
from common.secagg.messages import Stage
from common.secagg.session import Session
from common.secagg.simulated import simulated_roster
from server.secagg_round import masked_sum
from tests.client.test_summing import HEAD, NUMBERS, Round
from tests.client.test_training import node_in, spent
from tests.federations import small_task

NORTH, ANNEX = "node-000", "node-001"


def shared(node: Node, path: Path) -> Node:
    return dataclasses.replace(
        node, open_ledger=lambda: Ledger.open(path, "north", delta=1e-5, epsilon_cap=80.0, durable=False)
    )


class SharedRound(Round):
    """North and annex have one ledger, and a server that goes on without a node that refuses."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path, self.heads = folder / "shared.sqlite", dict.fromkeys(self.nodes, HEAD)
        for name in (NORTH, ANNEX):
            self.nodes[name] = dataclasses.replace(shared(self.nodes[name], self.path), declared_size=300)
        self.refused: dict[str, str] = {}
        self.vectors: list[str] = []

    def ask(self, stage: Stage, requests: Mapping[str, bytes]) -> dict[str, bytes]:
        answers = {}
        for name, request in requests.items():
            task = SumTask(self.offer, 1, stage, request, self.heads[name] if stage is Stage.VECTOR else {})
            try:
                answers[name] = answer_stage(task, self.nodes[name]).data
            except PrivacyError as error:
                self.refused[name] = str(error)
        if stage is Stage.VECTOR:
            self.vectors = list(answers)
        return answers

    def run(self) -> None:
        """Play the round as far as it comes: with one of three nodes gone, no plan without drop-outs is finished."""
        roster = simulated_roster(self.nodes)
        run = sum_run("run", self.offer.model, self.offer.terms, NUMBERS)
        with pytest.raises(PrivacyError):
            masked_sum(Session.of(run, 1, roster), roster, self.ask)


@pytest.fixture
def sums(tmp_path: Path) -> SharedRound:
    return SharedRound(tmp_path)


def nearly(head: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: values + 1e-30 for name, values in head.items()}


@pytest.mark.parametrize("other", ["the same", "another head", "another size"])
def test_one_sum_holds_one_answer_of_a_ledger(sums: SharedRound, other: str) -> None:
    """A record that both nodes hold moves a sum of both by twice the clipping norm."""
    if other == "another head":
        sums.heads[ANNEX] = nearly(HEAD)
    if other == "another size":
        sums.nodes[ANNEX] = dataclasses.replace(sums.nodes[ANNEX], declared_size=200)
    sums.run()
    assert sums.vectors == [NORTH, "node-002"]
    assert f"it has paid for {NORTH} already" in sums.refused[ANNEX]
    assert spent(sums.nodes[NORTH]) == epsilon_by_round(sums.offer.terms)[1]


class Overtaken(Ledger):
    """A ledger that another process commits to while this one works."""

    def settle(self, reservation: Reservation, reply: bytes) -> bytes:
        self.commit(reservation, b"another vector")
        return super().settle(reservation, reply)


def test_of_two_that_pay_for_the_same_answer_at_once_one_answers(sums: SharedRound) -> None:
    """A node by the same name, in a folder of its own: nothing but the reply's bytes tells the two apart."""
    overtaken = dataclasses.replace(
        sums.nodes[ANNEX],
        open_ledger=lambda: Overtaken.open(sums.path.with_name("other"), "annex", delta=1e-5, epsilon_cap=8.0),
    )
    sums.nodes[ANNEX] = overtaken
    sums.run()
    assert sums.vectors == [NORTH, "node-002"]
    assert "no record of what was sent" in sums.refused[ANNEX]
    assert spent(overtaken) == epsilon_by_round(sums.offer.terms)[1]


def test_the_control_with_a_ledger_each_sums_both(sums: SharedRound) -> None:
    sums.nodes[ANNEX] = shared(sums.nodes[ANNEX], sums.path.with_name("annex.sqlite"))
    roster = simulated_roster(sums.nodes)
    run = sum_run("run", sums.offer.model, sums.offer.terms, NUMBERS)
    assert set(masked_sum(Session.of(run, 1, roster), roster, sums.ask).survivors) == set(sums.nodes)


def test_an_auditor_finds_two_answers_in_one_sum(sums: SharedRound) -> None:
    sums.run()
    balance, entries = Balance(), read_entries(sums.path)
    balance.extend(entries)
    (charge,) = [entry.body for entry in entries if entry.kind == "reserve"]
    own = {key: value for key, value in charge.items() if key not in ("kind", "position", "previous")}
    with pytest.raises(BrokenChainError):
        balance.extend([make_entry(balance.position, balance.head, "reserve", {**own, "node": ANNEX})])


def test_two_nodes_that_train_by_themselves_pay_for_two_updates(tmp_path: Path) -> None:
    """The second is not answered with the first one's update, which would count twice then."""
    path, task = tmp_path / "shared.sqlite", small_task()
    first, second = (shared(node_in(tmp_path / "run", place), path) for place in (0, 1))
    second = dataclasses.replace(second, declared_size=first.declared_size)
    updates = [arrays_digest(train_round(task, node).head) for node in (first, second)]
    assert len(set(updates)) == 2
    assert spent(first) == spent(second) >= epsilon_by_round(task.offer.terms)[2]
    assert [arrays_digest(train_round(task, node).head) for node in (first, second)] == updates
