"""A private round at a node: pay, train, store, release; and never anything else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client.ledger import Ledger, Reservation, Spend
from client.node import Node
from client.open_node import open_node
from client.policy import Policy
from client.simulated_node import simulated_in_process
from client.training import accept_offer, evaluate, private_update, round_in_steps, train_round
from common.config import to_flat
from common.errors import BackboneMismatchError, BudgetSpentError, ConfigError, PrivacyError, ProtocolError
from common.heads import arrays_digest, build_head, head_arrays
from common.lockstep import together
from common.messages import EvaluateTask, TrainTask
from common.model import trained_head
from common.privacy.accountant import epsilon_by_round
from common.privacy.noise import Randomness, SeededRandomness, SystemRandomness
from common.privacy.plan import PrivacyPlan
from tests.federations import finite, small_config, small_task


def node_in(folder: Path, partition: int = 0, **sections: dict[str, Any]) -> Node:
    with simulated_in_process(folder):
        return open_node(1, to_flat(small_config(**sections)), {"partition-id": partition, "num-partitions": 4})


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return node_in(tmp_path)


def spent(node: Node) -> float:
    with node.open_ledger() as ledger:
        return ledger.statement().epsilon


def test_a_round_is_paid_and_releases_a_moved_head(node: Node) -> None:
    task = small_task()
    update = train_round(task, node)
    assert finite(update.head)
    assert not torch.equal(update.head["weight"], task.head["weight"])
    assert spent(node) == epsilon_by_round(task.offer.terms)[1]


@pytest.mark.parametrize("steps", [1, 3])
def test_nodes_that_train_together_release_what_each_releases_by_itself(tmp_path: Path, steps: int) -> None:
    task = small_task(steps_per_round=steps)
    before = arrays_digest(task.head)
    for name in ("alone", "together"):
        (tmp_path / name).mkdir()
    by_itself = [train_round(task, node_in(tmp_path / "alone", place)) for place in range(4)]
    nodes = [node_in(tmp_path / "together", place) for place in range(4)]
    updates = together([round_in_steps(task, node) for node in nodes])
    assert [arrays_digest(each.head) for each in updates] == [arrays_digest(each.head) for each in by_itself]
    assert len({arrays_digest(each.head) for each in updates}) == 4
    assert arrays_digest(task.head) == before
    assert {spent(node) for node in nodes} == {epsilon_by_round(task.offer.terms)[1]}


def test_the_same_task_again_gets_the_same_bytes_and_costs_nothing(node: Node) -> None:
    first, cost = train_round(small_task(), node), spent(node)
    again = train_round(small_task(), node)
    assert arrays_digest(again.head) == arrays_digest(first.head)
    assert spent(node) == cost


def test_a_repeat_that_overtakes_the_first_answers_for_both(tmp_path: Path) -> None:
    """A SuperNode that was restarted asks again while its app still trains: one release, paid once, sent twice."""
    node, others = node_in(tmp_path, federation={"seed": None}), list[Any]()

    def overtaken(model: Any) -> Any:
        others.append(train_round(small_task(), node))
        return node.records(model)

    update = train_round(small_task(), dataclasses.replace(node, records=overtaken))
    assert arrays_digest(update.head) == arrays_digest(others[0].head)
    assert spent(node) == epsilon_by_round(small_task().offer.terms)[1]


def test_a_repeat_is_never_trained_again_with_fresh_noise(tmp_path: Path) -> None:
    """A seeded node would make the same bytes twice; an unseeded one shows where they came from."""
    node = node_in(tmp_path, federation={"seed": None})
    digests = {arrays_digest(train_round(small_task(), node).head) for _ in range(3)}
    assert len(digests) == 1
    with node.open_ledger() as ledger:
        statement = ledger.statement()
    assert (statement.committed, statement.open_reservations) == ((("run-1", 1),), ())


class FullLedger(Ledger):
    """A ledger whose disk is full once the round is trained."""

    def commit(self, reservation: Reservation, reply: bytes) -> None:
        raise ConfigError("the disk is full")


def test_nothing_is_released_that_the_ledger_could_not_store(node: Node, tmp_path: Path) -> None:
    path = tmp_path / "full.sqlite"
    full = dataclasses.replace(node, open_ledger=lambda: FullLedger.open(path, "d", delta=1e-5, epsilon_cap=8.0))
    with pytest.raises(ConfigError, match="full"):
        train_round(small_task(), full)
    assert spent(full) == epsilon_by_round(small_task().offer.terms)[1]


def test_another_head_for_the_same_round_is_another_charge(node: Node) -> None:
    task = small_task()
    train_round(task, node)
    cost = spent(node)
    other = dataclasses.replace(task, head={name: value + 1 for name, value in task.head.items()})
    train_round(other, node)
    assert spent(node) > cost


def test_thirty_rounds_are_not_reported_as_one(node: Node) -> None:
    task = small_task(rounds=30, noise_multiplier=20.0)
    for round_ in range(1, 31):
        train_round(dataclasses.replace(task, round=round_), node)
    table = epsilon_by_round(task.offer.terms)
    assert spent(node) == table[30]
    assert spent(node) > 3 * table[1]


def test_a_crash_between_paying_and_releasing_stays_paid(node: Node, tmp_path: Path) -> None:
    task = small_task()
    with node.open_ledger() as ledger:
        plan = node.policy.accept(task.offer, node.declared_size)
        ledger.reserve(Spend(task.offer.run_id, task.round, arrays_digest(task.head), node.name), plan)
    cost = spent(node)
    assert cost == epsilon_by_round(task.offer.terms)[1]
    train_round(task, node)
    assert spent(node) == cost


def test_a_round_that_does_not_fit_is_refused_before_a_record_is_read(node: Node) -> None:
    def unreadable(model: object) -> Any:
        raise AssertionError("a record was read")

    blind = dataclasses.replace(node, records=unreadable)
    with pytest.raises(BudgetSpentError, match="budget"):
        train_round(small_task(noise_multiplier=0.3), blind)
    assert spent(node) == 0.0


def test_a_plan_that_the_policy_forbids_is_refused_at_the_offer_and_in_every_round(node: Node) -> None:
    task = small_task()
    for policy in (
        dataclasses.replace(node.policy, min_noise_multiplier=3.0),
        dataclasses.replace(node.policy, max_clipping_norm=0.5),
        dataclasses.replace(node.policy, unit="patient"),
        dataclasses.replace(node.policy, delta=1e-7),
        dataclasses.replace(node.policy, backbones=frozenset({"another"})),
    ):
        strict = dataclasses.replace(node, policy=policy)
        with pytest.raises(PrivacyError, match=r"this node|not approved"):
            accept_offer(task.offer, strict)
        with pytest.raises(PrivacyError, match=r"this node|not approved"):
            train_round(task, strict)
    assert spent(node) == 0.0
    assert accept_offer(task.offer, node).declared_size == node.declared_size


def test_delta_above_one_over_the_declared_size_is_refused(node: Node) -> None:
    offer = small_task(delta=0.01).offer
    loose = dataclasses.replace(node.policy, delta=0.01)
    with pytest.raises(PrivacyError, match="delta"):
        accept_offer(offer, dataclasses.replace(node, policy=loose))


def test_another_backbone_than_the_node_has_is_refused_and_pays_nothing_more(node: Node) -> None:
    task = small_task()
    wrong = dataclasses.replace(task.offer, model=task.offer.model.model_copy(update={"backbone_digest": "0" * 64}))
    with pytest.raises(BackboneMismatchError, match="digest"):
        train_round(dataclasses.replace(task, offer=wrong), node)
    assert spent(node) == 0.0


def test_other_classes_than_the_nodes_own_are_refused_before_a_record_is_read(node: Node) -> None:
    """A head too narrow for some label would fail exactly where a record with that label is in the batch."""
    task = small_task()
    for classes in (("0", "1"), tuple(reversed(task.offer.model.classes))):
        model = task.offer.model.model_copy(update={"classes": classes})
        offer = dataclasses.replace(task.offer, model=model)
        head = head_arrays(build_head("linear", 64, len(classes)))
        with pytest.raises(ConfigError, match="classes"):
            accept_offer(offer, node)
        with pytest.raises(ConfigError, match="classes"):
            train_round(dataclasses.replace(task, offer=offer, head=head), node)
    assert spent(node) == 0.0


def test_another_task_than_the_nodes_own_is_refused_before_a_record_is_read(node: Node) -> None:
    """Targets of another task would fail, or mean something else, just where a record has certain labels."""
    task = small_task()
    for name in ("multilabel", "tokens", "spans"):
        model = task.offer.model.model_copy(update={"task": name})
        offer = dataclasses.replace(task.offer, model=model)
        with pytest.raises(ConfigError, match="agree on one task"):
            accept_offer(offer, node)
        with pytest.raises(ConfigError, match="agree on one task"):
            train_round(dataclasses.replace(task, offer=offer), node)
    assert spent(node) == 0.0


@pytest.mark.parametrize("round_", [-1, 0, 4, 10**30])
def test_a_round_that_the_plan_does_not_have_is_refused(round_: int, node: Node) -> None:
    with pytest.raises(ProtocolError, match="from 1 to 3"):
        train_round(dataclasses.replace(small_task(), round=round_), node)
    assert spent(node) == 0.0


@pytest.mark.parametrize("rate", [9e39, 1e300])
def test_a_step_that_overflows_is_released_once_and_not_tried_again(rate: float, tmp_path: Path) -> None:
    """A refusal would answer for a draw that nobody pays for, and the next try would draw anew."""
    node = node_in(tmp_path, federation={"seed": None})
    task = dataclasses.replace(small_task(), learning_rate=rate)
    first = train_round(task, node)
    assert finite(first.head)
    again = train_round(dataclasses.replace(task, learning_rate=0.5), node)
    assert arrays_digest(again.head) == arrays_digest(first.head)


def test_a_model_that_cannot_be_built_is_refused_before_anything_is_paid(node: Node) -> None:
    task = small_task()
    for change in ({"cut": "nope"}, {"head": "nope"}, {"head": "mlp"}):
        model = task.offer.model.model_copy(update=change)
        offer = dataclasses.replace(task.offer, model=model)
        with pytest.raises(ConfigError):
            train_round(dataclasses.replace(task, offer=offer), node)
    assert spent(node) == 0.0


def trained_with(task: TrainTask, node: Node, sampling: Randomness, noise: Randomness) -> dict[str, torch.Tensor]:
    plan: PrivacyPlan = node.policy.accept(task.offer, node.declared_size)
    return private_update(
        trained_head(task.offer.model, task.head), task, node.records(task.offer.model), plan, (sampling, noise)
    )


def test_an_empty_batch_is_noised_like_any_other(node: Node) -> None:
    task = small_task(sampling_rate=1e-6)
    head = trained_with(task, node, SeededRandomness(0, "n", 1, "sampling"), SeededRandomness(0, "n", 1, "noise"))
    assert not torch.equal(head["weight"], task.head["weight"])


def test_the_divisor_is_the_expected_batch_not_the_drawn_one(node: Node) -> None:
    task = small_task(sampling_rate=0.25)
    small = [SeededRandomness(0, "n", 1, purpose) for purpose in ("sampling", "noise")]
    head = trained_with(task, node, small[0], small[1])
    plan = node.policy.accept(task.offer, node.declared_size)
    assert plan.expected_batch == 0.25 * node.declared_size
    drawn = int(SeededRandomness(0, "n", 1, "sampling").bernoulli(node.declared_size, 0.25).sum())
    assert drawn != plan.expected_batch
    records = node.records(task.offer.model)
    features, targets = records.take(SeededRandomness(0, "n", 1, "sampling").bernoulli(len(records), 0.25))
    one_hot = torch.nn.functional.one_hot(targets, 10).double()
    slopes = torch.full((len(targets), 10), 0.1, dtype=torch.float64) - one_hot  # softmax of zero logits minus target
    norms = slopes.norm(dim=1) * (features.double().square().sum(dim=1) + 1).sqrt()
    scale = (1.0 / norms).clamp(max=1.0)
    noise = SeededRandomness(0, "n", 1, "noise")
    expected_bias = (
        (scale[:, None] * slopes).sum(dim=0) + 2.0 * torch.from_numpy(noise.normal((650,))[:10])  # the bias comes first
    ) / plan.expected_batch
    assert torch.allclose(head["bias"].double(), -0.5 * expected_bias, atol=1e-6)


class Recorder:
    """Seeded randomness that keeps the flags it gave out."""

    kind: Literal["seeded"] = "seeded"

    def __init__(self, purpose: str) -> None:
        self._inner = SeededRandomness(0, "n", 1, purpose)
        self.flags: list[NDArray[np.bool_]] = []

    def normal(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        return self._inner.normal(shape)

    def bernoulli(self, n: int, rate: float) -> NDArray[np.bool_]:
        self.flags.append(self._inner.bernoulli(n, rate))
        return self.flags[-1]


def test_each_local_step_draws_its_own_batch(node: Node) -> None:
    sampling = Recorder("sampling")
    trained_with(small_task(steps_per_round=3), node, sampling, Recorder("noise"))
    assert len(sampling.flags) == len({flags.tobytes() for flags in sampling.flags}) == 3


def test_each_local_step_draws_its_own_noise(node: Node) -> None:
    """On empty batches the head moves by noise alone: the sum of three draws, not three times one."""
    task = small_task(steps_per_round=3, sampling_rate=1e-6)
    head = trained_with(task, node, Recorder("sampling"), Recorder("noise"))
    noise, total = SeededRandomness(0, "n", 1, "noise"), np.zeros(10)
    for _ in range(3):
        total += noise.normal((650,))[:10]  # of bias and weight, end to end
    plan = node.policy.accept(task.offer, node.declared_size)
    expected = torch.from_numpy(-0.5 * 2.0 * total / plan.expected_batch)  # learning rate x sigma C
    assert torch.allclose(head["bias"].double(), expected, rtol=1e-5)


def test_two_rounds_and_two_nodes_never_share_their_noise(tmp_path: Path) -> None:
    node, other = node_in(tmp_path, 0), node_in(tmp_path, 1)
    drawn = [
        tuple(randomness.normal((4,)))
        for owner in (node, other)
        for round_ in (1, 2)
        for randomness in owner.randomness(round_)
    ]
    assert len(set(drawn)) == len(drawn)


def test_only_a_seeded_simulation_is_seeded(tmp_path: Path) -> None:
    seeded = node_in(tmp_path)
    free = node_in(tmp_path, federation={"seed": None})
    assert {randomness.kind for randomness in seeded.randomness(1)} == {"seeded"}
    assert {randomness.kind for randomness in free.randomness(1)} == {"system"}
    assert isinstance(free.randomness(1)[0], SystemRandomness)


def test_a_process_that_no_engine_marks_is_no_simulated_node() -> None:
    with pytest.raises(ConfigError, match="set up by its operator"):
        open_node(1, to_flat(small_config()), {"partition-id": 0, "num-partitions": 4})


@pytest.mark.parametrize("partition", [-1, 4])
def test_a_partition_that_the_federation_does_not_have_is_refused(partition: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="below 4"):
        node_in(tmp_path, partition)


def test_fedprox_pulls_towards_the_global_head(node: Node) -> None:
    task = small_task(steps_per_round=5)
    free = trained_with(task, node, *node.randomness(1))
    norms = [free["weight"].norm()]
    for mu in (1.0, 10.0, 1000.0):
        pulled = trained_with(dataclasses.replace(task, proximal_mu=mu), node, *node.randomness(1))
        norms.append(pulled["weight"].norm())
    assert norms == sorted(norms, reverse=True)
    assert norms[-1] > 0


def test_exact_metrics_need_the_nodes_own_policy(tmp_path: Path) -> None:
    task = EvaluateTask(small_task().offer, small_task().head)
    with pytest.raises(PrivacyError, match="metrics policy"):
        evaluate(task, node_in(tmp_path))
    assert 0 <= evaluate(task, node_in(tmp_path, evaluation={"node_metrics": "exact"})).accuracy <= 1


def test_the_policy_cap_is_the_ledgers_cap(tmp_path: Path) -> None:
    node = node_in(tmp_path)
    with node.open_ledger() as ledger:
        assert isinstance(ledger, Ledger)
        assert ledger.statement().epsilon_cap == node.policy.max_epsilon
    assert Policy(1.0, 1e-5, "record").accept(small_task().offer, 100).declared_size == 100


def test_nothing_but_trainable_parameters_is_released(node: Node) -> None:
    assert set(train_round(small_task(), node).head) == {"weight", "bias"}


def poisoned(node: Node) -> Node:
    """The node with a record that is not finite."""
    records = node.records(small_task().offer.model)
    features = np.array(records.features)
    features[records.rows[0]] = np.nan
    return dataclasses.replace(node, records=lambda model: dataclasses.replace(records, features=features))


def test_a_record_that_is_not_finite_changes_nothing_and_stops_nothing(node: Node) -> None:
    assert finite(train_round(small_task(sampling_rate=1.0), poisoned(node)).head)


@pytest.mark.parametrize("steps", [1, 3])
def test_gradients_that_are_not_finite_are_told_of_once_in_the_nodes_own_log(
    steps: int, node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    task = small_task(sampling_rate=1.0, steps_per_round=steps)
    train_round(task, node)
    assert caplog.messages == []
    other_round = dataclasses.replace(task, round=2)
    train_round(other_round, poisoned(node))
    assert caplog.messages == [f"gradients of {steps} sampled units were not finite; they counted zero"]
