"""Noise and sampling: the right distribution, never the same twice, never infinite."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom, chi2, kstwo, norm

import common.privacy.noise
from common.privacy.noise import Randomness, SeededRandomness, SystemRandomness, normals_from_words, normals_of

FALSE_ALARM = 1e-6  # of each statistical check, a run; what each would catch stands beside its control
DRAWS = 40_000


def seeded(seed: int = 1, node: str = "node-000", round: int = 1, purpose: str = "train") -> SeededRandomness:
    return SeededRandomness(seed, node, round, purpose)


SOURCES: list[Callable[[], Randomness]] = [SystemRandomness, seeded]


def has_std(noise: NDArray[np.float64], std: float) -> bool:
    """Chi-square on the sum of squares; at 40,000 draws a std 5 % too small passes with probability below 1e-9."""
    low, high = chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], df=noise.size)
    return bool(low <= np.square(noise / std).sum() <= high)


def is_normal(noise: NDArray[np.float64]) -> bool:
    """Kolmogorov-Smirnov; at 40,000 draws a uniform of the same std passes with probability below 1e-9."""
    ordered = norm.cdf(np.sort(noise, axis=None))
    grid = np.arange(noise.size + 1) / noise.size
    distance = max(np.max(grid[1:] - ordered), np.max(ordered - grid[:-1]))
    return bool(distance <= kstwo.isf(FALSE_ALARM, noise.size))


def are_unrelated(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Correlation within its normal bound; at 40,000 draws a shared part of 10 % passes with probability below 1e-6."""
    correlation = float((one * other).mean() / (one.std() * other.std()))
    return bool(abs(correlation) * np.sqrt(one.size) <= norm.isf(FALSE_ALARM / 2))


def is_poisson_sample(sizes: NDArray[np.int64], n: int, rate: float) -> bool:
    """Batch sizes are binomial: their mean, and their squared deviations, lie within what chance allows.

    Over 2,000 draws of n = 200 at rate 0.3, batches of a fixed size pass with probability 0 (no variance at all).
    """
    total = int(sizes.sum())
    low, high = binom.ppf([FALSE_ALARM / 4, 1 - FALSE_ALARM / 4], sizes.size * n, rate)
    spread = float(np.square(sizes - n * rate).sum() / (n * rate * (1 - rate)))
    lowest, highest = chi2.ppf([FALSE_ALARM / 4, 1 - FALSE_ALARM / 4], sizes.size)
    return bool(low <= total <= high and lowest <= spread <= highest)


@pytest.mark.parametrize("source", SOURCES)
def test_noise_is_standard_normal(source: Callable[[], Randomness]) -> None:
    noise = source().normal((DRAWS,))
    assert has_std(noise, 1.0)
    assert is_normal(noise)


def test_noise_five_percent_too_small_is_caught() -> None:
    assert not has_std(0.95 * SystemRandomness().normal((DRAWS,)), 1.0)


def test_noise_of_the_right_std_but_another_shape_is_caught() -> None:
    uniform = np.random.default_rng(0).uniform(-np.sqrt(3), np.sqrt(3), DRAWS)
    assert has_std(uniform, 1.0)
    assert not is_normal(uniform)


@pytest.mark.parametrize("source", SOURCES)
def test_cosines_and_sines_of_the_same_pairs_are_unrelated(source: Callable[[], Randomness]) -> None:
    one, other = source().normal((2, DRAWS))
    assert are_unrelated(one, other)
    assert are_unrelated(np.square(one) - 1, np.square(other) - 1)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=8, max_size=64))
def test_noise_is_finite_whatever_the_words(values: list[int]) -> None:
    stream = itertools.cycle(values)
    noise = normals_from_words(lambda n: np.fromiter(stream, dtype=np.uint64, count=n), (7,))
    assert np.isfinite(noise).all()
    assert np.abs(noise).max() < 18


def test_every_normal_is_the_sum_of_four_draws() -> None:
    """One Gaussian alone shows a pattern in its lowest bits; each of the four must count."""
    words = np.random.default_rng(0).integers(2**63, size=(4, 10), dtype=np.uint64)

    def noise(blocks: NDArray[np.uint64]) -> NDArray[np.float64]:
        stream = iter(blocks.reshape(-1))
        drawn = normals_from_words(lambda n: np.fromiter(stream, dtype=np.uint64, count=n), (10,))
        assert next(stream, None) is None
        return drawn

    for block in range(4):
        other = words.copy()
        other[block] += np.uint64(2**62)
        assert (noise(other) != noise(words)).all()


def test_many_normals_are_drawn_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    few = SeededRandomness(0, "node", 1, "train").normal((3, 217))
    monkeypatch.setattr(common.privacy.noise, "SMALL", 0)
    assert np.array_equal(few, SeededRandomness(0, "node", 1, "train").normal((3, 217)))


@pytest.mark.parametrize("size", [0, 1, 2, 7, 650, 2565, 5000, 9001])
def test_normals_of_many_sources_are_those_of_each_by_itself(size: int) -> None:
    """Some thousands are drawn at a time, so that sources of 5,000 go alone and those of 650 in dozens."""
    sources = [SeededRandomness(3, f"node-{number}", 1, "train") for number in range(15)]
    together = [normals_of(sources, size) for _ in range(2)]  # a second draw continues each stream
    for number, twice in enumerate(zip(*together, strict=True)):
        alone = SeededRandomness(3, f"node-{number}", 1, "train")
        assert all(np.array_equal(drawn, alone.normal((size,))) for drawn in twice)


