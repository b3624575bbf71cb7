"""Heads that are solved from one noised sum: class prototypes, and ridge regression by sufficient statistics.

In place of a head, what nodes are to add up is sent to them: arrays of zeros, from which one step of length 1 along
the noised clipped sum leads to the statistics. So a round of training, masked sums, the ledger and the only way out of
a node serve as they are, and the server solves for a linear head once (``server.solving``).

Let x be a record's features, for a ridge with a 1 behind them, brought down to a norm of at most C, and u = x / C; let
y be its class as a vector with a single 1. What it adds is, laid end to end,

- for prototypes: C a y u^T and C b y, with a^2 + b^2 = 1. As |y u^T| = |y| |u| <= 1, its norm is at most
  C sqrt(a^2 + b^2) = C.
- for a ridge: C a u u^T and C b y u^T. Of the symmetric matrix u u^T the upper triangle is kept, off the diagonal times
  sqrt(2): a vector with just the matrix's Frobenius norm, |u|^2 <= 1. So its norm is at most C again.

Hence adding or removing a record changes the sum by at most C in L2, which is what the accountant needs, whatever the
others hold. A patient adds the mean over its drawn records, of norm at most C by the triangle inequality. A record that
is not finite adds zero. Noise of one deviation stands in each number.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from common.errors import ConfigError
from common.head_kinds import SOLVED_HEADS as SOLVED_HEADS

PARTS = {"prototype": (0.97, math.sqrt(1 - 0.97**2)), "ridge": (0.3, math.sqrt(1 - 0.3**2))}
"""a and b; found on digits (docs/decisions/0023-solved-heads.md)."""
MOST_FEATURES = 2048
"""Of a ridge: it adds up the square of so many numbers."""


class SolvedHead(nn.Module):
    """What stands in a head's place until the server has solved for it.

    Attributes:
        kind: out of ``SOLVED_HEADS``.
        sums: of y u^T, shape (K, D); for a ridge (K, D + 1).
        counts: of y, shape (K,); for prototypes alone.
        products: of u u^T, shape ((D + 1) (D + 2) / 2,); for a ridge alone.
    """

    def __init__(self, kind: str, features: int, classes: int) -> None:
        """Start from zero.

        Raises:
            ConfigError: a ridge over too many features.
        """
        super().__init__()
        self.kind = kind
        if kind == "prototype":
            self.sums = nn.Parameter(torch.zeros(classes, features))
            self.counts = nn.Parameter(torch.zeros(classes))
            return
        if features > MOST_FEATURES:
            raise ConfigError(
                f'model.head = "ridge" adds up products of features, at most {MOST_FEATURES} of them, got {features}; '
                'choose another model.cut, or model.head = "prototype"'
            )
        self.sums = nn.Parameter(torch.zeros(classes, features + 1))
        self.products = nn.Parameter(torch.zeros((features + 1) * (features + 2) // 2))

    def forward(self, features: Tensor) -> Tensor:
        """Refuse: sums predict nothing.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"the sums of a {self.kind} head predict nothing before they are solved; finish the run")


def check_task(kind: str, task: str) -> None:
    """Refuse tasks whose records have no single class.

    Raises:
        ConfigError: another task than classification.
    """
    if task != "classification":
        raise ConfigError(
            f'model.head = "{kind}" needs one class a record, the task is {task!r}; choose model.head = "linear"'
        )


def triangle(size: int) -> tuple[Tensor, Tensor]:
    """Places (2, P) of a symmetric matrix's upper triangle, and the weights (P,) that keep the Frobenius norm.

    >>> places, weights = triangle(2)
    >>> places.tolist(), weights.tolist()
    ([[0, 0, 1], [0, 1, 1]], [1.0, 1.4142135623730951, 1.0])
    """
    places = torch.triu_indices(size, size)
    weights = torch.full((places.shape[1],), math.sqrt(2.0), dtype=torch.float64)
    weights[places[0] == places[1]] = 1.0
    return places, weights


def unpacked(values: Tensor) -> Tensor:
    """The symmetric matrix (d, d), double precision, of which ``values`` is the weighted upper triangle."""
    size = math.isqrt(2 * len(values))  # d (d + 1) = 2 P
    places, weights = triangle(size)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix[places[0], places[1]] = values.double() / weights
    return matrix + matrix.triu(1).T
