"""From noised statistics to a linear head: prototypes and ridge, steadied by the noise's public size, never by data.

With u a record's features over the clipping norm, prototypes give the logits u m_k - |m_k|^2 / 2, by which the nearest
prototype wins; a ridge gives the targets that it predicts. What is clipped in training is not clipped in prediction:
a linear head cannot, and its scores are no calibrated probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from common.privacy.plan import PrivacyTerms
from common.solved_heads import PARTS, unpacked

COUNT_SPREAD = 0.3
"""How far a class's share is taken to lie from the others', relative to it, where noise hides it."""
LEAST_COUNT = 0.05
"""Of the mean class: no class is taken to be rarer where noise makes it so."""
LEAST_PENALTY = 1e-3
"""Of the ridge without noise, as a part of the largest mean eigenvalue that the products can have."""


def noise_in_mean(terms: PrivacyTerms, weights: Sequence[float], sizes: Sequence[int]) -> float:
    """Standard deviation of each number in the weighted mean of nodes' noised statistics, under local trust.

    Args:
        terms: of the plan.
        weights: of the nodes that replied.
        sizes: that they declare.
    """
    squares = sum((weight / (terms.sampling_rate * size)) ** 2 for weight, size in zip(weights, sizes, strict=True))
    return terms.noise_multiplier * terms.clipping_norm * math.sqrt(squares) / sum(weights)


def solved(kind: str, arrays: Mapping[str, Tensor], noise: float, clipping_norm: float) -> dict[str, Tensor]:
    """The linear head that statistics mean.

    Args:
        kind: out of ``common.solved_heads.SOLVED_HEADS``.
        arrays: statistics a unit, noised, under the names of a ``SolvedHead``.
        noise: standard deviation of the noise in each of their numbers; public.
        clipping_norm: C.

    Returns:
        ``weight`` (K, D) and ``bias`` (K,) of a linear layer over the features, float32.
    """
    mean = {name: value.double() / clipping_norm for name, value in arrays.items()}
    if kind == "prototype":
        weight, bias = _prototypes(mean, noise / clipping_norm)
    else:
        whole = _ridge(mean, noise / clipping_norm)
        weight, bias = whole[:, :-1], whole[:, -1] / clipping_norm  # the constant was scaled with the features
    return {"weight": (weight / clipping_norm).float(), "bias": bias.float()}


def _prototypes(mean: Mapping[str, Tensor], noise: float) -> tuple[Tensor, Tensor]:
    """Posterior means of the class means, and squared distances as expected under the posterior.

    A class mean's coordinates are taken to spread by 1 / D around the mean of all, which is itself shrunk by what of
    its length noise explains; a class's share by ``COUNT_SPREAD`` around 1 / K. Without noise they are the class means.
    """
    first, second = PARTS["prototype"]
    sums, counts = mean["sums"] / first, mean["counts"] / second
    classes, features = sums.shape
    of_sums, of_counts = noise / first, noise / second
    total = float(counts.sum().clamp(min=max(of_counts, 1e-12)))
    counts = _steadied(counts, total / classes, of_counts)
    centre = sums.sum(dim=0) / total
    by_noise = features * classes * (of_sums / total) ** 2
    centre = centre * max(0.0, 1 - by_noise / max(float(centre.square().sum()), 1e-300))
    kept = counts.square() / (counts.square() + features * of_sums**2)
    prototypes = centre + (sums / counts[:, None] - centre) * kept[:, None]
    lengths = prototypes.square().sum(dim=1) + (1 - kept)  # D coordinates of variance (1 - kept) / D
    lengths = lengths.mean() + (lengths - lengths.mean()) * kept.square()
    return prototypes, -lengths / 2


def _steadied(counts: Tensor, expected: float, noise: float) -> Tensor:
    """Class counts, drawn to the mean count as far as noise hides them."""
    spread = (COUNT_SPREAD * expected) ** 2
    drawn = expected + (counts - expected) * spread / (spread + noise**2)
    return drawn.clamp(min=LEAST_COUNT * expected if noise > 0 else 1e-12)


def _ridge(mean: Mapping[str, Tensor], noise: float) -> Tensor:
    """Minimise the mean of |W u - y|^2, plus the penalty times |W|^2, where u ends with the constant.

    The noised products are projected to the nearest positive semi-definite matrix. The penalty is the largest
    eigenvalue that noise alone would give, about sqrt(2 d) standard deviations: a direction counts as far as it stands
    out.
    """
    first, second = PARTS["ridge"]
    products, sums = unpacked(mean["products"]) / first, mean["sums"] / second
    values, directions = torch.linalg.eigh(products)
    values = values.clamp(min=0.0) + penalty(noise, len(products))
    weight: Tensor = (sums @ directions / values) @ directions.T
    return weight


def penalty(noise: float, numbers: int) -> float:
    """Of a ridge over so many numbers a record, the constant included; from public constants only."""
    return noise / PARTS["ridge"][0] * math.sqrt(2 * numbers) + LEAST_PENALTY / numbers
