"""What a transferability score adds up: rows of features with their targets, and what is public about those."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Rows:
    """What is added up.

    Attributes:
        features: shape (M, d), float32.
        targets: shape (M, K), float64, the scored ones first, see ``scored_targets``.
        weights: shape (M,), > 0; those of one record sum to at most 1.
    """

    features: NDArray[np.float32]
    targets: NDArray[np.float64]
    weights: NDArray[np.float64]


def scored_targets(task: str, classes: int) -> int:
    """How many of the targets are scored; where labels do not exclude each other, a constant follows them."""
    return 2 if task == "spans" else classes


def has_constant(task: str) -> bool:
    """Whether the last target is a constant 1; where there is none, the targets of a row sum to 1."""
    return task in ("multilabel", "spans")


def target_bound(task: str, classes: int) -> float:
    """The largest L2 norm that a row's targets can have, whatever the record: a public constant."""
    return math.sqrt(scored_targets(task, classes) + 1) if has_constant(task) else 1.0
