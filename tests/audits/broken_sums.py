"""Shares of sums that are deliberately broken, each in a copy of the shipped one; see ``tests.audits.mutants``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from client.clipping import ClippedSum
from client.distributed_noise import noised_share, rounded
from client.mechanism import clipped_sum
from client.node import Node
from client.patient_sums import draw
from client.summing import noised_sum
from client.training import sampled_sum
from common.messages import SumTask
from common.privacy.plan import PrivacyPlan
from common.privacy.shares import NoiseShares
from common.privacy.sums import noise_shares
from common.tasks import task_named

Integers = NDArray[np.int64]


def _clipped(head: nn.Module, task: SumTask, node: Node, plan: PrivacyPlan) -> tuple[ClippedSum, NoiseShares]:
    loss = task_named(task.offer.model.task).loss
    clipped = sampled_sum(head, loss, node.records(task.offer.model), plan.terms, node.randomness(task.round)[0])
    return clipped, noise_shares(plan.terms, sum(value.numel() for value in clipped.values.values()))


def whole_share(head: nn.Module, task: SumTask, node: Node, plan: PrivacyPlan) -> Integers:
    """A copy of ``client.summing.noised_sum``."""
    return noised_share(*_clipped(head, task, node, plan), node.share_of_noise(task.round))


def one_without_noise(head: nn.Module, task: SumTask, node: Node, plan: PrivacyPlan) -> Integers:
    if node.name != "node-0":
        return noised_sum(head, task, node, plan)
    clipped, shares = _clipped(head, task, node, plan)
    flat = np.concatenate([clipped.values[name].flatten().numpy() for name in sorted(clipped.values)])
    return shares.residues(rounded(flat, shares))


def sized_for_all(head: nn.Module, task: SumTask, node: Node, plan: PrivacyPlan) -> Integers:
    """Shares of V / n, as if nobody were lost and nobody told."""
    clipped, shares = _clipped(head, task, node, plan)
    naive = replace(shares, cohort=replace(shares.cohort, dropouts=0, colluders=0))
    return noised_share(clipped, naive, node.share_of_noise(task.round))


def records_clipped(head: nn.Module, task: SumTask, node: Node, plan: PrivacyPlan) -> Integers:
    """A patient's records clipped one by one."""
    terms = plan.terms
    if terms.unit == "record":
        return noised_sum(head, task, node, plan)
    records, sampling = node.records(task.offer.model), node.randomness(task.round)[0]
    assert records.patients is not None
    rows, _ = draw(records.patients, terms.sampling_rate, terms.records_per_unit, sampling)
    loss = task_named(task.offer.model.task).loss
    clipped = clipped_sum(head, loss, *records.take(rows), terms.clipping_norm)
    shares = noise_shares(terms, sum(value.numel() for value in clipped.values.values()))
    return noised_share(clipped, shares, node.share_of_noise(task.round))
