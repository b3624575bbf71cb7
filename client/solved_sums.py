"""The clipped sum for heads that the server solves: what each unit adds, bounded as ``common.solved_heads`` proves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.clipping import ClippedSum, clip_factors
from common.solved_heads import PARTS, SolvedHead, triangle

ROWS, NUMBERS = 512, 2**22  # of what is in memory together: records, or numbers of several patients' statistics


def solved_sum(
    head: SolvedHead, features: Tensor, targets: Tensor, clipping_norm: float, sizes: NDArray[np.int64] | None = None
) -> ClippedSum:
    """Sum what the units add, as a gradient: with its sign turned, so that a step from zero leads to the statistics.

    Args:
        head: says what is added up; left untouched.
        features: shape (m, D), patient after patient where the unit is a patient.
        targets: classes, shape (m,).
        clipping_norm: C, > 0: of the features, and of what a unit adds.
        sizes: how many records each patient has, adding up to m; None where the unit is a record.

    Returns:
        The sum over units of what a record adds, or of the mean over a patient's records. Records that are not finite
        add zero and are counted.

    Guarantees:
        Adding or removing one unit changes the sum, over all arrays together, by at most C in L2 up to rounding.
    """
    scaled, finite = _scaled(features, clipping_norm, constant=head.kind == "ridge")
    classes = torch.zeros(len(scaled), head.sums.shape[0], dtype=torch.float64)
    classes[torch.arange(len(scaled)), targets] = finite.double()
    sums = {name: torch.zeros(value.shape, dtype=torch.float64) for name, value in head.named_parameters()}
    for rows, divisor in _parts(len(scaled), sizes, sum(value.numel() for value in sums.values())):
        for name, value in _added(head.kind, scaled[rows], classes[rows] / divisor).items():
            sums[name] -= clipping_norm * value.sum(dim=0)
    return ClippedSum({name: sums[name] for name in sorted(sums)}, clipping_norm, int((~finite).sum()))


def _scaled(features: Tensor, clipping_norm: float, *, constant: bool) -> tuple[Tensor, Tensor]:
    """Features over C, of norm at most 1, zero where they are not finite, each from its own record; and where not."""
    inputs = features.detach().double()
    if constant:
        inputs = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=torch.float64)], dim=1)
    factors, finite = clip_factors(inputs.norm(dim=1), clipping_norm)
    return torch.where(finite[:, None], inputs, 0.0) * (factors / clipping_norm)[:, None], finite


def _added(kind: str, scaled: Tensor, classes: Tensor) -> Mapping[str, Tensor]:
    """What stacks of records add, each stack by itself: from (B, n, d) and weighted classes (B, n, K) to (B, …)."""
    first, second = PARTS[kind]
    sums = classes.transpose(1, 2) @ scaled
    if kind == "prototype":
        return {"sums": first * sums, "counts": second * classes.sum(dim=1)}
    places, weights = triangle(scaled.shape[2])
    products = (scaled * classes.sum(dim=2, keepdim=True)).transpose(1, 2) @ scaled
    return {"sums": second * sums, "products": first * weights * products[:, places[0], places[1]]}


def _parts(records: int, sizes: NDArray[np.int64] | None, numbers: int) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Places (B, n) of stacked records, and by what they are divided.

    Records are stacked at will. A patient is a stack of its own, so that the sum over patients is rounded as one over
    so many vectors of norm C, which the shares of noise count on (``common.privacy.shares``).
    """
    if sizes is None:
        for start in range(0, records, ROWS):
            yield np.arange(start, min(start + ROWS, records))[None, :], 1
        return
    starts = np.cumsum(sizes) - sizes
    for count in np.unique(sizes):
        who = np.flatnonzero(sizes == count)
        for part in np.array_split(who, -(-len(who) * numbers // NUMBERS)):
            yield starts[part][:, None] + np.arange(count), int(count)
