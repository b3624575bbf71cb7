"""Membership inference: from a head's confidence on a record, was the record among those that trained it?

Shadow heads, each trained on records drawn like the target's, say what confidence to expect with the record and
without it. Target heads are never shadows: what is measured on them is what an attacker would reach.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.metrics import auc, roc_curve
from torch import Tensor

from common.errors import ConfigError
from simulations.audits.findings import Membership, Vector
from simulations.audits.shadows import Place, Progress, Recipe, train_heads

RATES = (0.01, 0.001)  # false positives at which an attack is quoted
FEW = 64  # heads with a record, or without it, below which one variance serves all records
LEAST = 2  # heads with a record, and as many without it, that a mean needs
OFFLINE_A = 0.3  # of RMIA offline, see ``rmia``

Flags = NDArray[np.bool_]
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Observed:
    """What an attacker sees of some heads, and the truth about them.

    Attributes:
        margins: logit-scaled confidence in each record's own class, ln(p / (1 - p)), shape (M, n).
        included: whether the record trained the head, shape (M, n).

    Raises:
        ConfigError: the shapes differ, or a margin is not finite.
    """

    margins: Scores
    included: Flags

    def __post_init__(self) -> None:
        """Refuse what cannot be scored."""
        if self.margins.shape != self.included.shape or self.margins.ndim != 2 or not np.isfinite(self.margins).all():
            raise ConfigError(
                f"expected finite margins and flags of one shape (M, n), got {self.margins.shape} and "
                f"{self.included.shape}; train the heads again with a smaller learning rate if they diverged"
            )

    def of(self, rows: NDArray[np.int64] | slice) -> Observed:
        """The same heads, and some of the records."""
        return Observed(self.margins[:, rows], self.included[:, rows])

    def split(self, targets: int) -> tuple[Observed, Observed]:
        """The first heads as shadows, and the last ``targets`` of them to be attacked."""
        first = len(self.margins) - targets
        return (
            Observed(self.margins[:first], self.included[:first]),
            Observed(self.margins[first:], self.included[first:]),
        )


def halves(heads: int, records: int, seed: int) -> Tensor:
    """Which records each head may use, each with probability one half, bool (heads, records)."""
    return torch.rand(heads, records, generator=torch.Generator().manual_seed(seed)) < 0.5


def observe(
    features: Tensor,
    targets: Tensor,
    included: Tensor,
    recipe: Recipe,
    *,
    seed: int,
    places: Sequence[Place] | None = None,
    population: tuple[Tensor, Tensor] | None = None,
    progress: Progress | None = None,
) -> Observed:
    """Train a head for each row of ``included`` and keep what it says of each record.

    Args:
        features: shape (n, D).
        targets: shape (n,).
        included: bool, shape (M, n).
        recipe: of the heads.
        seed: as for ``train_heads``, like places and progress.
        places: nodes.
        population: features (z, D) and targets (z,) of records that train no head.
        progress: heads done and to do.

    Returns:
        M heads and n + z records, the population last.
    """
    asked = (features, targets)
    if population is not None:
        asked = (torch.cat([features, population[0]]), torch.cat([targets, population[1]]))

    def confidence(heads: Tensor) -> Tensor:
        return torch.from_numpy(margins(heads, *asked))

    found = train_heads(
        features, targets, included, recipe, seed=seed, places=places, reduce=confidence, progress=progress
    )
    flags = np.zeros(found.shape, dtype=bool)
    flags[:, : len(targets)] = included.numpy()
    return Observed(found.numpy(), flags)


def margins(heads: Tensor, features: Tensor, targets: Tensor) -> Scores:
    """Logit-scaled confidence ln(p / (1 - p)) of each head in each record's own class, shape (M, n), float64.

    Args:
        heads: shape (M, K, D + 1), the last column the bias.
        features: shape (n, D).
        targets: shape (n,), int64.

    Source: Carlini et al. 2022, arXiv:2112.03570, section V-A.
    """
    inputs = torch.cat([features, torch.ones(len(features), 1)], dim=1).to(heads.dtype)
    parts = []
    for part in torch.split(heads, 64):
        logits = (part.reshape(-1, part.shape[2]) @ inputs.T).view(len(part), -1, len(features)).double()
        own = targets[None, None, :].expand(len(part), 1, -1)
        others = logits.scatter(1, own, -math.inf).logsumexp(dim=1)
        parts.append(logits.gather(1, own)[:, 0] - others)
    return torch.cat(parts).numpy()


def lira(shadows: Observed, targets: Observed, *, online: bool = True) -> Membership:
    """Attack target heads by ``lira_scores``; arguments and errors are its, and ``membership``'s."""
    began = time.perf_counter()
    scores = lira_scores(shadows, targets, online=online)
    return membership("lira-online" if online else "lira-offline", scores, targets, len(shadows.margins), began)


def lira_scores(shadows: Observed, targets: Observed, *, online: bool = True) -> Scores:
    """The likelihood-ratio attack, a Gaussian for each record.

    Online it compares the confidences of shadow heads with the record and without it; offline it knows those without
    only, and asks how improbably high the target's confidence is among them. With fewer than ``FEW`` shadow heads of a
    kind per record, one variance serves all records.

    Args:
        shadows: heads of which the attacker knows which records trained them.
        targets: other heads, which are attacked; the same records.
        online: both Gaussians, or the one without the record.

    Returns:
        Shape (M', n), higher for members.

    Raises:
        ConfigError: a record lacks shadow heads with it or without it.

    Source: Carlini et al. 2022, arXiv:2112.03570, algorithm 1.
    """
    without, spread = _gaussians(shadows, ~shadows.included)
    if not online:
        return (targets.margins - without) / spread  # the order of 1 - Pr[a head without it is as confident]
    within, spread_within = _gaussians(shadows, shadows.included)
    ratios: Scores = norm.logpdf(targets.margins, within, spread_within) - norm.logpdf(targets.margins, without, spread)
    return ratios


