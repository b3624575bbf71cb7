"""Noise in shares: the public constants by which nodes turn their clipped sums into noised integers modulo 2^b.

A node multiplies its clipped sum by a power of two, s, rounds to the nearest integers, adds its share of Skellam noise
and keeps what is left modulo 2^b; only the sum over the nodes is ever seen. What one unit changes, D, is that of the
*rounded sum*, since a node rounds once, not once a unit. Let S and S' be the sums with and without the unit. Double
precision moves each number of s S by at most e = 2^-52 s C B^2, for B units of at most C, and |round(x) - x| <= 1/2:

    |round(s S) - round(s S')|_2 <= s C + (1 + 2e) sqrt(d) = D,

for whatever the others hold. The bounds on randomly rounded vectors in the literature are for a vector that is itself
the unit; a rounded sum whose norm was restored would bound nothing about one unit in it. sqrt(d) is paid instead, and
the scale is chosen so fine that it costs less than ``MOST_EXTRA`` of the noise. (The box that bounds the range is a
projection on a convex set, which brings no two vectors further apart.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from common.errors import PrivacyError
from common.privacy.accountant import Event, epsilon_pld
from common.privacy.plan import NOISE_RANGE
from common.privacy.skellam import noise_multiplier_of, skellam_event, variance_for
from common.privacy.skellam_noise import LARGEST_VARIANCE, LEAST_VARIANCE, exponent

MOST_EXTRA = 0.01
"""Of the standard deviation, that rounding may cost."""
MOST_BITS = 62
OVERFLOW = 2.0**-40
MOST_NODES, MOST_NUMBERS = 10_000, 2**32

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Cohort:
    """Who takes part, and the worst that is allowed for.

    Attributes:
        nodes: n, that start a round.
        dropouts: most that may be lost; a round with fewer than n - dropouts survivors is discarded.
        colluders: most that may tell others their shares of the noise; a node knows its own, so that a claim against
            other nodes needs at least one.

    Raises:
        PrivacyError: nobody is left whose noise counts.
    """

    nodes: int
    dropouts: int
    colluders: int

    def __post_init__(self) -> None:
        """Refuse a cohort without noise."""
        if not (0 < self.nodes <= MOST_NODES and self.dropouts >= 0 and self.colluders >= 0 and self.honest >= 1):
            raise PrivacyError(
                f"shares of noise need at least one node that is neither lost nor colludes (and at most {MOST_NODES}), "
                f"got {self.nodes} nodes with {self.dropouts} drop-outs and {self.colluders} colluders allowed for; "
                "allow for fewer or wait for more nodes"
            )

    @property
    def survivors(self) -> int:
        """The fewest whose sum is opened."""
        return self.nodes - self.dropouts

    @property
    def honest(self) -> int:
        """The fewest survivors whose noise a coalition does not know."""
        return self.survivors - self.colluders


@dataclass(frozen=True)
class NoiseShares:
    """What all nodes and the server agree on before the first round; ``share_out`` chooses it.

    Attributes:
        cohort: who takes part.
        noise_multiplier: sigma of the Gaussian noise, over C, than which the honest survivors' noise protects no worse.
        clipping_norm: C, L2 bound of what one unit adds to a node's sum.
        numbers: d, in a sum.
        bound: of each number of a node's sum; larger ones are cut to it, before rounding.
        largest_batch: most units in a node's sum; only the error of floating-point sums depends on it.
        scale_exponent: the scale is 2 to this power.
        modulus_bits: b.

    Raises:
        PrivacyError: constants that promise nothing.
    """

    cohort: Cohort
    noise_multiplier: float
    clipping_norm: float
    numbers: int
    bound: float
    largest_batch: int
    scale_exponent: int
    modulus_bits: int

    def __post_init__(self) -> None:
        """Refuse what cannot be right."""
        _require("noise_multiplier", self.noise_multiplier, *NOISE_RANGE)
        _require("clipping_norm", self.clipping_norm, 1e-12, 1e12)
        _require("numbers", self.numbers, 1, MOST_NUMBERS)
        _require("bound", self.bound, 1e-12, 1e24)
        _require("largest_batch", self.largest_batch, 1, 2**40)
        _require("scale_exponent", self.scale_exponent, -100, 100)
        _require("modulus_bits", self.modulus_bits, 2, MOST_BITS)
        _require("scale x bound", self.scale * self.bound, 0, 2.0**MOST_BITS)
        _require("variance of a share", self.share_variance, LEAST_VARIANCE, LARGEST_VARIANCE)

    @property
    def scale(self) -> float:
        """s, a power of two, so that multiplying rounds nothing."""
        return 2.0**self.scale_exponent

    @cached_property
    def sensitivity(self) -> float:
        """D, by which one unit changes a node's integers before noise, in L2."""
        error = self.scale * self.clipping_norm * self.largest_batch**2 * 2.0**-52
        return self.scale * self.clipping_norm * (1 + 1e-9) + (1 + 2 * error) * math.sqrt(self.numbers)

    @cached_property
    def share_variance(self) -> float:
        """Variance of the Skellam noise that each node adds to each integer."""
        return variance_for(self.noise_multiplier, self.sensitivity) / self.cohort.honest

    @property
    def extra_noise(self) -> float:
        """What rounding costs: standard deviation of the honest noise over that of Gaussian noise, less 1."""
        deviation = math.sqrt(self.share_variance * self.cohort.honest) / self.scale
        return deviation / (self.noise_multiplier * self.clipping_norm) - 1

    def overflow_probability(self, sums: int) -> float:
        """Bound the probability that any number of any of so many sums leaves the modular range.

        Every signal is taken to be as large as it can be, and all nodes to survive; Chernoff's bound for the noise.
        An overflow is no loss of privacy, as taking a remainder comes after the noise; it makes a number wrong.
        """
        room = 2.0 ** (self.modulus_bits - 1) - 1 - self._largest_signal
        if room <= 0:
            return 1.0
        variance = self.cohort.nodes * self.share_variance
        tail = 2 * math.exp(variance * float(exponent(np.array([room / variance]))[0]))
        return min(1.0, sums * self.numbers * tail)

    @property
    def _largest_signal(self) -> float:
        return self.cohort.nodes * (math.floor(self.scale * self.bound) + 1.0)

    def residues(self, integers: Integers) -> Integers:
        """Remainders modulo 2^b, 0 to 2^b - 1."""
        return integers & np.int64(2**self.modulus_bits - 1)

    def add(self, parts: list[Integers]) -> Integers:
        """The sum of residues, modulo 2^b."""
        total = np.zeros(self.numbers, dtype=np.int64)
        for part in parts:
            total = self.residues(total + part)  # two residues fit 63 bits
        return total

    def opened(self, residues: Integers) -> Floats:
        """The noised sum over nodes that residues stand for: what lies nearest to zero, divided by the scale."""
        half = np.int64(2 ** (self.modulus_bits - 1))
        return (self.residues(residues + half) - half).astype(np.float64) / self.scale


