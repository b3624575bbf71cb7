"""Recipes of shadow heads: how a federation would train, with privacy and without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

import torch
from torch import Tensor

from common.privacy.plan import PrivacyTerms
from common.tasks import classification_loss
from server.defaults import default_learning_rate
from simulations.audits.shadows import Place, Recipe, train_heads
from simulations.without_privacy import LEARNING_RATES


def private_recipe(
    terms: PrivacyTerms, classes: int, features: int, sizes: Sequence[int], learning_rate: float | None = None
) -> Recipe:
    """What nodes of these declared sizes train by, weighted by size, as the server would ask them.

    Args:
        terms: of the mechanism.
        classes: K.
        features: D.
        sizes: declared, of all nodes; the recipe's divisor is the first one's.
        learning_rate: None takes the server's default.
    """
    parameters = classes * (features + 1)
    if learning_rate is None:
        learning_rate = default_learning_rate(terms, parameters, sizes, [float(size) for size in sizes], None)
    return Recipe(classes, learning_rate, terms, terms.for_node(sizes[0]).expected_batch)


def seed_for(seed: int, *purposes: str) -> int:
    """A seed of its own for each purpose, so that no two attacks of one audit share their draws.

    >>> seed_for(1, "records", "peer") == seed_for(1, "records", "peer") != seed_for(1, "records", "model")
    True
    """
    return int.from_bytes(sha256("\n".join([str(seed), *purposes]).encode()).digest()[:7], "big")


def places_of(
    rows: Sequence[Tensor],
    terms: PrivacyTerms | None,
    sizes: Sequence[int],
    weights: Sequence[float] | None = None,
) -> list[Place]:
    """Nodes with these records.

    Args:
        rows: of each node's records.
        terms: of the mechanism; None without privacy.
        sizes: declared.
        weights: of the average; None takes the declared sizes.
    """
    batches = [float(size) if terms is None else terms.for_node(size).expected_batch for size in sizes]
    shares = [float(size) for size in sizes] if weights is None else weights
    return [Place(own, batch, share) for own, batch, share in zip(rows, batches, shares, strict=True)]


def open_recipe(
    features: Tensor,
    targets: Tensor,
    classes: int,
    rounds: int,
    *,
    places: Sequence[Place] | None = None,
    steps_per_round: int = 1,
) -> Recipe:
    """What the same nodes train by without privacy, at the learning rate that fits all their records best.

    It is the rate that ``train_without_privacy`` would choose: no held-out record is looked at.
    """
    everything = torch.ones(1, len(targets), dtype=torch.bool)
    recipe = Recipe(classes, LEARNING_RATES[0], None, 1.0, rounds, steps_per_round)

    def fit(rate: float) -> float:
        head = train_heads(features, targets, everything, replace(recipe, learning_rate=rate), seed=0, places=places)[0]
        loss = float(classification_loss(features @ head[:, :-1].T + head[:, -1], targets).double().sum())
        return loss if loss == loss else float("inf")

    return replace(recipe, learning_rate=min(LEARNING_RATES, key=fit))
