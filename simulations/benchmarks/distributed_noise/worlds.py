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
from sklearn.metrics import roc_auc_score
from torch import Tensor

from client.clipping import ClippedSum
from client.distributed_noise import rounded
from common.privacy.accountant import noise_multiplier_for
from common.privacy.noise import SeededRandomness
from common.privacy.plan import PrivacyTerms
from common.privacy.shares import Cohort, NoiseShares, share_out
from common.privacy.skellam_noise import skellam_from_words
from server.defaults import default_clipping_norm, default_learning_rate
from simulations.benchmarks.distributed_noise.stacked import Heads, clipped_sums

WORLDS = ("pooled", "trusted server", "secagg", "secagg, one lost, one colluding", "local noise")
STEPS, DELTA = 30, 1e-5

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Split:
    """Records of one seed.

    Attributes:
        features: of training records, shape (N, D), single precision.
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


@dataclass(frozen=True)
class Setting:
    """What is trained.

    Attributes:
        world: out of ``WORLDS``.
        epsilon: of the whole run, at ``DELTA``, for one record added or removed.
    """

    world: str
    epsilon: float


def scores(split: Split, nodes: int, seed: int, settings: Sequence[Setting]) -> list[dict[str, float]]:
    """Train one head in each setting and score it on the held-out records.

    All are trained together, since they read the same features; each has its own noise and learning rate.

    Args:
        split: the records; every node gets an equal part, drawn by the seed.
        nodes: how many share the training records.
        seed: of the parts and of the noise, which is another in every world.
        settings: what is trained.

    Returns:
        Of each setting the accuracy, and for two classes the AUROC.
    """
    norm = default_clipping_norm(split.features.shape[1])
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(split.labels)))
    parts = [(split.features[part], split.labels[part]) for part in torch.tensor_split(order, nodes)]
    heads = Heads.untrained(len(settings), split.classes, split.features.shape[1])
    parameters = heads.weight[0].numel() + heads.bias[0].numel()
    sizes = [len(labels) for _, labels in parts]
    sums = [_sums_of(setting, sizes, norm, parameters, seed) for setting in settings]
    steps = [_step(each, sum(sizes)) for each in sums]
    for step in range(STEPS):
        clipped = [clipped_sums(heads, features, labels, norm) for features, labels in parts]
        by_head = zip(sums, steps, zip(*clipped, strict=True), strict=True)
        changes = [-length * own.noised(parts_of, step) for own, length, parts_of in by_head]
        heads = heads.moved(torch.from_numpy(np.array(changes)))
    return [_scored(logits, split) for logits in heads.logits(split.test_features)]


def _sums_of(setting: Setting, sizes: Sequence[int], norm: float, parameters: int, seed: int) -> Sums:
    sigma = noise_multiplier_for(setting.epsilon, DELTA, 1.0, STEPS)
    held = [sum(sizes)] if setting.world == "pooled" else list(sizes)
    return Sums(setting.world, held, sigma, norm, parameters, seed)


def _step(sums: Sums, records: int) -> float:
    """By how much a sum is multiplied before it is taken off a head."""
    terms = PrivacyTerms("record", "local", 1.0, STEPS, 1, sums.norm, sums.noise_over_norm, DELTA)
    return default_learning_rate(terms, sums.parameters, [records], [1.0], None) / records


def _scored(logits: Tensor, split: Split) -> dict[str, float]:
    right = logits.argmax(dim=1) == split.test_labels
    found = {"accuracy": float(right.double().mean())}
    if split.classes == 2:
        found["AUROC"] = float(roc_auc_score(split.test_labels.numpy(), (logits[:, 1] - logits[:, 0]).numpy()))
    return found


@dataclass(frozen=True)
class Sums:
    """How a world's noised sum over all nodes is made; the pool counts as one node that holds ``sizes[0]`` records."""

    world: str
    sizes: Sequence[int]
    sigma: float
    norm: float
    parameters: int
    seed: int

    @cached_property
    def shares(self) -> NoiseShares:
        """Scale and noise of a world in which they are shared out."""
        lost = 1 if "lost" in self.world else 0
        cohort = Cohort(len(self.sizes), lost, lost)
        return share_out(cohort, self.sigma, self.norm, self.parameters, max(self.sizes), sums=STEPS)

    @property
    def noise_over_norm(self) -> float:
        """Standard deviation of the noise in the sum over nodes, over the clipping norm; nobody drops out."""
        if self.world == "local noise":
            return self.sigma * math.sqrt(len(self.sizes))
        if self.world.startswith("secagg"):
            return math.sqrt(len(self.sizes) * self.shares.share_variance) / self.shares.scale / self.norm
        return self.sigma

    def noised(self, clipped: Sequence[ClippedSum], step: int) -> Floats:
        """The sum over nodes with all of its noise, which is drawn at once.

        Skellam variables, like normal ones, add up to one of the summed variance: that is what n nodes' shares, or
        their own noises, are together. Each node's sum is rounded by itself.
        """
        source = SeededRandomness(self.seed, f"{len(self.sizes)} nodes", step, self.world)
        if self.world.startswith("secagg"):
            shares = self.shares
            noise = skellam_from_words(source.words, shares.numbers, len(self.sizes) * shares.share_variance)
            sent = [shares.residues(rounded(_flat(each), shares)) for each in clipped]
            return shares.opened(shares.add([*sent, shares.residues(noise)]))
        total: Floats = np.sum([_flat(each) for each in clipped], axis=0)
        noisy_total: Floats = total + self.noise_over_norm * self.norm * source.normal(total.shape)
        return noisy_total


def _flat(clipped: ClippedSum) -> Floats:
    """Parameters end to end, in the order of names."""
    flat: Floats = torch.cat([clipped.values[name].flatten() for name in sorted(clipped.values)]).numpy()
    return flat
