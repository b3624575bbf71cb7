"""The world without privacy: the same federation with neither clipping nor noise.

It never touches a node's way of training, which knows none without noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.solved_sums import solved_sum
from common.data.federation import source_targets
from common.features import as_tensor
from common.grafting import threads
from common.heads import head_arrays, load_arrays
from common.model import make_head
from common.solved_heads import SOLVED_HEADS, SolvedHead
from common.tasks import PerUnitLoss, task_named
from server.solving import solved
from simulations.preflight import Preflight

LEARNING_RATES = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
AT_ONCE, NUMBERS = 512, 2**21  # most records, and about how many numbers, whose gradients are computed together

Share = tuple[Tensor, Tensor]
Head = dict[str, Tensor]


def train_without_privacy(preflight: Preflight, places: Sequence[NDArray[np.int64]] | None = None) -> Head:
    """FedAvg as the federation runs it, without privacy (McMahan et al. 2017, arXiv:1602.05629).

    Every node takes part in every round with all of its records. The learning rate is the one whose head fits the
    training records best after all rounds; no held-out record is looked at.

    Args:
        preflight: of the run.
        places: the records at each place; None is the federation's own nodes.
    """
    plan = preflight.proposal.plan
    if plan.offer.model.head in SOLVED_HEADS:
        everywhere = list(preflight.federation.shares.values()) if places is None else list(places)
        return _solved(preflight, np.concatenate(everywhere))
    head, loss = make_head(plan.offer.model), task_named(plan.offer.model.task).loss
    shares = _shares(preflight, list(preflight.federation.shares.values()) if places is None else places)
    sizes = [len(targets) for _, targets in shares]
    weights = [size / sum(sizes) if plan.weighting == "declared" else 1 / len(sizes) for size in sizes]
    found: list[tuple[float, Head]] = []
    with threads(1):
        for rate in LEARNING_RATES:
            arrays = preflight.proposal.start
            for _ in range(plan.rounds):
                arrays = _average(
                    [_descend(head, loss, arrays, share, plan.offer.terms.steps_per_round, rate) for share in shares],
                    weights,
                )
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


def _average(heads: Sequence[Head], weights: Sequence[float]) -> Head:
    return {
        name: sum((w * head[name] for w, head in zip(weights, heads, strict=True)), torch.zeros(()))
        for name in heads[0]
    }


def _descend(
    head: nn.Module, loss: PerUnitLoss, start: Mapping[str, Tensor], share: Share, steps: int, rate: float
) -> Head:
    """Full-batch gradient steps on one node's records, from the global head."""
    load_arrays(head, start)
    trained = [value for value in head.parameters() if value.requires_grad]
    for _ in range(steps):
        gradients = [torch.zeros_like(value) for value in trained]
        for features, targets in _parts(share):
            total = loss(head(features), targets).sum() / len(share[1])
            for gradient, part in zip(gradients, torch.autograd.grad(total, trained, allow_unused=True), strict=True):
                gradient += 0.0 if part is None else part
        for value, gradient in zip(trained, gradients, strict=True):
            value.data -= rate * gradient
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
