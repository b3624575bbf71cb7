"""Heads solved from statistics: what scikit-learn finds without noise, and steady with it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestCentroid
from torch import Tensor

from client.mechanism import noisy_gradient
from client.solved_sums import solved_sum
from common.heads import build_head
from common.privacy.noise import SeededRandomness
from common.solved_heads import SOLVED_HEADS, SolvedHead
from server.solving import noise_in_mean, penalty, solved
from tests.federations import small_terms

CLASSES, WIDTH, NODES = 4, 6, 3


def data(seed: int = 0, count: int = 90) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % CLASSES
    centres = torch.randn(CLASSES, WIDTH, generator=generator)
    return centres[targets] + 0.5 * torch.randn(count, WIDTH, generator=generator), targets


def pooled_statistics(kind: str, features: Tensor, targets: Tensor, norm: float) -> dict[str, Tensor]:
    """The mean over three nodes of different sizes, exact."""
    module = build_head(kind, WIDTH, CLASSES)
    assert isinstance(module, SolvedHead)
    cuts = [0, 10, 40, len(targets)]
    sums = [solved_sum(module, features[a:b], targets[a:b], norm).values for a, b in pairwise(cuts)]
    return {name: -torch.stack([each[name] for each in sums]).sum(dim=0) / len(targets) for name in sums[0]}


def scores(head: dict[str, Tensor], features: Tensor) -> NDArray[np.float64]:
    return (features.double() @ head["weight"].double().T + head["bias"].double()).numpy()


def test_without_noise_a_ridge_is_scikit_learns_on_pooled_data() -> None:
    features, targets = data()
    norm = 50.0  # clips nothing
    found = solved("ridge", pooled_statistics("ridge", features, targets, norm), 0.0, norm)
    x = np.hstack([features.double().numpy(), np.ones((len(targets), 1))])
    alpha = penalty(0.0, WIDTH + 1) * norm**2 * len(targets)
    oracle = Ridge(alpha=alpha, fit_intercept=False, solver="svd").fit(x, np.eye(CLASSES)[targets.numpy()])
    np.testing.assert_allclose(found["weight"], oracle.coef_[:, :-1], atol=1e-6)
    np.testing.assert_allclose(found["bias"], oracle.coef_[:, -1], atol=1e-6)


def test_without_noise_prototypes_are_the_nearest_centroids() -> None:
    features, targets = data()
    norm = 50.0
    found = solved("prototype", pooled_statistics("prototype", features, targets, norm), 0.0, norm)
    oracle = NearestCentroid().fit(features.double().numpy(), targets.numpy())
    np.testing.assert_allclose(found["weight"] * norm**2, oracle.centroids_, rtol=1e-6, atol=1e-6)
    strangers = data(9, 200)[0]
    assert (scores(found, strangers).argmax(axis=1) == oracle.predict(strangers.double().numpy())).all()


@pytest.mark.parametrize("kind", SOLVED_HEADS)
def test_little_noise_moves_a_head_little_and_much_leaves_it_finite(kind: str) -> None:
    features, targets = data()
    exact = pooled_statistics(kind, features, targets, 4.0)
    generator = torch.Generator().manual_seed(1)

    def with_noise(deviation: float) -> dict[str, Tensor]:
        noised = {
            name: value + deviation * torch.randn(value.shape, generator=generator, dtype=torch.float64)
            for name, value in exact.items()
        }
        return solved(kind, noised, deviation, 4.0)

    clean = solved(kind, exact, 0.0, 4.0)
    torch.testing.assert_close(with_noise(1e-9)["weight"], clean["weight"], rtol=1e-3, atol=1e-4)
    right = (scores(with_noise(0.02), features).argmax(axis=1) == targets.numpy()).mean()
    assert right > 0.7
    for deviation in (1.0, 1e6, 1e30):
        assert all(bool(value.isfinite().all()) for value in with_noise(deviation).values())


@pytest.mark.parametrize("kind", SOLVED_HEADS)
def test_more_noise_pulls_harder(kind: str) -> None:
    features, targets = data()
    exact = pooled_statistics(kind, features, targets, 4.0)
    lengths = [float(solved(kind, exact, noise, 4.0)["weight"].norm()) for noise in (0.0, 0.03, 0.3, 3.0)]
    assert lengths == sorted(lengths, reverse=True)


def test_a_class_without_records_is_no_error() -> None:
    features, targets = data()
    few = targets != 2
    for kind in SOLVED_HEADS:
        found = solved(kind, pooled_statistics(kind, features[few], targets[few], 4.0), 0.0, 4.0)
        assert all(bool(value.isfinite().all()) for value in found.values())


@pytest.mark.parametrize("weights", [[1.0, 1.0], [30.0, 70.0]])
def test_the_noise_in_the_mean_is_what_the_nodes_add(weights: list[float]) -> None:
    sizes, terms = [30, 70], small_terms(noise_multiplier=3.0, clipping_norm=2.0)
    nobody = solved_sum(SolvedHead("prototype", 3000, 4), torch.zeros(0, 3000), torch.zeros(0, dtype=torch.long), 2.0)
    noised = [
        noisy_gradient(nobody, terms.for_node(size), SeededRandomness(1, f"node-{size}", 1, "noise"))["sums"]
        for size in sizes
    ]
    parts = [weight * value for weight, value in zip(weights, noised, strict=True)]
    mean = torch.stack(parts).sum(dim=0) / sum(weights)
    assert float(mean.std()) == pytest.approx(noise_in_mean(terms, weights, sizes), rel=0.04)  # 12,000: 6 deviations
