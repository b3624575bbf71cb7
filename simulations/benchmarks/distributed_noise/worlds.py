"""One training run of a linear head on frozen features, with the noise in one of four places; full-batch steps.

Every world takes the same steps with the same clipping norm; its learning rate is the default rule's, which looks at
the noise that its sums hold and at no record. Runs are seeded: their epsilon is nominal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.clipping import ClippedSum
from client.distributed_noise import noised_share
from client.mechanism import clipped_sum
from common.heads import build_head
from common.privacy.accountant import noise_multiplier_for
from common.privacy.noise import SeededRandomness
from common.privacy.plan import PrivacyTerms
from common.privacy.shares import Cohort, NoiseShares, share_out
from common.tasks import classification_loss
from server.defaults import default_clipping_norm, default_learning_rate

WORLDS = ("pooled", "trusted server", "secagg", "secagg, one lost, one colluding", "local noise")
STEPS, DELTA = 30, 1e-5

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Split:
    """Records of one seed.

    Attributes:
        features: of training records, shape (N, D), double precision.
        labels: shape (N,).
        test_features: of held-out records.
        test_labels: of held-out records.
        classes: K.
    """

    features: Tensor
    labels: Tensor
    test_features: Tensor
    test_labels: Tensor
    classes: int


def accuracy(world: str, split: Split, nodes: int, epsilon: float, seed: int) -> float:
    """Train one head and score it on the held-out records.

    Args:
        world: out of ``WORLDS``.
        split: the records; every node gets an equal part, drawn by the seed.
        nodes: how many share the training records.
        epsilon: of the whole run, at ``DELTA``, for one record added or removed.
        seed: of the parts and of the noise, which is another in every world.
    """
    sigma = noise_multiplier_for(epsilon, DELTA, 1.0, STEPS)
    dimension = split.features.shape[1]
    norm = default_clipping_norm(dimension)
    head = build_head("linear", dimension, split.classes)
    parameters = sum(value.numel() for value in head.parameters())
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(split.labels)))
    parts = [order] if world == "pooled" else list(torch.tensor_split(order, nodes))
    sums = Sums(world, parts, sigma, norm, parameters, seed)
    size = len(split.labels)
    terms = PrivacyTerms("record", "local", 1.0, STEPS, 1, norm, sums.noise_over_norm, DELTA)
    rate = default_learning_rate(terms, parameters, [size], [1.0], None)
    with torch.no_grad():
        for step in range(STEPS):
            clipped = [
                clipped_sum(head, classification_loss, split.features[part], split.labels[part], norm) for part in parts
            ]
            _move(head, -rate / size * sums.noised(clipped, step))
        right = head(split.test_features.float()).argmax(dim=1) == split.test_labels
    return float(right.double().mean())


@dataclass(frozen=True)
class Sums:
    """How a world's noised sum over all nodes is made."""

    world: str
    parts: Sequence[Tensor]
    sigma: float
    norm: float
    parameters: int
    seed: int

    @cached_property
    def shares(self) -> NoiseShares:
        """Scale and noise of a world in which they are shared out."""
        lost = 1 if "lost" in self.world else 0
        cohort = Cohort(len(self.parts), lost, lost)
        return share_out(
            cohort, self.sigma, self.norm, self.parameters, max(len(part) for part in self.parts), sums=STEPS
        )

    @property
    def noise_over_norm(self) -> float:
        """Standard deviation of the noise in the sum over nodes, over the clipping norm; nobody drops out."""
        if self.world == "local noise":
            return self.sigma * math.sqrt(len(self.parts))
        if self.world.startswith("secagg"):
            return math.sqrt(len(self.parts) * self.shares.share_variance) / self.shares.scale / self.norm
        return self.sigma

    def noised(self, clipped: Sequence[ClippedSum], step: int) -> Floats:
        """The sum over nodes with its noise, parameters end to end in the order of names."""
        sources = [SeededRandomness(self.seed, f"node-{i}", step, self.world) for i in range(len(clipped))]
        if self.world.startswith("secagg"):
            shares = self.shares
            pairs = zip(clipped, sources, strict=True)
            return shares.opened(shares.add([noised_share(each, shares, source) for each, source in pairs]))
        total: Floats = np.sum([_flat(each) for each in clipped], axis=0)
        noisy = sources if self.world == "local noise" else sources[:1]
        noise = np.sum([source.normal(total.shape) for source in noisy], axis=0)
        noisy_total: Floats = total + self.sigma * self.norm * noise
        return noisy_total


def _flat(clipped: ClippedSum) -> Floats:
    """Parameters end to end, in the order of names."""
    flat: Floats = torch.cat([clipped.values[name].flatten() for name in sorted(clipped.values)]).numpy()
    return flat


def _move(head: nn.Module, change: Floats) -> None:
    named = dict(sorted(head.named_parameters()))
    pieces = torch.split(torch.from_numpy(change), [value.numel() for value in named.values()])
    for value, piece in zip(named.values(), pieces, strict=True):
        value.add_(piece.view_as(value))
