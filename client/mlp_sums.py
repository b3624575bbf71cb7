"""Clipped sums for a head of one hidden layer: the closed form of a linear one, for both of its layers."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn

from client.clipping import ClippedSum, clip_factors
from client.slopes import slopes_along, unit_by_unit
from common.tasks import PerUnitLoss


def is_mlp(head: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether the head is a linear layer, a ReLU and a linear layer, all as torch has them, with their biases."""
    kinds = (nn.Linear, nn.ReLU, nn.Linear)
    layers = tuple(head) if type(head) is nn.Sequential else ()
    return tuple(map(type, layers)) == kinds and all(layer.bias is not None for layer in layers[::2])


@torch.no_grad()
def mlp_clipped_sum(
    head: nn.Sequential, loss: PerUnitLoss, features: Tensor, targets: Tensor, clipping_norm: float
) -> ClippedSum:
    """Clip the outer products of both layers without forming them; see ``mechanism.clipped_sum``.

    What passes a layer forwards and back is a unit's own small product. Norm and sum are made of the same slopes and
    inputs, so that nothing cancels in one that does not in the other.

    Source: Goodfellow 2015, arXiv:1510.01799.
    """
    first, last = (tuple(value.detach().double() for value in head[layer].parameters()) for layer in (0, 2))
    inputs = features.detach().double()
    before = unit_by_unit(inputs, first[0]) + first[1]
    hidden = before.relu()
    slopes = slopes_along(unit_by_unit(hidden, last[0]) + last[1], loss, targets)
    below = torch.where(before > 0, unit_by_unit(slopes, last[0].T), 0.0)

    trained = [name for name, value in head.named_parameters() if value.requires_grad]
    parts = {
        "0.weight": (below, inputs),
        "0.bias": (below, None),
        "2.weight": (slopes, hidden),
        "2.bias": (slopes, None),
    }
    norms = [_norm(*parts[name]) for name in trained] or [torch.zeros(len(inputs), dtype=torch.float64)]
    factors, finite = clip_factors(torch.linalg.vector_norm(torch.stack(norms), dim=0), clipping_norm)
    spoiled = int((~finite).sum())
    sums = {}
    for name in sorted(trained):
        slope, given = parts[name]
        scaled = torch.where(finite[:, None], slope, 0.0) * factors[:, None]
        clean = given if given is None or not spoiled else torch.where(finite[:, None], given, 0.0)
        sums[name] = scaled.sum(dim=0) if clean is None else scaled.T @ clean
    return ClippedSum(sums, clipping_norm, spoiled)


def _norm(slopes: Tensor, inputs: Tensor | None) -> Tensor:
    """Of each unit's outer product, or of its slopes alone, shape (B,)."""
    length: Tensor = torch.linalg.vector_norm(slopes, dim=1)
    return length if inputs is None else length * torch.linalg.vector_norm(inputs, dim=1)
