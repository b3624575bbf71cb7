"""Masks: one-time streams of AES-256 in counter mode, added to integers modulo 2^b."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from common.errors import PrivacyError
from common.secagg.session import SumTerms

Words = NDArray[np.unsignedinteger[Any]]


def word_type(terms: SumTerms) -> np.dtype[np.unsignedinteger[Any]]:
    """What residues are kept and sent in: little-endian, 4 bytes up to 2^32, else 8."""
    return np.dtype("<u4") if terms.modulus_bits <= 32 else np.dtype("<u8")


def stream(key: bytes, terms: SumTerms) -> Words:
    """A mask: residues that nobody without the key can tell from uniform ones.

    Args:
        key: 32 bytes, used for this stream and for nothing else, so that the counter may begin at 0.
        terms: give length and modulus.
    """
    counter = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    kind = word_type(terms)
    return reduced(np.frombuffer(counter.update(bytes(terms.length * kind.itemsize)), dtype=kind), terms)


def reduced(words: Words, terms: SumTerms) -> Words:
    """Take words, which wrap modulo 2^32 or 2^64, modulo 2^b."""
    return words & words.dtype.type(2**terms.modulus_bits - 1)


def to_ring(values: NDArray[np.int64], terms: SumTerms) -> Words:
    """Residues of whole numbers, negative ones too; what does not fit wraps, as a stop would tell of it.

    Raises:
        PrivacyError: shape or type are not the agreed ones.
    """
    if values.dtype != np.int64 or values.shape != (terms.length,):
        raise PrivacyError(
            f"expected {terms.length} whole numbers of 64 bits to sum, got shape {values.shape} of {values.dtype}; "
            "send nothing"
        )
    return reduced(values.view(np.uint64).astype(word_type(terms)), terms)


def from_ring(words: Words, terms: SumTerms) -> NDArray[np.int64]:
    """The whole numbers of least magnitude with these residues: -2^(b-1) … 2^(b-1) - 1."""
    shift = np.int64(64 - terms.modulus_bits)
    return np.left_shift(words.astype(np.uint64).view(np.int64), shift) >> shift


def plus(words: Words, terms: SumTerms, *, added: Iterable[bytes] = (), subtracted: Iterable[bytes] = ()) -> Words:
    """Residues with the streams of some keys added and of others subtracted."""
    total = words.copy()
    for key in added:
        total += stream(key, terms)
    for key in subtracted:
        total -= stream(key, terms)
    return reduced(total, terms)
