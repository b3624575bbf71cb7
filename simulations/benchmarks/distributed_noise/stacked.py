"""Clipped sums of many linear heads over the same records at once: one pass over the features serves all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from client.clipping import ClippedSum, clip_factors


@dataclass(frozen=True)
class Heads:
    """Linear heads, which start at zero as a run's does, in single precision as a server sends them.

    Attributes:
        weight: shape (M, K, D).
        bias: shape (M, K).
    """

    weight: Tensor
    bias: Tensor

    @classmethod
    def untrained(cls, count: int, classes: int, dimension: int) -> Heads:
        """So many heads at zero."""
        zero = torch.zeros(count, classes, dimension)
        return cls(zero, zero[:, :, 0].clone())

    def moved(self, changes: Tensor) -> Heads:
        """Each head after its change: changes (M, K + K D), biases before weights, as sums are laid end to end."""
        biases = self.bias[0].numel()
        bias, weight = changes[:, :biases], changes[:, biases:]
        return Heads((self.weight + weight.view_as(self.weight)).float(), (self.bias + bias.view_as(self.bias)).float())

    def logits(self, features: Tensor) -> Tensor:
        """Shape (M, n, K), from features (n, D), single precision."""
        return features @ self.weight.transpose(1, 2) + self.bias[:, None, :]


def clipped_sums(heads: Heads, features: Tensor, labels: Tensor, clipping_norm: float) -> list[ClippedSum]:
    """What ``client.mechanism.clipped_sum`` gives for each head, in single precision, which is fast.

    Args:
        heads: M of them.
        features: shape (n, D), single precision, finite.
        labels: classes, shape (n,).
        clipping_norm: C.
    """
    number, classes, width = heads.weight.shape
    logits = (features @ heads.weight.view(-1, width).T).view(-1, number, classes) + heads.bias
    slopes = logits.softmax(dim=2)
    slopes[torch.arange(len(labels)), :, labels] -= 1.0  # (n, M, K)
    lengths = (features.square().sum(dim=1) + 1.0).sqrt()
    factors, finite = clip_factors(slopes.norm(dim=2) * lengths[:, None], clipping_norm)
    assert bool(finite.all())
    slopes = slopes * factors[:, :, None]
    weights = (slopes.view(len(labels), -1).T @ features).view(number, classes, width).double()
    biases = slopes.sum(dim=0, dtype=torch.float64)
    return [ClippedSum({"bias": biases[i], "weight": weights[i]}, clipping_norm, 0) for i in range(number)]
