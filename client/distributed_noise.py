"""A node's share of a global step: its clipped sum, rounded to integers, with its share of the noise, modulo 2^b.

What leaves this module is still to be masked: one node's share protects nothing until it is summed with the others'.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from client.clipping import ClippedSum
from common.errors import PrivacyError
from common.privacy.noise import WordSource
from common.privacy.shares import NoiseShares
from common.privacy.skellam_noise import skellam_from_words


def noised_share(clipped: ClippedSum, shares: NoiseShares, randomness: WordSource) -> NDArray[np.int64]:
    """Round a clipped sum and add the node's share of Skellam noise, whatever the batch was: empty ones are noised too.

    Args:
        clipped: the node's sum over the batch that Poisson sampling drew, double precision.
        shares: gives scale, range and noise, all public constants.
        randomness: noise is drawn from it.

    Returns:
        Shape (d,), parameters end to end in the order of names; 0 to 2^b - 1. To be masked, then summed.

    Guarantees:
        Adding or removing one unit changes the integers before noise by at most ``shares.sensitivity`` in L2.

    Raises:
        PrivacyError: the sum was clipped to another norm, is not finite, or has another size or precision.
    """
    if clipped.clipping_norm != shares.clipping_norm:
        raise PrivacyError(
            f"gradients must be clipped to the agreed norm {shares.clipping_norm:g}, got {clipped.clipping_norm:g}; "
            "pass that norm"
        )
    parts = [clipped.values[name].flatten() for name in sorted(clipped.values)]
    noise = skellam_from_words(randomness.words, shares.numbers, shares.share_variance)
    return shares.residues(rounded(torch.cat(parts).numpy(), shares) + noise)


def rounded(values: NDArray[np.float64], shares: NoiseShares) -> NDArray[np.int64]:
    """The nearest integers to scale x values, values cut to the agreed bound; sensitive until noise is added.

    Raises:
        PrivacyError: they are not ``shares.numbers`` finite numbers in double precision.
    """
    if values.shape != (shares.numbers,) or values.dtype != np.float64 or not np.isfinite(values).all():
        raise PrivacyError(
            f"a share is made of {shares.numbers} finite numbers in double precision, got {values.dtype} of shape "
            f"{values.shape}; give a clipped sum of the agreed head"
        )
    return np.rint(np.clip(values, -shares.bound, shares.bound) * shares.scale).astype(np.int64)
