"""What noise in integers is worth: Skellam noise of variance v protects at least as well as Gaussian noise of v - 1.

So the accountant of Gaussian noise serves, with its privacy loss distributions, its sampling and its composition, and
epsilon is that of an ``Event``. The proof, for v >= 5 and a change of the integers before noise by z, |z|_2 <= D:

1. One coordinate. Let F be the distribution function of the noise, p(k) = e^-v I_k(v) its probabilities, N_k =
   Phi^-1(F(k)) and h_k = N_k - N_{k-1}; by symmetry h_k = h_{-k}. Noise and noise shifted by z have a monotone
   likelihood ratio (p is log-concave), so that all best tests are thresholds; a threshold at k has errors 1 - F(k - 1)
   and F(k - 1 - z), and N_{k-1-z} >= N_{k-1} - |z| max h. That is the trade-off curve of N(0, 1) and N(|z| max h, 1),
   or above it (in between a curve of a discrete test is a chord, and chords of a convex function lie above it).
2. h has a maximum, below sqrt(2): h_0 = 2 Phi^-1((1 + p(0)) / 2) < 0.5. For k >= 1 let a = N_{k-1} > 0 and S(k) =
   1 - F(k); S(k-1) / S(k) <= 1 + p(k) / p(k+1) <= 1 + (k + 1/2 + sqrt(v^2 + (k + 3/2)^2)) / v (Amos 1974). Up to
   k = 2v that is below 5.7, while h >= sqrt(2) would make it at least Phi(0) / Phi(-sqrt(2)) > 6.3, as the logarithm
   of the normal tail is concave. From 2v on h <= ln(S(k-1) / S(k)) / a < ln(2 + (2k + 2) / v) / a, where a >=
   sqrt(2E + 0.64 - 2 ln 2) - 0.8 by S(k-1) <= exp(-E), E = -v g(k / v) (``skellam_noise.exponent``): below sqrt(2),
   and falling to 0.
3. Where h is largest, at k, neighbouring steps are no longer: p(k-1) p(k+1) / p(k)^2 is at most what three neighbouring
   cells of width h have under the normal density. The second difference of ln of such a cell is -h^2 for the density
   at its middle and at most h^2 (h^2 / 4) for the rest, a variance on an interval of length h (Popoviciu). Hence
   h^2 - h^4 / 4 <= -ln(1 - tau), with tau the largest of tau_k = 1 - I_{k-1}(v) I_{k+1}(v) / I_k(v)^2.
4. tau_k <= 1 / sqrt(v^2 + k^2 - 1/2): y = v I_k'(v) / I_k(v) solves v y' = v^2 + k^2 - y^2, and tau_k = y' / v. Let
   rho = sqrt(v^2 + k^2 - 1/2) and w^2 = v^2 + k^2 - v^2 / rho. For k >= 1, w starts below y at v = 0, and v w' <
   v^2 + k^2 - w^2 for every v, so that w never meets y from below; so y >= w, which is the claim. For k = 0 the same
   holds from v = 5 on, where tau_0 = 0.20187 < 0.20203.
5. So h^2 - h^4 / 4 <= -ln(1 - 1 / sqrt(v^2 - 1/2)) < b - b^2 / 4 with b = 1 / (v - 1), for v >= 5, and h^2 <= b.
6. All coordinates: by Blackwell's theorem a random map takes N(0, 1) and N(|z_j| h, 1) to the j-th coordinate's two
   distributions; side by side these maps take two normal vectors at distance h |z|_2 <= h D to the two noised vectors.
   The same map takes any mixture to that mixture: Poisson sampling, adding or removing a unit, and the choice of all
   other units, are covered as for Gaussian noise (Zhu, Dong and Wang 2022, arXiv:2106.08567), and so is composition.

Only D counts: there is no term for the sensitivity in L1, and no loss by Renyi orders. The published bound (Agarwal,
Kairouz and Liu 2021, arXiv:2110.04995) and sums over the distributions themselves are what tests compare this with.
"""

from __future__ import annotations

import math

from common.errors import PrivacyError
from common.privacy.accountant import Event

LEAST_VARIANCE = 5.0
_DOWN = 1 - 1e-12


def noise_multiplier_of(variance: float, sensitivity: float) -> float:
    """Noise multiplier of Gaussian noise that protects no better than Skellam noise.

    Args:
        variance: v of the noise in each integer.
        sensitivity: D, by which one unit changes the integers before noise, at most, in L2.

    Returns:
        sqrt(v - 1) / D, rounded down.

    Raises:
        PrivacyError: the variance is below ``LEAST_VARIANCE``, where nothing is proven, or D is not positive.
    """
    if not (LEAST_VARIANCE <= variance < math.inf and 0 < sensitivity < math.inf):
        raise PrivacyError(
            f"Skellam noise is accounted for a variance of at least {LEAST_VARIANCE:g} and a positive sensitivity, got "
            f"{variance!r} and {sensitivity!r}; choose a finer scale"
        )
    return math.sqrt(variance - 1) / sensitivity * _DOWN


def variance_for(noise_multiplier: float, sensitivity: float) -> float:
    """The least variance that ``noise_multiplier_of`` finds worth ``noise_multiplier``, rounded up.

    >>> variance_for(2.0, 1000.0) >= 4e6 + 1 and noise_multiplier_of(variance_for(2.0, 1000.0), 1000.0) >= 2.0
    True
    """
    return max(LEAST_VARIANCE, ((noise_multiplier * sensitivity) ** 2 + 1) * (1 + 1e-11))


def skellam_event(variance: float, sensitivity: float, sampling_rate: float, count: int) -> Event:
    """``count`` releases of an integer sum over a Poisson sample under Skellam noise, as the accountant takes them.

    Args:
        variance: v of the noise in each integer, of all whose noise the observer does not know.
        sensitivity: D, in L2, of the integers before noise, one unit added or removed.
        sampling_rate: q.
        count: how many.

    Raises:
        PrivacyError: as ``noise_multiplier_of``.
    """
    return Event(noise_multiplier_of(variance, sensitivity), sampling_rate, count)
