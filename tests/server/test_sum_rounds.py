"""Rounds under secagg trust, in process, with the real apps: the step, drop-outs at every stage, discard, resume."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from torch import Tensor

import client.app
import server.app
from client.open_node import open_node
from client.simulated_node import open_simulated_ledger, simulated_in_process
from client.summing import noised_sum
from common import wire
from common.config import RunConfig, to_flat
from common.durable import read_lines
from common.errors import ProtocolError
from common.messages import Reason, SumAnswer, SumTask
from common.model import trained_head
from common.privacy.accountant import epsilon_by_round
from common.privacy.sums import noise_shares
from common.secagg.messages import Stage
from server.checkpoints import Checkpoint, RunStore
from server.coordinator import propose
from server.rounds import learning_rate
from server.run_folder import run_identity
from server.sum_replies import KeptReplies
from server.sum_rounds import MOST_DISCARDED
from simulations.engine import InProcessGrid, run_in_process, task_identity
from tests.federations import digest_of, small_config

NAMES = [f"node-{k:03d}" for k in range(4)]
Lost = Callable[[int, Stage, int], bool]  # partition, stage and round


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in ("flwr", "fedgraft.node")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def summing(rounds: int = 1, **federation: Any) -> RunConfig:
    """Four nodes whose sums outlive one drop-out and allow for one colluder."""
    privacy = {"trust": "secagg", "dropouts": 1, "colluders": 1, "largest_node": 2000}
    return small_config(federation={"rounds": rounds, **federation}, privacy=privacy)


def losing(before: Lost, after: Lost = lambda *_: False, stop: Lost = lambda *_: False) -> ClientApp:
    """The real app on a line that loses requests and replies; at ``stop`` the server is killed."""
    app = ClientApp()

    @app.query(wire.HELLO_ACTION)
    def hello(message: Message, context: Context) -> Message:
        return client.app.hello(message, context)

    @app.train(wire.SUM_ACTION)
    def summed(message: Message, context: Context) -> Message:
        task = wire.decode_sum_task(message)
        at = (int(str(context.node_config["partition-id"])), task.stage, task.round)
        if stop(*at):
            raise KeyboardInterrupt
        reply = None if before(*at) else client.app.summed(message, context)
        return Message(Error(0), reply_to=message) if reply is None or after(*at) else reply

    return app


def played(app: ClientApp, config: RunConfig, folder: Path) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    with task_identity():
        server.app.run(config, InProcessGrid(app, config, range(4), folder), folder)
    return latest(folder)


def latest(folder: Path) -> Checkpoint:
    found = RunStore(folder, run_identity(folder)).latest()
    assert found is not None
    return found


def plain_step(config: RunConfig, place: Path, survivors: Collection[str]) -> dict[str, Tensor]:
    """The head after one step, from the integers of the survivors, added up without any masks."""
    proposal = propose(config, "run")
    offer, start = proposal.plan.offer, proposal.start
    total, size, members = np.zeros(650, np.int64), 0, []
    place.mkdir()
    for partition, name in enumerate(NAMES):
        with simulated_in_process(place):
            node = open_node(1, to_flat(config), {"partition-id": partition, "num-partitions": 4})
        members.append(node)
        if name in survivors:
            task = SumTask(offer, 1, Stage.VECTOR, b"", start)
            plan = offer.terms.for_node(node.declared_size)
            total += noised_sum(trained_head(offer.model, start), task, node, plan)
            size += node.declared_size
    shares = noise_shares(offer.terms, 650)
    gradient = torch.from_numpy(shares.opened(total) / (offer.terms.sampling_rate * size))
    rate = learning_rate(proposal.plan, members, start)  # type: ignore[arg-type]  # they have a declared size
    bias, weight = gradient[:10], gradient[10:].view(10, 64)  # in the order of names
    return {"weight": (start["weight"] - rate * weight).float(), "bias": (start["bias"] - rate * bias).float()}


@pytest.mark.parametrize("arrived", [False, True], ids=["request lost", "reply lost"])
@pytest.mark.parametrize("stage", Stage)
def test_a_round_is_one_step_along_the_survivors_plain_sum(stage: Stage, arrived: bool, tmp_path: Path) -> None:
    config = summing()

    def lost(partition: int, at: Stage, _: int) -> bool:
        return (partition, at) == (2, stage)

    never: Lost = lambda *_: False  # noqa: E731
    app = losing(never, lost) if arrived else losing(lost)
    state = played(app, config, tmp_path / "run")
    gone = stage in (Stage.KEYS, Stage.SHARES, Stage.VECTOR)
    survivors = [name for name in NAMES if not (gone and name == NAMES[2])]
    expected = plain_step(config, tmp_path / "again", survivors)
    for name, value in expected.items():
        torch.testing.assert_close(state.head[name], value, rtol=1e-6, atol=1e-7)
    assert state.line["survivors"] == survivors
    assert state.line["failed"] == {NAMES[2]: Reason.INTERNAL.value}


def test_the_noise_is_that_of_the_plan_and_no_one_elses_step_is_expected(tmp_path: Path) -> None:
    """The control of the test above: with one survivor more or less the step is another."""
    state = played(client.app.app, summing(), tmp_path / "run")
    other = plain_step(summing(), tmp_path / "again", NAMES[:3])
    assert not torch.allclose(state.head["weight"], other["weight"], rtol=1e-3)


def test_ledgers_hold_every_round_and_say_under_which_trust(tmp_path: Path) -> None:
    config = summing(3)
    state = played(client.app.app, config, tmp_path)
    terms = propose(config, "run").plan.offer.terms
    for name in NAMES:
        with open_simulated_ledger(tmp_path, name, config) as ledger:
            ledger.verify()
            statement = ledger.statement()
        assert statement.epsilon == epsilon_by_round(terms)[3] <= 8.0
        assert (statement.steps, statement.open_reservations) == (3, ())
    assert state.line["epsilon"] == epsilon_by_round(terms)[3]
    assert dict(state.participation) == dict.fromkeys(NAMES, 3)


def test_a_round_with_too_few_survivors_is_discarded_paid_for_and_followed_by_the_next(tmp_path: Path) -> None:
    config = summing(3)

    def lost(partition: int, stage: Stage, round_: int) -> bool:
        return partition < 2 and stage is Stage.VECTOR and round_ == 2

    state = played(losing(lambda *_: False, lost), config, tmp_path)
    first, second, third = read_lines(tmp_path / "rounds.jsonl")
    assert "only 2 sent masked vectors" in second["discarded"]
    assert second["nodes"] == 0
    assert second["accuracy"] == first["accuracy"] != third["accuracy"]
    assert second["epsilon"] > first["epsilon"]
    assert state.round == 3
    for name in NAMES:
        with open_simulated_ledger(tmp_path, name, config) as ledger:
            assert ledger.statement().steps == 3


def test_a_run_whose_rounds_are_all_discarded_stops_and_can_go_on(tmp_path: Path) -> None:
    config = summing(6)
    down = losing(lambda partition, stage, _: partition < 2 and stage is Stage.SHARES)
    with pytest.raises(ProtocolError, match="a sum in one of 3 rounds"):
        played(down, config, tmp_path)
    assert latest(tmp_path).round == MOST_DISCARDED
    assert not latest(tmp_path).participation  # no vector was asked for
    assert played(client.app.app, config, tmp_path).round == 6


@pytest.mark.parametrize("stage", [Stage.SHARES, Stage.VECTOR, Stage.REVEAL])
def test_a_server_killed_within_a_stage_ends_where_it_would_have(stage: Stage, tmp_path: Path) -> None:
    config = summing(2)
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    played(client.app.app, config, undisturbed)
    never: Lost = lambda *_: False  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        played(losing(never, never, lambda p, at, round_: (p, at, round_) == (2, stage, 2)), config, killed)
    assert latest(killed).round == 1
    played(client.app.app, config, killed)
    assert digest_of(killed) == digest_of(undisturbed)
    for name in NAMES:
        with open_simulated_ledger(killed, name, config) as ledger:
            assert (ledger.statement().steps, ledger.statement().open_reservations) == (2, ())


def test_a_server_killed_after_the_last_stage_has_the_sum_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = summing(2)
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for folder in (undisturbed, killed):
        folder.mkdir()
    run_in_process(config, undisturbed, range(4))
    save = RunStore.save

    def dying(self: RunStore, checkpoint: Checkpoint) -> None:
        if checkpoint.round == 2:
            raise KeyboardInterrupt
        save(self, checkpoint)

    with monkeypatch.context() as patched:
        patched.setattr(RunStore, "save", dying)
        with pytest.raises(KeyboardInterrupt):
            run_in_process(config, killed, range(4))
    run_in_process(config, killed, range(4))
    assert digest_of(killed) == digest_of(undisturbed)
    assert "discarded" not in latest(killed).line


def test_momentum_of_the_server_is_applied_to_the_sum(tmp_path: Path) -> None:
    config = summing(2)
    plain = played(client.app.app, config, tmp_path / "plain")
    momentum = played(client.app.app, summing(2, strategy="fedavgm", server_momentum=0.9), tmp_path / "momentum")
    assert plain.strategy == {}
    assert any(key.startswith("momentum_vector") for key in momentum.strategy)
    assert digest_of(tmp_path / "plain") != digest_of(tmp_path / "momentum")


def test_a_node_that_sends_another_reply_is_left_out_with_a_sentence(tmp_path: Path) -> None:
    app = ClientApp()
    app.query(wire.HELLO_ACTION)(client.app.hello)

    @app.train(wire.SUM_ACTION)
    def summed(message: Message, context: Context) -> Message:
        reply = client.app.summed(message, context)
        if context.node_config["partition-id"] == 1 and wire.decode_stage(message) is Stage.VECTOR:
            answer = wire.decode_reply(reply)
            assert isinstance(answer, SumAnswer)
            reply = wire.encode_reply(SumAnswer(answer.data[:-1]), message)
        return reply

    state = played(app, summing(), tmp_path)
    assert state.line["failed"] == {NAMES[1]: Reason.PROTOCOL.value}
    assert "another length" in state.line["unfit"][NAMES[1]]
    assert NAMES[1] not in state.line["survivors"]


def test_nodes_in_processes_of_their_own_give_the_same_sums(tmp_path: Path) -> None:
    config = summing(2)
    for workers in (0, 2):
        (tmp_path / str(workers)).mkdir()
        run_in_process(config, tmp_path / str(workers), range(4), workers=workers)
    assert digest_of(tmp_path / "2") == digest_of(tmp_path / "0")


def test_who_was_asked_before_another_cohort_was_chosen_is_remembered(tmp_path: Path) -> None:
    assert KeptReplies(tmp_path, 1, {"a": "x", "b": "y"}).before == []
    assert KeptReplies(tmp_path, 1, {"a": "x", "b": "y"}).before == []
    assert KeptReplies(tmp_path, 1, {"a": "x", "c": "z"}).before == [["a", "b"]]
    rotated = KeptReplies(tmp_path, 1, {"a": "x", "c": "another key"})
    assert (rotated.before, rotated.attempt) == ([["a", "b"], ["a", "c"]], 3)
    assert KeptReplies(tmp_path, 2, {"a": "x", "c": "another key"}).before == []
