"""What a node may release of a candidate backbone, and how the sum over nodes is scored; public constants only.

One record's features are projected by a public matrix to at most 64 numbers and brought to norm 1. What it adds is then

- to the matrix of products, x x^T, whose Frobenius norm is |x|^2 <= 1. The matrix is symmetric: its upper triangle is
  released, off the diagonal times sqrt(2), a vector with just that norm;
- to the classes' sums, y x^T, of norm |y| |x| <= B, with B the public bound on a record's targets (1 for classes);
- to the classes' counts, y, of norm |y| <= B.

Multiplied by the weights a, b / B and c / B with a^2 + b^2 + c^2 = 1 and laid end to end, these are one vector of norm
at most sqrt(a^2 + b^2 + c^2) = 1. A record of several tokens adds their weighted sum with weights of at most 1 in all,
which by the triangle inequality is bounded likewise. So adding or removing one record changes the sum by at most 1 in
L2, and Gaussian noise of standard deviation sigma is the mechanism that the accountant knows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from common.errors import PrivacyError
from common.messages import Offer
from common.privacy.canonical import canonical_json, sha256_hex
from common.scored_targets import Rows, has_constant, scored_targets, target_bound

Values = NDArray[np.float64]

SENSITIVITY = 1.0
WEIGHTS = (0.55, 0.75, math.sqrt(1 - 0.55**2 - 0.75**2))
"""Of products, sums and counts; their squares sum to 1. Counts are large sums, and need the least."""

MOST_WIDTH = 64
ERROR_DRAWS = 32
LEAST_RATE = 0.01
"""A class is taken to be no rarer: its noised count may be zero, or below."""
LEAST_PENALTY = 1e-3
"""Of the ridge, as a part of the mean variance in a direction, where there is hardly any noise."""
NOISE_UNIT = 0
"""Less the candidate's number, the round whose stream of seeded noise a release takes: no round of training has it."""


@dataclass(frozen=True)
class Sketch:
    """The public projection.

    Attributes:
        seed: of the matrix; public.
        width: d, numbers of a projected record, 1 to 64.

    Raises:
        PrivacyError: another width.
    """

    seed: int
    width: int

    def __post_init__(self) -> None:
        if not 1 <= self.width <= MOST_WIDTH:
            raise PrivacyError(
                f"features are projected to 1 to {MOST_WIDTH} numbers, got {self.width}; refuse the message"
            )


