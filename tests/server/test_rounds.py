"""Rounds in process, with the real apps: cohorts, nodes that misbehave, resume."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

import client.app
import server.app
from client.simulated_node import open_simulated_ledger, simulated_in_process
from common import wire
from common.config import RunConfig, to_flat
from common.data.federation import assemble
from common.durable import read_lines
from common.errors import PrivacyError, ProtocolError
from common.messages import Reason, Refusal
from common.privacy.accountant import epsilon_by_round
from server.aggregation import build_strategy
from server.checkpoints import RunStore
from server.coordinator import propose
from server.link import Link, Member
from server.rounds import choose_cohort, run_rounds
from server.run_folder import run_identity
from simulations.engine import InProcessGrid, run_in_process, task_identity
from tests.federations import digest_of, small_config

MEMBERS = {f"node-{k}": Member(f"node-{k}", 100 - k, 10) for k in range(10)}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in ("flwr", "fedgraft.node")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def run_with(app: ClientApp, config: RunConfig, folder: Path) -> None:
    with task_identity():
        server.app.run(config, InProcessGrid(app, config, range(4), folder), folder)


def misbehaving(partition: int, answer: Callable[[Message], Message]) -> ClientApp:
    """The real app, but for one node's training replies."""
    app = ClientApp()

    @app.query(wire.HELLO_ACTION)
    def hello(message: Message, context: Context) -> Message:
        return client.app.hello(message, context)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        wrong = context.node_config["partition-id"] == partition
        return answer(message) if wrong else client.app.train(message, context)

    return app


def test_a_cohort_is_chosen_by_name_and_seed() -> None:
    def names(seed: int, round_: int) -> list[str]:
        return [member.name for member in choose_cohort(MEMBERS, 4, seed, round_)]

    assert names(1, 1) == names(1, 1)
    assert len({tuple(names(1, round_)) for round_ in range(20)}) > 10
    other_ids = {name: Member(name, hash(name), 10) for name in reversed(MEMBERS)}
    assert [member.name for member in choose_cohort(other_ids, 4, 1, 1)] == names(1, 1)
    assert len(choose_cohort(MEMBERS, None, 1, 1)) == 10


def test_only_the_cohort_is_asked_and_pays(tmp_path: Path) -> None:
    run_in_process(small_config(federation={"cohort": 2}), tmp_path, range(4))
    lines = read_lines(tmp_path / "rounds.jsonl")
    assert [line["nodes"] for line in lines] == [2, 2, 2]
    latest = RunStore(tmp_path, run_identity(tmp_path)).latest()
    assert latest is not None
    assert sum(latest.participation.values()) == 6


BAD_ANSWERS: dict[str, Callable[[Message], Message]] = {
    "an error": lambda message: Message(Error(1, "secret"), reply_to=message),
    "nothing": lambda message: Message(RecordDict(), reply_to=message),
    "a refusal": lambda message: wire.encode_reply(Refusal(Reason.BUDGET), message),
    "another shape": lambda message: Message(
        RecordDict({wire.ARRAYS: ArrayRecord({"weight": Array(np.zeros((3, 3), dtype=np.float32))})}), reply_to=message
    ),
    "not a number": lambda message: Message(
        RecordDict(
            {
                wire.ARRAYS: ArrayRecord(
                    {
                        "weight": Array(np.full((10, 64), np.nan, dtype=np.float32)),
                        "bias": Array(np.zeros(10, dtype=np.float32)),
                    }
                )
            }
        ),
        reply_to=message,
    ),
}


@pytest.mark.parametrize("kind", BAD_ANSWERS)
def test_a_node_that_answers_nonsense_is_dropped_and_the_round_goes_on(kind: str, tmp_path: Path) -> None:
    run_with(misbehaving(2, BAD_ANSWERS[kind]), small_config(), tmp_path)
    lines = read_lines(tmp_path / "rounds.jsonl")
    assert [line["nodes"] for line in lines] == [3, 3, 3]
    assert set(lines[0]["failed"]) == {"node-002"}
    assert "secret" not in (tmp_path / "rounds.jsonl").read_text()


def test_a_head_without_a_finite_loss_has_none_in_the_log(tmp_path: Path) -> None:
    """Each value is finite, the logits are not."""

    def enormous(message: Message) -> Message:
        arrays = {"weight": np.full((10, 64), 3e38, np.float32), "bias": np.zeros(10, np.float32)}
        record = ArrayRecord({name: Array(value) for name, value in arrays.items()})
        return Message(RecordDict({wire.ARRAYS: record}), reply_to=message)

    run_with(misbehaving(2, enormous), small_config(), tmp_path)
    assert [line["loss"] for line in read_lines(tmp_path / "rounds.jsonl")][-1] is None


