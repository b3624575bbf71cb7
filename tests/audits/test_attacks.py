"""Attacks see what they should: the same through the code that trains as at once, and neither more nor less."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chi2, norm
from torch import nn

from client.mechanism import clipped_sum
from common.errors import ConfigError
from common.privacy.accountant import noise_multiplier_for
from common.privacy.noise import Randomness
from common.privacy.plan import PrivacyTerms
from common.tasks import classification_loss
from simulations.audits.attack_by_training import released
from simulations.audits.attacks import (
    View,
    attack_gradient,
    attack_in_one_run,
    log_likelihood_ratio,
    seen_from_draws,
    view_of,
)
from simulations.audits.canaries import along_canaries, gradient_canaries, mislabelled, out_of_distribution, own_record
from simulations.audits.estimators import clopper_pearson, gaussian_fit, gaussian_mu
from simulations.audits.findings import Claim, Threat, Vector
from simulations.audits.record_attacks import Crowd, attack_records
from simulations.audits.shadows import Place, Recipe

DELTA = 1e-5
FALSE_ALARM = 1e-6  # of each statistical test
SEEN: list[tuple[Threat, int, int]] = [
    ("server", 1, 1),
    ("server", 3, 2),
    ("peer", 2, 1),
    ("peer", 3, 2),
    ("model", 3, 1),
]


def claim_of(rate: float = 1.0, steps: int = 6, sigma: float = 2.0, clipping_norm: float = 0.7) -> Claim:
    return Claim(4.0, DELTA, "record", "local", steps, rate, sigma, clipping_norm)


def agrees(scores_in: Vector, scores_out: Vector, mu: float) -> bool:
    """Whether scores are log-likelihood ratios of two unit normals that are ``mu`` apart: means and variances."""
    error = FALSE_ALARM / 4
    for scores, mean in ((scores_in, mu**2 / 2), (scores_out, -(mu**2) / 2)):
        low, high = chi2.ppf([error / 2, 1 - error / 2], df=len(scores))
        if not low <= float((((scores - mean) / mu) ** 2).sum()) <= high:
            return False
        if abs(float(scores.mean()) - mean) > norm.isf(error / 2) * mu / math.sqrt(len(scores)):
            return False
    return True


@dataclass
class Dealt:
    """Randomness that hands out what it was given, one array a call."""

    flags: list[NDArray[np.bool_]]
    normals: list[Vector]
    kind: Literal["seeded"] = "seeded"

    def bernoulli(self, n: int, rate: float) -> NDArray[np.bool_]:
        dealt = self.flags.pop(0)
        assert dealt.shape == (n,)
        return dealt

    def normal(self, shape: tuple[int, ...]) -> Vector:
        dealt = self.normals.pop(0)
        assert dealt.shape == shape
        return dealt


@pytest.mark.parametrize("rate", [1.0, 0.4])
@pytest.mark.parametrize(("threat", "nodes", "steps_per_round"), SEEN)
def test_heads_at_once_are_the_heads_that_nodes_train_from_the_same_draws(threat, nodes, steps_per_round, rate):
    claim, canaries, rng = claim_of(rate), 4, np.random.default_rng(5)
    included = rng.random(canaries) < 0.5
    included[:2] = True, False
    flags = rng.random((1, claim.steps, canaries)) < rate
    normals = rng.normal(size=(nodes, claim.steps, 2 + 2 * canaries))  # bias, then weights by class

    def deal(node: int, turn: int) -> tuple[Randomness, Randomness]:
        own = range((turn - 1) * steps_per_round, turn * steps_per_round)
        sampled = [flags[0, t][included] if node == 0 else np.zeros(0, bool) for t in own]
        dealt = Dealt(sampled, [normals[node, t] for t in own])
        return dealt, dealt

    rounds = claim.steps // steps_per_round
    trained = released(claim, threat, included, canaries, nodes, rounds, deal)
    met = {"server": normals[:1], "peer": normals[:-1], "model": normals}[threat]
    noise = met[:, :, 2:].reshape(len(met), claim.steps, 2, canaries).transpose(0, 1, 3, 2)
    at_once = seen_from_draws(claim, included[None], flags, noise[None])[0]
    at_once = at_once.reshape(len(trained), -1, canaries).sum(axis=1)
    assert trained == pytest.approx(at_once, abs=2e-4)
    swapped = seen_from_draws(claim, ~included[None], flags, noise[None])[0].reshape(len(trained), -1, canaries)
    assert trained != pytest.approx(swapped.sum(axis=1), abs=2e-4), "control: other canaries are told from these"


@given(seed=st.integers(0, 1000), scale=st.floats(0, 2e-6), clipping_norm=st.sampled_from([1e-3, 0.7, 50.0]))
def test_a_gradient_canary_has_the_full_length_and_one_direction_whatever_the_head_is(seed, scale, clipping_norm):
    head = nn.Linear(5, 2)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in head.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * scale / max(1.0, clipping_norm))
    canaries = gradient_canaries(5, clipping_norm)
    for which in range(5):
        row = slice(which, which + 1)
        clipped = clipped_sum(
            head, classification_loss, canaries.features[row], canaries.targets[row], clipping_norm
        ).values
        along = along_canaries(clipped["weight"]) / clipping_norm
        assert along.numpy() == pytest.approx(np.eye(5)[which], abs=2e-6)
        assert float(clipped["bias"].norm()) < 1e-5 * clipping_norm


@pytest.mark.parametrize("rate", [1.0, 0.3])
@pytest.mark.parametrize("steps", [1, 5])
def test_scores_are_the_logarithm_of_the_ratio_of_densities(rate, steps):
    view, seen = View(steps, 1.3), np.linspace(-20, 25, 20_001)
    density = norm.pdf(seen, 0, 1.3 * steps**0.5)
    ratio = np.exp(log_likelihood_ratio(seen, rate, view))
    step = seen[1] - seen[0]
    assert (density * ratio).sum() * step == pytest.approx(1.0, abs=1e-6)
    assert (density * ratio * seen).sum() * step == pytest.approx(rate * steps, abs=1e-5)


@pytest.mark.parametrize(
    ("threat", "nodes", "noises"), [("server", 5, 1), ("peer", 2, 1), ("peer", 5, 4), ("model", 5, 5)]
)
def test_other_nodes_noise_hides_the_canary_from_those_who_see_the_average(threat, nodes, noises):
    claim = claim_of()
    scores = attack_gradient(claim, threat, heads=4000, nodes=nodes, parameters=4, seed=1)
    mu = math.sqrt(claim.steps / noises) / claim.noise_multiplier
    assert agrees(*scores, mu)
    assert not agrees(*scores, 0.8 * mu), "control: a fifth less is told apart"


def test_the_code_that_trains_keeps_its_claim_head_by_head():
    """A short audit of the shipped mechanism; a right one fails with probability below 2e-4 (two bounds)."""
    claim = replace(claim_of(steps=2, sigma=2**0.5 / gaussian_mu(4.0, DELTA)), epsilon=4.0)
    scores = attack_gradient(claim, "server", heads=240, nodes=1, parameters=6, seed=7, way="head by head")
    assert agrees(*scores, gaussian_mu(4.0, DELTA))
    assert clopper_pearson(*scores, DELTA, 1 - 1e-4) <= 4.0
    assert gaussian_fit(*scores, DELTA, 1 - 1e-4)[0] <= 4.0
    weaker = replace(claim, noise_multiplier=claim.noise_multiplier / 2)
    scores = attack_gradient(weaker, "server", heads=240, nodes=1, parameters=6, seed=7, way="head by head")
    assert gaussian_fit(*scores, DELTA, 1 - 1e-4)[0] > 4.0, "control: half of the noise is caught"


def test_one_run_holds_many_canaries_and_is_the_same_through_the_code_that_trains():
    claim = claim_of(rate=0.5, steps=4, sigma=1.5)
    at_once, coins = attack_in_one_run(claim, "server", canaries=3000, nodes=1, seed=3)
    trained, tossed = attack_in_one_run(claim, "server", canaries=300, nodes=1, seed=4, way="head by head")
    one_by_one = attack_gradient(claim, "server", heads=6000, nodes=1, parameters=4, seed=5)
    for part, tosses in ((at_once, coins), (trained, tossed)):
        for scores, expected in ((part[tosses], one_by_one[0]), (part[~tosses], one_by_one[1])):
            deviation = expected.std() * math.sqrt(1 / len(scores) + 1 / len(expected))
            assert abs(scores.mean() - expected.mean()) < norm.isf(FALSE_ALARM / 2) * deviation
    assert at_once[coins].mean() - at_once[~coins].mean() > 0.2


def test_system_randomness_is_taken_without_a_seed_and_a_seed_repeats():
    claim = claim_of()
    same = [attack_gradient(claim, "server", heads=8, nodes=1, parameters=4, seed=2)[0] for _ in range(2)]
    other = [attack_gradient(claim, "server", heads=8, nodes=1, parameters=4, seed=None)[0] for _ in range(2)]
    assert (same[0] == same[1]).all()
    assert (other[0] != other[1]).all()


def test_views_that_cannot_be_are_refused():
    assert view_of(claim_of(), "model", 4) == View(6, 4.0)
    with pytest.raises(ConfigError, match="a peer is a second node"):
        view_of(claim_of(), "peer", 1)
    with pytest.raises(ConfigError, match="divide 6 steps"):
        view_of(claim_of(), "server", 1, steps_per_round=4)


def long_records(count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Records so long that gradients are always clipped, so that what a canary adds to each step is known: C."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(count, 6, generator=generator) * 1e4
    return features, torch.randint(0, 3, (count,), generator=generator)


def recipe_of(rate: float = 1.0, sigma: float = 4.0, divisor: float = 12.0) -> Recipe:
    terms = PrivacyTerms("record", "local", rate, 8, 1, 0.5, sigma, DELTA)
    return Recipe(3, 1e-7, terms, rate * divisor)


def test_the_servers_score_of_a_record_is_its_exact_likelihood_ratio():
    features, targets = long_records()
    canary = mislabelled(features, targets, 3, which=2)
    scores = attack_records("server", canary, Crowd(features, targets), recipe_of(), heads=3000, seed=0)
    mu = math.sqrt(8) / 4.0
    assert agrees(*scores, mu)
    assert not agrees(*scores, 0.8 * mu), "control: a fifth less is told apart"


def test_a_peer_meets_the_noise_of_all_nodes_and_sampling_hides_more():
    features, targets = long_records()
    canary = own_record(features, targets, which=0)
    places = [Place(torch.arange(start, start + 4), 4.0, 1.0) for start in (0, 4, 8)]
    crowd = Crowd(features, targets, places)
    scores = attack_records("peer", canary, crowd, recipe_of(), heads=2000, seed=1)
    assert agrees(*scores, math.sqrt(8 / 3) / 4.0)
    sampled = attack_records("server", canary, Crowd(features, targets), recipe_of(0.3), heads=2000, seed=1)
    gap = [float(one[0].mean() - one[1].mean()) / float(one[1].std()) for one in (scores, sampled)]
    assert 0.0 < gap[1] < gap[0] + 0.1


def test_canaries_from_records_are_what_they_are_called():
    features, targets = long_records(30)
    assert int(mislabelled(features, targets, 3, which=4).targets) != int(targets[4])
    strange = out_of_distribution(features, targets, 3, seed=1)
    assert float(strange.features.norm()) == pytest.approx(float(features.norm(dim=1).max()), rel=1e-5)
    assert int(strange.targets) == int(torch.bincount(targets, minlength=3).argmin())
    own = own_record(features, targets, which=3)
    assert torch.equal(own.features[0], features[3])
    with pytest.raises(ConfigError, match="a record from 0 to 29"):
        own_record(features, targets, which=30)


def test_attacks_on_records_refuse_what_they_cannot_score():
    features, targets = long_records()
    canary = own_record(features, targets, which=0)
    crowd = Crowd(features, targets, [Place(torch.arange(6), 6.0, 1.0), Place(torch.arange(6, 12), 6.0, 1.0)])
    with pytest.raises(ConfigError, match="a crowd of several nodes"):
        attack_records("server", canary, crowd, recipe_of(), heads=4, seed=0)
    with pytest.raises(ConfigError, match="privacy terms"):
        attack_records("model", canary, crowd, replace(recipe_of(), terms=None, rounds=2), heads=4, seed=0)


def test_the_noise_that_the_plan_asks_for_is_what_the_claim_says():
    assert noise_multiplier_for(4.0, DELTA, 1.0, 30) == pytest.approx(30**0.5 / gaussian_mu(4.0, DELTA), rel=1e-3)
