"""Skellam integers: the right probabilities, from uniform words alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ive
from scipy.stats import chi2

from common.errors import PrivacyError
from common.privacy.noise import SeededRandomness, SystemRandomness, WordSource
from common.privacy.skellam_noise import (
    LARGEST_VARIANCE,
    LEAST_VARIANCE,
    REACH,
    exponent,
    log_ratio,
    skellam_from_words,
)

FALSE_ALARM = 1e-6  # of each statistical check, a run
DRAWS = 40_000
BINS = 50


def seeded(seed: int = 1, round: int = 1) -> SeededRandomness:
    return SeededRandomness(seed, "node-000", round, "train")


SOURCES: list[Callable[[], WordSource]] = [SystemRandomness, seeded]


def probabilities(variance: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """All integers within ten standard deviations, and e^-v I_k(v), by another library than the sampler's formula."""
    reach = math.ceil(10 * math.sqrt(variance))
    k = np.arange(-reach, reach + 1)
    return k, ive(np.abs(k), variance)


def is_skellam(drawn: NDArray[np.int64], variance: float) -> bool:
    """Chi-square on bins of about equal probability.

    At 40,000 draws and 50 bins a variance 10 % too small passes with probability below 1e-7.
    """
    k, p = probabilities(variance)
    edges = k[np.searchsorted(np.cumsum(p), np.arange(1, BINS) / BINS)]
    expected = np.bincount(np.searchsorted(edges, k, side="right"), weights=p, minlength=BINS) * drawn.size
    seen = np.bincount(np.searchsorted(edges, drawn, side="right"), minlength=BINS)
    return bool((np.square(seen - expected) / expected).sum() <= chi2.isf(FALSE_ALARM, BINS - 1))


@pytest.mark.parametrize("variance", [LEAST_VARIANCE, 2e10])
@pytest.mark.parametrize("deviations", [1.0, 8.0])
def test_probabilities_are_right_to_thirteen_digits(variance: float, deviations: float) -> None:
    """Against the integral of e^(v (cos x - 1)) cos(k x), to 60 digits."""
    k = round(deviations * math.sqrt(variance))
    with mpmath.workdps(60):
        width = 16 / mpmath.sqrt(variance)  # beyond it the integrand is below 1e-55

        def integral(order: int) -> mpmath.mpf:
            pieces = [width * i / 16 for i in range(17)]
            return mpmath.quad(
                lambda x: mpmath.exp(-2 * variance * mpmath.sin(x / 2) ** 2) * mpmath.cos(order * x), pieces
            )

        exact = mpmath.log(integral(k) / integral(0))
        assert abs(float(log_ratio(np.array([float(k)]), variance)[0] - exact)) < 1e-13


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("variance", [LEAST_VARIANCE, 1e5])
def test_noise_has_the_claimed_distribution(source: Callable[[], WordSource], variance: float) -> None:
    assert is_skellam(skellam_from_words(source().words, DRAWS, variance), variance)


def test_noise_of_another_variance_is_caught() -> None:
    assert not is_skellam(skellam_from_words(seeded().words, DRAWS, 0.9e5), 1e5)


def test_noise_of_the_right_variance_but_another_shape_is_caught() -> None:
    uniform = np.random.default_rng(0).integers(-547, 548, DRAWS)  # variance 1e5
    assert not is_skellam(uniform, 1e5)


def test_single_integers_have_their_own_probabilities() -> None:
    """Bins one wide near the middle: nothing of the blocks shows. Twice as many even as odd numbers are caught."""
    drawn = skellam_from_words(seeded(2).words, 400_000, LEAST_VARIANCE)

    def fits(drawn: NDArray[np.int64]) -> bool:
        k, p = probabilities(LEAST_VARIANCE)
        near = np.abs(k) <= 100
        expected = p[near] * drawn.size
        seen = np.bincount(drawn[np.abs(drawn) <= 100] + 100, minlength=201)
        return bool((np.square(seen - expected) / expected).sum() <= chi2.isf(FALSE_ALARM, 201))

    assert fits(drawn)
    assert not fits(np.where(np.random.default_rng(0).random(drawn.size) < 1 / 3, drawn & ~1, drawn))


@pytest.mark.parametrize("variance", [LEAST_VARIANCE, 1e12, LARGEST_VARIANCE])
def test_every_variance_allowed_gives_integers_within_reach(variance: float) -> None:
    drawn = skellam_from_words(seeded().words, 1000, variance)
    assert drawn.dtype == np.int64
    assert np.abs(drawn).max() <= (REACH + 0.3) * math.sqrt(variance)
    assert 0.8 < drawn.std() / math.sqrt(variance) < 1.2


@pytest.mark.parametrize("size", [0, 1, 7])
def test_any_size_is_filled(size: int) -> None:
    assert skellam_from_words(SystemRandomness().words, size, 1e6).shape == (size,)


@pytest.mark.parametrize("variance", [0.0, LEAST_VARIANCE - 1, 2 * LARGEST_VARIANCE, math.nan, math.inf])
def test_a_variance_that_cannot_be_drawn_well_is_refused(variance: float) -> None:
    with pytest.raises(PrivacyError, match="variance"):
        skellam_from_words(SystemRandomness().words, 3, variance)


@pytest.mark.parametrize("source", SOURCES)
def test_noise_never_repeats(source: Callable[[], WordSource]) -> None:
    randomness = source()
    one, other = (skellam_from_words(randomness.words, 1000, 1e8) for _ in range(2))
    assert np.mean(one == other) < 0.1


def test_a_seed_repeats_itself_and_other_draws_do_not_move_it() -> None:
    one, other, third = seeded(), seeded(), seeded(round=2)
    one.normal((100,))
    one.bernoulli(100, 0.5)
    same = skellam_from_words(one.words, 100, 1e8)
    assert np.array_equal(same, skellam_from_words(other.words, 100, 1e8))
    assert not np.array_equal(same, skellam_from_words(third.words, 100, 1e8))


def test_the_tail_is_bounded_from_above() -> None:
    k, p = probabilities(LEAST_VARIANCE)
    tails = np.cumsum(p[::-1])[::-1]  # P(X >= k)
    bound = np.exp(LEAST_VARIANCE * exponent(k / LEAST_VARIANCE))
    assert (tails[k >= 0] <= bound[k >= 0]).all()
