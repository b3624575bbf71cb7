"""Attacks against scores whose distribution is known; on digits, with privacy and without; and on no signal at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import norm

from common.config import load_config
from common.data.federation import assemble, source_features, source_targets
from common.errors import ConfigError
from common.privacy.plan import PrivacyTerms
from server.coordinator import propose
from server.link import Member
from server.rounds import learning_rate
from simulations.audits.findings import Membership
from simulations.audits.membership import Observed, halves, lira, margins, membership, observe, rmia, rmia_scores
from simulations.audits.recipes import open_recipe, places_of, private_recipe

FALSE_ALARM = 1e-6  # of each statistical test
HEADS, RECORDS = 300, 40


def gaussians(shift: float, seed: int = 0, heads: int = HEADS) -> Observed:
    """Margins with a mean of each record's own; members are ``shift`` deviations above."""
    generator = np.random.default_rng(seed)
    included = generator.random((heads, RECORDS)) < 0.5
    means = generator.normal(0, 10, RECORDS)
    return Observed(means + generator.normal(size=included.shape) + shift * included, included)


def by_chance(found: Membership, targets: Observed) -> bool:
    """Whether the area is what scores give that know nothing of membership: deviation as of Mann and Whitney's U.

    Labels must be drawn independently of the scores. Of 4,000 decisions an area of 0.6 passes with probability below
    1e-6.
    """
    members, others = int(targets.included.sum()), int((~targets.included).sum())
    spread = np.sqrt((members + others + 1) / (12 * members * others))
    return bool(abs(found.area - 0.5) <= norm.isf(FALSE_ALARM / 2) * spread)


def best_rate(shift: float, targets: Observed) -> tuple[float, float]:
    """True positive rate, at 1 % false ones, of the best test between N(0, 1) and N(shift, 1), and what chance adds.

    The second is five deviations (probability below 1e-6) of a rate whose threshold is estimated as well.
    """
    members, others = int(targets.included.sum()), int((~targets.included).sum())
    threshold = norm.isf(0.01)
    best = float(norm.sf(threshold - shift))
    slope = np.exp(threshold * shift - shift**2 / 2)  # of the curve
    return best, 5 * float(np.hypot(slope * np.sqrt(0.01 * 0.99 / others), np.sqrt(best * (1 - best) / members)))


def shuffled(observed: Observed, seed: int = 1) -> Observed:
    """The same margins, with membership that has nothing to do with them."""
    return Observed(observed.margins, np.random.default_rng(seed).random(observed.included.shape) < 0.5)


@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_lira_reaches_what_the_best_test_of_two_gaussians_reaches(shift):
    """But for a tenth, which 1,200 shadow heads leave unknown; and never beyond what chance lets pass."""
    shadows, targets = gaussians(shift, heads=2000).split(800)
    found = lira(shadows, targets)
    best, chance = best_rate(shift, targets)
    assert 0.9 * best - chance <= found.true_positive_rate_at[0.01] <= best + chance
    assert found.area == pytest.approx(norm.cdf(shift / np.sqrt(2)), abs=0.02)
    offline = lira(shadows, targets, online=False)
    assert offline.area == pytest.approx(found.area, abs=0.02)
    assert found.heads == 1200


