"""Shares: enough of them give the secret back, too few say nothing of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.secagg.shamir import PRIME, combine, random_element, split, weights


def test_a_published_example() -> None:
    """Wikipedia's: 1234 + 166 x + 94 x^2; its numbers are smaller than any prime that matters here."""
    coefficients = iter([94, 166])
    shares = split(1234, threshold=3, count=6, draw=lambda _: next(coefficients))
    assert shares == [1494, 1942, 2578, 3402, 4414, 5614]
    assert combine({2: 1942, 4: 3402, 5: 4414}, weights([2, 4, 5])) == 1234


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_threshold_of_shares_gives_the_secret_back_and_one_less_does_not(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 12))
    threshold = data.draw(st.integers(2, count))
    secret = data.draw(st.integers(0, PRIME - 1))
    shares = dict(enumerate(split(secret, threshold, count), start=1))
    points = data.draw(st.permutations(sorted(shares)))
    assert combine(shares, weights(points[:threshold])) == secret
    assert combine(shares, weights(points)) == secret
    assert combine(shares, weights(points[: threshold - 1])) != secret  # by chance with probability 2^-255


def next_of(draw: Callable[[], int], _: int) -> int:
    return draw()


@pytest.mark.parametrize(("threshold", "count"), [(2, 3), (3, 3), (3, 4)])
def test_one_share_too_few_is_as_likely_under_every_secret(threshold: int, count: int) -> None:
    """All polynomials over the field of 5 elements, counted: the proof, for a field that can be counted."""
    prime = 5
    for points in combinations(range(1, count + 1), threshold - 1):
        seen = []
        for secret in range(prime):
            drawn = [iter(one).__next__ for one in product(range(prime), repeat=threshold - 1)]
            shares = [split(secret, threshold, count, prime, partial(next_of, one)) for one in drawn]
            seen.append(Counter(tuple(given[point - 1] for point in points) for given in shares))
        assert all(counts == seen[0] for counts in seen)
        assert len(seen[0]) == prime ** (threshold - 1)


def test_the_control_a_threshold_of_shares_tells_secrets_apart() -> None:
    one, other = (split(secret, 2, 3, 5, lambda _: 3)[:2] for secret in (1, 2))
    assert one != other


def test_elements_are_in_the_field_and_not_the_same() -> None:
    drawn = {random_element() for _ in range(100)}
    assert len(drawn) == 100
    assert all(0 <= value < PRIME for value in drawn)
