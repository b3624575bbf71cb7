"""One record is read back exactly without privacy, whatever it is; with noise at epsilon 1 nothing is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import norm
from torch import Tensor

from common.errors import ConfigError
from common.privacy.accountant import noise_multiplier_for
from common.privacy.plan import PrivacyTerms
from simulations.audits.reconstruction import (
    first_gradients,
    known_to_server,
    read_class_counts,
    read_class_features,
    read_record,
    reconstruct,
    reconstruct_records,
)
from simulations.audits.shadows import Recipe

WIDTH, CLASSES, FALSE_ALARM = 64, 5, 1e-6
OPEN = Recipe(CLASSES, 0.5, None, 1.0, rounds=1)

finite = st.floats(-100, 100, width=32)


def private(epsilon: float | None = 1.0, size: int = 1) -> Recipe:
    noise = 1e-2 if epsilon is None else noise_multiplier_for(epsilon, 1e-5, 1.0, 30)
    terms = PrivacyTerms("record", "local", 1.0, 30, 1, 0.8, noise, 1e-5)
    return Recipe(CLASSES, 0.5, terms, float(size))


def draw(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, WIDTH, generator=generator), torch.randint(0, CLASSES, (count,), generator=generator)


def gradient(head: Tensor, features: Tensor, targets: Tensor) -> Tensor:
    """Mean gradient by autograd, (K, D + 1)."""
    head = head.clone().requires_grad_()
    logits = features @ head[:, :-1].T + head[:, -1]
    loss = torch.nn.functional.cross_entropy(logits, targets)
    return torch.autograd.grad(loss, head)[0]


@given(
    arrays(np.float64, (WIDTH,), elements=finite),
    st.integers(0, CLASSES - 1),
    st.integers(0, 2**31),
    st.floats(0, 0.01),
    st.floats(1e-6, 1.0),
)
def test_any_single_record_is_recovered_at_any_head_and_clipping(record, target, seed, scale, clipped):
    generator = torch.Generator().manual_seed(seed)
    head = scale * torch.randn(CLASSES, WIDTH + 1, generator=generator, dtype=torch.float64)
    features = torch.from_numpy(record)
    found = read_record(clipped * gradient(head, features[None], torch.tensor([target])))
    assert torch.allclose(found, features, rtol=1e-9, atol=1e-9)


def test_a_head_that_is_sure_of_the_record_gives_nothing_away():
    assert torch.equal(read_record(torch.zeros(CLASSES, WIDTH + 1)), torch.zeros(WIDTH))


@given(st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=40))
def test_class_counts_are_exact_without_privacy(targets):
    features, _ = draw(len(targets))
    rows = torch.arange(len(targets))
    (found,) = first_gradients(features, torch.tensor(targets), [rows], OPEN, seed=0)
    counts = read_class_counts(found, known_to_server(OPEN, len(targets), torch.zeros(1, WIDTH)))
    assert torch.allclose(counts, torch.bincount(torch.tensor(targets), minlength=CLASSES).double(), atol=1e-3)


def test_a_class_that_is_missing_gives_all_class_means_away():
    features, targets = draw(30)
    targets = targets % (CLASSES - 1)
    known = known_to_server(OPEN, 30, torch.zeros(1, WIDTH))
    (found,) = first_gradients(features, targets, [torch.arange(30)], OPEN, seed=0)
    means = read_class_features(found, known)
    for label in range(CLASSES - 1):
        assert torch.allclose(means[label], features[targets == label].double().mean(dim=0), atol=1e-4)
    assert not means[-1].any()


def test_with_every_class_present_the_guess_of_all_features_is_what_is_missing():
    features, targets = draw(30)
    known = replace(known_to_server(OPEN, 30, torch.zeros(1, WIDTH)), mean=features.double().mean(dim=0))
    (found,) = first_gradients(features, targets, [torch.arange(30)], OPEN, seed=0)
    means = read_class_features(found, known)
    for label in range(CLASSES):
        assert torch.allclose(means[label], features[targets == label].double().mean(dim=0), atol=1e-4)


def cosines_of(recipe: Recipe, count: int = 400) -> float:
    """Mean cosine between records and what is read of them; features point anywhere."""
    features, targets = draw(count, seed=3)
    found = reconstruct_records(features, targets, recipe, torch.zeros(1, WIDTH), seed=1)
    assert found.chance == 1.0
    return 1 - found.error


def test_at_epsilon_one_a_record_is_hidden():
    """A reading that ignores the record has cosines of deviation 1 / sqrt(64), so 0.03 is its mean's bound at 1e-6.

    The clipped record itself moves the mean by C / (C sigma sqrt(64)) = 0.006. With hardly any noise the mean is near
    one: that the test sees a reading is certain.
    """
    bound = float(norm.isf(FALSE_ALARM)) / np.sqrt(400 * WIDTH)
    assert abs(cosines_of(private())) < bound + 0.006
    assert cosines_of(private(None)) > 0.9
    assert cosines_of(OPEN) == pytest.approx(1.0, abs=1e-5)


def test_clipping_alone_hides_nothing_and_the_noise_does():
    features, targets = draw(400, seed=5)
    features = torch.nn.functional.normalize(features, dim=1) * 8
    nodes = list(torch.split(torch.arange(400), 20))
    public = torch.nn.functional.normalize(draw(200, seed=6)[0], dim=1) * 8
    counts, means = reconstruct(features, targets, nodes, private(None, 20), public, seed=0)
    assert counts.error < 0.25 * counts.chance
    assert means.error < 0.5 * means.chance
    hidden, unseen = reconstruct(features, targets, nodes, private(1.0, 20), public, seed=0)
    assert hidden.private
    assert hidden.error > hidden.chance
    assert unseen.error > 0.8 * unseen.chance
    exact, _ = reconstruct(features, targets, nodes, OPEN, public, seed=0)
    assert not exact.private
    assert exact.error < 1e-3


def test_counts_are_right_on_average_where_half_of_the_records_are_sampled():
    """160 and 40 of two classes: a node's reading deviates by sqrt(0.25 x 200), the mean of 50 by one.

    Five deviations are allowed (probability below 1e-6); a server that forgot the sampling would read 130.
    """
    terms = PrivacyTerms("record", "local", 0.5, 30, 1, 1e-3, 0.01, 1e-5)
    features = torch.nn.functional.normalize(draw(200)[0], dim=1) * 8
    targets = (torch.arange(200) < 40).long()
    recipe = Recipe(2, 0.5, terms, 100.0)
    known = known_to_server(recipe, 200, features)
    found = first_gradients(features, targets, [torch.arange(200)] * 50, recipe, seed=0)
    first = torch.stack([read_class_counts(gradient, known) for gradient in found])[:, 0]
    assert abs(float(first.mean()) - 160) < 5


def test_there_has_to_be_a_node():
    with pytest.raises(ConfigError, match="at least one node"):
        first_gradients(*draw(3), [], OPEN, seed=0)
