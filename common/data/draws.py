"""Reproducible draws that divide a data set; privacy noise has generators of its own elsewhere."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from common.errors import ConfigError


class Purpose(IntEnum):
    """What random numbers are for; two purposes never share a stream."""

    HOLD_OUT = 1
    PARTITION = 2


def generator(seed: int, purpose: Purpose) -> np.random.Generator:
    """A fresh PCG64 generator of this seed and purpose.

    Raises:
        ConfigError: ``seed`` is negative.
    """
    if seed < 0:
        raise ConfigError(f"federation.seed must be 0 or more, got {seed}; choose another")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(purpose,))))
