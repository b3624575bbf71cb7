"""Masks look uniform, cancel to the last bit, and are AES in counter mode."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chi2

from common.errors import PrivacyError
from common.secagg.masks import from_ring, plus, stream, to_ring
from common.secagg.session import SumTerms

FALSE_ALARM = 1e-6  # of a key chosen blindly; the keys are fixed, so that the test always does the same
KEYS = [bytes([number]) * 32 for number in range(3)]


def terms_of(bits: int, length: int) -> SumTerms:
    return SumTerms(nodes=3, dropouts=0, colluders=0, modulus_bits=bits, length=length)


def looks_uniform(words: NDArray[np.unsignedinteger], bits: int) -> bool:
    """Chi-square over the 256 values of the upper eight bits and of the lower eight."""
    for part in (words >> np.asarray(bits - 8, words.dtype), words):
        counts = np.bincount((part & np.asarray(255, words.dtype)).astype(int), minlength=256)
        expected = len(words) / 256
        statistic = float(((counts - expected) ** 2 / expected).sum())
        low, high = chi2.ppf([FALSE_ALARM / 4, 1 - FALSE_ALARM / 4], df=255)
        if not low <= statistic <= high:
            return False
    return True


@pytest.mark.parametrize("bits", [8, 20, 32, 47, 64])
def test_a_masked_vector_looks_uniform(bits: int) -> None:
    terms = terms_of(bits, 100_000)
    values = to_ring(np.arange(100_000) % 7 - 3, terms)
    assert looks_uniform(plus(values, terms, added=KEYS[:2], subtracted=KEYS[2:]), bits)


def test_the_control_without_a_mask_does_not() -> None:
    terms = terms_of(20, 100_000)
    values = to_ring(np.arange(100_000) % 7 - 3, terms)
    assert not looks_uniform(values, 20)
    assert not looks_uniform(plus(values, terms, added=KEYS[:1], subtracted=KEYS[:1]), 20)


def test_the_control_one_value_in_two_hundred_left_out_is_seen() -> None:
    """As a generator would that draws below 2^b - 1 instead of 2^b, at eight bits."""
    words = stream(KEYS[0], terms_of(8, 100_000))
    assert not looks_uniform(words[words != 255], 8)


def test_a_stream_is_aes_of_a_counter() -> None:
    """Against the block cipher itself."""
    blocks = b"".join(counter.to_bytes(16, "big") for counter in range(5))
    expected = Cipher(algorithms.AES256(KEYS[1]), modes.ECB()).encryptor().update(blocks)  # the oracle
    assert stream(KEYS[1], terms_of(64, 10)).tobytes() == expected
    assert stream(KEYS[1], terms_of(32, 20)).tobytes() == expected


@given(st.integers(8, 64), st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5))
def test_whole_numbers_go_in_and_out_modulo_the_modulus(bits: int, values: list[int]) -> None:
    terms = terms_of(bits, len(values))
    found = from_ring(to_ring(np.array(values, np.int64), terms), terms)
    half = 2 ** (bits - 1)
    assert found.tolist() == [(value + half) % 2**bits - half for value in values]


@given(st.integers(8, 64), st.integers(0, 2**32))
def test_masks_that_are_added_and_subtracted_cancel_exactly(bits: int, seed: int) -> None:
    terms = terms_of(bits, 9)
    values = to_ring(np.random.default_rng(seed).integers(-100, 100, 9), terms)
    masked = plus(values, terms, added=KEYS)
    assert not np.array_equal(masked, values)
    assert np.array_equal(plus(masked, terms, subtracted=reversed(KEYS)), values)


@pytest.mark.parametrize("values", [np.zeros(4), np.zeros(5, np.int64), np.zeros((2, 2), np.int64)])
def test_other_vectors_than_agreed_are_not_masked(values: NDArray[np.int64]) -> None:
    with pytest.raises(PrivacyError, match="whole numbers of 64 bits"):
        to_ring(values, terms_of(20, 4))