def _gaussians(shadows: Observed, kind: Flags) -> tuple[Vector, Vector]:
    """Mean and deviation of each record's margins over the heads of one kind, shapes (n,)."""
    counts = kind.sum(axis=0)
    _check_counts(counts)
    means = np.where(kind, shadows.margins, 0.0).sum(axis=0) / counts
    squares = np.where(kind, (shadows.margins - means) ** 2, 0.0).sum(axis=0)
    if counts.min() < FEW:
        squares, counts = np.full_like(squares, squares.sum()), np.full_like(counts, counts.sum() - len(counts) + 1)
    return means, np.sqrt(np.maximum(squares / (counts - 1), 1e-24))


def rmia(
    shadows: Observed,
    targets: Observed,
    population: Scores,
    targets_population: Scores,
    *,
    online: bool = True,
    gamma: float = 1.0,
) -> Membership:
    """Attack target heads by ``rmia_scores``; arguments and errors are its, and ``membership``'s."""
    began = time.perf_counter()
    scores = rmia_scores(shadows, targets, population, targets_population, online=online, gamma=gamma)
    return membership("rmia", scores, targets, len(shadows.margins), began)


def rmia_scores(
    shadows: Observed,
    targets: Observed,
    population: Scores,
    targets_population: Scores,
    *,
    online: bool = True,
    gamma: float = 1.0,
) -> Scores:
    """The robust attack: how many records of the population does the target head favour the record over?

    Confidence in a record, over what shadow heads expect of it, is compared with the same ratio of each population
    record; the score is the fraction of them that it exceeds ``gamma`` times. Population records train no head.
    Offline, what heads with a record would expect is guessed: mean confidence (1 + a) / 2 x without + (1 - a) / 2,
    a = ``OFFLINE_A``, for records and population alike.

    Args:
        shadows: heads of which the attacker knows which records trained them.
        targets: other heads, which are attacked; the same records.
        population: the shadow heads' margins on population records, shape (M, z).
        targets_population: the target heads' margins on them, shape (M', z).
        online: expect the mean of heads with and without the record; or guess it from those without.
        gamma: how much larger the ratio has to be.

    Returns:
        Shape (M', n), between 0 and 1, higher for members.

    Raises:
        ConfigError: a record lacks shadow heads with it or without it.

    Source: Zarifzadeh et al. 2024, arXiv:2312.03262, algorithm 1.
    """
    confidence = _confidence(shadows.margins)
    without, public = _mean(confidence, ~shadows.included), _confidence(population).mean(axis=0)
    if online:
        expected = (without + _mean(confidence, shadows.included)) / 2
    else:
        expected, public = (((1 + OFFLINE_A) * mean + 1 - OFFLINE_A) / 2 for mean in (without, public))
    ratios = _confidence(targets.margins) / expected  # (M', n)
    others = gamma * _confidence(targets_population) / public  # (M', z)
    return np.stack([_fraction_below(own, other) for own, other in zip(ratios, others, strict=True)])


def _fraction_below(ratios: Vector, others: Vector) -> Vector:
    """About the fraction of others that each ratio exceeds; which of two in the same place is larger still counts."""
    return (np.searchsorted(np.sort(others), ratios) + ratios / (1 + ratios)) / (len(others) + 1)


def _confidence(values: Scores) -> Scores:
    """Probability of the own class, never quite zero."""
    return 1 / (1 + np.exp(np.clip(-values, -700, 700)))


def _mean(values: Scores, kind: Flags) -> Vector:
    counts = kind.sum(axis=0)
    _check_counts(counts)
    mean: Vector = np.where(kind, values, 0.0).sum(axis=0) / counts
    return mean


def membership(method: str, scores: Scores, targets: Observed, shadows: int, began: float) -> Membership:
    """Curve, area and each record's own rate from scores of target heads.

    Args:
        method: what gave the scores.
        scores: higher means member, shape (M', n).
        targets: the heads that were attacked.
        shadows: heads that were trained for it, the targets not counted.
        began: ``time.perf_counter()`` at the start.

    Returns:
        Vulnerability is each record's true positive rate where 1 % of all non-members are taken for members; NaN for
        a record that trained no target head.

    Raises:
        ConfigError: all heads and records are members, or none is.
    """
    truth = targets.included
    if truth.all() or not truth.any():
        raise ConfigError("expected target heads with and without the records, got one kind only; include half of them")
    false, true, thresholds = roc_curve(truth.ravel(), scores.ravel(), drop_intermediate=False)
    at = {rate: float(true[false <= rate].max()) for rate in RATES}
    threshold = thresholds[np.flatnonzero(false <= RATES[0])[-1]]
    with np.errstate(invalid="ignore"):
        own = (truth & (scores >= threshold)).sum(axis=0) / truth.sum(axis=0)
    corners, heights, _ = roc_curve(truth.ravel(), scores.ravel())
    return Membership(
        method=method,
        false_positive_rates=corners,
        true_positive_rates=heights,
        area=float(auc(false, true)),
        true_positive_rate_at=at,
        vulnerability=own,
        heads=shadows,
        seconds=time.perf_counter() - began,
    )


def _check_counts(counts: NDArray[np.int_]) -> None:
    if counts.min() < LEAST:
        raise ConfigError(
            f"expected at least {LEAST} shadow heads with each record, and as many without it, got {counts.min()} for "
            "one record; train more heads, or include each record in half of them"
        )
