"""What clipping is made of: the factor of each unit, and the sum that results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.errors import PrivacyError


@dataclass(frozen=True)
class ClippedSum:
    """Sum over a batch of clipped per-unit gradients; sensitive until noise is added.

    Attributes:
        values: trainable parameter name -> sum, in the parameter's shape, float64.
        clipping_norm: C that each unit's gradient was clipped to.
        non_finite: how many units had a gradient that was not finite, and so counted zero (sensitive: for the
            node's own log).
    """

    values: Mapping[str, Tensor]
    clipping_norm: float
    non_finite: int


def clip_factors(norms: Tensor, clipping_norm: float) -> tuple[Tensor, Tensor]:
    """min(1, C / norm) of each unit, zero where the norm is not finite; and where it is finite."""
    lengths = norms.numpy()
    finite = np.isfinite(lengths)
    with np.errstate(all="ignore"):  # of a length of zero, C / 0 is as good as any
        factors = np.where(finite, np.minimum(clipping_norm / lengths, 1.0), 0.0)
    return torch.from_numpy(factors), torch.from_numpy(finite)


def unreduced(losses: Tensor, units: int) -> Tensor:
    """The losses, if there is one for each unit.

    Raises:
        PrivacyError: there is not.
    """
    if losses.shape != (units,):
        raise PrivacyError(
            f"the loss must be unreduced, one value for each of {units} units, got shape {tuple(losses.shape)}; "
            "use reduction='none', or clipping bounds nothing"
        )
    return losses
