"""Whole rounds, features and books that are deliberately broken; see ``tests.audits.mutants``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import safetensors.torch
from numpy.typing import NDArray

from client.ledger import Spend, StoredReply
from client.node import Node, Records
from client.training import private_update, require_local, train_round
from common.backbones.backbone import Backbone
from common.data.local import LocalData
from common.errors import PrivacyError
from common.features import extract
from common.heads import arrays_digest
from common.messages import ModelSpec, TrainTask, Update
from common.model import trained_head
from common.privacy.accountant import Event, epsilon_pld
from common.privacy.noise import SeededRandomness
from common.privacy.plan import PrivacyPlan
from simulations.audits.estimators import gaussian_epsilon
from simulations.audits.practice import PrivateSteps, ledger_epsilon
from tests.audits.broken_steps import Pair, no_noise, private_steps

Train = Callable[[TrainTask, Node], Update]
Spy = Callable[[TrainTask, Node], Node]


def whole_round(update: PrivateSteps = private_update, spy: Spy | None = None, repeats: bool = True) -> Train:
    """A copy of ``client.training.train_round`` with other private steps, at a node that ``spy`` may tamper with.

    ``repeats`` answers a repeated task with the stored bytes, as it should.
    """

    def train(task: TrainTask, node: Node) -> Update:
        node = node if spy is None else spy(task, node)
        plan = node.policy.accept(task.offer, node.declared_size)
        require_local(plan)
        module = trained_head(task.offer.model, task.head)
        with node.open_ledger() as ledger:
            reservation = ledger.reserve(Spend(task.offer.run_id, task.round, arrays_digest(task.head)), plan)
            if isinstance(reservation, StoredReply) and repeats:
                return Update(safetensors.torch.load(reservation.reply))
            head = update(module, task, node.records(task.offer.model), plan, node.randomness(task.round))
            if not isinstance(reservation, StoredReply):
                ledger.commit(reservation, safetensors.torch.save(head))
        return Update(head)

    return train


def late_without_noise(task: TrainTask, node: Node) -> Update:
    return whole_round(private_update if task.round == 1 else private_steps(release=no_noise))(task, node)


def alike(task: TrainTask, node: Node) -> Node:
    return replace(node, randomness=lambda round_: node.randomness(1))


def sent_seed(task: TrainTask, node: Node) -> Node:
    def randomness(round_: int) -> Pair:
        return node.randomness(round_)[0], SeededRandomness(0, task.offer.run_id, round_, "noise")

    return replace(node, randomness=randomness)


def centred(task: TrainTask, node: Node) -> Node:
    def records(model: ModelSpec) -> Records:
        features, targets = node.records(model).everything()
        centred = (features - features.mean(dim=0)).numpy()
        return Records(centred, np.arange(len(centred)), targets)

    return replace(node, records=records)


def centred_features(backbone: Backbone, cut: str, data: LocalData) -> NDArray[np.float32]:
    features = extract(backbone, cut, data)
    return np.asarray(features - features.mean(axis=0))


@dataclass(frozen=True)
class _Counted(Update):
    num_examples: int


def counts_examples(task: TrainTask, node: Node) -> Update:
    return _Counted(train_round(task, node).head, num_examples=len(node.records(task.offer.model)))


def unpaid(task: TrainTask, node: Node) -> Update:
    try:
        return train_round(task, node)
    except PrivacyError:
        plan = node.policy.accept(task.offer, node.declared_size)
        records, randomness = node.records(task.offer.model), node.randomness(task.round)
        return Update(private_update(trained_head(task.offer.model, task.head), task, records, plan, randomness))


def books_of_one_round(plan: PrivacyPlan, rounds: int) -> float:
    return max(ledger_epsilon(plan, 1) for _ in range(rounds))  # a ledger of its own for each


def books_of_the_last_entry(plan: PrivacyPlan, rounds: int) -> float:
    terms = plan.terms
    entries = [Event(terms.noise_multiplier, terms.sampling_rate, terms.steps_per_round)] * rounds
    return epsilon_pld(entries[-1:], terms.delta)


def central_limit(plan: PrivacyPlan, rounds: int) -> float:
    """Bu et al. 2020, arXiv:1911.11607: an approximation, on the wrong side."""
    terms, steps = plan.terms, rounds * plan.terms.steps_per_round
    return gaussian_epsilon(
        terms.sampling_rate * math.sqrt(steps * math.expm1(terms.noise_multiplier**-2)), terms.delta
    )


def cohort_amplified(plan: PrivacyPlan, rounds: int) -> float:
    terms = plan.terms
    return epsilon_pld(
        [Event(terms.noise_multiplier, terms.sampling_rate / 2, rounds * terms.steps_per_round)], terms.delta
    )
