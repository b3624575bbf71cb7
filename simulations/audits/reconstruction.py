"""Reconstruction: what a server reads about a node's records from one update of a linear head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import ConfigError
from simulations.audits.findings import Reconstruction
from simulations.audits.shadows import Recipe, train_heads


@dataclass(frozen=True)
class Known:
    """What the server knows besides the update, all of it public.

    Attributes:
        records: that the node declares.
        divisor: the sum of all records' un-clipped gradients is about the released gradient times this, clipping and
            sampling accounted for.
        mean: features of a typical record, shape (D,), from public ones; zeros where it has none.
    """

    records: int
    divisor: float
    mean: Tensor


def known_to_server(recipe: Recipe, records: int, public: Tensor) -> Known:
    """What the server knows of a node that starts from the zero head.

    There every record's slope has the length sqrt(1 - 1/K), so that clipping scales records of equal length alike.

    Args:
        recipe: of the node.
        records: that the node declares.
        public: features of public records, shape (z, D).
    """
    mean = public.double().mean(dim=0)
    if recipe.terms is None:
        return Known(records, float(records), mean)
    norm = math.sqrt((1 - 1 / recipe.classes) * (float(public.square().sum(dim=1).mean()) + 1))
    factor = min(1.0, recipe.terms.clipping_norm / norm)
    return Known(records, recipe.expected_batch / recipe.terms.sampling_rate / factor, mean)


def read_record(gradient: Tensor) -> Tensor:
    """Features of the only record behind a gradient, shape (D,); whatever the head was and however it was clipped.

    A record's gradient is slope times (features, 1), so that a row of weights over its bias is the features. The row
    of the record's own class is the one whose slope is negative.

    Args:
        gradient: shape (K, D + 1), the last column the bias.

    Returns:
        The features; zeros where the head was so sure of the record that the gradient is zero.

    Source: Geiping et al. 2020, arXiv:2003.14053.
    """
    row = gradient[gradient[:, -1].argmin()]
    return row[:-1] / row[-1] if float(row[-1]) else torch.zeros_like(row[:-1])


def read_class_counts(gradient: Tensor, known: Known) -> Tensor:
    """Records of each class behind a gradient at the zero head, shape (K,), between 0 and all; not rounded.

    There a record's slope is 1/K - [its class], so that the sum of bias gradients of class k is n/K - n_k.

    Source: Wainakh et al. 2022, arXiv:2105.09369.
    """
    counts = known.records / len(gradient) - known.divisor * gradient[:, -1].double()
    return counts.clamp(0.0, float(known.records))


def read_class_features(gradient: Tensor, known: Known) -> Tensor:
    """Mean features of each class behind a gradient at the zero head, shape (K, D); zeros where a class seems empty.

    The sum of weight gradients of class k is A/K - S_k: all features' sum over K, less the class's own sum. An empty
    class shows A exactly; without one, A is guessed from the mean of public records.
    """
    counts = read_class_counts(gradient, known).round()
    sums = known.divisor * gradient[:, :-1].double()
    empty = counts == 0
    shared = sums[empty].mean(dim=0) if bool(empty.any()) else known.mean * known.records / len(gradient)
    means = (shared - sums) / counts.clamp(min=1)[:, None]
    return torch.where(empty[:, None], 0.0, means)


def reconstruct(
    features: Tensor, targets: Tensor, nodes: Sequence[Tensor], recipe: Recipe, public: Tensor, *, seed: int
) -> tuple[Reconstruction, Reconstruction]:
    """Class counts and class features of nodes, each read from its own first update.

    Args:
        features: shape (n, D).
        targets: shape (n,).
        nodes: the rows of each node, all of the size that the recipe's divisor means.
        recipe: of the nodes.
        public: features of other records, which the server has, shape (z, D).
        seed: of the noise.

    Returns:
        Errors, means over all nodes and over the classes that they have. A guess without the update says that every
        class has as many records, and looks like the public records' mean.

    Raises:
        ConfigError: there is no node.
    """
    gradients = first_gradients(features, targets, nodes, recipe, seed=seed)
    counting, guessed, looking, chance = [], [], [], []
    for gradient, rows in zip(gradients, nodes, strict=True):
        known = known_to_server(recipe, len(rows), public)
        truth = torch.bincount(targets[rows], minlength=recipe.classes).double()
        present = truth > 0
        means = _class_means(features[rows].double(), targets[rows], recipe.classes)
        counting.append(float((read_class_counts(gradient, known) - truth).abs().mean()))
        guessed.append(float((len(rows) / recipe.classes - truth).abs().mean()))
        looking.append(_distance(read_class_features(gradient, known)[present], means[present]))
        chance.append(_distance(known.mean.expand_as(means)[present], means[present]))
    private = recipe.terms is not None
    return (
        Reconstruction("class counts", private, _average(counting), _average(guessed)),
        Reconstruction("class features", private, _average(looking), _average(chance)),
    )


def reconstruct_records(
    features: Tensor, targets: Tensor, recipe: Recipe, public: Tensor, *, seed: int
) -> Reconstruction:
    """Features of records, each the only one of its node; arguments as for ``reconstruct``."""
    gradients = first_gradients(features, targets, list(torch.arange(len(targets))[:, None]), recipe, seed=seed)
    found = torch.stack([read_record(gradient) for gradient in gradients]).double()
    truth = features.double()
    guess = public.double().mean(dim=0).expand_as(truth)
    return Reconstruction("features", recipe.terms is not None, _distance(found, truth), _distance(guess, truth))


def first_gradients(features: Tensor, targets: Tensor, nodes: Sequence[Tensor], recipe: Recipe, *, seed: int) -> Tensor:
    """What the first update of each node amounts to per step, shape (nodes, K, D + 1), noised as the recipe says.

    Raises:
        ConfigError: there is no node.
    """
    if not nodes:
        raise ConfigError("expected at least one node whose update is read, got none; name its records")
    included = torch.zeros(len(nodes), len(targets), dtype=torch.bool)
    for node, rows in enumerate(nodes):
        included[node, rows] = True
    heads = train_heads(features, targets, included, recipe.shortened(), seed=seed)
    return -heads / (recipe.learning_rate * recipe.schedule[1])


def _class_means(features: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Shape (K, D); zeros for an empty class."""
    sums = torch.zeros(classes, features.shape[1], dtype=features.dtype).index_add_(0, targets, features)
    return sums / torch.bincount(targets, minlength=classes).clamp(min=1)[:, None]


def _distance(found: Tensor, truth: Tensor) -> float:
    """Mean of 1 - cosine over rows; a reading of zeros is at distance 1."""
    return float(1 - torch.nn.functional.cosine_similarity(found, truth, dim=1).mean())


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values)
