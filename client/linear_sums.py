"""Clipped sums of a linear head: in closed form, and for the batches of many nodes at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.clipping import ClippedSum, clip_factors
from client.slopes import slopes_along, unit_by_unit
from common.tasks import PerUnitLoss


def linear_clipped_sums(
    head: nn.Linear, loss: PerUnitLoss, features: Sequence[Tensor], targets: Sequence[Tensor], clipping_norm: float
) -> list[ClippedSum]:
    """Clip outer products without forming them: |g a^T|, with the bias, is |g| sqrt(|a|^2 + 1).

    What belongs to a unit is computed from that unit alone, and what is added up from its own batch: a sum has the same
    bits whatever other batches there are.

    Args:
        head: of all batches.
        loss: see ``mechanism.Batch``, as for the others.
        features: of each batch, shape (B, D).
        targets: of each batch, shape (B, ...).
        clipping_norm: C.

    Returns:
        The sum of each batch, in their order.

    Source: Goodfellow 2015, arXiv:1510.01799.
    """
    weights = {name: value for name, value in (("weight", head.weight), ("bias", head.bias)) if value is not None}
    trained = sorted(name for name, value in weights.items() if value.requires_grad)
    values = np.concatenate([part.detach().numpy() for part in features], dtype=np.float64)
    aims = targets[0] if len(targets) == 1 else torch.cat(list(targets))
    slopes = logit_gradients(head, loss, torch.from_numpy(values), aims).numpy()
    with np.errstate(all="ignore"):  # what is not finite is counted
        squares = np.einsum("bd,bd->b", values, values) if "weight" in trained else 0.0
        lengths = np.sqrt(np.einsum("bk,bk->b", slopes, slopes) * (squares + ("bias" in trained)))
        factors, finite = (part.numpy() for part in clip_factors(torch.from_numpy(lengths), clipping_norm))
        slopes = slopes * factors[:, None]  # (B, K)
    if not finite.all():
        slopes, values = (np.where(finite[:, None], part, 0.0) for part in (slopes, values))
    places = itertools.pairwise(itertools.accumulate(map(len, features), initial=0))
    return [
        ClippedSum(
            {name: _sum(name, slopes[start:end], values[start:end]) for name in trained},
            clipping_norm,
            end - start - int(np.count_nonzero(finite[start:end])),
        )
        for start, end in places
    ]


def _sum(name: str, slopes: NDArray[np.float64], values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(slopes.T @ values if name == "weight" else slopes.sum(axis=0))


def logit_gradients(head: nn.Linear, loss: PerUnitLoss, inputs: Tensor, targets: Tensor) -> Tensor:
    """Slope of each record's loss along its logits, shape (B, K), from float64 inputs (B, D); each by itself."""
    logits = unit_by_unit(inputs, head.weight.detach().double())
    if head.bias is not None:
        logits += head.bias.detach().double()
    return slopes_along(logits, loss, targets)
