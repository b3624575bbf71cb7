"""A node's half of a sum: what it accepts, what it pays, and what it sends again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from client.last_look import Speaker, permitted
from client.node import Node
from client.open_node import open_node
from client.policy import Policy
from client.simulated_node import simulated_in_process
from client.summing import answer_stage
from client.training import accept_offer, train_round
from common import wire
from common.config import to_flat
from common.errors import BudgetSpentError, ConfigError, PrivacyError, ProtocolError
from common.heads import build_head, head_arrays
from common.messages import Hello, SumAnswer, SumTask, TrainTask
from common.privacy.accountant import Event, epsilon_by_round, epsilon_pld
from common.privacy.sums import epsilon_against_model, noise_shares, sum_run
from common.secagg.messages import Stage
from common.secagg.session import Session
from common.secagg.simulated import simulated_roster
from server.coordinator import propose
from server.secagg_round import masked_sum
from simulations.engine import task_identity
from tests.federations import small_config

NUMBERS = 650
HEAD = head_arrays(build_head("linear", 64, 10))
PRIVACY = {"trust": "secagg", "dropouts": 0, "colluders": 1, "largest_node": 2000}


class Round:
    """Three nodes and what they are asked."""

    def __init__(self, folder: Path, **privacy: Any) -> None:
        config = small_config(federation={"nodes": 3}, privacy={**PRIVACY, **privacy})
        self.offer = replace(propose(config, "run").plan.offer, run_id="run")
        with simulated_in_process(folder):
            nodes = [open_node(1, to_flat(config), {"partition-id": k, "num-partitions": 3}) for k in range(3)]
        self.nodes: dict[str, Node] = {node.name: node for node in nodes}
        self.asked: dict[tuple[Stage, str], SumTask] = {}
        self.sent: dict[tuple[Stage, str], SumAnswer] = {}

    def play(self, round_: int = 1, said: int | None = None) -> None:
        """Ask all stages; the messages of all but the first say that they are of round ``said``."""
        roster = simulated_roster(self.nodes)
        run = sum_run("run", self.offer.model, self.offer.terms, NUMBERS)

        def ask(stage: Stage, requests: Mapping[str, bytes]) -> dict[str, bytes]:
            for name, request in requests.items():
                told = round_ if said is None or stage is Stage.KEYS else said
                task = SumTask(self.offer, told, stage, request, HEAD if stage is Stage.VECTOR else {})
                self.asked[stage, name] = task
                self.sent[stage, name] = answer_stage(task, self.nodes[name])
            return {name: self.sent[stage, name].data for name in requests}

        masked_sum(Session.of(run, round_, roster), roster, ask)

    def spent(self, name: str = "node-000") -> float:
        with self.nodes[name].open_ledger() as ledger:
            return ledger.statement().epsilon


@pytest.fixture
def sums(tmp_path: Path) -> Round:
    return Round(tmp_path)


def policy(**changes: Any) -> Policy:
    return Policy(8.0, 1e-5, "record", **{"trusts": frozenset({"secagg"}), **changes})


def test_a_round_costs_what_one_trusted_server_would_and_less_against_the_model(sums: Round) -> None:
    sums.play()
    terms = sums.offer.terms
    assert sums.spent() == epsilon_by_round(terms)[1]
    assert 0 < epsilon_against_model(terms, 1) < sums.spent()


def test_rounds_that_were_begun_again_count_against_the_model_too(sums: Round) -> None:
    """A ledger may hold more sums than the plan has rounds: a resumed run with another cohort charges a second one."""
    terms = sums.offer.terms
    events = [Event(terms.model_noise_multiplier, terms.sampling_rate, terms.rounds + 3)]
    assert epsilon_against_model(terms, terms.rounds + 3) == epsilon_pld(events, terms.delta)
    assert epsilon_against_model(terms, terms.rounds + 3) > epsilon_against_model(terms, terms.rounds)


@pytest.mark.parametrize("stage", [Stage.KEYS, Stage.SHARES, Stage.VECTOR, Stage.AGREEMENT])
def test_the_same_request_again_gets_the_same_bytes_and_costs_nothing(sums: Round, stage: Stage) -> None:
    """The last stage forgets the masked vector, so the one before it is asked again here too."""
    name, before = "node-001", 0.0

    def answered_again() -> None:
        assert answer_stage(sums.asked[stage, name], sums.nodes[name]) == sums.sent[stage, name]

    roster = simulated_roster(sums.nodes)
    run = sum_run("run", sums.offer.model, sums.offer.terms, NUMBERS)

    def ask(at: Stage, requests: Mapping[str, bytes]) -> dict[str, bytes]:
        nonlocal before
        if at is Stage.REVEAL:
            before = sums.spent(name)
            answered_again()
            raise KeyboardInterrupt
        for peer, request in requests.items():
            sums.asked[at, peer] = SumTask(sums.offer, 1, at, request, HEAD if at is Stage.VECTOR else {})
            sums.sent[at, peer] = answer_stage(sums.asked[at, peer], sums.nodes[peer])
        return {peer: sums.sent[at, peer].data for peer in requests}

    with pytest.raises(KeyboardInterrupt):
        masked_sum(Session.of(run, 1, roster), roster, ask)
    assert sums.spent(name) == before > 0


def test_every_session_is_charged_whatever_round_the_server_says_it_is_of(sums: Round) -> None:
    sums.play(1)
    sums.play(2, said=1)
    assert sums.spent() == epsilon_by_round(sums.offer.terms)[2]


def test_an_invitation_is_for_the_round_that_it_is_sent_in(sums: Round) -> None:
    sums.play(1)
    task = sums.asked[Stage.KEYS, "node-000"]
    with pytest.raises(PrivacyError, match="for another"):
        answer_stage(replace(task, round=2), sums.nodes["node-000"])
    with pytest.raises(ProtocolError, match="from 1 to 3"):
        answer_stage(replace(task, round=4), sums.nodes["node-000"])


def test_a_node_without_budget_reads_nothing(sums: Round) -> None:
    for round_ in (1, 2, 3):
        sums.play(round_)
    other = replace(sums.offer, run_id="another")
    with pytest.raises(BudgetSpentError):
        accept_offer(other, sums.nodes["node-000"])
    run = sum_run("another", other.model, other.terms, NUMBERS)
    roster = simulated_roster(sums.nodes)
    read: list[str] = []

    def unread(_: object) -> Any:
        read.append("records")

    def ask(stage: Stage, requests: Mapping[str, bytes]) -> dict[str, bytes]:
        head = HEAD if stage is Stage.VECTOR else {}
        nodes = {name: replace(sums.nodes[name], records=unread) for name in requests}
        return {n: answer_stage(SumTask(other, 1, stage, r, head), nodes[n]).data for n, r in requests.items()}

    with pytest.raises(BudgetSpentError):
        masked_sum(Session.of(run, 1, roster), roster, ask)
    assert not read


def test_a_head_that_does_not_fit_is_refused_before_anything_is_paid(sums: Round) -> None:
    sums.play(1)
    cost, task = sums.spent(), sums.asked[Stage.VECTOR, "node-000"]
    with pytest.raises(ConfigError, match="parameters"):
        answer_stage(replace(task, head={"weight": HEAD["weight"]}), sums.nodes["node-000"])
    assert sums.spent() == cost


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (policy(trusts=frozenset({"local"})), "under local trust"),
        (policy(min_nodes=4), "at least 4 nodes"),
        (policy(min_colluders=2), "at least 2 colluders"),
    ],
)
def test_a_weaker_plan_than_the_policy_is_refused(sums: Round, held: Policy, said: str) -> None:
    node = sums.nodes["node-000"]
    assert accept_offer(sums.offer, replace(node, policy=policy())) == Hello(node.name, node.declared_size)
    with pytest.raises(PrivacyError, match=said):
        accept_offer(sums.offer, replace(node, policy=held))


def test_a_plan_for_sums_releases_nothing_by_itself(sums: Round) -> None:
    node = sums.nodes["node-000"]
    with pytest.raises(PrivacyError, match="ask for a sum"):
        train_round(TrainTask(sums.offer, 1, HEAD, learning_rate=0.5), node)
    assert sums.spent() == 0


def test_a_plan_of_local_trust_has_no_sums(sums: Round) -> None:
    local = small_config(federation={"nodes": 3})
    offer = replace(propose(local, "run").plan.offer, run_id="run")
    node = replace(sums.nodes["node-000"], policy=policy(trusts=frozenset({"local", "secagg"})))
    with pytest.raises(PrivacyError, match='need a plan with trust "secagg"'):
        answer_stage(SumTask(offer, 1, Stage.KEYS, b"", {}), node)


def test_other_constants_than_the_nodes_own_are_refused(sums: Round) -> None:
    """A server cannot have less noise added by a session of other terms: the node works them out itself."""
    roster, node = simulated_roster(sums.nodes), sums.nodes["node-000"]
    fewer = replace(sums.offer.terms, colluders=0)
    run = sum_run("run", sums.offer.model, fewer, NUMBERS)
    from common.secagg.messages import Invitation

    request = Invitation(session=Session.of(run, 1, roster)).to_bytes()
    with pytest.raises(PrivacyError, match="keep to run, plan and terms"):
        answer_stage(SumTask(sums.offer, 1, Stage.KEYS, request, {}), node)


def test_the_noise_of_the_honest_is_worth_the_plans(sums: Round) -> None:
    shares = noise_shares(sums.offer.terms, NUMBERS)
    assert shares.cohort.honest == 2
    assert shares.share_variance * 2 >= (sums.offer.terms.noise_multiplier * shares.sensitivity) ** 2


def question(task: SumTask) -> Message:
    with task_identity():
        return Message(wire.encode_sum_task(task), dst_node_id=1, message_type=wire.TRAIN_SUM)


@pytest.mark.parametrize("stage", Stage)
def test_only_a_reply_of_the_stage_that_was_asked_for_leaves(sums: Round, stage: Stage) -> None:
    sums.play()
    node = sums.nodes["node-000"]
    speaker = Speaker(node.name, node.declared_size)
    asked = question(sums.asked[stage, node.name])
    for other in Stage:
        reply = sums.sent[other, node.name]
        if other is stage:
            assert permitted(reply, asked, speaker) == reply
        else:
            with pytest.raises(PrivacyError):
                permitted(reply, asked, speaker)
    with pytest.raises(PrivacyError):
        permitted(SumAnswer(sums.sent[stage, node.name].data + b"\n"), asked, speaker)


def test_a_question_survives_the_wire(sums: Round) -> None:
    sums.play()
    for stage in Stage:
        task = sums.asked[stage, "node-002"]
        again = wire.decode_sum_task(question(task))
        assert (again.offer, again.round, again.stage, again.request) == (task.offer, 1, stage, task.request)
        assert set(again.head) == set(task.head)