def share_out(
    cohort: Cohort,
    noise_multiplier: float,
    clipping_norm: float,
    numbers: int,
    largest_batch: int,
    sums: int,
    bound: float | None = None,
) -> NoiseShares:
    """Choose the scale, so that rounding costs little, and then the modulus, so that overflow is out of the question.

    Args:
        cohort: who takes part.
        noise_multiplier: sigma, as for one trusted server.
        clipping_norm: C.
        numbers: d.
        largest_batch: most units in a node's sum (see ``largest_batch_of``).
        sums: T, in the whole run.
        bound: of each number of a node's sum; without one, C times the largest batch, which is never passed.

    Returns:
        Constants with ``extra_noise`` of at most ``MOST_EXTRA`` and an overflow probability, over the run, of at most
        ``OVERFLOW``.

    Raises:
        PrivacyError: no scale does that within ``MOST_BITS`` bits.
    """
    limit = clipping_norm * largest_batch if bound is None else bound
    rounding = 2 * math.sqrt(numbers) / (MOST_EXTRA * clipping_norm)
    drawable = 2 * math.sqrt(LEAST_VARIANCE * cohort.honest) / (noise_multiplier * clipping_norm)
    first = math.ceil(math.log2(max(rounding, drawable))) - 1
    for power in range(first, first + 4):
        if 2.0**power * limit >= 2.0**MOST_BITS:
            break
        widest = NoiseShares(
            cohort, noise_multiplier, clipping_norm, numbers, limit, largest_batch, power, modulus_bits=MOST_BITS
        )
        if widest.extra_noise <= MOST_EXTRA and widest.overflow_probability(sums) <= OVERFLOW:
            sizes = (replace(widest, modulus_bits=bits) for bits in range(2, MOST_BITS + 1))
            return next(shares for shares in sizes if shares.overflow_probability(sums) <= OVERFLOW)
    raise PrivacyError(
        f"expected a scale for {numbers} numbers and batches of {largest_batch} that fits {MOST_BITS} bits, found "
        "none; expect smaller batches"
    )


def largest_batch_of(units: int, sampling_rate: float, sums: int) -> int:
    """Units that a Poisson sample out of ``units`` passes in none of ``sums`` draws, but for a chance of 2^-40.

    >>> largest_batch_of(1000, 1.0, 30), 100 < largest_batch_of(1000, 0.1, 30) < 200
    (1000, True)
    """
    from scipy.stats import binom

    return max(1, int(binom.isf(OVERFLOW / sums, units, sampling_rate))) if sampling_rate < 1 else units


@dataclass(frozen=True)
class Figures:
    """Two epsilons of the same run, at the same delta.

    Attributes:
        against_server: against the server, and nodes up to the colluders allowed for, who know every sum and their own
            noise: that of the honest survivors counts.
        against_model: against whoever knows no node's noise and sees the final model, or every sum: the noise of all
            survivors counts, if all of them added their shares.
    """

    against_server: float
    against_model: float


def figures(shares: NoiseShares, sampling_rate: float, sums: int, delta: float) -> Figures:
    """Bound epsilon after so many sums, at the drop-outs that are worst.

    Args:
        shares: what was agreed.
        sampling_rate: q, the same at every node.
        sums: noised sums opened.
        delta: 0 < delta < 1.

    Returns:
        Upper bounds; drop-outs that did not happen would make them smaller.
    """
    everybody = shares.share_variance * shares.cohort.survivors
    return Figures(
        epsilon_pld([server_event(shares, sampling_rate, sums)], delta),
        epsilon_pld([skellam_event(everybody, shares.sensitivity, sampling_rate, sums)], delta),
    )


def server_event(shares: NoiseShares, sampling_rate: float, sums: int) -> Event:
    """What a node charges to its ledger: the plan's own noise multiplier, which the honest noise is worth.

    Raises:
        PrivacyError: it is not.
    """
    honest = noise_multiplier_of(shares.share_variance * shares.cohort.honest, shares.sensitivity)
    if honest < shares.noise_multiplier:
        raise PrivacyError(
            f"honest shares must be worth a noise multiplier of {shares.noise_multiplier:g}, got {honest:g}; "
            "make the shares with share_out"
        )
    return Event(shares.noise_multiplier, sampling_rate, sums)


def _require(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise PrivacyError(f"shares of noise need {name} between {low:g} and {high:g}, got {value!r}; choose another")
