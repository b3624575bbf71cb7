"""Learning rate and clipping norm where the configuration says "auto"."""

from __future__ import annotations

import math


def default_clipping_norm(features: int) -> float:
    """Clipping norm of a record's gradient, for features of unit variance."""
    return 0.1 * math.sqrt(features)


def default_learning_rate(features: int, clipping_norm: float, noise_multiplier: float) -> float:
    """Learning rate of the local steps."""
    return 1.0 / clipping_norm