@dataclass(frozen=True)
class StatisticsTask:
    """Ask a node for the noised statistics of one candidate.

    Attributes:
        offer: the candidate as a model, and the terms: as many rounds as there are candidates, one step each, all
            records, clipping norm ``SENSITIVITY``.
        candidate: 1-based.
        sketch: the projection.
    """

    offer: Offer
    candidate: int
    sketch: Sketch

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of what is asked: another candidate or projection under this number is another charge."""
        model = canonical_json(self.offer.model.model_dump(mode="json"))
        return sha256_hex("fedgraft statistics 1", model, str(self.sketch.seed), str(self.sketch.width))


def projection(features: int, sketch: Sketch) -> Values:
    """A random matrix with orthonormal columns, shape (D, d), the same for everybody who has the seed.

    Args:
        features: D, at least d.
        sketch: seed and width.

    Raises:
        PrivacyError: D is smaller than d.
    """
    if features < sketch.width:
        raise PrivacyError(f"expected at least {sketch.width} features to project, got {features}; refuse the message")
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(sketch.seed, spawn_key=(features,))))
    columns, triangle = np.linalg.qr(generator.standard_normal((features, sketch.width)))
    signed: Values = columns * np.sign(np.diag(triangle))
    return signed


def bounded(features: NDArray[np.floating], matrix: Values) -> Values:
    """Project rows (M, D) and bring each to norm 1; one that is not finite, or is zero, becomes zero.

    Guarantees:
        No norm is above 1 by more than rounding, whatever the rows are.
    """
    with np.errstate(all="ignore"):
        # a product of its own for each row: in one large product, a row's last bits depend on the others
        projected = np.matmul(np.asarray(features, np.float64)[:, None, :], matrix)[:, 0, :]
        norms = np.linalg.norm(projected, axis=1, keepdims=True)
        scaled: Values = np.where(np.isfinite(norms) & (norms > 0), projected / norms, 0.0)
    return np.nan_to_num(scaled, nan=0.0, posinf=0.0, neginf=0.0)


def bounded_sums(rows: Rows, matrix: Values, bound: float) -> Values:
    """What the rows add up to, as ``pack`` lays it out; exact, and so sensitive.

    Args:
        rows: of whole records.
        matrix: from ``projection``.
        bound: on the norm of a row's targets, see ``common.scored_targets.target_bound``.
    """
    x = bounded(rows.features, matrix)
    weighted = x * rows.weights[:, None]
    return pack(weighted.T @ x, rows.targets.T @ weighted, rows.weights @ rows.targets, bound)


def packed_size(width: int, task: str, classes: int) -> int:
    """P, how many numbers are released of a candidate."""
    targets = scored_targets(task, classes) + has_constant(task)
    return width * (width + 1) // 2 + targets * width + targets


def pack(products: Values, sums: Values, counts: Values, bound: float) -> Values:
    """Lay (d, d) symmetric products, (K, d) sums and (K,) counts end to end, each times its weight, shape (P,)."""
    upper = np.triu_indices(len(products))
    triangle = products[upper] * np.where(upper[0] == upper[1], 1.0, math.sqrt(2))
    a, b, c = WEIGHTS
    return np.concatenate([a * triangle, b / bound * sums.ravel(), c / bound * counts])


def unpack(values: Values, width: int, targets: int, bound: float) -> tuple[Values, Values, Values]:
    """Undo ``pack``: products (d, d), sums (K, d) and counts (K,)."""
    a, b, c = WEIGHTS
    upper = np.triu_indices(width)
    triangle, sums, counts = np.split(values, [len(upper[0]), len(upper[0]) + targets * width])
    products = np.zeros((width, width))
    products[upper] = triangle / a / np.where(upper[0] == upper[1], 1.0, math.sqrt(2))
    products = products + np.triu(products, 1).T
    return products, sums.reshape(targets, width) * bound / b, counts * bound / c


def noised_score(
    values: Values, deviation: float, declared_size: int, sketch: Sketch, task: str, classes: int
) -> float:
    """Score the sum of all nodes' noised statistics: the share of the labels' variance that a ridge explains.

    The ridge penalty is what the noise can add to the largest eigenvalue of the products, so that a direction counts
    as far as it stands out of the noise; what noise adds to the explained variance on average is taken off.

    Args:
        values: sum over nodes of what ``pack`` lays out, shape (P,).
        deviation: standard deviation of the noise in each of them, all nodes' together.
        declared_size: of all nodes together; public.
        sketch: the projection.
        task: what is learnt.
        classes: how many there are.

    Returns:
        Near 1 where the projected features tell the labels apart, near 0 (or below, by noise) where they do not.
    """
    scored, bound = scored_targets(task, classes), target_bound(task, classes)
    products, sums, counts = unpack(values, sketch.width, scored + has_constant(task), bound)
    means = sums[-1] if has_constant(task) else sums.sum(axis=0)
    sums, rates, mean = sums[:scored] / declared_size, counts[:scored] / declared_size, means / declared_size
    rates = np.clip(rates, LEAST_RATE, 1 - LEAST_RATE)
    covariance = products / declared_size - np.outer(mean, mean)
    spread, directions = np.linalg.eigh(covariance)
    noise = deviation / declared_size
    penalty = noise / WEIGHTS[0] * math.sqrt(2 * sketch.width) + LEAST_PENALTY / sketch.width
    shared = ((sums - np.outer(rates, mean)) @ directions) ** 2 - (noise * bound / WEIGHTS[1]) ** 2
    explained = (shared / (np.maximum(spread, 0.0) + penalty)).sum()
    return float(explained / (rates * (1 - rates)).sum())


def noised_error(
    values: Values, deviation: float, declared_size: int, sketch: Sketch, task: str, classes: int
) -> float:
    """How far noise moves a score: the deviation of the score when as much noise is added once more.

    Args and units are those of ``noised_score``. It is computed from what was released, and costs no privacy.
    """
    generator = np.random.Generator(np.random.PCG64(0))
    moved = [values + deviation * generator.standard_normal(len(values)) for _ in range(ERROR_DRAWS)]
    return float(np.std([noised_score(each, deviation, declared_size, sketch, task, classes) for each in moved]))
