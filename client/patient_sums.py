"""Patients as the unit: which records of whom join a step, and the sum of one clipped gradient a patient.

A patient's gradient is the mean over those of its records that were drawn. It is formed, and its norm taken, by
itself: a norm from Gram matrices is cheaper for patients of few records, but cancels, and weights chosen by a server
can make it cancel to nothing (docs/decisions/0007-heads.md).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.clipping import ClippedSum
from client.deep_heads import deep_clipped_sum
from client.linear_sums import logit_gradients
from client.mechanism import check_clipping_norm
from client.solved_sums import solved_sum
from client.token_sums import AT_ONCE, Floats, add_clipped
from common.privacy.noise import Randomness
from common.solved_heads import SolvedHead
from common.tasks import PerUnitLoss


def draw(
    patients: NDArray[np.int64], rate: float, most: int, randomness: Randomness
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw patients by Poisson sampling, and of each at most so many records, any as likely as any other.

    Args:
        patients: number of the patient of each record, shape (n,); all of 0 … P-1 occur.
        rate: q, the chance of each patient.
        most: k, the most records of one.
        randomness: of the sampling.

    Returns:
        Records (m,), patient after patient, and how many each drawn patient has.
    """
    everybody = int(patients.max(initial=-1)) + 1
    chosen = randomness.bernoulli(everybody, rate)
    order = np.lexsort((randomness.normal((len(patients),)), patients))  # independent numbers give any order
    sorted_patients = patients[order]
    place = np.arange(len(order)) - np.searchsorted(sorted_patients, sorted_patients)
    kept = order[chosen[sorted_patients] & (place < most)]
    counts = np.bincount(patients[kept], minlength=everybody)
    return kept, counts[counts > 0]


def patient_clipped_sum(
    head: nn.Module,
    loss: PerUnitLoss,
    features: Tensor,
    targets: Tensor,
    sizes: NDArray[np.int64],
    clipping_norm: float,
) -> ClippedSum:
    """Sum the gradients of all patients, each scaled down to an L2 norm of at most ``clipping_norm``.

    Args:
        head: as in `client.mechanism.clipped_sum`.
        loss: unreduced, one value a record.
        features: shape (m, …), patient after patient.
        targets: shape (m, …).
        sizes: how many records each patient has, shape (B,), each at least 1; they add up to m.
        clipping_norm: C, > 0.

    Returns:
        The sum over trainable parameters. A patient whose gradient is not finite contributes zero and is counted.

    Guarantees:
        Adding or removing one patient changes the sum, over all parameters together, by at most C in L2 up to rounding.

    Raises:
        PrivacyError: a layer mixes records (BatchNorm, say), the loss is reduced, or ``clipping_norm`` is not positive.
    """
    check_clipping_norm(clipping_norm)
    if type(head) is SolvedHead:
        return solved_sum(head, features, targets, clipping_norm, sizes)
    if type(head) is nn.Linear and features.dim() == 2:
        return _linear_sum(head, loss, features, targets, sizes, clipping_norm)
    return deep_clipped_sum(head, loss, features, targets, clipping_norm, sizes)


def _linear_sum(
    head: nn.Linear, loss: PerUnitLoss, features: Tensor, targets: Tensor, sizes: NDArray[np.int64], norm: float
) -> ClippedSum:
    """Gradients (1/n) sum_i g_i a_i^T, one small product a patient; patients of equally many records are stacked."""
    inputs = features.detach().double()
    slopes = logit_gradients(head, loss, inputs, targets).numpy()
    named = {name: value.shape for name, value in head.named_parameters() if value.requires_grad}
    sums = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in named.items()}
    spoiled = 0
    with np.errstate(all="ignore"):  # what is not finite is counted
        for rows in _stacks(sizes, inputs.shape[1] * max(1, slopes.shape[1])):
            own = slopes[rows] / rows.shape[1]  # (B, n, K)
            whole: dict[str, Floats] = {
                "weight": np.matmul(own.transpose(0, 2, 1), inputs.numpy()[rows]),
                "bias": own.sum(axis=1),
            }
            spoiled += add_clipped(sums, {name: whole[name] for name in named}, norm)
    return ClippedSum(sums, norm, spoiled)


def _stacks(sizes: NDArray[np.int64], numbers: int) -> Iterator[NDArray[np.int64]]:
    """Rows (B, n) of patients that have equally many records, so many that their gradients fit a processor's cache."""
    starts = np.cumsum(sizes) - sizes
    for count in np.unique(sizes):
        who = np.flatnonzero(sizes == count)
        for part in np.array_split(who, -(-len(who) * numbers // AT_ONCE)):
            if len(part):
                yield starts[part][:, None] + np.arange(count)
