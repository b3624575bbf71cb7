"""What an audit inserts into a node's records, or leaves out: the worst records that there can be, and likely ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from common.errors import ConfigError

CLASSES = 2  # of the heads that gradient canaries are tried on
_LENGTH = 1e6  # of a gradient canary's features, in clipping norms and at least: its bias is a millionth of that


@dataclass(frozen=True)
class Canaries:
    """Records to insert.

    Attributes:
        features: shape (m, D), float32.
        targets: classes, shape (m,).
    """

    features: Tensor
    targets: Tensor

    def __len__(self) -> int:
        """How many."""
        return len(self.targets)


def gradient_canaries(canaries: int, clipping_norm: float) -> Canaries:
    """Records whose clipped gradients have the full length, in directions at right angles (Dirac canaries).

    Each is alone on an axis of the features, and so long that its gradient is clipped wherever the head is; of two
    classes the slopes along the logits are equal and opposite, whatever the head is, so that the clipped gradient is
    one fixed vector of length C: see ``along_canaries``.

    Args:
        canaries: how many; as many features will there be.
        clipping_norm: C.

    Returns:
        Canaries of class 0, for a head of two classes.

    Source: Nasr et al. 2023, arXiv:2302.07956 (Dirac gradient canaries).
    """
    return Canaries(torch.eye(canaries) * _length(clipping_norm), torch.zeros(canaries, dtype=torch.int64))


def along_canaries(weight: Tensor) -> Tensor:
    """How far a head's weights (..., 2, m) lie along each gradient canary's own gradient, shape (..., m)."""
    return (weight[..., 1, :] - weight[..., 0, :]) / 2**0.5


def small_learning_rate(clipping_norm: float, noise_multiplier: float, steps: int, expected_batch: float) -> float:
    """A learning rate that leaves gradient canaries steep: their logits stay below about one."""
    return expected_batch / (_length(clipping_norm) * clipping_norm * steps * (1 + 3 * noise_multiplier))


def _length(clipping_norm: float) -> float:
    return _LENGTH * max(1.0, clipping_norm)


def mislabelled(features: Tensor, targets: Tensor, classes: int, *, which: int = 0) -> Canaries:
    """One of the records with the label of the class that it resembles least.

    Args:
        features: shape (n, D).
        targets: shape (n,).
        classes: K.
        which: of the records.

    Returns:
        One canary, whose label is the class whose mean features are farthest from its own.
    """
    _check(features, which)
    means = class_means(features, targets, classes)
    distances = (means - features[which]).norm(dim=1)
    distances[targets[which]] = -1.0
    return Canaries(features[which : which + 1].clone(), distances.argmax()[None])


def out_of_distribution(features: Tensor, targets: Tensor, classes: int, *, seed: int) -> Canaries:
    """A record like no other: the features of one in a random order, as long as the longest, with the rarest label.

    Args:
        features: shape (n, D).
        targets: shape (n,).
        classes: K.
        seed: of the choice and the order.
    """
    _check(features, 0)
    generator = torch.Generator().manual_seed(seed)
    lengths = features.norm(dim=1)
    one = features[int(torch.randint(len(features), (1,), generator=generator))]
    mixed = one[torch.randperm(features.shape[1], generator=generator)]
    mixed = mixed * (lengths.max() / mixed.norm().clamp(min=1e-12))
    rarest = one_hot(targets, classes).sum(dim=0).argmin()
    return Canaries(mixed[None, :], rarest[None])


def own_record(features: Tensor, targets: Tensor, *, which: int) -> Canaries:
    """A record as it is."""
    _check(features, which)
    return Canaries(features[which : which + 1].clone(), targets[which : which + 1].clone())


def class_means(features: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Mean features of each class, shape (K, D); zero for a class without records."""
    members = one_hot(targets, classes).to(features.dtype)
    return (members.T @ features) / members.sum(dim=0).clamp(min=1)[:, None]


def _check(features: Tensor, which: int) -> None:
    if not 0 <= which < len(features):
        raise ConfigError(f"expected a record from 0 to {len(features) - 1}, got {which}; choose another")