def trained_by(partition: int, config: RunConfig, folder: Path, message: Message) -> Message:
    with simulated_in_process(folder):
        return client.app.train(message, Context(1, 1, {"partition-id": partition}, RecordDict(), to_flat(config)))


def test_updates_reach_the_strategy_in_the_heads_own_order_and_type(tmp_path: Path) -> None:
    def turned(message: Message) -> Message:
        arrays = trained_by(2, config, tmp_path, message).content.array_records[wire.ARRAYS]
        double = {name: Array(arrays[name].numpy().astype(np.float64)) for name in list(arrays)[::-1]}
        return Message(RecordDict({wire.ARRAYS: ArrayRecord(double)}), reply_to=message)

    config = small_config(federation={"strategy": "bulyan", "nodes": 3, "rounds": 1})
    plain = tmp_path / "plain"
    plain.mkdir()
    for folder, app in ((tmp_path, misbehaving(2, turned)), (plain, client.app.app)):
        strategy = build_strategy("bulyan")
        proposal = propose(config, run_identity(folder))
        with task_identity():
            link = Link(InProcessGrid(app, config, range(3), folder))
            store = RunStore(folder, run_identity(folder))
            run_rounds(proposal.plan, link, strategy, store, proposal.start, proposal.evaluate)
    assert digest_of(tmp_path) == digest_of(plain)


def test_a_node_that_the_engine_loses_ends_the_run_before_the_round_is_kept(tmp_path: Path) -> None:
    """Ray's workers end one after the other when it is stopped: a round without one of them would be another round."""

    def lost(message: Message) -> Message:
        raise RuntimeError("the worker died")

    config = small_config(federation={"nodes": 3, "rounds": 1})
    proposal, store = propose(config, run_identity(tmp_path)), RunStore(tmp_path, run_identity(tmp_path))
    with task_identity():
        link = Link(InProcessGrid(misbehaving(2, lost), config, range(3), tmp_path), keeps_all=True)
        with pytest.raises(ProtocolError, match="the engine lost one; resume the run"):
            run_rounds(proposal.plan, link, build_strategy("fedavg"), store, proposal.start, proposal.evaluate)
    assert store.latest() is None


def test_epsilon_in_the_log_counts_nodes_that_may_have_paid_without_an_answer(tmp_path: Path) -> None:
    app = ClientApp()
    app.query(wire.HELLO_ACTION)(client.app.hello)

    @app.train()
    def loses_half_of_the_replies(message: Message, context: Context) -> Message:
        reply = client.app.train(message, context)
        late = wire.decode_train_task(message).round > 2
        lost = (context.node_config["partition-id"] == 0) == late
        return BAD_ANSWERS["an error"](message) if lost else reply

    config = small_config(federation={"rounds": 4})
    run_with(app, config, tmp_path)
    table = epsilon_by_round(propose(config, "x").plan.offer.terms)
    lines = read_lines(tmp_path / "rounds.jsonl")
    assert [line["nodes"] for line in lines] == [1, 1, 3, 3]
    assert [line["epsilon"] for line in lines] == list(table[1:])
    with open_simulated_ledger(tmp_path, "node-000", config) as ledger:
        assert ledger.statement().epsilon == table[4]


def test_a_node_that_refused_for_its_budget_has_not_paid(tmp_path: Path) -> None:
    config = small_config()
    run_with(misbehaving(2, BAD_ANSWERS["a refusal"]), config, tmp_path)
    latest = RunStore(tmp_path, run_identity(tmp_path)).latest()
    assert latest is not None
    assert "node-002" not in latest.participation


def test_cohorts_survive_a_resume_without_a_seed_too() -> None:
    config = small_config(federation={"seed": None, "cohort": 1})
    seeds = [propose(config, run_id).plan.seed for run_id in ("a", "a", "b")]
    assert seeds[0] == seeds[1] != seeds[2]


def test_a_strategy_that_makes_nothing_of_so_few_updates_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match=r"at least 3 updates for federation\.strategy, got 2 updates"):
        run_with(
            misbehaving(2, BAD_ANSWERS["an error"]),
            small_config(federation={"strategy": "bulyan", "cohort": 3}),
            tmp_path,
        )


def test_a_strategy_that_wants_more_nodes_than_accept_asks_none(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match=r"at least 3 nodes for federation\.strategy, only 2 accepted"):
        run_in_process(small_config(federation={"strategy": "bulyan"}), tmp_path, range(2))
    assert not (tmp_path / "rounds.jsonl").exists()