def test_a_source_of_ours_with_normals_of_its_own_gives_those() -> None:
    class Hardened(SystemRandomness):
        def normal(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
            return np.full(shape, 2.0)

    assert np.array_equal(normals_of([Hardened()], 5)[0], np.full(5, 2.0))


def test_sources_of_the_system_share_no_number() -> None:
    drawn = np.concatenate(normals_of([SystemRandomness() for _ in range(40)], 650))
    assert len(np.unique(drawn)) == len(drawn) == 40 * 650
    assert has_std(drawn, 1.0)


def test_a_source_of_another_kind_is_asked_for_what_it_gives() -> None:
    class Ones:
        kind: Literal["seeded"] = "seeded"

        def normal(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
            return np.ones(shape)

        def bernoulli(self, n: int, rate: float) -> NDArray[np.bool_]:
            raise NotImplementedError

    one, other = normals_of([Ones(), SeededRandomness(3, "node", 1, "train")], 5)
    assert np.array_equal(one, np.ones(5))
    assert np.array_equal(other, SeededRandomness(3, "node", 1, "train").normal((5,)))


@pytest.mark.parametrize("word", [0, 2**64 - 1, 2**63])
def test_the_extreme_words_give_finite_noise(word: int) -> None:
    noise = normals_from_words(lambda n: np.full(n, word, dtype=np.uint64), (3,))
    assert np.isfinite(noise).all()


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (2, 0)])
def test_any_shape_is_filled_in_double_precision(source: Callable[[], Randomness], shape: tuple[int, ...]) -> None:
    noise = source().normal(shape)
    assert noise.shape == shape
    assert noise.dtype == np.float64


def test_noise_never_repeats_between_rounds_nodes_purposes_and_seeds() -> None:
    """The same noise in two rounds cancels when one update is subtracted from the other."""
    streams = [
        SeededRandomness(seed, node, round, purpose).normal((DRAWS,))
        for seed, node, round, purpose in itertools.product((1, 2), ("a", "b"), (1, 2), ("train", "metrics"))
    ]
    for one, other in itertools.combinations(streams, 2):
        assert are_unrelated(one, other)


def test_repeated_noise_is_caught() -> None:
    noise = seeded().normal((DRAWS,))
    assert not are_unrelated(noise, seeded().normal((DRAWS,)))
    assert not are_unrelated(noise, 0.1 * noise + seeded(round=2).normal((DRAWS,)))


def test_names_that_join_to_the_same_text_have_streams_of_their_own() -> None:
    one = SeededRandomness(1, "node-1", 11, "train").normal((8,))
    assert not np.array_equal(one, SeededRandomness(1, "node-11", 1, "train").normal((8,)))
    assert not np.array_equal(one, SeededRandomness(1, "node-1", 1, "1train").normal((8,)))


def test_steps_within_a_round_have_fresh_noise() -> None:
    for source in SOURCES:
        randomness = source()
        assert are_unrelated(randomness.normal((DRAWS,)), randomness.normal((DRAWS,)))


def test_a_seeded_run_repeats_itself_and_sampling_does_not_move_its_noise() -> None:
    one, other = seeded(), seeded()
    assert np.array_equal(one.bernoulli(100, 0.5), other.bernoulli(100, 0.5))
    one.bernoulli(1000, 0.5)
    assert np.array_equal(one.normal((5,)), other.normal((5,)))


def test_the_system_source_takes_no_seed_and_never_repeats() -> None:
    with pytest.raises(TypeError):
        SystemRandomness(1)  # type: ignore[call-arg]  # what is tested: that a seed is not even accepted
    assert are_unrelated(SystemRandomness().normal((DRAWS,)), SystemRandomness().normal((DRAWS,)))
    assert (SystemRandomness.kind, SeededRandomness.kind) == ("system", "seeded")


@pytest.mark.parametrize("source", SOURCES)
def test_the_sampler_is_poisson(source: Callable[[], Randomness]) -> None:
    randomness = source()
    flags = np.stack([randomness.bernoulli(200, 0.3) for _ in range(2000)])
    assert is_poisson_sample(flags.sum(axis=1), 200, 0.3)
    assert is_poisson_sample(flags.sum(axis=0), 2000, 0.3)  # each unit's own inclusions are binomial, too


def test_batches_of_a_fixed_size_are_caught() -> None:
    """What a shuffling loader or WeightedRandomSampler gives: the amplification claimed does not hold for it."""
    rng = np.random.default_rng(0)
    flags = np.stack([np.isin(np.arange(200), rng.choice(200, 60, replace=False)) for _ in range(2000)])
    assert not is_poisson_sample(flags.sum(axis=1), 200, 0.3)


def test_a_slightly_higher_rate_is_caught() -> None:
    """0.32 for 0.3 over 400,000 flags passes with probability below 1e-9."""
    randomness = seeded()
    assert not is_poisson_sample(np.array([randomness.bernoulli(200, 0.32).sum() for _ in range(2000)]), 200, 0.3)


@pytest.mark.parametrize("source", SOURCES)
def test_rate_one_takes_everybody_and_rate_zero_nobody(source: Callable[[], Randomness]) -> None:
    assert source().bernoulli(10_000, 1.0).all()
    assert not source().bernoulli(10_000, 0.0).any()
    assert source().bernoulli(0, 0.5).shape == (0,)
