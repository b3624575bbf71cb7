"""Randomness of the mechanism: which units join a batch, and the Gaussian noise of each step.

Everything is made from 64-bit words, so that the two sources differ in where the words come from and nowhere else:
the operating system (a deployed node), or a seed (the local ``simulate`` command, which then reports no guarantee).
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from common.privacy.canonical import canonical_json

DRAWS = 4  # Gaussians summed into one
SMALL = 4096  # pairs of Gaussians that are drawn all four at once
_TO_UNIT = 2.0**-53
_ONE = np.float64(1.0).view(np.uint64)


class Randomness(Protocol):
    """Where a mechanism's randomness comes from."""

    @property
    def kind(self) -> Literal["system", "seeded"]:
        """``"system"`` carries the guarantee; ``"seeded"`` makes it nominal."""

    def normal(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Draw hardened standard normals of this shape, always finite."""

    def bernoulli(self, n: int, rate: float) -> NDArray[np.bool_]:
        """Draw n independent flags, each true with probability ``rate``."""


class WordSource(Protocol):
    """What noise in integers is made from; both sources below are one."""

    def words(self, n: int) -> NDArray[np.uint64]:
        """Draw n uniform 64-bit words."""


class SystemRandomness:
    """The operating system's generator, stretched by ChaCha20; it takes no seed.

    A fresh 256-bit key from ``os.urandom`` for each draw: nothing that a server sends or knows can predict it, and
    no state is left to repeat after a restart or a fork.
    """

    kind: Literal["system"] = "system"

    def normal(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Draw hardened standard normals, shape ``shape``, float64, always finite."""
        return normals_from_words(self.noise_words, shape)

    def noise_words(self, n: int) -> NDArray[np.uint64]:
        """Draw n uniform 64-bit words, as normals are made from."""
        return _system_words(n)

    def bernoulli(self, n: int, rate: float) -> NDArray[np.bool_]:
        """Draw n independent flags, each true with probability ``rate`` (to within 2**-53)."""
        return np.ones(n, dtype=bool) if rate == 1 else flags_from_words(_system_words(n), rate)

    def words(self, n: int) -> NDArray[np.uint64]:
        """Draw n uniform 64-bit words."""
        return _system_words(n)


class SeededRandomness:
    """Reproducible randomness, for simulations only: whoever knows the seed can subtract the noise.

    Args:
        seed: of the run.
        node: name of the node.
        round: number of the round.
        purpose: what is being done, such as ``"train"``.

    Guarantees:
        Streams of different (seed, node, round, purpose) are unrelated, and so are the flags, the normals and the words
        of one.
        Within one instance successive draws continue the stream.
    """

    kind: Literal["seeded"] = "seeded"

    def __init__(self, seed: int, node: str, round: int, purpose: str) -> None:
        self._label = (seed, node, round, purpose)

    @cached_property
    def _noise(self) -> np.random.PCG64DXSM:
        return _stream(*self._label, "noise")

    @cached_property
    def _sampling(self) -> np.random.PCG64DXSM:
        return _stream(*self._label, "sampling")

    @cached_property
    def _words(self) -> np.random.PCG64DXSM:
        return _stream(*self._label, "words")

    def normal(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Draw hardened standard normals, shape ``shape``, float64, always finite."""
        return normals_from_words(self.noise_words, shape)

    def noise_words(self, n: int) -> NDArray[np.uint64]:
        """Draw n uniform 64-bit words, from the stream that normals are made from."""
        return _raw(self._noise, n)

    def bernoulli(self, n: int, rate: float) -> NDArray[np.bool_]:
        """Draw n independent flags, each true with probability ``rate`` (to within 2**-53)."""
        return np.ones(n, dtype=bool) if rate == 1 else flags_from_words(_raw(self._sampling, n), rate)

    def words(self, n: int) -> NDArray[np.uint64]:
        """Draw n uniform 64-bit words, from a stream of their own."""
        return _raw(self._words, n)


class Words(Protocol):
    """A source of uniform 64-bit words."""

    def __call__(self, n: int, /) -> NDArray[np.uint64]:
        """Give the next ``n`` words."""


def normals_of(sources: Sequence[Randomness], size: int) -> list[NDArray[np.float64]]:
    """Draw ``size`` hardened standard normals from each source: those that it gives by itself, to the bit.

    A few hundred normals take longer to ask for than to compute; those of several sources are asked for together. A
    source of any other class, be it one of ours with another ``normal``, is asked by itself.
    """
    words = [each.noise_words for each in sources if type(each) is SystemRandomness or type(each) is SeededRandomness]
    if len(words) < len(sources):
        return [source.normal((size,)) for source in sources]
    some = max(1, 2 * SMALL // max(1, size))
    return [drawn for start in range(0, len(words), some) for drawn in _normals(words[start : start + some], size)]


@contextmanager
def unmoved_by_failure(sources: Sequence[Randomness]) -> Iterator[None]:
    """Draw within this: if it fails, seeded streams give the same noise once more to who asks again."""
    streams = [each._noise for each in sources if type(each) is SeededRandomness]
    before = [stream.state for stream in streams]
    try:
        yield
    except BaseException:
        for stream, state in zip(streams, before, strict=True):
            stream.state = state
        raise


def normals_from_words(words: Words, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Turn uniform words into standard normals, each the sum of four Gaussians over two.

    A single floating-point Gaussian leaves gaps and a pattern in its lowest bits, by which the value before noise can
    be told apart (Mironov 2012); recovering four summed draws from their rounded sum is not practical (Holohan and
    Braghin 2021). Box-Muller gives two independent Gaussians a pair of words, cosine and sine; a sum takes either the
    cosines or the sines of four pairs.

    Args:
        words: the source.
        shape: of the result.

    Returns:
        Float64, finite: uniforms lie within [2**-53, 1 - 2**-53], so that one draw is at most 8.6 in magnitude.

    Source: Mironov 2012, doi:10.1145/2382196.2382264; Holohan and Braghin 2021, arXiv:2107.10138.
    """
    return _normals([words], math.prod(shape))[0].reshape(shape)


def _normals(sources: Sequence[Words], size: int) -> list[NDArray[np.float64]]:
    """``size`` normals from each source."""
    half = (size + 1) // 2
    at_once = DRAWS if half <= SMALL else 1  # what is computed is the same, in fewer calls or in less memory
    total = np.zeros((len(sources), 2, half))
    pairs, scratch = (np.empty((2, len(sources), at_once, half)) for _ in range(2))
    for _ in range(DRAWS // at_once):
        drawn = np.stack([words(at_once * 2 * half).reshape(at_once, 2, half) for words in sources])
        _box_muller(np.moveaxis(drawn, 2, 0), pairs, scratch)
        for draw in range(at_once):
            total += pairs[:, :, draw].swapaxes(0, 1)
    total /= np.sqrt(DRAWS)
    return [each.reshape(-1)[:size] for each in total]


def _box_muller(words: NDArray[np.uint64], pair: NDArray[np.float64], scratch: NDArray[np.float64]) -> None:
    """Turn words into as many normals, in ``pair``; all have shape (2, ...), and ``scratch`` is overwritten.

    The angle is drawn in (0, pi), and a spare bit says above or below.
    """
    radius, angle = _uniforms(words, scratch)
    np.log(radius, out=radius)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    angle *= np.pi
    cosine, sine = pair
    torch.cos(torch.from_numpy(angle), out=torch.from_numpy(cosine))  # twice as fast as NumPy's
    np.subtract(1.0, cosine, out=sine)
    sine *= np.add(1.0, cosine, out=angle)
    np.sqrt(sine, out=sine)
    sine.view(np.uint64)[...] |= words[1] << np.uint64(63)  # the sign bit; _uniforms drops the low bits
    pair *= radius


def flags_from_words(words: NDArray[np.uint64], rate: float) -> NDArray[np.bool_]:
    """Turn words into flags, each true with probability ``rate`` rounded to a multiple of 2**-53; 1 is always true."""
    return (words >> np.uint64(11)).astype(np.float64) * _TO_UNIT < rate


def _uniforms(words: NDArray[np.uint64], out: NDArray[np.float64]) -> NDArray[np.float64]:
    """The top 52 bits, at the middle of their cells: never 0 and never 1.

    As the fraction of a float they make a number from 1 to 2; what is taken away from it leaves no rounding.
    """
    bits = out.view(np.uint64)
    np.right_shift(words, np.uint64(12), out=bits)
    bits |= _ONE
    out -= 1.0 - 2.0**-53
    return out


def _system_words(n: int) -> NDArray[np.uint64]:
    cipher = Cipher(algorithms.ChaCha20(os.urandom(32), bytes(16)), mode=None)
    return np.frombuffer(cipher.encryptor().update(bytes(8 * n)), dtype=np.uint64)


def _stream(seed: int, node: str, round: int, purpose: str, use: str) -> np.random.PCG64DXSM:
    label = {"seed": seed, "node": node, "round": round, "purpose": purpose, "use": use}
    digest = hashlib.sha256(b"fedgraft randomness 1" + canonical_json(label).encode()).digest()
    return np.random.PCG64DXSM(int.from_bytes(digest, "big"))


def _raw(stream: np.random.PCG64DXSM, n: int) -> NDArray[np.uint64]:
    return np.asarray(stream.random_raw(n), dtype=np.uint64)