def test_a_round_without_any_update_stops_with_the_reasons(tmp_path: Path) -> None:
    app = ClientApp()
    app.query(wire.HELLO_ACTION)(client.app.hello)
    app.train()(lambda message, context: BAD_ANSWERS["a refusal"](message))
    with pytest.raises(PrivacyError, match=r"updates in round 1, got: budget \(4 nodes\)"):
        run_with(app, small_config(), tmp_path)
    app = ClientApp()
    app.query(wire.HELLO_ACTION)(lambda message, context: BAD_ANSWERS["nothing"](message))
    with pytest.raises(ProtocolError, match=r"accept the offer, got: protocol \(4 nodes\)"):
        run_with(app, small_config(), tmp_path)


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
def test_a_run_that_stopped_after_any_round_goes_on_to_the_same_head(strategy: str, tmp_path: Path) -> None:
    config = small_config(federation={"strategy": strategy, "rounds": 4})
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    run_in_process(config, whole, range(4))

    class StoppedError(Exception):
        """The test pulls the plug."""

    calls = iter(range(100))

    def unplugged(message: Message, context: Context) -> Message:
        reply = client.app.train(message, context)
        if next(calls) == 9:  # in the middle of round 3, after the node has committed
            raise KeyboardInterrupt(StoppedError)
        return reply

    app = ClientApp()
    app.query(wire.HELLO_ACTION)(client.app.hello)
    app.train()(unplugged)
    with pytest.raises(KeyboardInterrupt):
        run_with(app, config, broken)
    assert len(read_lines(broken / "rounds.jsonl")) == 2
    run_in_process(config, broken, range(4))
    assert digest_of(broken) == digest_of(whole)
    assert len(read_lines(broken / "rounds.jsonl")) == 4


def test_one_seed_gives_one_head_and_another_another(tmp_path: Path) -> None:
    digests = []
    for number, seed in enumerate((7, 7, 8)):
        folder = tmp_path / str(number)
        folder.mkdir()
        run_in_process(small_config(federation={"seed": seed}), folder, range(4))
        digests.append(digest_of(folder))
    assert digests[0] == digests[1] != digests[2]


def test_without_a_seed_no_two_runs_are_alike(tmp_path: Path) -> None:
    digests = set()
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        run_in_process(small_config(federation={"seed": None}), folder, range(4))
        digests.add(digest_of(folder))
    assert len(digests) == 2


def test_weights_are_declared_sizes_or_equal(tmp_path: Path) -> None:
    heads = []
    for weighting in ("declared", "equal"):
        folder = tmp_path / weighting
        folder.mkdir()
        skewed = {"partition": "quantity", "alpha": 0.7}
        config = small_config(
            federation={"weighting": weighting, "seed": 1}, data=skewed, privacy={"sampling_rate": 1.0}
        )
        run_in_process(config, folder, range(4))
        latest = RunStore(folder, run_identity(folder)).latest()
        assert latest is not None
        heads.append(latest.head["weight"])
    assert not torch.equal(heads[0], heads[1])


def test_a_run_stops_when_its_patience_ends_and_spends_no_more(tmp_path: Path) -> None:
    config = small_config(
        federation={"rounds": 12},
        data={"validation_fraction": 0.2},
        training={"learning_rate": 50.0},  # far too large: the loss rises soon
        evaluation={"patience": 2, "node_metrics": "exact"},
    )
    run_in_process(config, tmp_path, range(4))
    lines = read_lines(tmp_path / "rounds.jsonl")
    losses = [line["validation_loss"] for line in lines]
    assert 3 <= len(lines) < 12
    assert min(losses[-2:]) >= min(losses[:-2])
    assert all({"train_loss", "train_accuracy", "validation_accuracy"} <= line.keys() for line in lines)
    table = epsilon_by_round(propose(config, "x").plan.offer.terms)
    assert lines[-1]["epsilon"] == table[len(lines)] < table[12]
    run_in_process(config, tmp_path, range(4))  # a resume finds it finished
    assert read_lines(tmp_path / "rounds.jsonl") == lines


def test_validation_records_are_neither_trained_nor_tested_on() -> None:
    federation = assemble(small_config(data={"validation_fraction": 0.2}))
    parts = [federation.test, federation.validation, *federation.shares.values()]
    everything = np.concatenate(parts)
    assert len(federation.validation) == 288
    assert len(np.unique(everything)) == len(everything) == len(federation.data)


def test_patience_without_validation_records_is_refused() -> None:
    with pytest.raises(ValueError, match="validation_fraction above 0"):
        small_config(evaluation={"patience": 2})
