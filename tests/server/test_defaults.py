"""The default clipping norm and step: from public constants, no larger than the noise allows, each head its own."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.heads import HEADS
from common.privacy.plan import PrivacyTerms
from server.defaults import LARGEST_STEP, NOISE_OF_LINEAR, default_clipping_norm, default_learning_rate, noise_tolerated

TERMS = PrivacyTerms("record", "local", 1.0, 30, 1, 1.6, 3.0, 1e-5)
heads, sizes_ = st.sampled_from(HEADS), st.lists(st.integers(1, 10_000), min_size=1, max_size=20)


def moved_by_noise(rate: float, terms: PrivacyTerms, parameters: int, sizes: list[int]) -> float:
    """Length of all the noise in the head after the last step, of nodes that count by their size."""
    one = rate * terms.clipping_norm * terms.noise_multiplier * math.sqrt(parameters * len(sizes)) / sum(sizes)
    return one * math.sqrt(terms.steps)


@given(heads, st.integers(1, 10**6), sizes_, st.floats(0.1, 50), st.floats(0.01, 100), st.integers(1, 500))
def test_the_step_is_as_long_as_the_noise_of_all_steps_allows(
    head: str, parameters: int, sizes: list[int], sigma: float, norm: float, rounds: int
) -> None:
    terms = replace(TERMS, noise_multiplier=sigma, clipping_norm=norm, rounds=rounds)
    rate = default_learning_rate(terms, parameters, sizes, [float(size) for size in sizes], None, head)
    noise = moved_by_noise(rate, terms, parameters, sizes)
    assert rate * norm <= LARGEST_STEP * (1 + 1e-9)
    assert noise <= noise_tolerated(head) * (1 + 1e-9)
    assert math.isclose(rate * norm, LARGEST_STEP) or math.isclose(noise, noise_tolerated(head))


def test_an_mlp_takes_three_times_the_step_of_a_linear_head_with_as_many_parameters() -> None:
    linear, mlp = (default_learning_rate(TERMS, 17_098, [200] * 2, [1.0] * 2, None, head) for head in ("linear", "mlp"))
    assert mlp == pytest.approx(3 * linear)


def test_where_noise_is_small_no_head_steps_further_than_another() -> None:
    steps = {default_learning_rate(TERMS, 1000, [10**6], [1.0], None, head) for head in HEADS}
    assert steps == {LARGEST_STEP / TERMS.clipping_norm}


def test_of_upper_stages_biases_alone_take_a_linear_heads_step() -> None:
    assert noise_tolerated("upper", "biases") == noise_tolerated("linear") == NOISE_OF_LINEAR
    for train in ("all", "adapters"):
        assert noise_tolerated("upper", train) == noise_tolerated("mlp") == pytest.approx(3 * NOISE_OF_LINEAR)


def test_a_cohort_of_half_the_nodes_has_more_noise_for_each_record() -> None:
    whole, half = (default_learning_rate(TERMS, 10**5, [200] * 8, [1.0] * 8, size) for size in (None, 4))
    assert half == pytest.approx(whole / math.sqrt(2))


def test_the_clipping_norm_is_a_tenth_of_the_length_of_what_the_classifier_is_given() -> None:
    assert default_clipping_norm(256) == pytest.approx(1.6)
    assert default_clipping_norm(256, "spans") == default_clipping_norm(256)


def test_tags_are_clipped_lower_because_most_tokens_are_easy() -> None:
    assert default_clipping_norm(400, "tokens") == pytest.approx(0.6)
