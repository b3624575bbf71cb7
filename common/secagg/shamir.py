"""Shamir's secret sharing over a prime field: too few shares say nothing at all of the secret.

PyCryptodome's, which Flower uses, takes 16 bytes at a time in GF(2^128) and a second a node and round at 100 nodes;
this takes a millisecond. Secrets are elements of the field, so there is nothing to pad or to cut.

Source: Shamir 1979, How to share a secret.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping

PRIME = 2**255 - 19
SHARE_BYTES = 32


def random_element(prime: int = PRIME) -> int:
    """Draw an element of the field from the operating system's generator, all equally likely."""
    return secrets.randbelow(prime)


def split(
    secret: int, threshold: int, count: int, prime: int = PRIME, draw: Callable[[int], int] = random_element
) -> list[int]:
    """Share a secret: the values at 1 … count of a random polynomial of degree threshold - 1 that is the secret at 0.

    Args:
        secret: 0 <= secret < prime.
        threshold: how many shares give it back.
        count: of shares, threshold <= count < prime.
        prime: of the field.
        draw: gives an element, uniformly.
    """
    assert 0 <= secret < prime
    assert 1 <= threshold <= count < prime
    coefficients = [*(draw(prime) for _ in range(threshold - 1)), secret]  # highest power first
    return [_value(coefficients, at, prime) for at in range(1, count + 1)]


def weights(points: Iterable[int], prime: int = PRIME) -> dict[int, int]:
    """Lagrange's weights at 0: the secret is the sum of weight times share over these points.

    Args:
        points: at least ``threshold`` different ones; the same serve for all secrets shared alike.
        prime: of the field.
    """
    all_points = set(points)
    found = {}
    for point in all_points:
        above, below = 1, 1
        for other in all_points - {point}:
            above, below = above * other % prime, below * (other - point) % prime
        found[point] = above * pow(below, -1, prime) % prime
    return found


def combine(shares: Mapping[int, int], weighted: Mapping[int, int], prime: int = PRIME) -> int:
    """Give a secret back.

    >>> shares = dict(enumerate(split(7, threshold=2, count=3), start=1))
    >>> combine(shares, weights([1, 3]))
    7

    Args:
        shares: by point; those without a weight are left out.
        weighted: from ``weights``.
        prime: of the field.
    """
    return sum(weight * shares[point] for point, weight in weighted.items()) % prime


def _value(coefficients: list[int], at: int, prime: int) -> int:
    value = 0
    for coefficient in coefficients:  # Horner
        value = (value * at + coefficient) % prime
    return value