@pytest.mark.parametrize("heads", [90, 500])
def test_labels_that_mean_nothing_give_chance(heads):
    shadows, targets = shuffled(gaussians(3.0, heads=heads)).split(heads // 3)
    assert by_chance(lira(shadows, targets), targets)
    shadows, targets = gaussians(0.6, heads=heads).split(heads // 3)
    assert not by_chance(lira(shadows, targets), targets)


def test_with_few_shadows_one_variance_serves_all_records():
    """From 24 shadow heads, the area is within 0.04 of the best test's."""
    observed = gaussians(2.0, heads=424)
    shadows, targets = Observed(observed.margins[:24], observed.included[:24]), observed.split(400)[1]
    assert lira(shadows, targets).area > norm.cdf(2 / np.sqrt(2)) - 0.04


def test_rmia_sees_a_shift_and_nothing_where_there_is_none():
    generator = np.random.default_rng(5)
    population = generator.normal(0, 1, (HEADS, 200))

    def attack(observed: Observed, online: bool) -> tuple[Membership, Observed]:
        shadows, targets = observed.split(100)
        return rmia(shadows, targets, population[:200], population[200:], online=online), targets

    for online in (True, False):
        found, targets = attack(gaussians(1.5), online)
        assert not by_chance(found, targets)
        assert found.area > 0.6
        assert by_chance(*attack(shuffled(gaussians(1.5)), online))


@pytest.mark.parametrize("online", [True, False])
def test_rmia_is_the_fraction_of_population_records_that_a_record_beats(online):
    """Against the definition, one pair at a time; ties are broken by less than one record."""
    generator = np.random.default_rng(6)
    shadows, targets = gaussians(1.5, heads=24).split(4)
    before, after = generator.normal(0, 1, (20, 30)), generator.normal(0, 1, (4, 30))
    found = rmia_scores(shadows, targets, before, after, online=online, gamma=1.2)
    for head in range(4):
        for record in range(RECORDS):
            seen, flags = expit(shadows.margins[:, record]), shadows.included[:, record]
            usual = (seen[flags].mean() + seen[~flags].mean()) / 2 if online else 0.65 * seen[~flags].mean() + 0.35
            public = expit(before).mean(axis=0)
            public = public if online else 0.65 * public + 0.35
            ratio = expit(targets.margins[head, record]) / usual
            beaten = np.mean(ratio / (expit(after[head]) / public) > 1.2)
            assert abs(found[head, record] - beaten) <= 1 / 31


def test_vulnerability_is_each_records_own_rate():
    included = np.zeros((200, 2), dtype=bool)
    included[::2] = True
    scores = np.where(included, [[5.0, 0.0]], 0.0) + np.random.default_rng(0).normal(0, 0.1, included.shape)
    found = membership("lira-online", scores, Observed(scores, included), 10, 0.0)
    assert found.vulnerability[0] == 1.0
    assert found.vulnerability[1] < 0.1
    assert np.all(np.diff(found.false_positive_rates) >= 0)
    assert found.true_positive_rate_at[0.01] >= 0.5


def test_margins_are_logits_of_the_probability():
    generator = torch.Generator().manual_seed(0)
    heads, features = torch.randn(70, 3, 5, generator=generator), torch.randn(6, 4, generator=generator)
    targets = torch.arange(6) % 3
    logits = torch.einsum("mkd,nd->mnk", heads[:, :, :-1], features) + heads[:, None, :, -1]
    own = logits.double().softmax(dim=2)[:, torch.arange(6), targets].numpy()
    assert np.allclose(margins(heads, features, targets), np.log(own) - np.log1p(-own), atol=1e-5)


def test_what_cannot_be_attacked_is_refused():
    observed = gaussians(1.0, heads=20)
    nobody = Observed(observed.margins, np.zeros_like(observed.included))
    with pytest.raises(ConfigError, match="at least 2 shadow heads"):
        lira(nobody, observed)
    with pytest.raises(ConfigError, match="one kind only"):
        lira(observed, nobody)
    with pytest.raises(ConfigError, match="finite margins"):
        Observed(np.full((3, 2), np.inf), np.ones((3, 2), dtype=bool))


class Digits:
    """Pools of 40 training records of the demo, of which a node holds half, and the terms of epsilon 1."""

    def __init__(self) -> None:
        config = load_config(Path("simulations/configs/digits.toml"), ["privacy.epsilon=1"])
        federation = assemble(config)
        proposal = propose(config, "test")
        model = proposal.plan.offer.model
        features = torch.from_numpy(np.array(source_features(federation, model.backbone, model.cut)))
        targets = source_targets(federation, model.backbone)
        train = torch.from_numpy(np.concatenate(list(federation.shares.values())))
        test = torch.from_numpy(federation.test)
        self.features, self.targets = features[train], targets[train]
        self.population = features[test], targets[test]
        self.plan, self.start = proposal.plan, proposal.start
        self.terms: PrivacyTerms = proposal.plan.offer.terms


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


def on_digits(digits: Digits, pools: int, private: bool) -> tuple[Observed, np.ndarray]:
    parts, populations = [], []
    for pool in range(pools):
        rows = slice(40 * pool, 40 * pool + 40)
        features, targets = digits.features[rows], digits.targets[rows]
        recipe = private_recipe(digits.terms, 10, 256, [20]) if private else open_recipe(features, targets, 10, 30)
        included = halves(HEADS, 40, pool)
        seen = observe(features, targets, included, recipe, seed=pool, population=digits.population)
        parts.append(seen.of(slice(0, 40)))
        populations.append(seen.margins[:, 40:])
    merged = Observed(np.hstack([p.margins for p in parts]), np.hstack([p.included for p in parts]))
    return merged, populations[0]


def test_digits_are_found_without_privacy_and_at_epsilon_one_no_better_than_its_mechanism_allows(digits):
    """Thirty full-batch steps with noise sigma are N(0, 1) against N(sqrt(30) / sigma, 1), for the best attacker."""
    found = {private: on_digits(digits, 3, private)[0].split(100) for private in (False, True)}
    best, chance = best_rate(np.sqrt(digits.terms.steps) / digits.terms.noise_multiplier, found[True][1])
    for online in (True, False):
        assert lira(*found[True], online=online).true_positive_rate_at[0.01] <= best + chance
        assert lira(*found[False], online=online).true_positive_rate_at[0.01] > 2 * (best + chance)
        shadows, targets = (shuffled(part, seed) for seed, part in enumerate(found[False]))
        assert by_chance(lira(shadows, targets, online=online), targets)


def test_rmia_finds_digits_without_privacy(digits):
    observed, population = on_digits(digits, 1, private=False)
    shadows, targets = observed.split(100)
    for online in (True, False):
        assert rmia(shadows, targets, population[:200], population[200:], online=online).area > 0.7
        nothing = shuffled(targets, 2)
        assert by_chance(rmia(shuffled(shadows), nothing, population[:200], population[200:], online=online), nothing)


def test_a_private_recipe_trains_at_the_servers_rate(digits):
    members = [Member("a", 1, 20), Member("b", 2, 30)]
    plan = replace(digits.plan, weighting="declared", cohort=None, learning_rate=None)
    recipe = private_recipe(digits.terms, 10, 256, [20, 30])
    assert recipe.learning_rate == learning_rate(plan, members, digits.start)
    assert recipe.expected_batch == 20
    places = places_of([torch.arange(20), torch.arange(20, 50)], digits.terms, [20, 30])
    assert [(place.expected_batch, place.weight) for place in places] == [(20.0, 20.0), (30.0, 30.0)]
