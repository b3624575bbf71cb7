"""The world without privacy: the same federation with neither clipping nor noise.

It never touches a node's way of training, which knows none without noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from flwr.app import ConfigRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray
from torch import Tensor, nn

import client.app
from client.solved_sums import solved_sum
from common import wire
from common.config import RunConfig
from common.data.federation import source_targets
from common.errors import ProtocolError
from common.features import as_tensor
from common.grafting import threads
from common.heads import head_arrays, load_arrays
from common.messages import Update
from common.model import make_head
from common.solved_heads import SOLVED_HEADS, SolvedHead
from common.tasks import PerUnitLoss, task_named
from server.aggregation import aggregate
from server.app import strategy_of
from server.link import CohortView, Member
from server.rounds import RoundPlan, choose_cohort
from server.solving import solved
from simulations.engine import InProcessGrid, task_identity
from simulations.preflight import Preflight

LEARNING_RATES = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
AT_ONCE, NUMBERS = 512, 2**21  # most records, and about how many numbers, whose gradients are computed together

MEANS = ("fedavg", "fedprox")  # strategies that average

Share = tuple[Tensor, Tensor]
Head = dict[str, Tensor]
Combine = Callable[[int, Head, Mapping[int, Head], Mapping[int, float]], Head]


def train_without_privacy(
    preflight: Preflight,
    places: Sequence[NDArray[np.int64]] | None = None,
    config: RunConfig | None = None,
    rates: Sequence[float] = LEARNING_RATES,
) -> Head:
    """A federation without privacy; with FedAvg (McMahan et al. 2017, arXiv:1602.05629) unless a run says otherwise.

    A node takes part in a round with all of its records. The learning rate is the one whose head fits the training
    records best after all rounds; no held-out record is looked at.

    Args:
        preflight: of the run.
        places: the records at each place; None is the federation's own nodes.
        config: of the run, whose strategy and cohorts are taken; None is the mean over all places in each round.
        rates: to choose the learning rate from.
    """
    plan = preflight.proposal.plan
    if plan.offer.model.head in SOLVED_HEADS:
        everywhere = list(preflight.federation.shares.values()) if places is None else list(places)
        return _solved(preflight, np.concatenate(everywhere))
    head, loss = make_head(plan.offer.model), task_named(plan.offer.model.task).loss
    shares = _shares(preflight, list(preflight.federation.shares.values()) if places is None else places)
    sizes = [len(targets) if plan.weighting == "declared" else 1 for _, targets in shares]
    steps, mu = plan.offer.terms.steps_per_round, (config.federation.proximal_mu or 0.0) if config else 0.0
    found: list[tuple[float, Head]] = []
    with threads(1), task_identity():
        for rate in rates:
            arrays, combine = preflight.proposal.start, _combiner(config)
            for round_ in range(1, plan.rounds + 1):
                cohort = range(len(shares)) if config is None else _cohort(plan, preflight.federation.names, round_)
                heads = {place: _descend(head, loss, arrays, shares[place], steps, rate, mu) for place in cohort}
                arrays = combine(round_, arrays, heads, {place: float(sizes[place]) for place in cohort})
            found.append((_fit(head, loss, arrays, shares), arrays))
    return min(found, key=lambda item: item[0])[1]


def _solved(preflight: Preflight, rows: NDArray[np.int64]) -> Head:
    """The head of a federation's exact statistics, with no feature clipped."""
    model = preflight.proposal.plan.offer.model
    module = make_head(model)
    assert isinstance(module, SolvedHead)
    ((features, targets),) = _shares(preflight, [rows])
    norm = math.sqrt(float(features.double().square().sum(dim=1).max()) + 1)
    with threads(1):
        exact = solved_sum(module, features, targets, norm).values
        return solved(model.head, {name: -value / len(rows) for name, value in exact.items()}, 0.0, norm)


def _shares(preflight: Preflight, places: Sequence[NDArray[np.int64]]) -> list[Share]:
    targets = source_targets(preflight.federation, preflight.proposal.plan.offer.model.backbone)
    return [(as_tensor(preflight.features, rows), targets[torch.from_numpy(rows)]) for rows in places]


def _cohort(plan: RoundPlan, names: Sequence[str], round_: int) -> list[int]:
    """The places of a round's nodes among all."""
    if plan.cohort is None:
        return list(range(len(names)))
    members = {name: Member(name, place, 0) for place, name in enumerate(names)}
    return [member.node_id for member in choose_cohort(members, plan.cohort, plan.seed, round_)]


def _combiner(config: RunConfig | None) -> Combine:
    """What makes the next head of those of a round; a mean needs none of Flower's messages."""
    if config is None or config.federation.strategy in MEANS:
        return lambda round_, before, heads, weights: _average(heads, weights)
    return partial(_combined, strategy_of(config), InProcessGrid(client.app.app, config, [], Path()))


def _average(heads: Mapping[int, Head], weights: Mapping[int, float]) -> Head:
    total = sum(weights.values())
    names = next(iter(heads.values()))
    return {
        name: sum((weights[place] / total * head[name] for place, head in heads.items()), torch.zeros(()))
        for name in names
    }


def _combined(
    strategy: FedAvg, grid: Grid, round_: int, before: Head, heads: Mapping[int, Head], weights: Mapping[int, float]
) -> Head:
    """The next head as the run's server makes it; NaN where it is not finite."""
    view = CohortView(grid, list(heads))
    with np.errstate(all="ignore"):
        asked = list(strategy.configure_train(round_, wire.encode_head(before), ConfigRecord(), view))
        replies = {message.metadata.dst_node_id: message for message in asked}
        answers = [wire.encode_reply(Update(head), replies[place]) for place, head in heads.items()]
        try:
            head = aggregate(strategy, round_, answers, weights)
        except ProtocolError:
            return {name: torch.full_like(value, math.nan) for name, value in before.items()}
    assert head is not None  # a strategy that needs more nodes was refused before
    return head


def _descend(
    head: nn.Module, loss: PerUnitLoss, start: Mapping[str, Tensor], share: Share, steps: int, rate: float, mu: float
) -> Head:
    """Full-batch gradient steps on one node's records, from the global head, pulled back to it by FedProx's mu."""
    load_arrays(head, start)
    trained = [value for value in head.parameters() if value.requires_grad]
    sent = [value.detach().clone() for value in trained] if mu else []
    for _ in range(steps):
        gradients = [torch.zeros_like(value) for value in trained]
        for features, targets in _parts(share):
            total = loss(head(features), targets).sum() / len(share[1])
            for gradient, part in zip(gradients, torch.autograd.grad(total, trained, allow_unused=True), strict=True):
                gradient += 0.0 if part is None else part
        for value, gradient in zip(trained, gradients, strict=True):
            value.data -= rate * gradient
        for value, there in zip(trained, sent, strict=False):
            value.data = there + (value.data - there) / (1 + rate * mu)
    return head_arrays(head)


@torch.no_grad()
def _fit(head: nn.Module, loss: PerUnitLoss, arrays: Mapping[str, Tensor], shares: Sequence[Share]) -> float:
    """Mean loss on the training records; infinite where it is not finite."""
    load_arrays(head, arrays)
    parts = [part for share in shares for part in _parts(share)]
    total = sum(float(loss(head(features), targets).double().sum()) for features, targets in parts)
    return total if math.isfinite(total) else math.inf


def _parts(share: Share) -> list[Share]:
    size = min(AT_ONCE, 1 + NUMBERS // share[0].shape[1])  # states of all tokens would not fit the processor's cache
    return list(zip(torch.split(share[0], size), torch.split(share[1], size), strict=True))
